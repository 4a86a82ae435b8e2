"""Tasks so small that their training can be followed by hand."""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from datasets import federated_data
from models import k_means, token_labels
from research.tasks import task as task_lib

SOURCE = federated_data.Source('toy', 'none', 'none', 'none')


def regression_data(
  clients: dict[str, tuple[np.ndarray, np.ndarray]],
) -> federated_data.FederatedData:
  """Federated data of float32 features [n, numbers] and targets [n]."""
  split = federated_data.Split.from_client_arrays(
    {
      name: {'x': np.asarray(x, np.float32), 'y': np.asarray(y, np.float32)}
      for name, (x, y) in clients.items()
    }
  )
  return federated_data.FederatedData(
    name='toy',
    partition='natural',
    train=split,
    validation=None,
    test=split,
    num_classes=0,
    class_names=(),
    source=SOURCE,
    content_sha256='0' * 64,
  )


class _Offset(tf.keras.layers.Layer):
  """Adds a number."""

  def __init__(self, initial: float, **kwargs):
    super().__init__(**kwargs)
    self._initializer = tf.keras.initializers.Constant(initial)

  def build(self, unused_shape):
    self.offset = self.add_weight(
      'offset', shape=[], initializer=self._initializer
    )

  def call(self, inputs):
    return inputs + self.offset


def linear_task(
  clients: dict[str, tuple[np.ndarray, np.ndarray]],
  initial_weights=(0.5, -1.0, 2.0),
  scale: float | None = None,
  offset: float | None = None,
) -> task_lib.Task:
  """y = w . x with three weights and mean squared error.

  Args:
    clients: Features and targets by client.
    initial_weights: Of w; as many as there are features.
    scale: If given, a second layer makes it y = scale * (w . x).
    offset: If given, a second layer makes it y = w . x + offset.

  Returns:
    The task; its layers are called shared and own.
  """

  def dense(name, kernel):
    return tf.keras.layers.Dense(
      1,
      use_bias=False,
      kernel_initializer=tf.keras.initializers.Constant(
        np.reshape(kernel, [-1, 1])
      ),
      name=name,
    )

  def build_keras_model():
    layers = [dense('shared', initial_weights)]
    if scale is not None:
      layers.append(dense('own', scale))
    elif offset is not None:
      layers.append(_Offset(offset, name='own'))
    return tf.keras.Sequential(
      [tf.keras.Input((len(initial_weights),)), *layers]
    )

  return task_lib.Task(
    name='toy',
    data=regression_data(clients),
    kind='reconstruction',
    class_names=(),
    build_keras_model=build_keras_model,
    build_loss=tf.keras.losses.MeanSquaredError,
    build_metrics=list,
    preprocess_features=lambda x: x,
    preprocess=lambda batch: collections.OrderedDict(
      x=batch['x'], y=batch['y'][:, tf.newaxis]
    ),
    example_shape=(len(initial_weights),),
  )


class _GivenCentroids(k_means.SquaredDistances):
  """Squared distances from centroids that start where a test says."""

  def __init__(self, start: np.ndarray):
    super().__init__(len(start), seed=0)
    self._start = np.asarray(start, np.float32)

  def build(self, unused_shape):
    self.centroids = self.add_weight(
      'centroids',
      self._start.shape,
      initializer=tf.keras.initializers.Constant(self._start),
    )
    self.built = True


def clustering_task(
  clients: dict[str, np.ndarray], start: np.ndarray
) -> task_lib.Task:
  """K-means on vectors, whose labels are all 0.

  Args:
    clients: Features [n, d] by client.
    start: The model's first centroids, [k, d].
  """
  size = np.shape(start)[1]

  def build_keras_model():
    inputs = tf.keras.Input((size,))
    return tf.keras.Model(inputs, _GivenCentroids(start)(inputs))

  data = regression_data({c: (x, np.zeros(len(x))) for c, x in clients.items()})
  return task_lib.Task(
    name='toy',
    data=data,
    kind='clustering',
    class_names=(),
    build_keras_model=build_keras_model,
    build_loss=k_means.NearestSquaredDistance,
    build_metrics=list,
    preprocess_features=lambda x: x,
    preprocess=lambda batch: batch,
    example_shape=(size,),
  )


def task_of(
  kinds: frozenset[str], has_local_layers: bool = False
) -> task_lib.Task:
  """A task that an algorithm of these `kinds` learns, by three clients."""
  clients = random_clients()
  if 'clustering' in kinds:
    features = {client: x for client, (x, _) in clients.items()}
    return clustering_task(features, np.eye(2, 3))
  return linear_task(clients, scale=2.0 if has_local_layers else None)


def random_clients(
  sizes=(7, 4, 12), seed: int = 0, features: int = 3
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Clients with their own optima, of the given sizes."""
  rng = np.random.default_rng(seed)
  clients = {}
  for index, size in enumerate(sizes):
    x = rng.normal(size=(size, features)).astype(np.float32)
    optimum = rng.normal(size=features)
    clients[f'client_{index}'] = (x, (x @ optimum).astype(np.float32))
  return clients


def token_task(
  kind: str,
  clients: dict[str, tuple[Sequence, Sequence]],
  names: tuple[str, ...],
) -> task_lib.Task:
  """A label for each token, where token t stands for label t - 1.

  Its probability is 1/2, of all others 1/6: there must be four labels. So the
  loss of a token is ln 2 or ln 6.

  Args:
    kind: tagging or masked_language_modelling.
    clients: Token ids [n, length] and labels, -1 for none, by client.
    names: Of the four labels.
  """
  table = np.concatenate([np.zeros([1, 4]), np.log(3) * np.eye(4)])
  split = federated_data.Split.from_client_arrays(
    {
      client: {'x': np.array(x, np.int32), 'y': np.array(y, np.int32)}
      for client, (x, y) in clients.items()
    }
  )
  initializer = tf.keras.initializers.Constant(table)

  def build_keras_model():
    inputs = tf.keras.Input((None,), dtype=tf.int32)
    embed = tf.keras.layers.Embedding(5, 4, embeddings_initializer=initializer)
    return tf.keras.Model(inputs, embed(inputs))

  data = regression_data(random_clients((1,)))
  return task_lib.Task(
    name='toy',
    data=dataclasses.replace(data, train=split, test=split, class_names=names),
    kind=kind,
    class_names=names,
    build_keras_model=build_keras_model,
    build_loss=token_labels.TokenCrossentropy,
    build_metrics=list,
    preprocess_features=lambda x: x,
    preprocess=lambda batch: batch,
    example_shape=split.element_spec['x'].shape.as_list(),
    evaluation_batch_size=2,
  )
