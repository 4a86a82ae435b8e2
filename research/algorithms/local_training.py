"""A client's local training, for algorithms that change its steps or report.

TFF's client work is fixed to FedAvg's ClientUpdate (McMahan et al. 2017,
arXiv:1602.05629, Algorithm 1). Here the gradient of each step can be corrected
and what is sent can be normalised, with all else as in TFF: a client whose
update is not finite sends zeros of weight zero and has no part in the metrics.
"""

import collections
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_federated as tff

ModelFn = Callable[[], tff.learning.models.VariableModel]
Tensors = tuple[tf.Tensor, ...]
# From (optimizer state, weights, gradients, batch) to (state, weights).
Step = Callable[[Any, Tensors, Tensors, Any], tuple[Any, Tensors]]


class UnsuitableError(ValueError):
  """An algorithm can't work with a setting."""


class Result(NamedTuple):
  """What local training of one client gives.

  Attributes:
    update: Trainable weights before minus after, in the model's structure;
      zeros if the client is rejected.
    weight: float32, the client's weight in means; 0 if it is rejected.
    num_steps: int64, batches trained on, over all epochs.
    statistics: Float variables that are not trained, before minus after; zeros
      if the client is rejected.
    metrics: Unfinalized training metrics; zeros if the client is rejected.
  """

  update: Any
  weight: tf.Tensor
  num_steps: tf.Tensor
  statistics: Tensors
  metrics: Any


def reduce_batches(
  reduce_fn: Callable[[Any, Any], Any],
  dataset: tf.data.Dataset,
  initial_state: Any,
  loop_implementation: tff.learning.LoopImplementation,
) -> Any:
  """Folds batches into a state; to be called inside a tf.function."""
  if loop_implementation is tff.learning.LoopImplementation.DATASET_REDUCE:
    return dataset.reduce(initial_state, reduce_fn)
  state = initial_state
  for batch in iter(dataset):
    state = reduce_fn(state, batch)
  return state


def assign(model: tff.learning.models.VariableModel, weights: Any) -> None:
  """Sets the weights of a model."""
  variables = tff.learning.models.ModelWeights.from_model(model)
  tf.nest.map_structure(lambda v, w: v.assign(w), variables, weights)


def gradient(
  model: tff.learning.models.VariableModel,
  batch: Any,
  variables: Sequence[tf.Variable] | None = None,
) -> tuple[Tensors, tf.Tensor]:
  """The gradient of a batch's mean loss.

  Args:
    model: At the weights in question; its metrics count the batch.
    batch: Of its input spec.
    variables: Some of its trainable variables; None is all of them.

  Returns:
    The gradient by these variables, and the batch's examples as int64.
  """
  if variables is None:
    variables = model.trainable_variables
  with tf.GradientTape() as tape:
    output = model.forward_pass(batch, training=True)
  gradients = tape.gradient(output.loss, tuple(variables))
  if output.num_examples is None:
    return gradients, tf.shape(output.predictions, out_type=tf.int64)[0]
  return gradients, tf.cast(output.num_examples, tf.int64)


def all_finite(structure: Any) -> tf.Tensor:
  """Whether no tensor of a structure has a NaN or an infinity."""
  return tf.reduce_all(
    [
      tf.reduce_all(tf.math.is_finite(tensor))
      for tensor in tf.nest.flatten(structure)
    ]
  )


def unless_rejected(is_accepted: tf.Tensor, structure: Any) -> Any:
  """The tensors of a structure, or zeros in their place."""
  return tf.cond(
    is_accepted,
    lambda: structure,
    lambda: tf.nest.map_structure(tf.zeros_like, structure),
  )


def client_weight(
  weighting: tff.learning.ClientWeighting,
  num_examples: tf.Tensor,
  is_accepted: tf.Tensor,
) -> tf.Tensor:
  """A client's weight in means: its examples or 1, and 0 if rejected."""
  uniform = weighting is tff.learning.ClientWeighting.UNIFORM
  weight = 1.0 if uniform else tf.cast(num_examples, tf.float32)
  return tf.cast(is_accepted, tf.float32) * weight


