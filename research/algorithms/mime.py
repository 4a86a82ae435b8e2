"""Mime and MimeLite: every client steps with the server's optimizer state.

Karimireddy et al. 2021, "Breaking the centralized barrier for cross-device
federated learning", arXiv:2008.03606, Algorithm 1.
"""

import collections

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from research.aggregators import bits, rejection
from research.algorithms import local_training


def _full_gradient(model_fn, types, weighting, loop_implementation):
  """A computation: a client's mean gradient at the server's weights."""

  @tff.tensorflow.computation(types.weights, types.data)
  def full_gradient(weights, dataset):
    model = model_fn()

    @tf.function
    def mean_gradient(weights, dataset):
      local_training.assign(model, weights)

      def add(state, batch):
        total, num_examples = state
        gradients, batch_examples = local_training.gradient(model, batch)
        total = tuple(
          t + g * tf.cast(batch_examples, g.dtype)
          for t, g in zip(total, gradients, strict=True)
        )
        return total, num_examples + batch_examples

      zeros = tuple(
        tf.zeros(v.shape, v.dtype) for v in model.trainable_variables
      )
      total, num_examples = local_training.reduce_batches(
        add, dataset, (zeros, tf.constant(0, tf.int64)), loop_implementation
      )
      mean = tf.nest.map_structure(
        lambda t: tf.math.divide_no_nan(t, tf.cast(num_examples, t.dtype)),
        total,
      )
      is_accepted = local_training.all_finite(mean)
      mean = local_training.unless_rejected(is_accepted, mean)
      return (
        tf.nest.pack_sequence_as(weights.trainable, mean),
        local_training.client_weight(weighting, num_examples, is_accepted),
      )

    return mean_gradient(weights, dataset)

  return full_gradient


def _client_update(
  model_fn, types, state_type, optimizer, weighting, loop_implementation, lite
):
  """A computation: a client's steps with the server's optimizer state."""

  @tff.tensorflow.computation(
    state_type, types.weights.trainable, types.weights, types.data
  )
  def client_update(state, control, initial_weights, dataset):
    model = model_fn()
    anchor = None if lite else model_fn()

    @tf.function
    def update(state, control, initial_weights, dataset):
      control = tuple(tf.nest.flatten(control))

      def corrected(gradients, batch):
        if lite:
          return gradients
        at_server, _ = local_training.gradient(anchor, batch)
        return tuple(
          g - g_x + c
          for g, g_x, c in zip(gradients, at_server, control, strict=True)
        )

      def step(count, weights, gradients, batch):
        _, weights = optimizer.next(state, weights, corrected(gradients, batch))
        return count, weights

      if not lite:
        local_training.assign(anchor, initial_weights)
      result = local_training.train(
        model,
        initial_weights,
        dataset,
        step=step,
        optimizer_state=tf.constant(0),
        weighting=weighting,
        loop_implementation=loop_implementation,
      )
      sent = tff.learning.templates.ClientResult(
        update=result.update, update_weight=result.weight
      )
      return sent, result.metrics

    return update(state, control, initial_weights, dataset)

  return client_update


def _build_client_work(
  model_fn, optimizer, weighting, loop_implementation, lite
) -> tff.learning.templates.ClientWorkProcess:
  types = local_training.model_types(model_fn)
  trainable = types.weights.trainable
  gradient_mean = tff.aggregators.MeanFactory().create(
    trainable, tff.TensorType(np.float32)
  )

  @tff.tensorflow.computation
  def initial_optimizer_state():
    variables = model_fn().trainable_variables
    return optimizer.initialize(local_training.specs(variables))

  @tff.federated_computation
  def initialize():
    state = tff.federated_eval(initial_optimizer_state, tff.SERVER)
    return tff.federated_zip((state, gradient_mean.initialize()))

  state_type = initial_optimizer_state.type_signature.result

  @tff.tensorflow.computation(state_type, trainable)
  def update_state(state, gradient):
    gradient = tuple(tf.nest.flatten(gradient))
    weights = tuple(tf.zeros_like(g) for g in gradient)
    updated, _ = optimizer.next(state, weights, gradient)
    # A cohort that is rejected as a whole has no mean.
    return tf.cond(
      local_training.all_finite(gradient), lambda: updated, lambda: state
    )

  full_gradient = _full_gradient(
    model_fn, types, weighting, loop_implementation
  )
  client_update = _client_update(
    model_fn, types, state_type, optimizer, weighting, loop_implementation, lite
  )

  @tff.federated_computation(
    initialize.type_signature.result,
    tff.FederatedType(types.weights, tff.CLIENTS),
    tff.FederatedType(types.data, tff.CLIENTS),
  )
  def next_fn(state, weights, data):
    optimizer_state, mean_state = state
    gradient, gradient_weight = tff.federated_map(
      full_gradient, (weights, data)
    )
    control = gradient_mean.next(mean_state, gradient, gradient_weight)
    sent, metrics = tff.federated_map(
      client_update,
      (
        tff.federated_broadcast(optimizer_state),
        tff.federated_broadcast(control.result),
        weights,
        data,
      ),
    )
    new_state = tff.federated_map(
      update_state, (optimizer_state, control.result)
    )
    measurements = collections.OrderedDict(
      train=types.aggregate_metrics(metrics)
    )
    return tff.templates.MeasuredProcessOutput(
      tff.federated_zip((new_state, control.state)),
      sent,
      tff.federated_zip(measurements),
    )

  whole_type = initialize.type_signature.result.member

  @tff.tensorflow.computation(whole_type)
  def get_hparams(state):
    return optimizer.get_hparams(state[0])

  @tff.tensorflow.computation(whole_type, get_hparams.type_signature.result)
  def set_hparams(state, hparams):
    return optimizer.set_hparams(state[0], hparams), state[1]

  return tff.learning.templates.ClientWorkProcess(
    initialize,
    next_fn,
    get_hparams_fn=get_hparams,
    set_hparams_fn=set_hparams,
  )


def build(
  model_fn: local_training.ModelFn,
  *,
  client_optimizer: tff.learning.optimizers.Optimizer,
  server_optimizer: tff.learning.optimizers.Optimizer,
  client_weighting: tff.learning.ClientWeighting,
  loop_implementation: tff.learning.LoopImplementation,
  lite: bool,
) -> tff.learning.templates.LearningProcess:
  """Builds Mime or MimeLite.

  One round: the clients send their mean gradients at the server's weights x,
  whose mean is c. Then each starts at y = x and steps with the base optimizer
  in the server's state s, which it leaves as it is: along g(y) - g(x) + c in
  Mime, where both gradients are of the step's batch, and along g(y) in
  MimeLite. The server averages the clients' weights, and advances s by one step
  with c. Mime thus asks its clients twice per round.

  TFF's optimizers stand for the paper's (U, V): momentum is v <- rho v + g,
  without the paper's factor 1 - rho.

  Args:
    model_fn: Builds the model anew at each call.
    client_optimizer: The paper's base algorithm B.
    server_optimizer: Takes the mean model update as its gradient; SGD with
      learning rate 1 is the paper's average.
    client_weighting: The weights of both means; UNIFORM is the paper's.
    loop_implementation: How a client iterates over its batches.
    lite: MimeLite.

  Returns:
    A process whose metrics count the rejected clients.
  """
  work = _build_client_work(
    model_fn, client_optimizer, client_weighting, loop_implementation, lite
  )
  # A client sends its model update and, before that, its mean gradient.
  aggregator = bits.MeasureUploadFactory(
    rejection.mean(), lambda update: 2 * bits.of_type(update)
  )
  return local_training.compose(model_fn, work, aggregator, server_optimizer)
