import numpy as np
import pytest
import scipy.optimize

from research.privacy import toeplitz
from tests.research.privacy import dense


def test_square_root_coefficients_are_the_root_of_prefix_sums():
  root = dense.toeplitz(toeplitz.square_root_coefficients(50))
  np.testing.assert_allclose(root @ root, dense.prefix_sums(50), atol=1e-12)


def test_solve_is_that_of_the_dense_matrix():
  rng = np.random.default_rng(0)
  c = np.r_[1.3, rng.uniform(-0.1, 0.2, 6), np.zeros(5)]
  right = rng.normal(size=12)
  expected = np.linalg.solve(dense.toeplitz(c), right)
  np.testing.assert_allclose(toeplitz.solve(c, right), expected, rtol=1e-12)


@pytest.mark.parametrize('separation, count', [(12, 1), (3, 4), (5, 2)])
@pytest.mark.parametrize('error', toeplitz.ERRORS)
@pytest.mark.parametrize('bands', [3, 12])
def test_log_loss_and_its_gradient(error, separation, count, bands):
  rng = np.random.default_rng(1)
  c = np.r_[1.0, rng.uniform(0.1, 0.5, bands - 1)]
  weights = toeplitz.error_weights(12, error)

  def loss(c):
    strategy = dense.toeplitz(np.r_[c, np.zeros(12 - bands)])
    b = dense.prefix_sums(12) @ np.linalg.inv(strategy)
    per_round = (b**2).sum(axis=1)
    error_squared = per_round.max() if error == 'max' else per_round.mean()
    column = strategy[:, : separation * count : separation].sum(axis=1)
    return np.log(error_squared) + np.log(column @ column)

  value, gradient = toeplitz.log_loss(c, weights, separation, count)
  assert value == pytest.approx(loss(c), rel=1e-12)
  numeric = scipy.optimize.approx_fprime(c, loss, 1e-7)
  np.testing.assert_allclose(gradient, numeric, atol=1e-5)


def test_an_unknown_error_is_refused():
  with pytest.raises(ValueError, match="'mean'; it must be one of"):
    toeplitz.error_weights(3, 'mean')
