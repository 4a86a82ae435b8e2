"""Means with distributed noise, simulated.

Kairouz, Liu and Steinke 2021, arXiv:2102.06387, Algorithms 1 and 2; Agarwal,
Kairouz and Liu 2021, arXiv:2110.04995, Algorithm 1. A client clips its update,
rotates it, rounds it at random to integers of a bounded norm, adds integer
noise and sends it modulo 2^bits into a secure sum; the server undoes rotation
and scale and divides by the expected cohort. All clients of a round have the
same rotation, which is no secret, nor is what the rounding draws: the norm
after it is bounded whatever it draws.

What is simulated: nothing is encrypted, and the noise of all clients is drawn
at once, where their sum is. For Skellam noise this is what the clients' shares
add up to, for the discrete Gaussian nearly (`research.privacy.distributed`).
Taking the remainder after all sums is the same as before and after each.

TFF's `DistributedDpSumFactory` draws its noise at the clients, from a generator
that takes its seed from the clock, and rounds the noise's scale up to an
integer; a key of ours would have to be sent to the clients, as all that a
query's preprocessing knows. Hence this query.
"""

import collections
import math
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_federated as tff
import tensorflow_privacy as tfp

from research.aggregators import compression, dp, rotation
from research.aggregators import settings as lib
from research.privacy import distributed, integer_noise, noise

_DISTRIBUTIONS = {
  distributed.DISCRETE_GAUSSIAN: integer_noise.DISCRETE_GAUSSIAN,
  distributed.SKELLAM: integer_noise.SKELLAM,
}
_NOISE_STREAM = 0
# Each try fails with a probability below exp(-1/2), all together below 1e-13.
_MOST_TRIES = 64
# Keeps the rounding's draws apart from a rotation's of the same seed.
_ROUNDING_STREAM = 0x726E64


class State(NamedTuple):
  """What the query keeps at the server.

  Attributes:
    clip_norm: float32, the L2 norm to which updates are clipped.
    round_num: int32, the number of rounds before.
    noise_key: uint32 [8], the next round's; zeros between rounds.
  """

  clip_norm: Any
  round_num: Any
  noise_key: Any


def round_conditionally(
  vector: tf.Tensor, most_squared_norm: int, seed: tf.Tensor
) -> tf.Tensor:
  """Rounds to integers at random, again and again until the norm is bounded.

  DDG, Algorithm 1, step 3: each coordinate is rounded up with the probability
  of its fraction, so that it is right on average but for the condition.

  Args:
    vector: float32 [d].
    most_squared_norm: Of the result.
    seed: int32 [2].

  Returns:
    int64 [d] of at most that squared norm, without exception: if all tries fail
    the vector is rounded towards zero, or is zeros if that is still too long.
  """
  floor = tf.floor(vector)
  fraction = vector - floor

  def rounded(number):
    uniform = tf.random.stateless_uniform(
      vector.shape, seed + [_ROUNDING_STREAM, number], alg='philox'
    )
    return tf.cast(floor + tf.cast(uniform < fraction, tf.float32), tf.int64)

  def is_bounded(integers):
    return tf.reduce_sum(integers * integers) <= most_squared_norm

  _, found = tf.while_loop(
    lambda number, found: (number < _MOST_TRIES) & ~is_bounded(found),
    lambda number, found: (number + 1, rounded(number)),
    (tf.constant(1), rounded(tf.constant(0))),
  )
  shorter = tf.cast(tf.sign(vector) * tf.floor(tf.abs(vector)), tf.int64)
  shorter = tf.where(is_bounded(shorter), shorter, tf.zeros_like(shorter))
  return tf.where(is_bounded(found), found, shorter)


def wrap(integers: tf.Tensor, bits: int) -> tf.Tensor:
  """The numbers from -2^(bits-1) to below 2^(bits-1) equal modulo 2^bits."""
  half = 1 << (bits - 1)
  return tf.math.floormod(integers + half, 1 << bits) - half


