"""Aggregators with noise that is correlated over rounds (DP-FTRL).

Each client's update is clipped, the updates are summed, noise is added and the
result divided by the expected cohort. The noise of round t is clip_norm *
noise_multiplier * y_t with C y = z (`research.privacy.matrix_factorization`),
made from the round's standard normal numbers z_t and a memory of earlier
noise. Since the server is given the noisy update of the round and not their
sum, any server optimizer works; momentum is its affair (Kairouz et al. 2021,
arXiv:2103.00039).

The clipping norm may follow a quantile of the clients' norms
(`dp.AdaptiveClipping`; its noise is per unit of the strategy): divided by the
norm that a round uses, which depends on earlier releases alone, the updates are
bounded by 1, and the noise that is added to them is that of the strategy.

The noise's key comes and goes as in `research.aggregators.dp`.
"""

import collections
import math
from typing import Any, NamedTuple, Protocol

import dp_accounting
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
import tensorflow_privacy as tfp

from research import compat
from research.aggregators import dp
from research.privacy import binary_tree, matrix_factorization, noise


class Memory(Protocol):
  """Solves C y = z round by round.

  Attributes:
    size: Tensors of a model's shape that are remembered.
  """

  size: int

  def next(
    self, normals: tf.Tensor, memory: tf.Tensor, round_num: tf.Tensor
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """One round.

    Args:
      normals: z_t, float32 [...].
      memory: float32 [size, ...], zeros before the first round.
      round_num: t, counted from 0, int32.

    Returns:
      y_t and the memory of the next round.
    """


class BandedMemory:
  """Remembers the last y, the newest first."""

  def __init__(self, strategy: matrix_factorization.Banded):
    self.size = strategy.bands - 1
    first, *self._others = strategy.coefficients[: strategy.bands]
    self._first = float(first)

  def next(self, normals, memory, round_num):
    result = (normals - _weighted_sum(self._others, memory)) / self._first
    memory = tf.concat([result[tf.newaxis], memory], axis=0)
    return result, memory[: self.size]


class BufferedLinearToeplitzMemory:
  """Remembers one decaying sum of the y per buffer."""

  def __init__(self, strategy: matrix_factorization.BufferedLinearToeplitz):
    self.size = len(strategy.scales)
    self._scales, self._decays = strategy.scales, strategy.decays

  def next(self, normals, memory, round_num):
    result = normals - _weighted_sum(self._scales, memory)
    return result, _column(self._decays, memory) * memory + result


class TreeMemory:
  """Remembers the last estimate of a node of each height.

  y_t is the difference of the noise in two prefix sums, the one of which has
  the node that round t completes where the other has all nodes below.
  """

  def __init__(self, strategy: matrix_factorization.BinaryTree):
    self._period = strategy.restart_period
    tables = binary_tree.estimates(self._period)
    self._deviations, self._halves, self._weights = tables
    self.size = len(self._weights)

  def next(self, normals, memory, round_num):
    leaf = tf.math.floormod(round_num, self._period) + 1
    powers = tf.constant([2 << height for height in range(self.size)])
    is_done = tf.equal(tf.math.floormod(leaf, powers), 0)
    height = tf.reduce_sum(tf.cast(is_done, tf.int32))

    def of_height(table):
      return tf.gather(tf.constant(table, tf.float32), height)

    estimate = of_height(self._deviations) * normals
    estimate += _weighted_sum(of_height(self._halves), memory)
    below = np.tril(np.tile(self._weights, [self.size, 1]), -1)
    result = of_height(self._weights) * estimate
    result -= _weighted_sum(of_height(below), memory)
    is_new = _column(tf.one_hot(height, self.size), memory) > 0
    return result, tf.where(is_new, estimate, memory)


_MEMORIES = {
  matrix_factorization.Banded: BandedMemory,
  matrix_factorization.BufferedLinearToeplitz: BufferedLinearToeplitzMemory,
  matrix_factorization.BinaryTree: TreeMemory,
}


def _column(weights: Any, memory: tf.Tensor) -> tf.Tensor:
  """float32 [n] as [n, 1, ...], to multiply a memory with."""
  shape = [memory.shape[0]] + [1] * (memory.shape.rank - 1)
  return tf.reshape(tf.cast(weights, tf.float32), shape)


def _weighted_sum(weights: Any, memory: tf.Tensor) -> tf.Tensor:
  # No matrix product: GPUs may round its factors to ten bits.
  return tf.reduce_sum(_column(weights, memory) * memory, axis=0)


class State(NamedTuple):
  """What a query carries from round to round.

  Attributes:
    clip_norm: float32, the L2 norm to which the next round clips.
    noise_key: uint32 [8], the next round's; zeros between rounds.
    round_num: int32, the rounds done.
    memory: Of the noise; per tensor that is released, float32 [size, ...].
  """

  clip_norm: Any
  noise_key: Any
  round_num: Any
  memory: Any


class CorrelatedNoiseQuery(tfp.SumAggregationDPQuery):
  """Clips, sums, adds correlated noise and divides by the expected cohort."""

  def __init__(
    self,
    strategy: matrix_factorization.Strategy,
    record_specs: Any,
    *,
    clip_norm: float,
    noise_multiplier: float,
    clients_per_round: float,
    adaptive_clipping: dp.AdaptiveClipping | None = None,
  ):
    """Prepares the query.

    Args:
      strategy: How the noise is correlated.
      record_specs: A structure of `tf.TensorSpec`, float32, of an update.
      clip_norm: The bound on an update's L2 norm over all tensors; with
        adaptive clipping that of the first round.
      noise_multiplier: Standard deviation of z over `clip_norm`. With adaptive
        clipping this is the multiplier to account for, and that of the updates
        is larger by what the counts cost.
      clients_per_round: The expected cohort.
      adaptive_clipping: None keeps the norm.

    Raises:
      ValueError: If a number is out of range.
    """
    for name, value, is_valid in (
      ('clip_norm', clip_norm, clip_norm > 0),
      ('noise_multiplier', noise_multiplier, noise_multiplier >= 0),
      ('clients_per_round', clients_per_round, clients_per_round > 0),
    ):
      if not (is_valid and math.isfinite(value)):
        raise ValueError(f'{name} must be finite and positive, not {value}.')
    self._strategy = strategy
    self._clip_norm = clip_norm
    self._noise_multiplier = noise_multiplier
    self._clients = clients_per_round
    self._adaptive = adaptive_clipping
    self._specs = record_specs
    if adaptive_clipping is not None:
      self._specs = dp.AdaptiveSum(record_specs, tf.TensorSpec([]))
      self._count_stddev = adaptive_clipping.count_stddev(clients_per_round)
      # Theorem 1 holds for each strategy: the count is one more coordinate of
      # what C multiplies.
      self._noise_multiplier = dp.update_noise_multiplier(
        noise_multiplier, self._count_stddev
      )
    # Without noise there is nothing to remember.
    self._memory = None
    if noise_multiplier > 0:
      self._memory = _MEMORIES[type(strategy)](strategy)

  def initial_global_state(self) -> State:
    memory = ()
    if self._memory is not None:
      memory = tf.nest.map_structure(
        lambda spec: tf.zeros([self._memory.size, *spec.shape]), self._specs
      )
    return State(
      clip_norm=tf.constant(self._clip_norm, tf.float32),
      noise_key=tf.constant(noise.no_key()),
      round_num=tf.constant(0),
      memory=memory,
    )

  def initial_sample_state(self, template: Any = None) -> Any:
    if self._adaptive is not None:
      return self._adaptive.zeros(template)
    return tf.nest.map_structure(lambda x: tf.zeros(x.shape), template)

  def derive_sample_params(self, global_state: State) -> tf.Tensor:
    return global_state.clip_norm

  def preprocess_record(self, params: tf.Tensor, record: Any) -> Any:
    if self._adaptive is not None:
      return self._adaptive.record(record, params)
    return dp.clip(record, params)[0]

  def get_noised_result(self, sample_state: Any, global_state: State):
    """See the module; beyond the strategy's rounds the result is NaN."""
    clip_norm, memory = global_state.clip_norm, global_state.memory
    values = tf.nest.flatten(sample_state)
    if self._memory is not None:
      stddevs = [clip_norm * self._noise_multiplier] * len(values)
      if self._adaptive is not None:
        stddevs[-1] = self._count_stddev
      noises, memory = self._noise(global_state)
      values = [
        value + stddev * y
        for value, stddev, y in zip(values, stddevs, noises, strict=True)
      ]
    noised = tf.nest.pack_sequence_as(sample_state, values)
    if self._adaptive is not None:
      noised, count = noised
      clip_norm = self._adaptive.next_norm(clip_norm, count, self._clients)
    mean = tf.nest.map_structure(lambda x: x / self._clients, noised)
    state = State(
      clip_norm=clip_norm,
      noise_key=tf.constant(noise.no_key()),
      round_num=global_state.round_num + 1,
      memory=memory,
    )
    # The guarantee is that of all rounds together.
    return mean, state, dp_accounting.UnsupportedDpEvent()

  def _noise(self, state: State) -> tuple[list[tf.Tensor], Any]:
    """y_t per tensor, and the next memory."""
    normals = noise.standard_normals(state.noise_key, 0, self._specs)
    is_planned = state.round_num < self._strategy.total_rounds
    results, memories = [], []
    for z, memory in zip(
      tf.nest.flatten(normals), tf.nest.flatten(state.memory), strict=True
    ):
      result, memory = self._memory.next(z, memory, state.round_num)
      results.append(tf.where(is_planned, result, math.nan))
      memories.append(memory)
    return results, tf.nest.pack_sequence_as(state.memory, memories)

  def derive_metrics(self, global_state: State) -> collections.OrderedDict:
    return collections.OrderedDict(clip_norm=global_state.clip_norm)


class CorrelatedNoiseFactory(tff.aggregators.WeightedAggregationFactory):
  """Aggregates updates of any structure of float32 tensors, without weights.

  Its memory, in tensors of float32 of a model's size, is bands - 1, buffers, or
  the logarithm of the restart period.

  Attributes:
    strategy: How the noise is correlated, for accounting.
  """

  def __init__(
    self, strategy: matrix_factorization.Strategy, **query_arguments
  ):
    """Prepares it with the arguments of `CorrelatedNoiseQuery`."""
    self.strategy = strategy
    self._arguments = query_arguments

  def create(
    self, value_type: tff.Type, weight_type: tff.Type
  ) -> tff.templates.AggregationProcess:
    specs = compat.type_to_tf_structure(value_type)
    dtypes = {spec.dtype for spec in tf.nest.flatten(specs)}
    if dtypes != {tf.float32}:
      names = sorted(dtype.name for dtype in dtypes)
      raise TypeError(f'An update must be of float32, not of {names}.')
    query = CorrelatedNoiseQuery(self.strategy, specs, **self._arguments)
    return dp.factory(query).create(value_type, weight_type)
