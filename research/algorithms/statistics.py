"""Statistics that clients measure: quantization ranges, batch normalisation.

They are a model's variables that no gradient trains. TFF's federated averaging
never aggregates them, so that the server's model keeps the first ones: it is
right on the clients and wrong at the server, without a warning. Here each
client sends by how much its own moved, and the server moves by their mean, or
by the least and the largest for ranges.

With differential privacy or secure sums they are a part of the one vector that
is clipped, noised and summed; beside it they would be released as they are.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from models import quantization
from research.aggregators import bits, rejection
from research.algorithms import local_training

MEAN, MIN_MAX = 'mean', 'min_max'
RULES = (MEAN, MIN_MAX)
_TRAINABLE, _STATISTICS = 'trainable', 'statistics'
_INFINITY = float('inf')


def _default_aggregator() -> tff.aggregators.WeightedAggregationFactory:
  return rejection.mean()


@dataclasses.dataclass(frozen=True)
class Settings:
  """How statistics are aggregated.

  Attributes:
    rule: `mean` weighs clients as the model update does. `min_max` takes for a
      range the least minimum and the largest maximum; other statistics have
      means all the same.
    is_part_of_update: Whether they are one vector with the model update.
    scale: What they are multiplied with in that vector; the smaller, the less
      of a clipping norm they take, and the more noise they get.
    build_aggregator: Makes the aggregator of statistics of their own.
  """

  rule: str = MEAN
  is_part_of_update: bool = False
  scale: float = 1.0
  build_aggregator: Callable[[], tff.aggregators.WeightedAggregationFactory] = (
    _default_aggregator
  )

  def __post_init__(self):
    if self.rule not in RULES:
      raise ValueError(f'rule={self.rule!r} is none of {", ".join(RULES)}')
    if self.rule == MIN_MAX and self.is_part_of_update:
      raise ValueError(
        'The least and the largest of the clients are no sums: statistics that '
        'are a part of the update need the rule mean.'
      )
    if not self.scale > 0:
      raise ValueError(f'scale={self.scale} must be positive')

  def report(self, result: local_training.Result, unused_hparams: Any) -> Any:
    """What a client sends, for `local_training.build_client_work`."""
    moved = result.statistics
    if self.is_part_of_update:
      moved = tuple(self.scale * change for change in moved)
    return collections.OrderedDict(trainable=result.update, statistics=moved)

  def aggregator(
    self,
    of_updates: tff.aggregators.WeightedAggregationFactory,
    found: Sequence[str],
  ) -> tff.aggregators.WeightedAggregationFactory:
    """Returns what aggregates a report.

    Args:
      of_updates: Aggregates model updates, or the one vector.
      found: The statistics' names, of `names`.
    """
    if self.is_part_of_update:
      return of_updates
    own = self.build_aggregator()
    if self.rule == MIN_MAX:
      own = _ExtremesFactory(found, own)
    return _BesideFactory(of_updates, own)

  def finalizer(
    self,
    inner: tff.learning.templates.FinalizerProcess,
    weights_type: tff.Type,
    found: Sequence[str],
  ) -> tff.learning.templates.FinalizerProcess:
    """Returns what moves the statistics at the server; `inner` does the rest.

    A mean over no accepted client is not finite and moves nothing.

    Args:
      inner: Takes the aggregated model update.
      weights_type: Of the model that the server sends.
      found: The statistics' names, of `names`.
    """
    scale = self.scale if self.is_part_of_update else 1.0
    update_type = weights_type.trainable
    statistics_type = tff.to_type(
      [
        member
        for member in weights_type.non_trainable
        if tf.dtypes.as_dtype(member.dtype).is_floating
      ]
    )
    aggregate_type = tff.to_type(
      collections.OrderedDict(trainable=update_type, statistics=statistics_type)
    )

    @tff.tensorflow.computation(weights_type, statistics_type)
    def move(weights, moved):
      left = list(zip(found, moved, strict=True))

      def next_value(before):
        if not before.dtype.is_floating:
          return before
        name, change = left.pop(0)
        after = _valid(name, before - change / scale)
        is_finite = tf.reduce_all(tf.math.is_finite(after))
        return tf.where(is_finite, after, before)

      return tff.learning.models.ModelWeights(
        weights.trainable,
        tf.nest.map_structure(next_value, weights.non_trainable),
      )

    @tff.federated_computation(
      inner.initialize.type_signature.result,
      tff.FederatedType(weights_type, tff.SERVER),
      tff.FederatedType(aggregate_type, tff.SERVER),
    )
    def next_fn(state, weights, aggregate):
      output = inner.next(state, weights, aggregate[_TRAINABLE])
      moved = tff.federated_map(move, (output.result, aggregate[_STATISTICS]))
      return tff.templates.MeasuredProcessOutput(
        output.state, moved, output.measurements
      )

    return tff.learning.templates.FinalizerProcess(
      inner.initialize,
      next_fn,
      get_hparams_fn=inner.get_hparams,
      set_hparams_fn=inner.set_hparams,
    )


def names(model_fn: local_training.ModelFn) -> tuple[str, ...]:
  """Names of a model's statistics, in the order of its variables."""
  with tf.Graph().as_default():
    return tuple(
      variable.name.split(':')[0]
      for variable in model_fn().non_trainable_variables
      if variable.dtype.is_floating
    )


