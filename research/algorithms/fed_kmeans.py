"""Federated k-means: clients assign and add up, the server averages.

Lloyd 1982, "Least squares quantization in PCM", IEEE Transactions on
Information Theory 28(2), whose step is a sum over examples and hence over
clients; where a round asks some of the clients only, mini-batch k-means,
Sculley 2010, "Web-scale k-means clustering", WWW, Algorithm 1.
"""

import collections
import math
from typing import NamedTuple

import tensorflow as tf
import tensorflow_federated as tff

from research.aggregators import bits, rejection
from research.algorithms import client_sums, local_training


class Clusters(NamedTuple):
  """The examples of a client, or of a round's clients, by cluster.

  Attributes:
    counts: float32 [k], examples by cluster.
    sums: float32 [k, features], their sums.
  """

  counts: tf.Tensor
  sums: tf.Tensor


def start(directions: tf.Tensor, new: Clusters) -> tf.Tensor:
  """Perturbs the mean of all examples once for each cluster.

  Thiesson et al. 1997, as reported by Bradley and Fayyad 1998, "Refining
  Initial Points for K-Means Clustering", ICML. All perturbations have the same
  norm, so that an example is next to the centroid whose direction from the mean
  is most its own, and no centroid loses for being farther off than others.

  Args:
    directions: Random vectors of norm 1, [k, features].
    new: Of all examples, in whatever clusters.

  Returns:
    The first centroids, [k, features].
  """
  mean = tf.reduce_sum(new.sums, axis=0) / tf.reduce_sum(new.counts)
  return mean + directions


def average(
  centroids: tf.Tensor, counts: tf.Tensor, new: Clusters, decay: float
) -> tuple[tf.Tensor, tf.Tensor]:
  """Moves each centroid to the mean of its examples, old and new.

  n_j <- a n_j + m_j, and c_j <- c_j + (m_j / n_j) (mean of the m_j new examples
  - c_j). With a = 0 it is Lloyd's step; with a = 1 that of Sculley 2010, whose
  step size for an example is 1 over its centroid's count. A cluster without new
  examples stays.

  Args:
    centroids: c, [k, features].
    counts: n, [k], of the rounds before.
    new: Of this round.
    decay: a, in [0, 1].

  Returns:
    The new centroids and counts.
  """
  kept = decay * counts
  total = kept + new.counts
  moved = (kept[:, tf.newaxis] * centroids + new.sums) / total[:, tf.newaxis]
  has_new = new.counts[:, tf.newaxis] > 0
  return tf.where(has_new, moved, centroids), total


def _client_work(
  model_fn, types, k, size, loop_implementation
) -> tff.learning.templates.ClientWorkProcess:
  """A client's assignment of its examples, added up."""

  def add(model, state, batch):
    distances = model.forward_pass(batch, training=True).predictions
    x = tf.reshape(batch['x'], [-1, size])
    nearest = tf.argmin(distances, axis=1)
    one_each = tf.ones_like(nearest, tf.float32)
    return Clusters(
      state.counts + tf.math.unsorted_segment_sum(one_each, nearest, k),
      state.sums + tf.math.unsorted_segment_sum(x, nearest, k),
    )

  return client_sums.build_client_work(
    model_fn,
    types,
    lambda: Clusters(tf.zeros([k]), tf.zeros([k, size])),
    add,
    loop_implementation,
  )


