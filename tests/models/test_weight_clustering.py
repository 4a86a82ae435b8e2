"""Clustering against hand-computed centroids and an independent k-means."""

import numpy as np
import pytest
import tensorflow as tf

from models import weight_clustering


def cluster(weights, number, **kwargs):
  weights = tf.constant(weights, tf.float32)
  return weight_clustering.cluster(weights, number, **kwargs).numpy()


def test_by_hand():
  # Centroids 0 and 10 first; then means of (0, 1, 2) and (9, 10).
  found = cluster([[0, 9, 1], [10, 2, 2]], 2)
  np.testing.assert_allclose(
    found, [[1.25, 9.5, 1.25], [9.5, 1.25, 1.25]], rtol=1e-6
  )


def test_zeros_are_a_cluster_of_their_own():
  found = cluster([0, -1, 2, 0, -3, 4], 3, keep_zeros=True)
  np.testing.assert_allclose(found, [0, -2, 3, 0, -2, 3], rtol=1e-6)
  assert cluster([0, 1, 5], 2, keep_zeros=True).tolist() == [0, 3, 3]


def test_a_kernel_of_few_values_stays():
  weights = np.array([[2, -1, 2], [0.5, -1, 2]], np.float32)
  np.testing.assert_array_equal(cluster(weights, 8), weights)
  np.testing.assert_array_equal(cluster(np.zeros([2, 3]), 4), np.zeros([2, 3]))
  found = cluster(np.zeros([2, 3]), 4, keep_zeros=True)
  np.testing.assert_array_equal(found, np.zeros([2, 3]))


def lloyd(weights, number, iterations):
  """k-means by distances to all centroids."""
  centroids = np.linspace(weights.min(), weights.max(), number)
  for _ in range(iterations):
    nearest = np.abs(weights[:, None] - centroids).argmin(1)
    for i in range(number):
      if (nearest == i).any():
        centroids[i] = weights[nearest == i].mean()
  return centroids[np.abs(weights[:, None] - centroids).argmin(1)]


@pytest.mark.parametrize('number', [2, 5, 16])
def test_equals_k_means(number):
  weights = np.random.default_rng(number).normal(size=500).astype(np.float32)
  expected = lloyd(weights.astype(np.float64), number, 20)
  found = cluster(weights.reshape([5, 100]), number)
  np.testing.assert_allclose(found.reshape(-1), expected, atol=1e-5)
  assert len(np.unique(found)) == number


@pytest.mark.parametrize(
  'changes, words',
  [({'num_clusters': 1}, 'at least 2'), ({'begin_round': -1}, '0')],
)
def test_settings_that_mean_nothing(changes, words):
  with pytest.raises(ValueError, match=words):
    weight_clustering.Settings(**{'num_clusters': 4, **changes})
