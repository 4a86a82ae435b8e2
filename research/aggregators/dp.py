"""Clipped and noised means: tensorflow-privacy queries, run by TFF.

McMahan et al. 2018, "Learning Differentially Private Recurrent Language
Models", arXiv:1710.06963, Algorithm 1: each client's update is clipped to an L2
norm S, and the server releases (sum + z S N(0, I)) / (q W), where z is the
noise multiplier and q W the expected number of clients, never the realised one.

The noise's key is a field of the query's state. Whoever runs a round sets it
before, by `with_noise_key`, and a round gives the state back without it; it is
not among what clients are sent.
"""

import collections
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import dp_accounting
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
import tensorflow_privacy as tfp

from research.aggregators import settings as lib
from research.privacy import noise

# Squares are summed in float32 by blocks of so many, in whatever order.
_BLOCK = 1024
# Clipping aims this much below the bound: half of the roundings of a block,
# 2^-24 each, and those of the factor are less.
_ROUNDING = 1e-4
_UPDATE_STREAM, _COUNT_STREAM = range(2)


class State(NamedTuple):
  """What a query keeps at the server.

  Attributes:
    clip_norm: float32, the L2 norm to which the next round clips.
    noise_key: uint32 [8], the next round's; zeros between rounds.
  """

  clip_norm: Any
  noise_key: Any


def clip(
  record: Any, clip_norm: tf.Tensor, order: int = 2
) -> tuple[Any, tf.Tensor]:
  """Scales a structure of tensors to an L2 norm of at most `clip_norm`.

  Args:
    record: float32 tensors of known shapes.
    clip_norm: float32.
    order: 2, or 1 for the L1 norm.

  Returns:
    The clipped record, or zeros if any of it is not finite or its norm above
    1e19; and the norm before, float32, which is not finite then.
  """
  flat = tf.nest.flatten(record)
  if order == 1:
    norm = tf.add_n([_sum_by_blocks(tf.abs(tensor)) for tensor in flat])
  else:
    norm = tf.sqrt(tf.add_n([_sum_by_blocks(tensor**2) for tensor in flat]))
  bound = tf.cast(clip_norm, tf.float64) * (1 - _ROUNDING)
  factor = tf.where(norm > bound, bound / norm, 1.0)
  factor = tf.where(tf.math.is_finite(norm), factor, 0.0)
  factor = tf.cast(factor, tf.float32)
  # With the factor 0, NaN and infinities become 0, too.
  clipped = [tf.math.multiply_no_nan(tensor, factor) for tensor in flat]
  return tf.nest.pack_sequence_as(record, clipped), tf.cast(norm, tf.float32)


def _sum_by_blocks(tensor: tf.Tensor) -> tf.Tensor:
  """float64, the sum of numbers that are not negative.

  It is off by at most `_BLOCK` roundings of float32, relative.
  """
  vector = tf.reshape(tensor, [-1])
  whole = vector.shape[0] // _BLOCK * _BLOCK
  blocks = tf.reshape(vector[:whole], [-1, _BLOCK])
  parts = tf.concat([tf.reduce_sum(blocks, axis=1), vector[whole:]], axis=0)
  return tf.reduce_sum(tf.cast(parts, tf.float64))


class FixedClipQuery(tfp.SumAggregationDPQuery):
  """A noised mean of updates clipped to a fixed norm."""

  def __init__(
    self, clip_norm: float, noise_multiplier: float, clients_per_round: float
  ):
    """Describes the mechanism.

    Args:
      clip_norm: S, of the whole update.
      noise_multiplier: z; with 0 there is no noise and no privacy.
      clients_per_round: q W, the expected size of the cohort.
    """
    self._clip_norm = clip_norm
    self._noise_multiplier = noise_multiplier
    self._clients_per_round = clients_per_round

  def initial_global_state(self):
    return State(
      tf.constant(self._clip_norm, tf.float32), tf.constant(noise.no_key())
    )

  def derive_sample_params(self, global_state):
    return global_state.clip_norm

  def preprocess_record(self, params, record):
    return clip(record, params)[0]

  def get_noised_result(self, sample_state, global_state):
    mean = self._noised_mean(sample_state, global_state)
    return mean, self._without_key(global_state), self._event()

  def derive_metrics(self, global_state):
    return collections.OrderedDict(clip_norm=global_state.clip_norm)

  def _noised_mean(self, total, state: State):
    if self._noise_multiplier:
      stddev = self._noise_multiplier * state.clip_norm
      total = add_noise(total, state.noise_key, _UPDATE_STREAM, stddev)
    return tf.nest.map_structure(lambda x: x / self._clients_per_round, total)

  def _without_key(self, state: State) -> State:
    return state._replace(noise_key=tf.constant(noise.no_key()))

  def _event(self) -> dp_accounting.DpEvent:
    return dp_accounting.GaussianDpEvent(self._noise_multiplier)


