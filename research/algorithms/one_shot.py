"""Least squares in one round: the clients' sums, solved at the server.

Karr, Lin, Sanil and Reiter 2005, "Secure Regression on Distributed Databases",
Journal of Computational and Graphical Statistics 14(2): each client sends the
sums of products of all pairs of its features and targets. With a private mean
of them it is sufficient statistics perturbation (Vu and Slavkovic 2009,
"Differential Privacy for Clinical Trial Data", for regression Wang 2018,
arXiv:1803.02596, Section 3): all of a model for the noise of a single release.
"""

import tensorflow as tf
import tensorflow_federated as tff

from research.aggregators import rejection
from research.algorithms import client_sums, local_training

# Noise can leave sums of squares that no data has: directions below this share
# of the largest eigenvalue are taken for not determined.
_LEAST = 1e-6


def _client_work(
  model_fn: local_training.ModelFn,
  types: local_training.ModelTypes,
  loop_implementation: tff.learning.LoopImplementation,
) -> tff.learning.templates.ClientWorkProcess:
  """Clients send Z^T Z of the rows [x, 1, y], float32 [d + 1 + k, same]."""
  num_features, num_targets = types.weights.trainable[0].shape
  size = num_features + 1 + num_targets

  def add(model, total, batch):
    model.forward_pass(batch, training=False)
    ones = tf.ones([tf.shape(batch['x'])[0], 1])
    rows = tf.concat([batch['x'], ones, batch['y']], axis=1)
    return total + tf.matmul(rows, rows, transpose_a=True)

  return client_sums.build_client_work(
    model_fn,
    types,
    lambda: tf.zeros([size, size]),
    add,
    loop_implementation,
  )


def solve(
  sums: tf.Tensor, num_features: int, ridge: float, has_intercepts: bool = True
) -> list[tf.Tensor]:
  """Least squares from sums or their mean over clients.

  Args:
    sums: float32 [d + 1 + k, d + 1 + k] of rows [x, 1, y]; noise may have left
      it not symmetric and not positive.
    num_features: d.
    ridge: lambda of 1/n sum (y - W x - b)^2 + lambda ||W||^2.
    has_intercepts: Whether there is b.

  Returns:
    W, float32 [d, k], and b, float32 [k], if there is one.
  """
  sums = tf.cast(sums, tf.float64)
  sums = (sums + tf.transpose(sums)) / 2
  count = sums[num_features, num_features]
  size = num_features + has_intercepts
  penalty = ([ridge] * num_features + [0.0])[:size]
  penalty = tf.linalg.diag(tf.constant(penalty, tf.float64))
  gram = sums[:size, :size] / count + penalty
  values, vectors = tf.linalg.eigh(gram)
  least = _LEAST * tf.reduce_max(values)
  inverse = tf.where(values > least, 1 / values, 0.0)
  moments = sums[:size, num_features + 1 :] / count
  found = tf.matmul(
    vectors * inverse, tf.matmul(vectors, moments, transpose_a=True)
  )
  found = tf.cast(found, tf.float32)
  return [found[:-1], found[-1]] if has_intercepts else [found]


def _finalizer(
  weights_type: tff.Type, sums_type: tff.Type, ridge: float
) -> tff.learning.templates.FinalizerProcess:
  @tff.tensorflow.computation(weights_type, sums_type)
  def solved(weights, sums):
    # Without any client there is no mean, and the model stays.
    is_known = local_training.all_finite(sums)
    sums = tf.where(is_known, sums, tf.eye(sums.shape[0]))
    found = solve(
      sums,
      weights_type.trainable[0].shape[0],
      ridge,
      has_intercepts=len(weights.trainable) > 1,
    )
    trainable = [
      tf.where(is_known, new, old)
      for new, old in zip(found, weights.trainable, strict=True)
    ]
    return tff.learning.models.ModelWeights(trainable, weights.non_trainable)

  @tff.federated_computation
  def initialize():
    return tff.federated_value((), tff.SERVER)

  @tff.federated_computation(
    initialize.type_signature.result,
    tff.FederatedType(weights_type, tff.SERVER),
    tff.FederatedType(sums_type, tff.SERVER),
  )
  def next_fn(state, weights, sums):
    return tff.templates.MeasuredProcessOutput(
      state,
      tff.federated_map(solved, (weights, sums)),
      tff.federated_value((), tff.SERVER),
    )

  return tff.learning.templates.FinalizerProcess(initialize, next_fn)


def build(
  model_fn: local_training.ModelFn,
  *,
  loop_implementation: tff.learning.LoopImplementation,
  one_shot_ridge: float,
  model_aggregator: tff.aggregators.WeightedAggregationFactory | None = None,
) -> tff.learning.templates.LearningProcess:
  """Builds least squares from the clients' sums.

  A round sets the weights to the solution for its cohort, whatever they were:
  with all clients that is pooled least squares, or ridge regression.

  Args:
    model_fn: Builds the model anew at each call: W [d, k] and perhaps b [k],
      with the mean squared error as its loss.
    loop_implementation: How a client iterates over its batches, which only
      bound memory here.
    one_shot_ridge: lambda of `solve`; noise needs some.
    model_aggregator: Combines the sums; None is their mean.

  Returns:
    A process whose metrics are those of the model before the round.

  Raises:
    UnsuitableError: If the model is no such linear one.
  """
  types = local_training.model_types(model_fn)
  shapes = [tuple(weight.shape) for weight in types.weights.trainable]
  if len(shapes[0]) != 2 or shapes[1:] not in ([], [shapes[0][1:]]):
    raise local_training.UnsuitableError(
      'one_shot solves linear regression, whose weights are [features, '
      f'targets] and, for intercepts, [targets]; this model has {shapes}.'
    )
  work = _client_work(model_fn, types, loop_implementation)
  sums_type = work.next.type_signature.result.result.member.update
  return local_training.compose_finalized(
    model_fn,
    work,
    model_aggregator or rejection.mean(),
    _finalizer(types.weights, sums_type, one_shot_ridge),
  )
