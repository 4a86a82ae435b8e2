"""Aggregates that a few clients with arbitrary updates can't move far.

The server sees every update, so that none of them can be behind a secure sum.
Clients of weight zero, whose update was rejected, have no say.
"""

import collections
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

Rule = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

_SMOOTHING = 1e-6


def median() -> Rule:
  """The median of each coordinate; of two middle values, their mean.

  Yin et al. 2018, "Byzantine-Robust Distributed Learning", arXiv:1803.01498,
  Definition 1.

  Returns:
    From updates [n, d] and weights [n], which don't count, to [d].
  """

  def rule(values, weights):
    del weights
    ordered = tf.sort(values, axis=0)
    count = tf.shape(values)[0]
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2

  return rule


def trimmed_mean(fraction: float) -> Rule:
  """The mean of each coordinate without its largest and smallest values.

  Yin et al. 2018, arXiv:1803.01498, Definition 2.

  Args:
    fraction: Share of the clients that is left out at either end, rounded up to
      whole clients; at least one client stays.

  Returns:
    From updates [n, d] and weights [n], which don't count, to [d].
  """

  def rule(values, weights):
    del weights
    count = tf.shape(values)[0]
    # Less than a client's share, so that 0.1 of 30 is 3 and not 4.
    share = fraction * tf.cast(count, tf.float64) - 1e-6
    cut = tf.cast(tf.math.ceil(tf.maximum(share, 0.0)), tf.int32)
    cut = tf.minimum(cut, (count - 1) // 2)
    ordered = tf.sort(values, axis=0)
    return tf.reduce_mean(ordered[cut : count - cut], axis=0)

  return rule


def geometric_median(iterations: int) -> Rule:
  """RFA: the smoothed Weiszfeld algorithm for the geometric median.

  Pillutla et al. 2022, "Robust Aggregation for Federated Learning",
  arXiv:1912.13445, with the smoothing 1e-6. It starts at the
  median of each coordinate: from the mean, a single huge update costs an
  iteration per factor of its size, and from zero, a client that sends zero
  holds it there.

  Args:
    iterations: How often the weights are computed anew.

  Returns:
    From updates [n, d] and positive weights [n] to [d].
  """
  start = median()

  def rule(values, weights):
    centre = start(values, weights)
    for _ in range(iterations):
      distances = tf.norm(values - centre, axis=1)
      factors = weights / tf.maximum(distances, _SMOOTHING)
      total = tf.reduce_sum(factors)
      centre = tf.linalg.matvec(values, factors / total, transpose_a=True)
    return centre

  return rule


def krum(byzantine_clients: int, selected_clients: int = 1) -> Rule:
  """Krum, or Multi-Krum where more than one client is selected.

  Blanchard et al. 2017, "Machine Learning with Adversaries", NeurIPS, Section
  4: a client's score is the sum of the squared distances to its n - f - 2
  nearest others; the clients of the lowest scores are averaged.

  Args:
    byzantine_clients: f. The paper's guarantee needs n >= 2 f + 3; with fewer
      clients at least one neighbour is scored.
    selected_clients: How many are averaged; all, if there are fewer.

  Returns:
    From updates [n, d] and weights [n], which don't count, to [d].
  """

  def rule(values, weights):
    del weights
    count = tf.shape(values)[0]
    # In float64, where the difference of two large products keeps its digits.
    wide = tf.cast(values, tf.float64)
    squares = tf.reduce_sum(wide * wide, axis=1)
    products = tf.matmul(wide, wide, transpose_b=True)
    distances = squares[:, tf.newaxis] + squares - 2 * products
    itself = tf.fill([count], np.float64(np.inf))
    distances = tf.linalg.set_diag(distances, itself)
    neighbours = tf.maximum(count - byzantine_clients - 2, 1)
    scores = tf.reduce_sum(tf.sort(distances, axis=1)[:, :neighbours], axis=1)
    chosen = tf.math.top_k(-scores, tf.minimum(selected_clients, count)).indices
    return tf.reduce_mean(tf.gather(values, chosen), axis=0)

  return rule


def _cohort(most: int, size: int, client_type: tff.Type) -> tuple:
  """What collects up to `most` clients with updates of `size` coordinates.

  Returns:
    The type of a collection, and computations: an empty one, one with a client
    more, and two together.
  """
  cohort_type = tff.to_type(
    collections.OrderedDict(
      values=tff.TensorType(np.float32, [most, size]),
      weights=tff.TensorType(np.float32, [most]),
      count=tff.TensorType(np.int32),
    )
  )

  @tff.tensorflow.computation
  def no_clients():
    return collections.OrderedDict(
      values=tf.zeros([most, size]),
      weights=tf.zeros([most]),
      count=tf.constant(0),
    )

  @tff.tensorflow.computation(cohort_type, client_type)
  def add_client(cohort, client):
    row = [[cohort['count']]]
    weight = tf.cast(client['weight'], tf.float32)
    return collections.OrderedDict(
      values=tf.tensor_scatter_nd_update(
        cohort['values'], row, [client['value']]
      ),
      weights=tf.tensor_scatter_nd_update(cohort['weights'], row, [weight]),
      count=cohort['count'] + 1,
    )

  @tff.tensorflow.computation(cohort_type, cohort_type)
  def merge(first, second):
    def together(name):
      parts = [part[name][: part['count']] for part in (first, second)]
      joined = tf.concat(parts, axis=0)[:most]
      missing = [[0, most - tf.shape(joined)[0]]]
      padding = missing + [[0, 0]] * (joined.shape.rank - 1)
      return tf.ensure_shape(tf.pad(joined, padding), first[name].shape)

    return collections.OrderedDict(
      values=together('values'),
      weights=together('weights'),
      count=first['count'] + second['count'],
    )

  return cohort_type, no_clients, add_client, merge


class RobustFactory(tff.aggregators.WeightedAggregationFactory):
  """Applies a rule to the updates of all clients that have a weight.

  Without such a client the result is NaN, like a mean over no clients, which
  TFF's finalizer refuses.
  """

  def __init__(self, rule: Rule, most_clients: int):
    """Wraps a rule.

    Args:
      rule: From the updates [n, d] and their weights [n] to [d]; n >= 1.
      most_clients: The largest cohort. Room for it is taken in each round,
        since XLA has no tensors that grow; more clients are an error, or NaN
        where the device does not find it.
    """
    self._rule = rule
    self._most_clients = most_clients

  def create(self, value_type, weight_type):
    """See base class; the value is one float32 vector, the weight a scalar."""
    (size,) = value_type.shape
    client_type = tff.to_type(
      collections.OrderedDict(value=value_type, weight=weight_type)
    )
    cohort_type, no_clients, add_client, merge = _cohort(
      self._most_clients, size, client_type
    )

    @tff.tensorflow.computation(cohort_type)
    def report(cohort):
      return self._apply(cohort['values'], cohort['weights'], cohort['count'])

    @tff.federated_computation
    def init_fn():
      return tff.federated_value((), tff.SERVER)

    @tff.federated_computation(
      init_fn.type_signature.result,
      tff.FederatedType(value_type, tff.CLIENTS),
      tff.FederatedType(weight_type, tff.CLIENTS),
    )
    def next_fn(state, value, weight):
      client = tff.federated_zip(
        collections.OrderedDict(value=value, weight=weight)
      )
      result = tff.federated_aggregate(
        client, no_clients(), add_client, merge, report
      )
      nothing = tff.federated_value((), tff.SERVER)
      return tff.templates.MeasuredProcessOutput(state, result, nothing)

    return tff.templates.AggregationProcess(init_fn, next_fn)

  def _apply(self, values, weights, count):
    """Applies the rule; see `create` for the shapes."""
    present = tf.logical_and(tf.range(self._most_clients) < count, weights > 0)
    is_sound = tf.reduce_any(present) & (count <= self._most_clients)
    # A rule needs a client: without any its result is thrown away.
    present = present | ~tf.reduce_any(present)
    kept = [tf.boolean_mask(values, present), tf.boolean_mask(weights, present)]
    result = tf.where(is_sound, self._rule(*kept), np.float32(np.nan))
    return tf.ensure_shape(result, values.shape[1:])
