"""Counts the clients whose update was rejected in a round."""

import collections

import tensorflow as tf
import tensorflow_federated as tff

REJECTED = 'rejected_clients'


class CountRejectedFactory(tff.aggregators.WeightedAggregationFactory):
  """Adds the number of rejected clients to an aggregator's measurements.

  TFF's client work replaces an update that has a NaN or an infinity by zeros of
  weight zero, and says nothing. Clients without examples never reach the
  aggregator, so weight zero means rejected. When every client of a cohort is
  rejected the mean is 0/0, which TFF's finalizer refuses: model and server
  optimizer stay as they were.
  """

  def __init__(self, inner: tff.aggregators.WeightedAggregationFactory):
    self._inner = inner

  def create(self, value_type, weight_type):
    process = self._inner.create(value_type, weight_type)

    @tff.tensorflow.computation(weight_type)
    def is_rejected(weight):
      return tf.cast(weight <= 0, tf.int32)

    @tff.federated_computation(
      process.initialize.type_signature.result,
      tff.FederatedType(value_type, tff.CLIENTS),
      tff.FederatedType(weight_type, tff.CLIENTS),
    )
    def next_fn(state, value, weight):
      output = process.next(state, value, weight)
      rejected = tff.federated_sum(tff.federated_map(is_rejected, weight))
      measurements = collections.OrderedDict(inner=output.measurements)
      measurements[REJECTED] = rejected
      return tff.templates.MeasuredProcessOutput(
        output.state, output.result, tff.federated_zip(measurements)
      )

    return tff.templates.AggregationProcess(process.initialize, next_fn)


def mean() -> tff.aggregators.WeightedAggregationFactory:
  """The weighted mean of the clients' updates, with rejections counted."""
  return CountRejectedFactory(tff.aggregators.MeanFactory())


def sum_finite_then_finalize(metric_finalizers, *unused_arguments):
  """Like `tff.learning.metrics.sum_then_finalize`, without broken clients.

  TFF's FedSGD rejects a non-finite gradient and still adds that client's NaN
  metrics to the sum. Here a client with any non-finite metric adds zeros.

  Args:
    metric_finalizers: As in `tff.learning.metrics.sum_then_finalize`.

  Returns:
    A polymorphic federated computation from the clients' unfinalized metrics to
    metrics at the server.
  """
  sum_then_finalize = tff.learning.metrics.sum_then_finalize(metric_finalizers)

  @tff.tensorflow.computation
  def zero_if_broken(metrics):
    finite = tf.reduce_all(
      [
        tf.reduce_all(tf.math.is_finite(tf.cast(metric, tf.float32)))
        for metric in tf.nest.flatten(metrics)
      ]
    )
    return tf.nest.map_structure(
      lambda metric: tf.where(finite, metric, tf.zeros_like(metric)), metrics
    )

  @tff.federated_computation
  def aggregate(metrics):
    return sum_then_finalize(tff.federated_map(zero_if_broken, metrics))

  return aggregate
