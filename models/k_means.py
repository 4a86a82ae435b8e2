"""K-means as a Keras model: from an example to its distances from centroids."""

from collections.abc import Sequence

import tensorflow as tf

from models import layers


@tf.keras.saving.register_keras_serializable(package='tff_research')
class SquaredDistances(tf.keras.layers.Layer):
  """Squared Euclidean distances of vectors from centroids, its only weight.

  The centroids start as random directions: vectors of norm 1.
  """

  def __init__(self, num_clusters: int, seed: int, **kwargs):
    """Stores what the centroids depend on.

    Args:
      num_clusters: k, how many centroids there are.
      seed: Of their initial values.
      **kwargs: Of the Keras layer, as its name.
    """
    super().__init__(**kwargs)
    self.num_clusters = num_clusters
    self.seed = seed

  def build(self, input_shape: Sequence[int]) -> None:
    """Creates the centroids, float32 [k, features]."""
    normal = tf.keras.initializers.RandomNormal(
      seed=layers.derive_seed(self.seed, 'centroids')
    )
    self.centroids = self.add_weight(
      'centroids',
      [self.num_clusters, int(input_shape[-1])],
      initializer=lambda *spec, **unused: tf.math.l2_normalize(
        normal(*spec), axis=1
      ),
    )
    super().build(input_shape)

  def call(self, inputs: tf.Tensor) -> tf.Tensor:
    """Maps float32 [examples, features] to [examples, k]."""
    # Expanded: the differences would be [examples, k, features].
    products = tf.matmul(inputs, self.centroids, transpose_b=True)
    own = tf.reduce_sum(tf.square(inputs), axis=-1, keepdims=True)
    theirs = tf.reduce_sum(tf.square(self.centroids), axis=-1)
    return tf.maximum(own - 2 * products + theirs, 0.0)

  def get_config(self):
    """See base class."""
    own = {'num_clusters': self.num_clusters, 'seed': self.seed}
    return {**super().get_config(), **own}


@tf.keras.saving.register_keras_serializable(package='tff_research')
class NearestSquaredDistance(tf.keras.losses.Loss):
  """Inertia per example: the squared distance from the nearest centroid."""

  def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
    """Maps distances [examples, k] to [examples]; `y_true` has no part."""
    del y_true
    return tf.reduce_min(y_pred, axis=-1)


def build(
  input_shape: tuple[int, ...], num_clusters: int, seed: int
) -> tf.keras.Model:
  """Builds a model from examples to squared distances [examples, k]."""
  inputs = tf.keras.Input(input_shape, name='image')
  hidden = tf.keras.layers.Flatten(name='flatten')(inputs)
  outputs = SquaredDistances(num_clusters, seed, name='squared_distances')(
    hidden
  )
  return tf.keras.Model(inputs, outputs, name='k_means')
