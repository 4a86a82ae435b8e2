"""Means of updates that each client has noised for itself, simulated.

A client clips its update and adds Gaussian or Laplace noise (Dwork et al. 2006,
"Calibrating Noise to Sensitivity in Private Data Analysis"); the server sums
the reports and divides by the expected cohort. What is simulated: the clients'
noise is drawn at once, where the sum of the n reports of a round is. For the
Gaussian this is one draw of n times the variance, for Laplace noise n draws.

Noise of other forms than addition, such as PrivUnit's (Bhowmick et al. 2018,
arXiv:1812.00984), can't be drawn there: each client would need a secret key of
its own, and what clients know is sent to them by the server.
"""

import math
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_federated as tff

from research.aggregators import dp
from research.aggregators import settings as lib
from research.privacy import local, noise

_STREAM = 0


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
    parts = tf.split(
      tf.cast(total, tf.float32), [math.prod(t.shape) for t in flat]
    )
    noised = [
      x + tf.reshape(y, x.shape) for x, y in zip(flat, parts, strict=True)
    ]
    return tf.nest.pack_sequence_as(reports.update, noised)


_QUERIES = {
  query.mechanism: query for query in (LocalGaussianQuery, LocalLaplaceQuery)
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