def train(
  model: tff.learning.models.VariableModel,
  initial_weights: tff.learning.models.ModelWeights,
  dataset: tf.data.Dataset,
  *,
  step: Step,
  optimizer_state: Any,
  weighting: tff.learning.ClientWeighting,
  loop_implementation: tff.learning.LoopImplementation,
) -> Result:
  """Trains a model on a client's batches; to be called inside a tf.function.

  Args:
    model: Gets the weights, and its metrics count every batch.
    initial_weights: The server's weights.
    dataset: The client's batches, over all epochs.
    step: Makes one local step.
    optimizer_state: Before the first step.
    weighting: Decides the result's weight.
    loop_implementation: How the batches are iterated over.

  Returns:
    The result.
  """
  assign(model, initial_weights)
  variables = tuple(model.trainable_variables)

  def reduce_fn(state, batch):
    optimizer_state, num_examples, num_steps = state
    gradients, batch_examples = gradient(model, batch)
    weights = tuple(variable.read_value() for variable in variables)
    optimizer_state, weights = step(optimizer_state, weights, gradients, batch)
    for variable, weight in zip(variables, weights, strict=True):
      variable.assign(weight)
    return optimizer_state, num_examples + batch_examples, num_steps + 1

  zero = tf.constant(0, tf.int64)
  _, num_examples, num_steps = reduce_batches(
    reduce_fn, dataset, (optimizer_state, zero, zero), loop_implementation
  )
  trained = tff.learning.models.ModelWeights.from_model(model)
  update = tf.nest.map_structure(
    tf.subtract, initial_weights.trainable, trained.trainable
  )
  statistics = tuple(
    before - after
    for before, after in zip(
      initial_weights.non_trainable, trained.non_trainable, strict=True
    )
    if before.dtype.is_floating
  )
  is_accepted = all_finite((update, statistics))
  return Result(
    update=unless_rejected(is_accepted, update),
    weight=client_weight(weighting, num_examples, is_accepted),
    num_steps=num_steps,
    statistics=unless_rejected(is_accepted, statistics),
    metrics=unless_rejected(
      is_accepted, model.report_local_unfinalized_metrics()
    ),
  )


class ModelTypes(NamedTuple):
  """TFF's types of a model.

  Attributes:
    weights: Of `tff.learning.models.ModelWeights`.
    data: Of a client's sequence of batches.
    aggregate_metrics: Computation from the clients' unfinalized metrics to
      metrics at the server.
  """

  weights: tff.Type
  data: tff.Type
  aggregate_metrics: Any


def model_types(model_fn: ModelFn) -> ModelTypes:
  """Builds a model once, outside the caller's graph, for its types."""
  with tf.Graph().as_default():
    model = model_fn()
    aggregate = tff.learning.metrics.sum_then_finalize(
      model.metric_finalizers()
    )
  return ModelTypes(
    weights=tff.learning.models.weights_type_from_model(model),
    data=tff.SequenceType(tff.types.tensorflow_to_type(model.input_spec)),
    aggregate_metrics=aggregate,
  )


def specs(trainable: Sequence[Any]) -> tuple[tf.TensorSpec, ...]:
  """Specs of tensors or variables, as an optimizer's `initialize` takes."""
  return tuple(tf.TensorSpec(t.shape, t.dtype) for t in trainable)


def hparams_of(
  optimizer: tff.learning.optimizers.Optimizer,
) -> collections.OrderedDict:
  """The hyperparameters that an optimizer keeps in its state, by name."""
  return optimizer.get_hparams(
    optimizer.initialize(tf.TensorSpec([], tf.float32))
  )


def initial_hparams(
  optimizer: tff.learning.optimizers.Optimizer,
) -> tff.Computation:
  """A computation: an optimizer's hyperparameters, placed at the server."""
  hparams = hparams_of(optimizer)

  @tff.federated_computation
  def initialize():
    return tff.federated_value(hparams, tff.SERVER)

  return initialize


