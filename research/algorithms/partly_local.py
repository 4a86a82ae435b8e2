"""Models of which the clients keep a part: what the server does with the rest.

The trainable variables of some layers are local: the server neither sends nor
changes them. Its state has their initial values, so that its weights are those
of a whole model.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from research.algorithms import local_training


def local_layer_names(
  layers: Mapping[str, tuple[int, ...]], local_layers: Sequence[str]
) -> tuple[str, ...]:
  """Names the local layers.

  Args:
    layers: Positions of each layer's variables among the model's trainable
      ones, as `Task.layers` gives them.
    local_layers: The names that are wanted; none is the last layer.

  Raises:
    UnsuitableError: If there is no such layer, or if no layer is left to the
      server.
  """
  unknown = [name for name in local_layers if name not in layers]
  if unknown:
    raise local_training.UnsuitableError(
      f'local_layers has {", ".join(unknown)}; the layers of the model that '
      f'have weights are {", ".join(layers)}.'
    )
  chosen = tuple(local_layers) or tuple(layers)[-1:]
  if set(chosen) == set(layers):
    raise local_training.UnsuitableError(
      f'All layers of the model that have weights ({", ".join(layers)}) would '
      'be local, and the server would have nothing to learn: name fewer '
      'local_layers, or take a model with more layers.'
    )
  return chosen


class Partition(NamedTuple):
  """Which of a model's trainable variables are local.

  Attributes:
    local: Their positions, in ascending order.
  """

  local: tuple[int, ...]

  @classmethod
  def of_layers(
    cls, layers: Mapping[str, tuple[int, ...]], local_layers: Sequence[str]
  ) -> 'Partition':
    """The variables of layers; see `local_layer_names`."""
    names = local_layer_names(layers, local_layers)
    return cls(tuple(sorted({i for name in names for i in layers[name]})))

  def split(self, trainable: Sequence[Any]) -> tuple[list, list]:
    """The global and the local ones of the model's trainable variables."""
    shared = [v for i, v in enumerate(trainable) if i not in self.local]
    return shared, [trainable[i] for i in self.local]

  def join(self, shared: Sequence[Any], local: Sequence[Any]) -> list:
    """Undoes `split`."""
    joined = list(shared)
    for position, variable in zip(self.local, local, strict=True):
      joined.insert(position, variable)
    return joined


def build_global_part(
  weights_type: tff.Type, partition: Partition
) -> tff.Computation:
  """A computation: `ModelWeights` without the local variables.

  Args:
    weights_type: Of a whole model.
    partition: Says which are local.
  """

  @tff.tensorflow.computation(weights_type)
  def global_part(weights):
    shared, _ = partition.split(tf.nest.flatten(weights.trainable))
    return tff.learning.models.ModelWeights(shared, weights.non_trainable)

  return global_part


def assign_global_part(
  model: tff.learning.models.VariableModel,
  weights: tff.learning.models.ModelWeights,
  partition: Partition,
) -> None:
  """Sets all weights of a model but the local ones."""
  shared, _ = partition.split(model.trainable_variables)
  variables = [*shared, *model.non_trainable_variables]
  for variable, weight in zip(variables, tf.nest.flatten(weights), strict=True):
    variable.assign(weight)


def compose(
  model_fn: local_training.ModelFn,
  client_work: tff.learning.templates.ClientWorkProcess,
  aggregator: tff.aggregators.WeightedAggregationFactory,
  server_optimizer: tff.learning.optimizers.Optimizer,
  partition: Partition,
) -> tff.learning.templates.LearningProcess:
  """Composes a process in which only the global part is sent, either way.

  Args:
    model_fn: Builds the whole model anew at each call.
    client_work: Takes the global part, and sends an update of its trainable
      variables.
    aggregator: Of the updates.
    server_optimizer: Takes the aggregate as its gradient.
    partition: Says which variables are local.

  Returns:
    The process.
  """

  @tff.tensorflow.computation
  def initial_weights():
    return tff.learning.models.ModelWeights.from_model(model_fn())

  global_part = build_global_part(
    initial_weights.type_signature.result, partition
  )
  return tff.learning.templates.compose_learning_process(
    initial_weights,
    _distributor(global_part),
    client_work,
    aggregator.create(
      global_part.type_signature.result.trainable, tff.TensorType(np.float32)
    ),
    _finalizer(global_part, server_optimizer, partition),
  )


def _distributor(
  global_part: tff.Computation,
) -> tff.learning.templates.DistributionProcess:
  """Sends the global part."""

  @tff.federated_computation
  def initialize():
    return tff.federated_value((), tff.SERVER)

  @tff.federated_computation(
    initialize.type_signature.result,
    tff.FederatedType(global_part.type_signature.parameter, tff.SERVER),
  )
  def next_fn(state, weights):
    sent = tff.federated_broadcast(tff.federated_map(global_part, weights))
    nothing = tff.federated_value((), tff.SERVER)
    return tff.templates.MeasuredProcessOutput(state, sent, nothing)

  return tff.learning.templates.DistributionProcess(initialize, next_fn)


def _finalizer(
  global_part: tff.Computation,
  server_optimizer: tff.learning.optimizers.Optimizer,
  partition: Partition,
) -> tff.learning.templates.FinalizerProcess:
  """Steps along the update of the global part, and leaves the local one."""
  weights_type = global_part.type_signature.parameter
  inner = tff.learning.templates.build_apply_optimizer_finalizer(
    server_optimizer, global_part.type_signature.result
  )

  @tff.tensorflow.computation(weights_type, global_part.type_signature.result)
  def with_global_part(weights, changed):
    _, local = partition.split(tf.nest.flatten(weights.trainable))
    trainable = partition.join(changed.trainable, local)
    return tff.learning.models.ModelWeights(
      tf.nest.pack_sequence_as(weights.trainable, trainable),
      changed.non_trainable,
    )

  @tff.federated_computation(
    inner.initialize.type_signature.result,
    tff.FederatedType(weights_type, tff.SERVER),
    inner.next.type_signature.parameter[2],
  )
  def next_fn(state, weights, update):
    shared = tff.federated_map(global_part, weights)
    output = inner.next(state, shared, update)
    return tff.templates.MeasuredProcessOutput(
      output.state,
      tff.federated_map(with_global_part, (weights, output.result)),
      output.measurements,
    )

  return tff.learning.templates.FinalizerProcess(
    inner.initialize,
    next_fn,
    get_hparams_fn=inner.get_hparams,
    set_hparams_fn=inner.set_hparams,
  )
