"""Optimizers by name against their equations, on three weights."""

import numpy as np
import pytest
import tensorflow as tf

from research.algorithms import optimizers

GRADIENTS = np.array([[1.0, -2.0, 0.5], [0.5, 1.0, -1.0], [-1.0, 0.25, 2.0]])
START = np.array([0.5, -1.0, 2.0])


def steps(name, learning_rate, hparams):
  optimizer = optimizers.build(name, learning_rate, hparams)
  state = optimizer.initialize([tf.TensorSpec([3], tf.float32)])
  weights = [tf.constant(START, tf.float32)]
  for gradient in GRADIENTS:
    gradients = [tf.constant(gradient, tf.float32)]
    state, weights = optimizer.next(state, weights, gradients)
  return weights[0].numpy()


def test_sgd():
  expected = START - 0.1 * GRADIENTS.sum(axis=0)
  np.testing.assert_allclose(steps('sgd', 0.1, {}), expected, atol=1e-6)


def test_momentum():
  velocity, weights = np.zeros(3), START.copy()
  for gradient in GRADIENTS:
    velocity = 0.8 * velocity + gradient
    weights -= 0.1 * velocity
  found = steps('momentum', 0.1, {'momentum': 0.8})
  np.testing.assert_allclose(found, weights, atol=1e-6)


def test_adagrad_is_that_of_the_paper():
  accumulator, weights = np.full(3, 0.25), START.copy()
  for gradient in GRADIENTS:
    accumulator += gradient**2
    weights -= 0.1 * gradient / (np.sqrt(accumulator) + 0.5)
  found = steps('adagrad', 0.1, {'initial_accumulator': 0.25, 'epsilon': 0.5})
  np.testing.assert_allclose(found, weights, atol=1e-6)


@pytest.mark.parametrize('name', ['adam', 'yogi'])
def test_adam_and_yogi_with_bias_correction(name):
  m, v, weights = np.zeros(3), np.zeros(3), START.copy()
  for t, g in enumerate(GRADIENTS, 1):
    m = 0.9 * m + 0.1 * g
    if name == 'adam':
      v = 0.99 * v + 0.01 * g**2
    else:
      v = v + 0.01 * np.sign(g**2 - v) * g**2
    rate = 0.1 * np.sqrt(1 - 0.99**t) / (1 - 0.9**t)
    weights -= rate * m / (np.sqrt(v) + 1e-3)
  np.testing.assert_allclose(steps(name, 0.1, {}), weights, atol=1e-5)


@pytest.mark.parametrize('epsilon, decay', [(1e-6, 0.01), (0.1, 0.3)])
def test_adamw_decays_weights_beside_the_adaptive_step(epsilon, decay):
  """Loshchilov & Hutter 2019, Algorithm 2, with BERT's order of the rate."""
  gradients = np.concatenate([GRADIENTS, GRADIENTS[:2] * 3])
  m, v, weights = np.zeros(3), np.zeros(3), START.copy()
  optimizer = optimizers.build(
    'adamw', 0.1, {'epsilon': epsilon, 'weight_decay': decay}
  )
  state = optimizer.initialize([tf.TensorSpec([3], tf.float32)])
  found = [tf.constant(START, tf.float32)]
  for t, g in enumerate(gradients, 1):
    m = 0.9 * m + 0.1 * g
    v = 0.999 * v + 0.001 * g**2
    corrected = m / (1 - 0.9**t), v / (1 - 0.999**t)
    # As in Kingma & Ba's remark, epsilon is added before v is corrected.
    own = epsilon / np.sqrt(1 - 0.999**t)
    step = corrected[0] / (np.sqrt(corrected[1]) + own)
    weights = weights - 0.1 * (step + decay * weights)
    state, found = optimizer.next(state, found, [tf.constant(g, tf.float32)])
    np.testing.assert_allclose(found[0], weights, atol=1e-5)


def test_a_gradient_is_scaled_down_to_the_norm_over_all_weights():
  optimizer = optimizers.GradientClipping(optimizers.build('sgd', 0.1), 2.5)
  state = optimizer.initialize([tf.TensorSpec([2]), tf.TensorSpec([])])
  weights = [tf.constant([1.0, 2.0]), tf.constant(3.0)]
  # Of norm 5: (3, 0) and 4 become (1.5, 0) and 2.
  gradients = [tf.constant([3.0, 0.0]), tf.constant(4.0)]
  state, weights = optimizer.next(state, weights, gradients)
  np.testing.assert_allclose(weights[0], [0.85, 2.0], atol=1e-6)
  np.testing.assert_allclose(weights[1], 2.8, atol=1e-6)
  # Of norm 1, below it: as it is.
  gradients = [tf.constant([0.6, 0.0]), tf.constant(-0.8)]
  _, weights = optimizer.next(state, weights, gradients)
  np.testing.assert_allclose(weights[0], [0.79, 2.0], atol=1e-6)
  np.testing.assert_allclose(weights[1], 2.88, atol=1e-6)


def test_clipping_leaves_the_inner_optimizer_its_state():
  inner = optimizers.build('momentum', 0.1, {'momentum': 0.5})
  optimizer = optimizers.GradientClipping(inner, 1.0)
  state = optimizer.initialize([tf.TensorSpec([1])])
  assert optimizer.get_hparams(state) == inner.get_hparams(state)
  hparams = {**optimizer.get_hparams(state), 'learning_rate': 0.2}
  state = optimizer.set_hparams(state, hparams)
  weights = [tf.constant([0.0])]
  # Velocities 1 and 1.5, at the new rate: -0.2 - 0.3.
  for gradient in (10.0, 10.0):
    state, weights = optimizer.next(state, weights, [tf.constant([gradient])])
  np.testing.assert_allclose(weights[0], [-0.5], atol=1e-6)


def test_the_learning_rate_can_be_set_between_rounds():
  optimizer = optimizers.build('adagrad', 0.1, {})
  state = optimizer.initialize([tf.TensorSpec([3], tf.float32)])
  hparams = optimizer.get_hparams(state)
  hparams['learning_rate'] = 0.7
  state = optimizer.set_hparams(state, hparams)
  assert optimizer.get_hparams(state)['learning_rate'] == 0.7


def test_a_hyperparameter_that_the_optimizer_lacks_is_named():
  with pytest.raises(ValueError, match="'sgd' has no momentum; it has only"):
    optimizers.build('sgd', 0.1, {'momentum': 0.9})
