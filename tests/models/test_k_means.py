"""The distances of k-means' model, and where its centroids start."""

import numpy as np
import tensorflow as tf

from models import k_means


def test_distances_are_those_of_the_differences():
  model = k_means.build((4, 4, 3), 20, seed=0)
  rng = np.random.default_rng(1)
  centroids = rng.random([20, 48], np.float32)
  model.set_weights([centroids])
  # Of examples that are centroids, rounding must not make a distance negative.
  x = np.concatenate([centroids, rng.random([7, 48], np.float32)])
  expected = np.square(x[:, None] - centroids).sum(axis=2)
  found = model(x.reshape(-1, 4, 4, 3)).numpy()
  np.testing.assert_allclose(found, expected, atol=1e-5)
  assert found.min() >= 0
  loss = k_means.NearestSquaredDistance()(np.zeros(len(x)), found)
  np.testing.assert_allclose(loss, expected.min(axis=1).mean(), rtol=1e-5)


def test_centroids_start_as_directions_that_the_seed_decides():
  first, again, other = (
    k_means.build((8, 8, 1), 10, seed).get_weights()[0] for seed in (3, 3, 4)
  )
  np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, rtol=1e-6)
  np.testing.assert_array_equal(first, again)
  # Cosines of random directions of 64 dimensions are around 0 +- 1 / 8.
  assert np.abs(first @ other.T).max() < 0.6
  assert np.abs(first @ first.T - np.eye(10)).max() < 0.6


def test_a_layer_is_rebuilt_from_its_config():
  layer = k_means.SquaredDistances(3, 5, name='mine')
  copy = k_means.SquaredDistances.from_config(layer.get_config())
  x = tf.constant(np.random.default_rng(0).random([2, 6], np.float32))
  np.testing.assert_array_equal(layer(x), copy(x))