class DistributedQuery(tfp.SumAggregationDPQuery):
  """A noised mean of rotated and rounded updates."""

  def __init__(self, mechanism: str, encoding: distributed.Encoding, seed: int):
    """Describes the mechanism.

    Args:
      mechanism: One of `distributed.MECHANISMS`.
      encoding: The grid and the noise on it; without noise there is no privacy.
      seed: What rotations come from.
    """
    self._mechanism = mechanism
    self._encoding = encoding
    self._seed = seed % 2**31
    self._rotation = rotation.Hadamard()
    self._thresholds = None
    if encoding.noise_multiplier:
      self._thresholds = integer_noise.table(
        _DISTRIBUTIONS[mechanism], encoding.stddev**2
      )

  def initial_global_state(self):
    return State(
      tf.constant(self._encoding.clip_norm, tf.float32),
      tf.constant(0),
      tf.constant(noise.no_key()),
    )

  def initial_sample_state(self, template=None):
    return tf.zeros([self._encoding.dimension], tf.int64)

  def derive_sample_params(self, global_state):
    """The round's key for rotation and rounding, int32."""
    return self._rotation_key(global_state)

  def preprocess_record(self, params, record):
    clip_norm = tf.constant(self._encoding.clip_norm, tf.float32)
    (clipped,), _ = dp.clip([record], clip_norm)
    rotated = self._rotation.rotate(clipped, tf.stack([params, 0]))
    # Clients round independently of each other.
    seed = tf.stack([params, compression.fingerprint(rotated)])
    return round_conditionally(
      rotated / self._encoding.granularity, self._encoding.squared_norm, seed
    )

  def get_noised_result(self, sample_state, global_state):
    encoding, key = self._encoding, global_state.noise_key
    total = sample_state
    if self._thresholds is not None:
      total += integer_noise.sample(
        key, _NOISE_STREAM, self._thresholds, encoding.dimension
      )
    scaled = tf.cast(wrap(total, encoding.bits), tf.float32)
    rotated = scaled * encoding.granularity / encoding.clients_per_round
    seed = tf.stack([self._rotation_key(global_state), 0])
    mean = self._rotation.invert(rotated, seed, encoding.size)
    if self._thresholds is not None:
      mean = tf.where(noise.is_key(key), mean, math.nan)
    state = global_state._replace(
      round_num=global_state.round_num + 1,
      noise_key=tf.constant(noise.no_key()),
    )
    return mean, state, self._event()

  def derive_metrics(self, global_state):
    return collections.OrderedDict(clip_norm=global_state.clip_norm)

  def _rotation_key(self, state: State) -> tf.Tensor:
    return tf.random.stateless_uniform(
      [],
      tf.stack([tf.constant(self._seed), state.round_num]),
      minval=None,
      maxval=None,
      dtype=tf.int32,
      alg='philox',
    )

  def _event(self):
    encoding = self._encoding
    change = math.sqrt(encoding.squared_norm)
    return distributed.noise(self._mechanism, encoding, 1).event(change)


class DistributedFactory(tff.aggregators.UnweightedAggregationFactory):
  """Aggregates one vector by a `DistributedQuery` for its size."""

  def __init__(self, settings: lib.Settings):
    self._settings = settings

  def create(self, value_type):
    """See base class; the value is one float32 vector."""
    (size,) = value_type.shape
    query = DistributedQuery(
      self._settings.dp_mechanism,
      encoding(self._settings, size),
      self._settings.seed,
    )
    return tff.aggregators.DifferentiallyPrivateFactory(query).create(
      value_type
    )


def encoding(settings: lib.Settings, size: int) -> distributed.Encoding:
  """What settings make of an update of `size` coordinates."""
  return distributed.Encoding(
    clip_norm=settings.clip_norm,
    noise_multiplier=settings.noise_multiplier,
    clients_per_round=settings.clients_per_round,
    size=size,
    bits=settings.secure_sum_bits,
  )


def build(settings: lib.Settings) -> tff.aggregators.WeightedAggregationFactory:
  """The aggregator that settings describe; it ignores the clients' weights."""
  return tff.aggregators.as_weighted_aggregator(DistributedFactory(settings))


def upload_bits(settings: lib.Settings, size: int) -> int:
  """Bits that a client sends of an update of `size` coordinates."""
  found = encoding(settings, size)
  return found.dimension * found.bits