class _BesideFactory(tff.aggregators.WeightedAggregationFactory):
  """Aggregates the model update and the statistics, each by its own."""

  def __init__(
    self,
    trainable: tff.aggregators.WeightedAggregationFactory,
    statistics: tff.aggregators.WeightedAggregationFactory,
  ):
    self._trainable = trainable
    self._statistics = statistics

  def create(self, value_type, weight_type):
    updates = self._trainable.create(value_type[_TRAINABLE], weight_type)
    others = self._statistics.create(value_type[_STATISTICS], weight_type)
    sent_bits = bits.of_type(value_type[_STATISTICS])

    @tff.federated_computation
    def initialize():
      return tff.federated_zip((updates.initialize(), others.initialize()))

    @tff.federated_computation(
      initialize.type_signature.result,
      tff.FederatedType(value_type, tff.CLIENTS),
      tff.FederatedType(weight_type, tff.CLIENTS),
    )
    def next_fn(state, value, weight):
      update = updates.next(state[0], value[_TRAINABLE], weight)
      other = others.next(state[1], value[_STATISTICS], weight)
      result = collections.OrderedDict(
        trainable=update.result, statistics=other.result
      )
      return tff.templates.MeasuredProcessOutput(
        tff.federated_zip((update.state, other.state)),
        tff.federated_zip(result),
        bits.add_upload(update.measurements, sent_bits),
      )

    return tff.templates.AggregationProcess(initialize, next_fn)


class _ExtremesFactory(tff.aggregators.WeightedAggregationFactory):
  """The least minimum and the largest maximum of the clients' ranges.

  A range's end moves from the server's by `before - after`: the least minimum
  is the one that moved by the most, the largest maximum by the least. A client
  of weight zero is rejected and has no part in it.
  """

  def __init__(
    self,
    found: Sequence[str],
    others: tff.aggregators.WeightedAggregationFactory,
  ):
    self._names = found
    self._others = others

  def create(self, value_type, weight_type):
    process = self._others.create(value_type, weight_type)
    signs = [_sign(name) for name in self._names]

    @tff.tensorflow.computation(value_type, weight_type)
    def without_rejected(value, weight):
      return [
        tf.where(weight > 0, moved, -sign * _INFINITY) if sign else moved
        for moved, sign in zip(value, signs, strict=True)
      ]

    @tff.tensorflow.computation(weight_type)
    def is_accepted(weight):
      return tf.cast(weight > 0, tf.int32)

    # TFF's worker has the largest float where it has no client's.
    @tff.tensorflow.computation(value_type, np.int32)
    def unless_all_rejected(value, accepted):
      return [
        tf.where(accepted > 0, moved, tf.zeros_like(moved)) for moved in value
      ]

    @tff.federated_computation(
      process.initialize.type_signature.result,
      tff.FederatedType(value_type, tff.CLIENTS),
      tff.FederatedType(weight_type, tff.CLIENTS),
    )
    def next_fn(state, value, weight):
      output = process.next(state, value, weight)
      kept = tff.federated_map(without_rejected, (value, weight))
      accepted = tff.federated_sum(tff.federated_map(is_accepted, weight))
      extremes = {1: tff.federated_max, -1: tff.federated_min}
      chosen = [
        extremes[sign](kept[i]) if sign else output.result[i]
        for i, sign in enumerate(signs)
      ]
      return tff.templates.MeasuredProcessOutput(
        output.state,
        tff.federated_map(
          unless_all_rejected, (tff.federated_zip(chosen), accepted)
        ),
        output.measurements,
      )

    return tff.templates.AggregationProcess(process.initialize, next_fn)


def _sign(name: str) -> int:
  """1 for the minimum of a range, -1 for its maximum, 0 for all else."""
  return {'min': 1, 'max': -1, '': 0}[quantization.end_of_range(name)]


def _valid(name: str, value: tf.Tensor) -> tf.Tensor:
  """What a statistic can be: noise and rules may leave its bounds."""
  end = quantization.end_of_range(name)
  if end == 'min':
    return tf.minimum(value, 0.0)
  if end == 'max' or 'moving_variance' in name:
    return tf.maximum(value, 0.0)
  return value
