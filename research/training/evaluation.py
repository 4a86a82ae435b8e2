"""Evaluates model weights in large batches, outside the federated runtime."""

import collections
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from datasets import federated_data
from research.tasks import task as task_lib

_BATCH_SIZE = 500


class Evaluator:
  """Computes metrics of every example, and their means over a split.

  Make it after the learning process is built: TFF's tracing invalidates Keras
  models that exist before it.
  """

  def __init__(self, task: task_lib.Task):
    """Builds a Keras model to carry the weights.

    Args:
      task: What is learned.
    """
    self._task = task
    self.model = task.build_keras_model()
    self._forward = tf.function(self._metrics, reduce_retracing=True)

  def set_weights(self, weights: tff.learning.models.ModelWeights) -> None:
    """Puts the server's weights into `model`."""
    weights.assign_weights_to(self.model)

  def set_leaves(self, leaves: Sequence[np.ndarray]) -> None:
    """Puts the weights of a checkpoint into `model`.

    Args:
      leaves: Leaves of a learning process's state, which begins with the model
        weights, the trainable ones first.

    Raises:
      ValueError: If the checkpoint is of another model.
    """
    model = self.model
    variables = [*model.trainable_variables, *model.non_trainable_variables]
    weights = leaves[: len(variables)]
    expected = [tuple(variable.shape) for variable in variables]
    found = [np.shape(weight) for weight in weights]
    if found != expected:
      raise ValueError(
        f'The checkpoint has weights of shapes {found}, but the model that the '
        f'flags describe has {expected}.'
      )
    for variable, weight in zip(variables, weights, strict=True):
      variable.assign(weight)

  def _metrics(self, batch):
    batch = self._task.preprocess(batch)
    output = self.model(batch['x'], training=False)
    if self._task.kind == 'reconstruction':
      error = tf.square(output - batch['y'])
      flat = tf.reshape(error, [tf.shape(error)[0], -1])
      return {'loss': tf.reduce_mean(flat, axis=1)}
    if self._task.kind in ('regression', 'clustering'):
      loss = {'loss': self._task.build_loss().call(batch['y'], output)}
      if self._task.kind == 'regression':
        return loss
      return {**loss, 'cluster': tf.argmin(output, axis=-1), 'y': batch['y']}
    labels = tf.cast(batch['y'], tf.int64)
    correct = tf.equal(tf.argmax(output, axis=-1), labels)
    return {
      'loss': tf.nn.sparse_softmax_cross_entropy_with_logits(labels, output),
      'accuracy': tf.cast(correct, tf.float32),
    }

  def per_example(self, split: federated_data.Split) -> dict[str, np.ndarray]:
    """Returns the metrics of every example.

    Args:
      split: The clients, read one after the other.

    Returns:
      Metric name to float32 [examples], in the order of `split.client_ids`:
      loss, accuracy (0 or 1) for classification, and purity for clustering: 1
      where the label is the most frequent one of the example's cluster in this
      split.
    """
    # One trace for all sizes of batches, made before threads share it.
    forward = self._forward.get_concrete_function(
      {
        name: tf.TensorSpec([None, *spec.shape], spec.dtype)
        for name, spec in split.element_spec.items()
      }
    )

    def compute(batch):
      tensors = {name: tf.constant(array) for name, array in batch.items()}
      return {name: value.numpy() for name, value in forward(tensors).items()}

    parts = collections.defaultdict(list)
    for metrics in _map_in_threads(compute, _batches(split)):
      for name, values in metrics.items():
        parts[name].append(values)
    found = {name: np.concatenate(values) for name, values in parts.items()}
    if 'cluster' in found:
      found['purity'] = _has_common_label(found.pop('cluster'), found.pop('y'))
    return found

  def evaluate(self, split: federated_data.Split) -> dict[str, float]:
    """Returns each metric's mean over all examples of the split."""
    return {
      name: float(np.mean(values, dtype=np.float64))
      for name, values in self.per_example(split).items()
    }

  def evaluate_clients(
    self, split: federated_data.Split
  ) -> dict[str, dict[str, float]]:
    """Returns each metric's mean per client; clients without examples lack."""
    metrics = self.per_example(split)
    means, start = {}, 0
    for client_id, count in split.num_examples.items():
      if count:
        means[client_id] = {
          name: float(np.mean(values[start : start + count], dtype=np.float64))
          for name, values in metrics.items()
        }
      start += count
    return means


def _has_common_label(clusters: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Whether each example's label is its cluster's most frequent one, as 0, 1.

  Of labels that are equally frequent the smallest counts.
  """
  counts = np.zeros([clusters.max() + 1, labels.max() + 1], np.int64)
  np.add.at(counts, (clusters, labels), 1)
  common = counts.argmax(axis=1)
  return (labels == common[clusters]).astype(np.float32)


def _map_in_threads(
  function: Callable[[Any], Any], values: Iterable[Any]
) -> Iterator[Any]:
  """Yields `function` of each value in order, a core's worth of values at once.

  TensorFlow computes outside of Python's lock. A runtime may leave each of its
  operations only one core: then this is what uses the others.
  """
  cores = len(os.sched_getaffinity(0))
  waiting = collections.deque()
  with futures.ThreadPoolExecutor(cores) as pool:
    for value in values:
      waiting.append(pool.submit(function, value))
      # One more than there are threads, so that none of them is idle.
      if len(waiting) > cores:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()


def _batches(split: federated_data.Split) -> Iterator[dict[str, np.ndarray]]:
  """Yields the split's examples in order, `_BATCH_SIZE` at a time."""
  waiting, count = [], 0
  for client_id in split.client_ids:
    waiting.append(split.client(client_id))
    count += len(waiting[-1]['y'])
    if count >= _BATCH_SIZE:
      yield from _cut(waiting)
      waiting, count = [], 0
  if count:
    yield from _cut(waiting)


def _cut(clients: list) -> Iterator[dict[str, np.ndarray]]:
  arrays = {
    key: np.concatenate([client[key] for client in clients])
    for key in clients[0]
  }
  for start in range(0, len(arrays['y']), _BATCH_SIZE):
    yield {
      key: array[start : start + _BATCH_SIZE] for key, array in arrays.items()
    }


def constant_class_accuracy(split: federated_data.Split) -> float:
  """What naming the split's most frequent label for each example reaches."""
  labels = np.concatenate(
    [np.ravel(split.client(client)['y']) for client in split.client_ids]
  )
  return float(np.unique(labels, return_counts=True)[1].max() / len(labels))