def _finalizer(
  types, clusters_type: tff.Type, k: int, decay: float
) -> tff.learning.templates.FinalizerProcess:
  """The server's step; its state is n and whether there are centroids yet."""

  @tff.tensorflow.computation
  def no_centroids():
    return collections.OrderedDict(
      counts=tf.zeros([k]), has_centroids=tf.constant(False)
    )

  state_type = no_centroids.type_signature.result

  @tff.tensorflow.computation(state_type, types.weights, clusters_type)
  def step(state, weights, new):
    (before,) = tf.nest.flatten(weights.trainable)

    def first():
      # These centroids are nobody's mean: they weigh nothing in the next round.
      return start(before, new), tf.zeros([k])

    def following():
      return average(before, state['counts'], new, decay)

    centroids, counts = tf.cond(state['has_centroids'], following, first)
    # A round without any client that counts changes nothing.
    is_empty = tf.reduce_sum(new.counts) <= 0
    after = tf.nest.map_structure(
      lambda old, changed: tf.where(is_empty, old, changed),
      (before, state['counts'], state['has_centroids']),
      (centroids, counts, tf.constant(True)),
    )
    new_state = collections.OrderedDict(counts=after[1], has_centroids=after[2])
    trainable = tf.nest.pack_sequence_as(weights.trainable, [after[0]])
    return new_state, tff.learning.models.ModelWeights(
      trainable, weights.non_trainable
    )

  @tff.federated_computation
  def initialize():
    return tff.federated_eval(no_centroids, tff.SERVER)

  @tff.federated_computation(
    initialize.type_signature.result,
    tff.FederatedType(types.weights, tff.SERVER),
    tff.FederatedType(clusters_type, tff.SERVER),
  )
  def next_fn(state, weights, new):
    state, weights = tff.federated_map(step, (state, weights, new))
    nothing = tff.federated_value((), tff.SERVER)
    return tff.templates.MeasuredProcessOutput(state, weights, nothing)

  return tff.learning.templates.FinalizerProcess(initialize, next_fn)


def _sizes(model_fn: local_training.ModelFn) -> tuple[int, int]:
  """The clusters and features of a model.

  Raises:
    UnsuitableError: If its weights are no centroids.
  """
  with tf.Graph().as_default():
    model = model_fn()
    shapes = [tuple(v.shape) for v in model.trainable_variables]
    size = math.prod(model.input_spec['x'].shape[1:])
  if len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][1] != size:
    raise local_training.UnsuitableError(
      'fed_kmeans wants a model with one weight, its centroids [clusters, '
      f'{size}], as k_means is; the given one has weights of shapes {shapes}.'
    )
  return shapes[0]


def build(
  model_fn: local_training.ModelFn,
  *,
  loop_implementation: tff.learning.LoopImplementation,
  participation: float = 1.0,
) -> tff.learning.templates.LearningProcess:
  """Builds federated k-means.

  One round: each client assigns its examples to the nearest centroids and sends
  each cluster's count and sum; the server averages. In the first round the
  centroids are still those of the model, drawn without any data: from the total
  the server learns where the examples are, and moves them there (see `start`).

  If all clients take part in each round, what follows is Lloyd's algorithm on
  the pooled examples, however they are divided. Else the counts of earlier
  rounds are multiplied by a = 1 - participation before a round's are added,
  as in Spark's streaming k-means: the clients that are not asked count as
  before, and 1 / participation rounds weigh about as much as all clients. A
  participation near 0 is Sculley's mini-batch k-means, which forgets nothing.

  Args:
    model_fn: Builds the model anew at each call; its one weight are the
      centroids [k, features], its predictions the squared distances from them.
    loop_implementation: How a client iterates over its batches.
    participation: Share of all clients that a round asks, in [0, 1].

  Returns:
    A process whose metrics count the rejected clients.

  Raises:
    UnsuitableError: If the model has other weights, or the participation is no
      share.
  """
  if not 0 <= participation <= 1:
    raise local_training.UnsuitableError(
      f'participation is {participation}; it must be from 0 to 1.'
    )
  k, size = _sizes(model_fn)
  types = local_training.model_types(model_fn)
  work = _client_work(model_fn, types, k, size, loop_implementation)
  clusters_type = work.next.type_signature.result.result.member.update

  aggregator = bits.MeasureUploadFactory(
    rejection.CountRejectedFactory(
      tff.aggregators.as_weighted_aggregator(tff.aggregators.SumFactory())
    ),
    bits.of_type,
  )
  finalizer = _finalizer(types, clusters_type, k, 1.0 - participation)
  return local_training.compose_finalized(model_fn, work, aggregator, finalizer)
