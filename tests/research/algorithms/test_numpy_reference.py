"""The reference against numbers worked out by hand, and TFF's optimizers."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from tests.research.algorithms import numpy_reference as reference

WEIGHTS = [np.zeros(3)]


def one_example(index, y, epochs=1):
  """A client whose gradient at w is 2 (w[index] - y) in one direction."""
  x = np.zeros([1, 3])
  x[0, index] = 1
  return reference.Client(x, np.array([y]), [np.array([0])] * epochs)


def clone(client, times):
  return reference.Client(
    np.repeat(client.x, times, 0),
    np.repeat(client.y, times, 0),
    [np.arange(times)],
  )


def train(cohort, rounds=1, learning_rate=0.25, **kwargs):
  (weights,) = reference.train(
    WEIGHTS,
    [cohort] * rounds,
    reference.linear_gradient,
    learning_rate,
    **kwargs,
  )
  return weights


def test_each_step_of_a_client_halves_its_error():
  # w' = w - 0.25 * 2 (w - y): 1 -> 0.5 -> 0.75 of the way after two epochs.
  np.testing.assert_allclose(train([one_example(0, 4.0)]), [2, 0, 0])
  np.testing.assert_allclose(train([one_example(0, 4.0, 2)]), [3, 0, 0])


def test_mean_is_weighted_by_examples_or_not():
  cohort = [one_example(0, 4.0), clone(one_example(1, 4.0), 3)]
  np.testing.assert_allclose(train(cohort), [2 / 4, 2 * 3 / 4, 0])
  np.testing.assert_allclose(train(cohort, weighting='uniform'), [1, 1, 0])


def test_epochs_count_as_examples():
  """Three epochs of one example weigh as one epoch of three."""
  cohort = [one_example(0, 8.0, 3), clone(one_example(1, 8.0), 3)]
  np.testing.assert_allclose(train(cohort), [7 / 2, 4 / 2, 0])


def test_batches_are_steps():
  """Two batches of one example each: the second starts where the first ends."""
  x = np.array([[1.0, 0, 0], [1.0, 0, 0]])
  y = np.array([4.0, 8.0])
  batches = [np.array([0]), np.array([1])]
  # 0 -> 2 (half way to 4) -> 5 (half way to 8).
  np.testing.assert_allclose(
    train([reference.Client(x, y, batches)]), [5, 0, 0]
  )
  # Both at once: half way to the mean, 6.
  together = reference.Client(x, y, [np.array([0, 1])])
  np.testing.assert_allclose(train([together]), [3, 0, 0])


def test_second_round_starts_from_the_first():
  np.testing.assert_allclose(train([one_example(2, 4.0)], 2), [0, 0, 3])


def test_a_client_without_examples_weighs_nothing_unless_uniform():
  empty = reference.Client(np.zeros([0, 3]), np.zeros(0), [])
  cohort = [one_example(0, 4.0), empty]
  np.testing.assert_allclose(train(cohort), [2, 0, 0])
  np.testing.assert_allclose(train(cohort, weighting='uniform'), [1, 0, 0])
  with pytest.raises(ValueError, match='no examples'):
    train([empty])
  with pytest.raises(ValueError, match="'size'"):
    train(cohort, weighting='size')


def optimizer_path(optimizer, gradients):
  w, path = np.array(0.0), []
  for g in gradients:
    w = optimizer.step(0, w, np.array(g))
    path.append(float(w))
  return path


def test_momentum_by_hand():
  # v: 1, 1.5, 1.75 with momentum 0.5.
  path = optimizer_path(reference.Sgd(0.1, 0.5), [1.0, 1.0, 1.0])
  np.testing.assert_allclose(path, [-0.1, -0.25, -0.425])


def test_adagrad_by_hand():
  # v: 9, 25; epsilon 0 makes the steps 3 / 3 and 4 / 5.
  path = optimizer_path(reference.Adagrad(1.0, 0.0, 0.0), [3.0, 4.0])
  np.testing.assert_allclose(path, [-1, -1.8])
  inside = optimizer_path(reference.Adagrad(1.0, 0.0, 7.0), [3.0])
  np.testing.assert_allclose(inside, [-3 / 4])
  outside = optimizer_path(reference.Adagrad(1.0, 0.0, 7.0, False), [3.0])
  np.testing.assert_allclose(outside, [-3 / 10])


def test_adam_by_hand():
  # The correction makes the first step lr, whatever the gradient: m = 1, v = 2.
  # A gradient of zero halves both: m = 0.5, v = 1; 1 - 0.5^2 = 0.75.
  adam = reference.Adam(0.1, 0.5, 0.5, 0.0)
  path = optimizer_path(adam, [2.0, 0.0])
  second = 0.1 * (0.75**0.5 / 0.75) * 0.5 / 1.0
  np.testing.assert_allclose(path, [-0.1, -0.1 - second])


def test_yogi_by_hand():
  # v = 4, g^2 = 1 < v: v <- 4 - 0.5 * 1 = 3.5. Then g^2 = 9 > v: v <- 8.
  yogi = reference.Yogi(1.0, 0.0, 0.5, 0.0, initial=4.0)
  path = optimizer_path(yogi, [1.0, 3.0])
  first = 0.5**0.5 / 3.5**0.5
  second = 0.75**0.5 * 3 / 8**0.5
  np.testing.assert_allclose(path, [-first, -first - second])


OPTIMIZERS = tff.learning.optimizers


@pytest.mark.parametrize(
  ('mine', 'theirs'),
  [
    (reference.Sgd(0.3), OPTIMIZERS.build_sgdm(0.3)),
    (reference.Sgd(0.3, 0.9), OPTIMIZERS.build_sgdm(0.3, 0.9)),
    (reference.Adagrad(0.3), OPTIMIZERS.build_adagrad(0.3)),
    (
      reference.Adagrad(0.3, 0.0, 0.1),
      OPTIMIZERS.build_adagrad(0.3, 0.0, 0.1),
    ),
    (reference.Adam(0.3), OPTIMIZERS.build_adam(0.3)),
    (
      reference.Adam(0.3, 0.5, 0.9, 0.1),
      OPTIMIZERS.build_adam(0.3, 0.5, 0.9, 0.1),
    ),
    (reference.Yogi(0.3), OPTIMIZERS.build_yogi(0.3)),
    (
      reference.Yogi(0.3, 0.5, 0.9, 0.1, 0.5),
      OPTIMIZERS.build_yogi(0.3, 0.5, 0.9, 0.1, 0.5),
    ),
  ],
)
def test_optimizers_are_those_of_tff(mine, theirs):
  rng = np.random.default_rng(0)
  w = rng.normal(size=4)
  tensor = tf.constant(w, tf.float32)
  state = theirs.initialize(tf.TensorSpec([4], tf.float32))
  for _ in range(6):
    g = rng.normal(size=4) * 2
    w = mine.step(0, w, g)
    state, tensor = theirs.next(state, tensor, tf.constant(g, tf.float32))
    np.testing.assert_allclose(tensor, w, atol=2e-6, rtol=0)


def loss_of_softmax(weights, x, y):
  logits = x.reshape(len(x), -1) @ weights[0] + weights[1]
  logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
  return -logs[np.arange(len(y)), y].mean()


def loss_of_line(weights, x, y):
  return np.mean((x @ weights[0] - y) ** 2)


@pytest.mark.parametrize(
  ('gradient', 'loss', 'shapes', 'classes'),
  [
    (reference.softmax_gradient, loss_of_softmax, [(4, 3), (3,)], 3),
    (reference.linear_gradient, loss_of_line, [(4,)], None),
  ],
)
def test_gradients_are_those_of_finite_differences(
  gradient, loss, shapes, classes
):
  rng = np.random.default_rng(1)
  x = rng.normal(size=[5, 4])
  y = rng.integers(0, classes, 5) if classes else rng.normal(size=5)
  weights = [rng.normal(size=shape) for shape in shapes]
  for part, slope in enumerate(gradient(weights, x, y)):
    for index in np.ndindex(slope.shape):
      values = []
      for sign in (1, -1):
        moved = [w.copy() for w in weights]
        moved[part][index] += sign * 1e-5
        values.append(loss(moved, x, y))
      assert slope[index] == pytest.approx(
        (values[0] - values[1]) / 2e-5, abs=1e-8
      )
