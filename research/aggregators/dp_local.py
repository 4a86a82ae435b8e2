"""Means of updates that each client has noised for itself, simulated.

A client clips its update and adds Gaussian or Laplace noise (Dwork et al. 2006,
"Calibrating Noise to Sensitivity in Private Data Analysis"); the server sums
the reports and divides by the expected cohort. What is simulated: the clients'
noise is drawn at once, where the sum of the n reports of a round is. For the
Gaussian this is one draw of n times the variance, for Laplace noise n draws.

PrivUnit's noise depends on the update and is drawn at the client. In a
deployment each client has a key of its own; here the round's key is sent to
them, and what a client draws also depends on a hash of its update.
"""

import math
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_federated as tff
from scipy import stats

from research.aggregators import compression, dp
from research.aggregators import settings as lib
from research.privacy import local, noise, priv_unit

_STREAM = 0
_CHANCE_STREAM = 1


class Reports(NamedTuple):
  """Sums over clients.

  Attributes:
    update: float32 tensors.
    clients: float32, their number.
  """

  update: Any
  clients: Any


class LocalGaussianQuery(dp.FixedClipQuery):
  """A mean of updates clipped to an L2 norm, each with noise of its own."""

  mechanism = local.GAUSSIAN

  def initial_sample_state(self, template=None):
    zeros = tf.nest.map_structure(
      lambda x: tf.zeros(x.shape, x.dtype), template
    )
    return Reports(zeros, tf.constant(0.0))

  def preprocess_record(self, params, record):
    return Reports(self._clip(record, params), tf.constant(1.0))

  def get_noised_result(self, sample_state, global_state):
    total = sample_state.update
    if self._noise_multiplier:
      stddev = self._noise_multiplier * global_state.clip_norm
      total = self._add_noise(sample_state, global_state.noise_key, stddev)
    mean = tf.nest.map_structure(lambda x: x / self._clients_per_round, total)
    return mean, self._without_key(global_state), self._event()

  def _clip(self, record, clip_norm):
    return dp.clip(record, clip_norm)[0]

  def _add_noise(self, reports: Reports, key: tf.Tensor, stddev: tf.Tensor):
    stddev *= tf.sqrt(reports.clients)
    return dp.add_noise(reports.update, key, _STREAM, stddev)

  def _event(self):
    return local.event(self.mechanism, self._noise_multiplier)


class LocalLaplaceQuery(LocalGaussianQuery):
  """A mean of updates clipped to an L1 norm, each with Laplace noise."""

  mechanism = local.LAPLACE

  def _clip(self, record, clip_norm):
    return dp.clip(record, clip_norm, order=1)[0]

  def _add_noise(self, reports, key, stddev):
    flat = tf.nest.flatten(reports.update)
    size = sum(math.prod(tensor.shape) for tensor in flat)
    # The variance of Laplace noise is twice the square of its parameter.
    parameter = tf.cast(stddev, tf.float64) / math.sqrt(2)
    total = parameter * noise.sum_of_laplace(
      key, _STREAM, tf.cast(reports.clients, tf.int32), size
    )
    drawn = _shaped(tf.cast(total, tf.float32), reports.update)
    return tf.nest.map_structure(tf.add, reports.update, drawn)


class LocalPrivUnitQuery(dp.FixedClipQuery):
  """A mean of reports of which each is of the clipped update in expectation.

  An update of norm r S, where S is the clipping norm, is reported as its
  direction with probability (1 + r) / 2, and else as the opposite one.
  """

  mechanism = local.PRIV_UNIT

  def derive_sample_params(self, global_state):
    return global_state

  def preprocess_record(self, params, record):
    clipped = dp.clip(record, params.clip_norm)[0]
    if not self._noise_multiplier:
      return clipped
    flat = [tf.reshape(tensor, [-1]) for tensor in tf.nest.flatten(clipped)]
    report = self._report(
      tf.concat(flat, axis=0), params.clip_norm, params.noise_key
    )
    return _shaped(report, clipped)

  def _report(
    self, update: tf.Tensor, clip_norm: tf.Tensor, key: tf.Tensor
  ) -> tf.Tensor:
    """float32 [d] of float32 [d]."""
    salt = _salt(update)
    wide = tf.cast(update, tf.float64)
    norm = tf.norm(wide)
    # Zeros have no direction; the first axis or its opposite is theirs.
    first = tf.one_hot(0, update.shape[0], dtype=tf.float64)
    direction = tf.where(norm > 0, wide / norm, first)
    share = norm / tf.cast(clip_norm, tf.float64)
    chances = noise.uniforms(key, _CHANCE_STREAM, 3, salt)
    is_kept = chances[0] < (1 + share) / 2
    direction = tf.where(is_kept, direction, -direction)
    normals = noise.standard_normals(
      key, _STREAM, tf.TensorSpec(update.shape), salt
    )
    normals = tf.cast(normals, tf.float64)
    along = self._along(chances[1:])
    along -= tf.reduce_sum(normals * direction)
    scale = tf.cast(clip_norm, tf.float64) * self._noise_multiplier
    return tf.cast(scale * (normals + along * direction), tf.float32)

  def _along(self, chances: tf.Tensor) -> tf.Tensor:
    """<x, v> of `priv_unit`, from two uniform numbers; float64."""
    gamma = 1 / self._noise_multiplier
    above, below = stats.norm.sf(gamma), stats.norm.cdf(gamma)
    rank = 1 - chances[1]
    return tf.where(
      chances[0] < priv_unit.probability_above(self._noise_multiplier),
      -tf.math.ndtri(rank * above),
      tf.math.ndtri(rank * below),
    )

  def _noised_mean(self, total, state):
    return tf.nest.map_structure(lambda x: x / self._clients_per_round, total)

  def _event(self):
    return local.event(self.mechanism, self._noise_multiplier)


def _shaped(vector: tf.Tensor, like: Any) -> Any:
  """The parts of a vector in the shapes of a structure of tensors."""
  flat = tf.nest.flatten(like)
  parts = tf.split(vector, [math.prod(tensor.shape) for tensor in flat])
  shaped = [tf.reshape(p, t.shape) for p, t in zip(parts, flat, strict=True)]
  return tf.nest.pack_sequence_as(like, shaped)


def _salt(update: tf.Tensor) -> tf.Tensor:
  """uint32 [2] that differs between different updates, nearly always."""
  hashes = [
    compression.fingerprint(update),
    compression.fingerprint(tf.reverse(update, axis=[0])),
  ]
  return tf.bitcast(tf.stack(hashes), tf.uint32)


_QUERIES = {
  query.mechanism: query
  for query in (LocalGaussianQuery, LocalLaplaceQuery, LocalPrivUnitQuery)
}


def build(settings: lib.Settings) -> tff.aggregators.WeightedAggregationFactory:
  """The aggregator that settings describe; it ignores the clients' weights."""
  return dp.factory(
    _QUERIES[settings.dp_mechanism](
      settings.clip_norm,
      settings.noise_multiplier,
      float(settings.clients_per_round),
    )
  )
