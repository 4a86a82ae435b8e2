"""Learning processes whose clients keep a control variate between rounds.

Scaffold and FedDyn have one form: client i corrects its gradients by its own
variate c_i, changes it after training, and the server's variate c follows as
c <- c + (1 / N) sum over the cohort of the changes, so that it stays the mean
of the variates of all N clients. What differs is a `Rule`.
"""

import collections
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_federated as tff

from research.aggregators import bits, rejection
from research.algorithms import local_training, stateful

Tensors = local_training.Tensors


class Rule(NamedTuple):
  """What distinguishes an algorithm; all tensors are in the model's order.

  Attributes:
    correct: From a step's gradients, its weights, the server's weights, c_i and
      c to the gradients that the client's optimizer gets.
    change: From a client's model update (before minus after), its number of
      steps, c and its learning rate to what is added to c_i.
    descend: From the mean model update and the new c to what the server's
      optimizer takes as its gradient.
    is_broadcast: Whether clients get c and send their change; where not, c is
      empty for `correct` and `change`, and the server knows the change.
  """

  correct: Callable[[Tensors, Tensors, Tensors, Tensors, Tensors], Tensors]
  change: Callable[[Tensors, tf.Tensor, Tensors, tf.Tensor], Tensors]
  descend: Callable[[Tensors, Tensors], Tensors]
  is_broadcast: bool


def _flat(structure: Any) -> Tensors:
  return tuple(tf.nest.flatten(structure))


def _client_update(
  model_fn, types, hparams_type, optimizer, rule, loop_implementation
):
  """A computation: a client's steps, and the change of its variate."""
  trainable = types.weights.trainable
  control_type = trainable if rule.is_broadcast else tff.to_type(())

  @tff.tensorflow.computation(
    hparams_type, control_type, types.weights, types.data, trainable
  )
  def client_update(hparams, control, initial_weights, dataset, own):
    model = model_fn()

    @tf.function
    def update(hparams, control, initial_weights, dataset, own):
      anchor = _flat(initial_weights.trainable)
      own_flat, control = _flat(own), _flat(control)

      def step(state, weights, gradients, unused_batch):
        corrected = rule.correct(gradients, weights, anchor, own_flat, control)
        return optimizer.next(state, weights, corrected)

      state = optimizer.initialize(
        local_training.specs(model.trainable_variables)
      )
      result = local_training.train(
        model,
        initial_weights,
        dataset,
        step=step,
        optimizer_state=optimizer.set_hparams(state, hparams),
        weighting=tff.learning.ClientWeighting.UNIFORM,
        loop_implementation=loop_implementation,
      )
      change = rule.change(
        _flat(result.update),
        result.num_steps,
        control,
        hparams['learning_rate'],
      )
      counts = (result.weight > 0) & (result.num_steps > 0)
      change = local_training.unless_rejected(
        counts & local_training.all_finite(change), change
      )
      advanced = tf.nest.map_structure(tf.add, own_flat, change)
      sent = tff.learning.templates.ClientResult(
        update=result.update, update_weight=result.weight
      )
      return (
        sent,
        result.metrics,
        tf.nest.pack_sequence_as(own, advanced),
        tf.nest.pack_sequence_as(own, change),
      )

    return update(hparams, control, initial_weights, dataset, own)

  return client_update


def _server_steps(trainable: tff.Type, rule: Rule, num_clients: int):
  """Computations: the advance of c, and the direction of the server's step."""

  @tff.tensorflow.computation(trainable, trainable)
  def advance(control, total_change):
    return tf.nest.map_structure(
      lambda c, d: c + d / num_clients, control, total_change
    )

  @tff.tensorflow.computation(trainable, trainable)
  def descend(mean_update, control):
    direction = rule.descend(_flat(mean_update), _flat(control))
    return tf.nest.pack_sequence_as(mean_update, direction)

  return advance, descend


