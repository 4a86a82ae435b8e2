"""Generalised linear models against formulas and finite differences."""

import numpy as np
import pytest
import tensorflow as tf
from sklearn import preprocessing

from models import linear

RNG = np.random.default_rng(0)
X = RNG.normal(size=(7, 3)).astype(np.float32)
STEP = 1e-6
TARGETS = {
  'linear': RNG.normal(size=(7, 2)).astype(np.float32),
  'logistic': np.array([0, 1, 2, 2, 1, 0, 2], np.int32),
  'poisson': RNG.poisson(3, size=(7, 2)).astype(np.float32),
}


def set_weights(model, seed=1):
  rng = np.random.default_rng(seed)
  values = [rng.normal(size=w.shape) * 0.5 for w in model.get_weights()]
  model.set_weights(values)
  return [value.astype(np.float32).astype(np.float64) for value in values]


def loss(family, weights, x, y, penalty):
  """The objective in float64, one example after the other."""
  kernel, bias = weights
  total = 0.0
  for row, target in zip(x.astype(np.float64), y, strict=True):
    u = row @ kernel + bias
    if family == 'linear':
      total += np.mean((u - target) ** 2)
    elif family == 'poisson':
      total += np.mean(np.exp(u) - target * u)
    else:
      logits = np.concatenate([[0.0], u])
      total += np.log(np.sum(np.exp(logits))) - logits[target]
  scale = 1 if family == 'logistic' else kernel.shape[1]
  return total / len(x) + penalty / scale * np.sum(kernel**2)


def finite_differences(function, weights):
  gradients = []
  for position, value in enumerate(weights):
    gradient = np.zeros_like(value)
    for index in np.ndindex(value.shape):
      ends = []
      for sign in (1, -1):
        moved = [w.copy() for w in weights]
        moved[position][index] += sign * STEP
        ends.append(function(moved))
      gradient[index] = (ends[0] - ends[1]) / (2 * STEP)
    gradients.append(gradient)
  return gradients


def test_the_multivariate_gradient_is_the_formula():
  """(2 / nm) Z'(ZW - Y), with ones as the intercepts' feature."""
  weights = [RNG.normal(size=(3, 2)), RNG.normal(size=2)]
  z = np.c_[X, np.ones(7)].astype(np.float64)
  error = z @ np.vstack(weights) - TARGETS['linear']
  formula = 2 / (7 * 2) * z.T @ error
  found = finite_differences(
    lambda w: loss('linear', w, X, TARGETS['linear'], 0), weights
  )
  np.testing.assert_allclose(np.vstack(found), formula, atol=1e-8)


@pytest.mark.parametrize('penalty', [0.0, 0.3])
@pytest.mark.parametrize('family', linear.FAMILIES)
def test_the_models_gradient_is_that_of_the_objective(family, penalty):
  model = linear.build(family, 3, 2, penalty)
  weights = set_weights(model)
  y = TARGETS[family]
  with tf.GradientTape() as tape:
    value = linear.FAMILIES[family].build_loss()(y, model(X))
    value = tf.add_n([value, *model.losses])
  expected = loss(family, weights, X, y, penalty)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  gradients = tape.gradient(value, model.trainable_variables)
  differences = finite_differences(
    lambda w: loss(family, w, X, y, penalty), weights
  )
  for gradient, difference in zip(gradients, differences, strict=True):
    np.testing.assert_allclose(gradient, difference, atol=2e-6)


@pytest.mark.parametrize('family', linear.FAMILIES)
def test_mean_and_curvature_are_the_derivatives_of_a_loss(family):
  u = RNG.normal(size=(7, 2))
  y = TARGETS[family]
  targets = np.eye(3)[y][:, 1:] if family == 'logistic' else y
  identity = np.eye(2)
  rule = linear.FAMILIES[family]
  for row in range(7):

    def value(at, row=row):
      # Of one example, with half the square and sums over predictors.
      found = loss(
        family, [identity, np.zeros(2)], at[None], y[row : row + 1], 0
      )
      return found * {'linear': 1, 'logistic': 1, 'poisson': 2}[family]

    (slope,) = finite_differences(lambda w, v=value: v(w[0]), [u[row]])
    found = rule.mean(tf.constant(u)).numpy()[row] - targets[row]
    np.testing.assert_allclose(found, slope, atol=1e-7)
  for k in range(2):
    move = STEP * identity[k]
    ends = [rule.mean(tf.constant(u + s * move)).numpy() for s in (1, -1)]
    np.testing.assert_allclose(
      rule.curvature(tf.constant(u)).numpy()[:, :, k],
      (ends[0] - ends[1]) / (2 * STEP),
      atol=1e-8,
    )


def test_the_first_class_is_the_reference():
  model = linear.build('logistic', 3, 2)
  assert model.count_params() == 3 * 2 + 2
  set_weights(model)
  logits = model(X).numpy()
  assert logits.shape == (7, 3)
  assert not logits[:, 0].any() and logits[:, 1:].all()


def test_weights_start_at_zero():
  model = linear.build('linear', 4, 2, 0.1)
  assert [w.shape for w in model.get_weights()] == [(4, 2), (2,)]
  assert not any(w.any() for w in model.get_weights())


@pytest.mark.parametrize('degree', [1, 2, 3])
def test_products_are_those_of_scikit_learn(degree):
  standard = linear.Standardisation((1.0, -2.0, 0.5), (2.0, 0.5, 1.0))
  features = linear.Features(standard, degree)
  plain = (X - np.array(standard.means)) / np.array(standard.scales)
  reference = preprocessing.PolynomialFeatures(degree, include_bias=False)
  expected = reference.fit_transform(plain)
  np.testing.assert_allclose(features.apply(X), expected, rtol=1e-5, atol=1e-6)
  names = features.names(['a', 'b', 'c'])
  assert len(names) == expected.shape[1]
  if degree == 2:
    assert names[3:6] == ('a*a', 'a*b', 'a*c')


def test_standardisation_is_undone_by_its_inverse():
  standard = linear.Standardisation((100.0, -3.0), (10.0, 0.5))
  values = np.array([[110.0, -3.5], [90.0, -2.0]], np.float32)
  found = standard.apply(values)
  np.testing.assert_array_equal(found, [[1, -1], [-1, 2]])
  np.testing.assert_array_equal(standard.invert(found), values)


@pytest.mark.parametrize(
  'arguments, message',
  [((0, 1), 'one feature'), ((1, 0), 'one predictor'), ((1, 1, -1), 'l2')],
)
def test_impossible_models_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    linear.build('linear', *arguments)