def build_client_work(
  model_fn: ModelFn,
  *,
  optimizer: tff.learning.optimizers.Optimizer,
  weighting: tff.learning.ClientWeighting,
  loop_implementation: tff.learning.LoopImplementation,
  correct: Callable[[Tensors, Tensors, Any], Tensors] | None = None,
  report: Callable[[Result, Any], Any] | None = None,
) -> tff.learning.templates.ClientWorkProcess:
  """Builds ClientUpdate with corrected gradients and a normalised report.

  The process has the optimizer's hyperparameters as its state, so that a
  schedule can set the learning rate of a round.

  Args:
    model_fn: Builds the model anew at each call.
    optimizer: Runs on the clients; its state starts anew each round.
    weighting: The weights of the clients in means.
    loop_implementation: How a client iterates over its batches.
    correct: From a step's gradients, its weights, and all that the server sent
      (`tff.learning.models.ModelWeights`) to the gradients that the optimizer
      gets; None leaves them.
    report: From a client's result and the optimizer's hyperparameters to what
      it sends; None sends the update.

  Returns:
    A client work for `tff.learning.templates.compose_learning_process`.
  """
  types = model_types(model_fn)
  correct = correct or (lambda gradients, weights, initial: gradients)
  report = report or (lambda result, hparams: result.update)
  initialize = initial_hparams(optimizer)
  hparams_type = initialize.type_signature.result.member

  @tff.tensorflow.computation(hparams_type, types.weights, types.data)
  def client_update(hparams, initial_weights, dataset):
    model = model_fn()

    @tf.function
    def update(hparams, initial_weights, dataset):
      def step(state, weights, gradients, unused_batch):
        return optimizer.next(
          state, weights, correct(gradients, weights, initial_weights)
        )

      state = optimizer.initialize(specs(model.trainable_variables))
      result = train(
        model,
        initial_weights,
        dataset,
        step=step,
        optimizer_state=optimizer.set_hparams(state, hparams),
        weighting=weighting,
        loop_implementation=loop_implementation,
      )
      sent = tff.learning.templates.ClientResult(
        update=report(result, hparams), update_weight=result.weight
      )
      return sent, result.metrics

    return update(hparams, initial_weights, dataset)

  return client_work(initialize, client_update, types.aggregate_metrics)


def client_work(
  initialize: tff.Computation,
  client_update: tff.Computation,
  aggregate_metrics: Any,
) -> tff.learning.templates.ClientWorkProcess:
  """Makes a process of what one client does.

  Args:
    initialize: See `initial_hparams`.
    client_update: From the optimizer's hyperparameters, the weights that the
      server sends and a client's batches to what the client sends and its
      unfinalized metrics.
    aggregate_metrics: See `ModelTypes`.

  Returns:
    A process whose state is the hyperparameters.
  """
  hparams_type, weights_type, data_type = client_update.type_signature.parameter

  @tff.federated_computation(
    initialize.type_signature.result,
    tff.FederatedType(weights_type, tff.CLIENTS),
    tff.FederatedType(data_type, tff.CLIENTS),
  )
  def next_fn(state, weights, data):
    sent, metrics = tff.federated_map(
      client_update, (tff.federated_broadcast(state), weights, data)
    )
    measurements = collections.OrderedDict(train=aggregate_metrics(metrics))
    return tff.templates.MeasuredProcessOutput(
      state, sent, tff.federated_zip(measurements)
    )

  get_hparams = tff.tensorflow.computation(lambda state: state, hparams_type)
  set_hparams = tff.tensorflow.computation(
    lambda state, hparams: hparams, [hparams_type, hparams_type]
  )
  return tff.learning.templates.ClientWorkProcess(
    initialize,
    next_fn,
    get_hparams_fn=get_hparams,
    set_hparams_fn=set_hparams,
  )


def compose(
  model_fn: ModelFn,
  client_work: tff.learning.templates.ClientWorkProcess,
  aggregator: tff.aggregators.WeightedAggregationFactory,
  server_optimizer: tff.learning.optimizers.Optimizer,
) -> tff.learning.templates.LearningProcess:
  """Composes client work, aggregator and server optimizer to a process.

  Args:
    model_fn: Builds the model anew at each call.
    client_work: What clients do.
    aggregator: Of what they send; its result is a model update.
    server_optimizer: Takes the aggregate as its gradient.

  Returns:
    The process.
  """
  weights_type = client_work.next.type_signature.parameter[1].member
  finalizer = tff.learning.templates.build_apply_optimizer_finalizer(
    server_optimizer, weights_type
  )
  return compose_finalized(model_fn, client_work, aggregator, finalizer)


def compose_finalized(
  model_fn: ModelFn,
  client_work: tff.learning.templates.ClientWorkProcess,
  aggregator: tff.aggregators.WeightedAggregationFactory,
  finalizer: tff.learning.templates.FinalizerProcess,
) -> tff.learning.templates.LearningProcess:
  """Composes client work, aggregator and finalizer to a process.

  Args:
    model_fn: Builds the model anew at each call.
    client_work: What clients do.
    aggregator: Of what they send.
    finalizer: From the server's weights and the aggregate to new weights.

  Returns:
    The process.
  """
  work_type = client_work.next.type_signature
  weights_type = work_type.parameter[1].member
  sent = work_type.result.result.member

  @tff.tensorflow.computation
  def initial_weights():
    return tff.learning.models.ModelWeights.from_model(model_fn())

  aggregation = aggregator.create(sent.update, sent.update_weight)
  return tff.learning.templates.compose_learning_process(
    initial_weights,
    tff.learning.templates.build_broadcast_process(weights_type),
    client_work,
    aggregation,
    finalizer,
  )
