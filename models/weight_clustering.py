"""Weight clustering: a kernel has few values, each shared by many weights.

Han et al. 2016, "Deep Compression: Compressing Deep Neural Networks with
Pruning, Trained Quantization and Huffman Coding", arXiv:1510.00149, Section 3.
"""

import dataclasses

import tensorflow as tf

# Of Lloyd's algorithm; between clusters that are intervals few are needed.
_ITERATIONS = 20


@dataclasses.dataclass(frozen=True)
class Settings:
  """How weights are clustered.

  Attributes:
    num_clusters: Values that a kernel has, zero among them if it is pruned.
    begin_round: Rounds of training before the weights are clustered first.
  """

  num_clusters: int
  begin_round: int = 0

  def __post_init__(self):
    if self.num_clusters < 2:
      raise ValueError(f'num_clusters={self.num_clusters} must be at least 2')
    if self.begin_round < 0:
      raise ValueError(f'begin_round={self.begin_round} must be at least 0')


def cluster(
  weights: tf.Tensor, num_clusters: int, keep_zeros: bool = False
) -> tf.Tensor:
  """Replaces each weight by the centroid of its cluster.

  k-means on the line (Section 3.1) from evenly spaced centroids (Section 3.2).
  It works on sorted weights, whose clusters are intervals.

  Args:
    weights: float32, of any shape.
    num_clusters: Different values that the result has at most.
    keep_zeros: Whether zeros stay zero, as a cluster of their own.

  Returns:
    float32, of the same shape.
  """
  flat = tf.reshape(weights, [-1])
  is_zero = tf.logical_and(keep_zeros, tf.equal(flat, 0.0))
  ordered = tf.sort(tf.boolean_mask(flat, tf.logical_not(is_zero)))
  number = num_clusters - 1 if keep_zeros else num_clusters
  clustered = tf.cond(
    tf.size(ordered) > 0,
    lambda: _nearest(flat, _centroids(ordered, number)),
    lambda: flat,
  )
  return tf.reshape(tf.where(is_zero, 0.0, clustered), weights.shape)


def _centroids(ordered: tf.Tensor, number: int) -> tf.Tensor:
  """The centroids [number] of sorted weights [n], in their order.

  One that no weight is nearest to stays where it is.
  """
  sums = tf.concat([[0.0], tf.cumsum(tf.cast(ordered, tf.float64))], 0)
  centroids = tf.linspace(ordered[0], ordered[-1], number)
  for _ in range(_ITERATIONS):
    ends = tf.searchsorted(ordered, _midpoints(centroids), side='right')
    ends = tf.concat([[0], ends, [tf.size(ordered)]], 0)
    totals = tf.gather(sums, ends[1:]) - tf.gather(sums, ends[:-1])
    counts = tf.cast(ends[1:] - ends[:-1], tf.float64)
    means = tf.cast(tf.math.divide_no_nan(totals, counts), tf.float32)
    centroids = tf.where(counts > 0, means, centroids)
  return centroids


def _nearest(weights: tf.Tensor, centroids: tf.Tensor) -> tf.Tensor:
  """For each weight [n] the nearest of the sorted centroids."""
  return tf.gather(centroids, tf.searchsorted(_midpoints(centroids), weights))


def _midpoints(centroids: tf.Tensor) -> tf.Tensor:
  return (centroids[1:] + centroids[:-1]) / 2.0