def add_noise(
  structure: Any, key: tf.Tensor, stream: int, stddev: tf.Tensor | float
) -> Any:
  """Adds N(0, stddev^2), independent over coordinates, to float32 tensors."""
  specs = tf.nest.map_structure(tf.TensorSpec.from_tensor, structure)
  normals = noise.standard_normals(key, stream, specs)
  return tf.nest.map_structure(lambda x, n: x + stddev * n, structure, normals)


class PerLayerClipQuery(FixedClipQuery):
  """Clips each tensor of an update by itself.

  McMahan et al. 2018, Section 3, "per-layer clipping", with equal bounds: with
  m tensors (a layer's kernel and bias are two) each is clipped to S / sqrt(m),
  so that the whole has a norm of at most S.
  """

  def preprocess_record(self, params, record):
    flat = tf.nest.flatten(record)
    bound = params / math.sqrt(len(flat))
    clipped = [clip([tensor], bound)[0][0] for tensor in flat]
    # One tensor that is not finite rejects the whole update.
    is_finite = tf.math.is_finite(clip(record, params)[1])
    clipped = [tf.where(is_finite, tensor, 0.0) for tensor in clipped]
    return tf.nest.pack_sequence_as(record, clipped)


class AdaptiveSum(NamedTuple):
  """What adaptive clipping sums over clients.

  Attributes:
    update: The clipped updates.
    unclipped: float32, half of the unclipped clients less half of the others.
  """

  update: Any
  unclipped: Any


@dataclasses.dataclass(frozen=True)
class AdaptiveClipping:
  """The clipping norm follows a quantile of the clients' norms.

  Andrew, Thakkar et al. 2021, arXiv:1905.03871, Algorithm 1.

  Attributes:
    clip_quantile: Share of the clients that are to be left unclipped.
    clip_learning_rate: Of the logarithm of the norm, per round.
    clipped_count_stddev: Of the noise in the number of unclipped clients; None
      is a twentieth of the expected cohort.
  """

  clip_quantile: float = 0.5
  clip_learning_rate: float = 0.2
  clipped_count_stddev: float | None = None

  def count_stddev(self, clients_per_round: float) -> float:
    """The noise's standard deviation, in clients."""
    if self.clipped_count_stddev is None:
      return 0.05 * clients_per_round
    return self.clipped_count_stddev

  def zeros(self, template: Any) -> AdaptiveSum:
    """The sum of no client, for an update like `template`."""
    zeros = tf.nest.map_structure(
      lambda x: tf.zeros(x.shape, x.dtype), template
    )
    return AdaptiveSum(zeros, tf.constant(0.0))

  def record(self, update: Any, clip_norm: tf.Tensor) -> AdaptiveSum:
    """What a client contributes."""
    clipped, norm = clip(update, clip_norm)
    # Centred at zero, so that one client moves the count by a half.
    return AdaptiveSum(clipped, tf.cast(norm <= clip_norm, tf.float32) - 0.5)

  def next_norm(
    self, clip_norm: tf.Tensor, count: tf.Tensor, clients_per_round: float
  ) -> tf.Tensor:
    """The next round's norm, from this round's and its noised count."""
    share = tf.clip_by_value(count / clients_per_round + 0.5, 0.0, 1.0)
    exponent = -self.clip_learning_rate * (share - self.clip_quantile)
    return clip_norm * tf.exp(exponent)


class AdaptiveClipQuery(FixedClipQuery):
  """Clips to a noised running estimate of a quantile of the updates' norms.

  Andrew, Thakkar et al. 2021, "Differentially Private Learning with Adaptive
  Clipping", arXiv:1905.03871, Algorithm 1. Both releases of a round together
  have the noise multiplier z: the updates' own is (z^-2 - (2 s)^-2)^-1/2, where
  s is the standard deviation of the noise in the count of unclipped clients
  (Theorem 1).
  """

  def __init__(
    self,
    clip_norm: float,
    noise_multiplier: float,
    clients_per_round: float,
    clip_quantile: float = 0.5,
    clip_learning_rate: float = 0.2,
    clipped_count_stddev: float | None = None,
  ):
    """Describes the mechanism.

    Args:
      clip_norm: S of the first round.
      noise_multiplier: z of both releases together; 0 is no noise in either.
      clients_per_round: The expected size of the cohort.
      clip_quantile: Share of clients that are to be left unclipped.
      clip_learning_rate: Of the logarithm of the norm, per round.
      clipped_count_stddev: s; None is a twentieth of `clients_per_round`.

    Raises:
      ValueError: If s is too small for z.
    """
    self._adaptive = AdaptiveClipping(
      clip_quantile, clip_learning_rate, clipped_count_stddev
    )
    self._count_stddev = 0.0
    if noise_multiplier:
      self._count_stddev = self._adaptive.count_stddev(clients_per_round)
    super().__init__(
      clip_norm,
      update_noise_multiplier(noise_multiplier, self._count_stddev),
      clients_per_round,
    )

  def initial_sample_state(self, template=None):
    return self._adaptive.zeros(template)

  def preprocess_record(self, params, record):
    return self._adaptive.record(record, params)

  def get_noised_result(self, sample_state, global_state):
    mean = self._noised_mean(sample_state.update, global_state)
    count = sample_state.unclipped
    if self._count_stddev:
      count = add_noise(
        count, global_state.noise_key, _COUNT_STREAM, self._count_stddev
      )
    clip_norm = self._adaptive.next_norm(
      global_state.clip_norm, count, self._clients_per_round
    )
    state = self._without_key(global_state)._replace(clip_norm=clip_norm)
    return mean, state, self._event()

  def _event(self):
    count_noise_multiplier = 2 * self._count_stddev
    return dp_accounting.ComposedDpEvent(
      [
        dp_accounting.GaussianDpEvent(self._noise_multiplier),
        dp_accounting.GaussianDpEvent(count_noise_multiplier),
      ]
    )


