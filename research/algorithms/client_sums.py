"""Client work of algorithms whose clients send sums over their examples."""

import collections
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from research.algorithms import local_training


def build_client_work(
  model_fn: local_training.ModelFn,
  types: local_training.ModelTypes,
  zero: Callable[[], Any],
  add: Callable[[tff.learning.models.VariableModel, Any, Any], Any],
  loop_implementation: tff.learning.LoopImplementation,
) -> tff.learning.templates.ClientWorkProcess:
  """Clients that send sums over their examples, at the server's weights.

  Args:
    model_fn: Builds the model anew at each call.
    types: Of the model.
    zero: Makes the sums of no example, a structure of float tensors.
    add: From a model at the server's weights, sums and a batch to the sums with
      that batch; its forward pass counts in the metrics.
    loop_implementation: How a client iterates over its batches.

  Returns:
    A client work without a state; a client whose sums are not finite is
    rejected, all others weigh 1.
  """

  @tff.tensorflow.computation(types.weights, types.data)
  def client_sums(weights, dataset):
    model = model_fn()

    @tf.function
    def sums(weights, dataset):
      local_training.assign(model, weights)
      found = local_training.reduce_batches(
        lambda total, batch: add(model, total, batch),
        dataset,
        zero(),
        loop_implementation,
      )
      is_accepted = local_training.all_finite(found)
      sent = tff.learning.templates.ClientResult(
        update=local_training.unless_rejected(is_accepted, found),
        update_weight=tf.cast(is_accepted, tf.float32),
      )
      metrics = model.report_local_unfinalized_metrics()
      return sent, local_training.unless_rejected(is_accepted, metrics)

    return sums(weights, dataset)

  @tff.federated_computation
  def initialize():
    return tff.federated_value((), tff.SERVER)

  @tff.federated_computation(
    initialize.type_signature.result,
    tff.FederatedType(types.weights, tff.CLIENTS),
    tff.FederatedType(types.data, tff.CLIENTS),
  )
  def next_fn(state, weights, data):
    sent, metrics = tff.federated_map(client_sums, (weights, data))
    measurements = collections.OrderedDict(
      train=types.aggregate_metrics(metrics)
    )
    return tff.templates.MeasuredProcessOutput(
      state, sent, tff.federated_zip(measurements)
    )

  return tff.learning.templates.ClientWorkProcess(initialize, next_fn)