def build(
  model_fn: local_training.ModelFn,
  rule: Rule,
  *,
  client_optimizer: tff.learning.optimizers.Optimizer,
  server_optimizer: tff.learning.optimizers.Optimizer,
  loop_implementation: tff.learning.LoopImplementation,
  num_clients: int,
) -> stateful.StatefulProcess:
  """Builds a process; the mean of the model updates is uniform.

  A client whose update is not finite is left out, and keeps its variate.

  Args:
    model_fn: Builds the model anew at each call.
    rule: The algorithm.
    client_optimizer: Runs on the clients; its state starts anew each round.
    server_optimizer: Takes what the rule says as its gradient.
    loop_implementation: How a client iterates over its batches.
    num_clients: N, all clients that may ever be asked.

  Returns:
    A process whose metrics count the rejected clients.

  Raises:
    UnsuitableError: If there is no client.
  """
  if num_clients < 1:
    raise local_training.UnsuitableError(
      f'num_clients is {num_clients}; it must be at least 1.'
    )
  types = local_training.model_types(model_fn)
  trainable = types.weights.trainable
  hparams = local_training.hparams_of(client_optimizer)

  @tff.federated_computation
  def initial_hparams():
    return tff.federated_value(hparams, tff.SERVER)

  hparams_type = initial_hparams.type_signature.result.member
  client_update = _client_update(
    model_fn, types, hparams_type, client_optimizer, rule, loop_implementation
  )
  advance, descend = _server_steps(trainable, rule, num_clients)
  copies = 2 if rule.is_broadcast else 1
  aggregation = bits.MeasureUploadFactory(
    rejection.mean(), lambda update: copies * bits.of_type(update)
  ).create(trainable, tff.TensorType(tf.float32.as_numpy_dtype))
  finalizer = tff.learning.templates.build_apply_optimizer_finalizer(
    server_optimizer, types.weights
  )

  @tff.tensorflow.computation
  def zeros():
    return tf.nest.map_structure(
      lambda v: tf.zeros(v.shape, v.dtype),
      tff.learning.models.ModelWeights.from_model(model_fn()).trainable,
    )

  @tff.tensorflow.computation
  def initial_weights():
    return tff.learning.models.ModelWeights.from_model(model_fn())

  @tff.federated_computation
  def initialize():
    work = (
      initial_hparams(),
      tff.federated_eval(zeros, tff.SERVER),
    )
    return tff.federated_zip(
      tff.learning.templates.LearningAlgorithmState(
        global_model_weights=tff.federated_eval(initial_weights, tff.SERVER),
        distributor=tff.federated_value((), tff.SERVER),
        client_work=tff.federated_zip(work),
        aggregator=aggregation.initialize(),
        finalizer=finalizer.initialize(),
      )
    )

  @tff.federated_computation(
    initialize.type_signature.result,
    tff.FederatedType(types.data, tff.CLIENTS),
    tff.FederatedType(trainable, tff.CLIENTS),
  )
  def next_fn(state, data, client_states):
    weights = state.global_model_weights
    hparams, control = state.client_work
    nothing = tff.federated_value((), tff.SERVER)
    sent, metrics, advanced, change = tff.federated_map(
      client_update,
      (
        tff.federated_broadcast(hparams),
        tff.federated_broadcast(control if rule.is_broadcast else nothing),
        tff.federated_broadcast(weights),
        data,
        client_states,
      ),
    )
    mean = aggregation.next(state.aggregator, sent.update, sent.update_weight)
    control = tff.federated_map(advance, (control, tff.federated_sum(change)))
    finalized = finalizer.next(
      state.finalizer,
      weights,
      tff.federated_map(descend, (mean.result, control)),
    )
    new_state = tff.learning.templates.LearningAlgorithmState(
      global_model_weights=finalized.result,
      distributor=state.distributor,
      client_work=tff.federated_zip((hparams, control)),
      aggregator=mean.state,
      finalizer=finalized.state,
    )
    train = collections.OrderedDict(train=types.aggregate_metrics(metrics))
    measurements = collections.OrderedDict(
      distributor=state.distributor,
      client_work=tff.federated_zip(train),
      aggregator=mean.measurements,
      finalizer=finalized.measurements,
    )
    return stateful.Output(
      tff.federated_zip(new_state), tff.federated_zip(measurements), advanced
    )

  return stateful.StatefulProcess(
    initialize, next_fn, zeros, *_accessors(initialize, finalizer)
  )


def _accessors(
  initialize: tff.Computation,
  finalizer: tff.learning.templates.FinalizerProcess,
) -> tuple[tff.Computation, tff.Computation, tff.Computation]:
  """Getters and a setter for parts of the state, as TFF's processes have."""
  state_type = initialize.type_signature.result.member

  @tff.tensorflow.computation(state_type)
  def get_model_weights(state):
    return state.global_model_weights

  @tff.tensorflow.computation(state_type)
  def get_hparams(state):
    return collections.OrderedDict(
      client_work=state.client_work[0],
      finalizer=finalizer.get_hparams(state.finalizer),
    )

  @tff.tensorflow.computation(state_type, get_hparams.type_signature.result)
  def set_hparams(state, hparams):
    return tff.learning.templates.LearningAlgorithmState(
      global_model_weights=state.global_model_weights,
      distributor=state.distributor,
      client_work=(hparams['client_work'], state.client_work[1]),
      aggregator=state.aggregator,
      finalizer=finalizer.set_hparams(state.finalizer, hparams['finalizer']),
    )

  return get_model_weights, get_hparams, set_hparams
