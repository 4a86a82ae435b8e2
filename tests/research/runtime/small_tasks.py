"""Tasks with models of every kind that the runtimes meet, all tiny."""

import collections
import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from datasets import federated_data
from models import functional, k_means, layers
from research.runtime import cohort
from research.tasks import task as task_lib
from tests import toy
from tests.research.tasks import tiny_text

SIZES = (20, 33, 8, 5, 40)
CLASSES = 3
SIDE = 4


def data(sizes=SIZES, seed: int = 0) -> federated_data.FederatedData:
  """Images [4, 4, 1] whose class is that of the brightest quarter's row."""
  rng = np.random.default_rng(seed)
  clients = {}
  for index, size in enumerate(sizes):
    x = rng.normal(size=(size, SIDE, SIDE, 1)).astype(np.float32)
    y = x[:, :CLASSES].sum(axis=(2, 3)).argmax(axis=1)
    clients[f'client_{index}'] = {'x': x, 'y': y.astype(np.int32)}
  split = federated_data.Split.from_client_arrays(clients)
  names = tuple(str(label) for label in range(CLASSES))
  return federated_data.FederatedData(
    name='small',
    partition='natural',
    train=split,
    validation=None,
    test=split,
    num_classes=CLASSES,
    class_names=names,
    source=toy.SOURCE,
    content_sha256='0' * 64,
  )


def _dense(units: int, seed: int, **kwargs) -> tf.keras.layers.Layer:
  initializer = tf.keras.initializers.GlorotUniform(seed)
  return tf.keras.layers.Dense(units, kernel_initializer=initializer, **kwargs)


def _model(hidden: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]):
  inputs = tf.keras.Input((SIDE, SIDE, 1))
  outputs = _dense(CLASSES, 2)(hidden(inputs))
  return tf.keras.Model(inputs, outputs)


def _mlp(x: tf.Tensor) -> tf.Tensor:
  return _dense(5, 1, activation='relu')(tf.keras.layers.Flatten()(x))


def _dropout(x: tf.Tensor) -> tf.Tensor:
  return layers.BatchSeededDropout(0.4, 7)([_mlp(x), x])


def _group_norm(x: tf.Tensor) -> tf.Tensor:
  hidden = _dense(6, 1)(tf.keras.layers.Flatten()(x))
  return tf.nn.relu(tf.keras.layers.GroupNormalization(2)(hidden))


def _batch_norm(x: tf.Tensor) -> tf.Tensor:
  hidden = _dense(6, 1)(tf.keras.layers.Flatten()(x))
  return tf.nn.relu(tf.keras.layers.BatchNormalization()(hidden))


def _convnet(x: tf.Tensor) -> tf.Tensor:
  hidden = tf.keras.layers.Conv2D(
    3,
    3,
    activation='relu',
    kernel_initializer=tf.keras.initializers.GlorotUniform(1),
  )(x)
  return tf.keras.layers.Flatten()(hidden)


MODELS = {
  name: functools.partial(_model, hidden)
  for name, hidden in (
    ('mlp', _mlp),
    ('dropout', _dropout),
    ('group_norm', _group_norm),
    ('batch_norm', _batch_norm),
    ('convnet', _convnet),
  )
}
MODELS['k_means'] = lambda: k_means.build((SIDE, SIDE, 1), CLASSES, 1)


def build(name: str, is_functional: bool = False, **kwargs) -> task_lib.Task:
  """Builds a task.

  Args:
    name: linear, bert (with LoRA), or a key of `MODELS`.
    is_functional: Whether the clients' model is a `FunctionalModel`, not a
      Keras model with variables.
    **kwargs: Of `data`.

  Returns:
    The task.
  """
  if name == 'linear':
    clients = toy.random_clients(kwargs.get('sizes', SIZES))
    task = toy.linear_task(clients)
  elif name == 'bert':
    task = tiny_text.build(**kwargs)
  else:
    clusters = name == 'k_means'
    task = task_lib.Task(
      name='small',
      data=data(**kwargs),
      kind='clustering' if clusters else 'classification',
      class_names=tuple(str(label) for label in range(CLASSES)),
      build_keras_model=MODELS[name],
      build_loss=k_means.NearestSquaredDistance
      if clusters
      else functools.partial(
        tf.keras.losses.SparseCategoricalCrossentropy, from_logits=True
      ),
      build_metrics=list
      if clusters
      else lambda: [tf.keras.metrics.SparseCategoricalAccuracy('accuracy')],
      preprocess_features=lambda x: x,
      preprocess=lambda batch: collections.OrderedDict(
        x=batch['x'] * 0.5, y=batch['y']
      ),
      example_shape=(SIDE, SIDE, 1),
    )
  return task


def model(task: task_lib.Task, is_functional: bool):
  """What TFF's builders take for a model: a function, or a functional model."""
  if not is_functional:
    return task.model_fn
  return functional.from_keras(
    task.build_keras_model,
    loss_fn=task.build_loss(),
    metrics=task.build_metrics,
    input_spec=task.input_spec,
  )


def batches(
  task: task_lib.Task,
  round_num: int = 1,
  *,
  batch_size: int = 8,
  epochs: int = 2,
  empty: bool = True,
) -> list[cohort.ClientBatches]:
  """Every client's batches, with remainders, in an order of the round.

  Args:
    task: The task.
    round_num: Chooses the order.
    batch_size: Examples per step.
    epochs: Passes over a client's examples.
    empty: Whether one more client has no examples.

  Returns:
    What the in-process runtime takes for the clients.
  """
  split = task.data.train
  clients = []
  for index, client_id in enumerate(split.client_ids):
    found = federated_data.client_batches(
      split.num_examples[client_id],
      batch_size=batch_size,
      epochs=epochs,
      seed=[round_num, index],
      max_examples=None,
    )
    clients.append(_client(task, client_id, found))
  if empty:
    clients.insert(1, _client(task, split.client_ids[0], []))
  return clients


def _client(task, client_id, found) -> cohort.ClientBatches:
  return cohort.ClientBatches(
    examples=task.data.train.client(client_id),
    order=np.concatenate([np.zeros(0, np.int32), *found]).astype(np.int32),
    lengths=np.array([len(batch) for batch in found], np.int32),
    preprocess=task.preprocess,
  )


def dataset(client: cohort.ClientBatches) -> tf.data.Dataset:
  """The same client as TFF's own runtime takes it."""
  # A ragged tensor's dataset can't be sent to TFF's worker.
  longest = max(client.lengths, default=0)
  ends = np.cumsum(client.lengths)
  rows = [
    np.pad(client.order[end - size : end], (0, longest - size))
    for end, size in zip(ends, client.lengths, strict=True)
  ]
  rows = np.reshape(rows, [len(rows), longest]).astype(np.int32)

  def batch(row: tf.Tensor, size: tf.Tensor):
    return client.preprocess(
      collections.OrderedDict(
        (name, tf.gather(array, row[:size]))
        for name, array in client.examples.items()
      )
    )

  return tf.data.Dataset.from_tensor_slices((rows, client.lengths)).map(batch)
