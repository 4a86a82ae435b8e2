"""Losses and metrics of labelled tokens, by hand."""

import math

import numpy as np
import pytest
import tensorflow as tf

from models import token_labels

# Two classes, whose logits differ by the logarithm of the odds.
LOG3 = math.log(3)
LOGITS = np.array(
  [
    [[0, LOG3], [LOG3, 0], [0, 0]],
    [[0, 0], [0, LOG3], [5, -5]],
  ],
  np.float32,
)
LABELS = np.array([[1, 1, -1], [0, -1, -1]], np.int32)
# Probabilities of the labels: 3/4, 1/4 and 1/2.
LOSSES = np.array([[math.log(4 / 3), math.log(4), 0], [math.log(2), 0, 0]])


def test_losses_of_tokens():
  losses, is_labelled = token_labels.token_losses(LABELS, LOGITS)
  np.testing.assert_allclose(losses, LOSSES, atol=1e-6)
  np.testing.assert_array_equal(is_labelled, [[1, 1, 0], [1, 0, 0]])


def test_the_loss_is_the_mean_of_the_labelled_tokens():
  loss = token_labels.TokenCrossentropy()(LABELS, LOGITS).numpy()
  # Over tokens, not over sentences: (ln 4/3 + ln 4 + ln 2) / 3.
  assert loss == pytest.approx(math.log(32 / 3) / 3, abs=1e-6)


def test_without_labels_the_loss_and_its_gradient_are_0():
  logits = tf.Variable(LOGITS)
  with tf.GradientTape() as tape:
    loss = token_labels.TokenCrossentropy()(-np.ones_like(LABELS), logits)
  assert loss == 0
  assert not tape.gradient(loss, logits).numpy().any()


def test_accuracy_counts_labelled_tokens_over_all_batches():
  metric = token_labels.TokenAccuracy('accuracy')
  # Of the first batch one of two is right, of the second one of one.
  metric.update_state(LABELS[:1], LOGITS[:1])
  assert metric.result().numpy() == pytest.approx(1 / 2)
  metric.update_state(LABELS[1:], LOGITS[1:])
  assert metric.result().numpy() == pytest.approx(2 / 3)
  metric.update_state(-np.ones_like(LABELS), LOGITS)
  assert metric.result().numpy() == pytest.approx(2 / 3)


def test_weights_of_classes():
  loss = token_labels.WeightedCrossentropy([0.5, 2])
  labels = np.array([1, 0, 1], np.int32)
  logits = LOGITS[[0, 0, 0], [0, 1, 2]]
  # 2 ln(4/3), 0.5 ln(4/3), 2 ln 2; the mean is over the batch's three.
  expected = [2 * math.log(4 / 3), 0.5 * math.log(4 / 3), 2 * math.log(2)]
  np.testing.assert_allclose(loss.call(labels, logits), expected, atol=1e-6)
  assert loss(labels, logits).numpy() == pytest.approx(np.mean(expected))
