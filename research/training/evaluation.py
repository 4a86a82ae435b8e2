"""Evaluates model weights in large batches, outside the federated runtime."""

import collections
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from datasets import federated_data
from models import token_labels
from research.tasks import task as task_lib
from research.training import spans

_OF_TOKENS = ('tagging', 'masked_language_modelling')
# What is known of an example, besides its metrics.
_TOKENS = 'tokens'
LABEL, CLASS = 'label', 'class'
_COUNTS = (_TOKENS, 'found', 'predicted', 'true', LABEL, CLASS)


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
    variables = tf.nest.flatten(self._task.weights_of(self.model))
    for variable, value in zip(
      variables, tf.nest.flatten(weights), strict=True
    ):
      variable.assign(value)

  def set_leaves(self, leaves: Sequence[np.ndarray]) -> None:
    """Puts the weights of a checkpoint into `model`.

    Args:
      leaves: Leaves of a learning process's state, which begins with the model
        weights, the trainable ones first.

    Raises:
      ValueError: If the checkpoint is of another model.
    """
    variables = tf.nest.flatten(self._task.weights_of(self.model))
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
    classes = tf.argmax(output, axis=-1)
    correct = tf.equal(classes, labels)
    if self._task.kind in _OF_TOKENS:
      return self._token_metrics(output, labels, correct)
    return {
      'loss': tf.nn.sparse_softmax_cross_entropy_with_logits(labels, output),
      'accuracy': tf.cast(correct, tf.float32),
      LABEL: labels,
      CLASS: classes,
    }

  def _token_metrics(self, output, labels, correct):
    """Means over an example's labelled tokens, and their number."""
    losses, is_labelled = token_labels.token_losses(labels, output)
    count = tf.reduce_sum(is_labelled, axis=1)
    right = tf.cast(correct, tf.float32) * is_labelled
    at_least_one = tf.maximum(count, 1)
    metrics = {
      'loss': tf.reduce_sum(losses, axis=1) / at_least_one,
      'accuracy': tf.reduce_sum(right, axis=1) / at_least_one,
      _TOKENS: count,
    }
    if self._task.kind == 'tagging':
      tags = {'tags': tf.argmax(output, axis=-1), 'labels': labels}
      return {**metrics, **tags}
    return metrics

  def per_example(self, split: federated_data.Split) -> dict[str, np.ndarray]:
    """Returns the metrics of every example.

    Args:
      split: The clients, read one after the other.

    Returns:
      Metric name to float32 [examples], in the order of `split.client_ids`:
      loss, accuracy (0 or 1) for classification, and purity for clustering: 1
      where the label is the most frequent one of the example's cluster in this
      split. Where tokens have labels both are means over an example's tokens.
    """
    return {
      name: values
      for name, values in self.counts(split).items()
      if name.partition('/')[0] not in _COUNTS
    }

  def counts(self, split: federated_data.Split) -> dict[str, np.ndarray]:
    """Returns the metrics of every example with what they count.

    Args:
      split: The clients, read one after the other.

    Returns:
      As `per_example`; of classification also the `label` and the predicted
      `class`; where tokens have labels, their number `tokens` and, for tagging,
      what `spans.count` returns.
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
      found = {name: v.numpy() for name, v in forward(tensors).items()}
      if 'tags' in found:
        names = self._task.class_names
        tags, labels = found.pop('tags'), found.pop('labels')
        found.update(spans.count(tags, labels, names))
      return found

    parts = collections.defaultdict(list)
    split_batches = _batches(split, self._task.evaluation_batch_size)
    for metrics in _map_in_threads(compute, split_batches):
      for name, values in metrics.items():
        parts[name].append(values)
    found = {name: np.concatenate(values) for name, values in parts.items()}
    if 'cluster' in found:
      found['purity'] = _has_common_label(found.pop('cluster'), found.pop('y'))
    return found

  def evaluate(self, split: federated_data.Split) -> dict[str, float]:
    """Returns each metric of a split.

    Returns:
      Means over all examples, or over all tokens where these have labels; of
      tagging also f1, over the spans of all types, and of language modelling
      perplexity, the exponential of the loss.
    """
    return self._summarise(self.counts(split))

  def evaluate_clients(
    self, split: federated_data.Split
  ) -> dict[str, dict[str, float]]:
    """Returns each metric per client; clients without examples lack."""
    metrics = self.counts(split)
    summaries, start = {}, 0
    for client_id, count in split.num_examples.items():
      mine = {n: v[start : start + count] for n, v in metrics.items()}
      if np.sum(mine.get(_TOKENS, count)):
        summaries[client_id] = self._summarise(mine)
      start += count
    return summaries

  def _summarise(self, metrics: Mapping[str, np.ndarray]) -> dict[str, float]:
    weights = metrics.get(_TOKENS)
    if weights is not None and not weights.sum():
      raise ValueError('The examples have no labelled token to evaluate on.')
    means = {
      name: float(np.average(values.astype(np.float64), weights=weights))
      for name, values in metrics.items()
      if name.partition('/')[0] not in _COUNTS
    }
    if self._task.kind == 'tagging':
      totals = [
        sum(int(v.sum()) for n, v in metrics.items() if n.startswith(what))
        for what in ('found/', 'predicted/', 'true/')
      ]
      means['f1'] = spans.scores(*totals)['f1']
    if self._task.kind == 'masked_language_modelling':
      means['perplexity'] = math.exp(means['loss'])
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


def _batches(
  split: federated_data.Split, batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
  """Yields the split's examples in order, `batch_size` at a time."""
  waiting, count = [], 0
  for client_id in split.client_ids:
    waiting.append(split.client(client_id))
    count += len(waiting[-1]['y'])
    if count >= batch_size:
      yield from _cut(waiting, batch_size)
      waiting, count = [], 0
  if count:
    yield from _cut(waiting, batch_size)


def _cut(clients: list, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
  arrays = {
    key: np.concatenate([client[key] for client in clients])
    for key in clients[0]
  }
  for start in range(0, len(arrays['y']), batch_size):
    yield {
      key: array[start : start + batch_size] for key, array in arrays.items()
    }


def constant_class_accuracy(split: federated_data.Split) -> float:
  """What naming the split's most frequent label for each example reaches."""
  labels = np.concatenate(
    [np.ravel(split.client(client)['y']) for client in split.client_ids]
  )
  return float(np.unique(labels, return_counts=True)[1].max() / len(labels))