def update_noise_multiplier(
  noise_multiplier: float, clipped_count_stddev: float
) -> float:
  """The updates' own noise multiplier; see `AdaptiveClipQuery`.

  Args:
    noise_multiplier: z of both releases together.
    clipped_count_stddev: s, in clients.

  Raises:
    ValueError: If 2 s is not above z.
  """
  if not noise_multiplier:
    return 0.0
  if 2 * clipped_count_stddev <= noise_multiplier:
    raise ValueError(
      f'adaptive clipping with a noise multiplier of {noise_multiplier:.4g} '
      f'needs --clipped_count_stddev above {noise_multiplier / 2:.4g} clients, '
      f'given {clipped_count_stddev:.4g} (0.05 * clients_per_round unless '
      'set). Raise it or --clients_per_round, or use --clipping=fixed.'
    )
  return (noise_multiplier**-2 - (2 * clipped_count_stddev) ** -2) ** -0.5


def build(settings: lib.Settings) -> tff.aggregators.WeightedAggregationFactory:
  """The aggregator that settings describe; it ignores the clients' weights.

  Raises:
    ValueError: If the adaptive norm's noise is too small for the whole's.
  """
  common = (
    settings.clip_norm,
    settings.noise_multiplier,
    float(settings.clients_per_round),
  )
  if settings.clipping == 'adaptive':
    query = AdaptiveClipQuery(
      *common,
      settings.clip_quantile,
      settings.clip_learning_rate,
      settings.clipped_count_stddev,
    )
  elif settings.clipping == 'per_layer':
    query = PerLayerClipQuery(*common)
  else:
    query = FixedClipQuery(*common)
  return factory(query)


def factory(
  query: tfp.SumAggregationDPQuery,
) -> tff.aggregators.WeightedAggregationFactory:
  """The aggregator of a query; it ignores the clients' weights."""
  return tff.aggregators.as_weighted_aggregator(
    tff.aggregators.DifferentiallyPrivateFactory(query)
  )


def with_noise_key(aggregator_state: Any, key: np.ndarray) -> Any:
  """Returns the state of an aggregator with the next round's key.

  Args:
    aggregator_state: `aggregator` of a process's state, in which the query's
      may be nested.
    key: uint32 [8].

  Raises:
    ValueError: If there is no place for a key.
  """
  changed, places = _replace_keys(aggregator_state, key)
  if places != 1:
    raise ValueError(f'the aggregator has {places} places for a noise key')
  return changed


def _replace_keys(structure: Any, key: np.ndarray) -> tuple[Any, int]:
  if 'noise_key' in getattr(structure, '_fields', ()):
    return structure._replace(noise_key=key), 1
  if isinstance(structure, Mapping):
    found = {k: _replace_keys(v, key) for k, v in structure.items()}
    changed = type(structure)((k, v[0]) for k, v in found.items())
    return changed, sum(v[1] for v in found.values())
  if isinstance(structure, tuple | list):
    found = [_replace_keys(value, key) for value in structure]
    values = [v[0] for v in found]
    named = hasattr(structure, '_fields')
    changed = type(structure)(*values) if named else type(structure)(values)
    return changed, sum(v[1] for v in found)
  return structure, 0


def event(aggregator_state: Any) -> dp_accounting.DpEvent:
  """What the round that gave this state released.

  Args:
    aggregator_state: `aggregator` of a process's state after a round.

  Raises:
    ValueError: If there is no private aggregator, or no round yet.
  """
  found = list(_private_states(aggregator_state))
  if len(found) != 1:
    raise ValueError(f'the aggregator has {len(found)} private parts, not one')
  # TFF reads the event's name as text, which a tensor is not.
  state = tf.nest.map_structure(
    lambda leaf: leaf.numpy() if tf.is_tensor(leaf) else leaf, found[0]
  )
  return tff.aggregators.differential_privacy.extract_dp_event_from_state(state)


def clip_norm(aggregator_state: Any) -> Any:
  """The norm to which the round that takes this state clips, float32."""
  (state,) = _private_states(aggregator_state)
  return state.query_state.clip_norm


def _private_states(structure: Any) -> Iterator[Any]:
  if 'dp_event' in getattr(structure, '_fields', ()):
    yield structure
    return
  if isinstance(structure, Mapping):
    structure = list(structure.values())
  if isinstance(structure, tuple | list):
    for value in structure:
      yield from _private_states(value)
