"""Losses and metrics of labels, a class for each example or each token.

A token's label is -1 where it has none: padding, special tokens, all but the
first piece of a word, and what masking leaves as it is.
"""

from collections.abc import Sequence

import tensorflow as tf


class TokenCrossentropy(tf.keras.losses.Loss):
  """Mean cross-entropy of the labelled tokens of a batch; 0 without any.

  From labels, integers [batch, length], and logits [batch, length, classes].
  """

  def __init__(self):
    super().__init__(name='token_crossentropy')

  def call(self, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    losses, is_labelled = token_losses(labels, logits)
    count = tf.reduce_sum(is_labelled)
    return tf.reduce_sum(losses) / tf.maximum(count, 1.0)


class TokenAccuracy(tf.keras.metrics.Mean):
  """Share of the labelled tokens whose largest logit is that of the label."""

  def update_state(self, y_true, y_pred, sample_weight=None):
    del sample_weight
    labels = tf.cast(y_true, tf.int64)
    is_right = tf.equal(tf.argmax(y_pred, axis=-1), labels)
    is_labelled = tf.cast(labels >= 0, tf.float32)
    return super().update_state(tf.cast(is_right, tf.float32), is_labelled)


class WeightedCrossentropy(tf.keras.losses.Loss):
  """Mean over a batch of the cross-entropy times the weight of the label."""

  def __init__(self, class_weights: Sequence[float]):
    """Stores the weight of each class."""
    super().__init__(name='weighted_crossentropy')
    self._weights = tuple(float(weight) for weight in class_weights)

  def call(self, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    labels = tf.cast(labels, tf.int32)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    return losses * tf.gather(tf.constant(self._weights), labels)


def token_losses(
  labels: tf.Tensor, logits: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
  """Cross-entropy of each token, 0 where it has no label.

  Args:
    labels: Integers [batch, length].
    logits: float32 [batch, length, classes].

  Returns:
    The losses and whether there is a label, both float32 [batch, length].
  """
  is_labelled = tf.cast(labels >= 0, tf.float32)
  losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
    tf.maximum(tf.cast(labels, tf.int32), 0), logits
  )
  return losses * is_labelled, is_labelled
