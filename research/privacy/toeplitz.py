"""Lower-triangular Toeplitz matrices C as strategies: error and sensitivity.

A is the lower-triangular matrix of ones and B = A C^-1, which is Toeplitz too.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import scipy.optimize
import scipy.signal

ERRORS = ('max', 'rmse')


def square_root_coefficients(total_rounds: int) -> np.ndarray:
  """The first column of the square root of A: binom(2t, t) / 4^t.

  Fichtenberger, Henzinger and Upadhyay 2023, "Constant matters: Fine-grained
  Complexity of Differentially Private Continual Observation",
  arXiv:2202.11205. For single participation no lower-triangular Toeplitz
  strategy has a lower maximal error times sensitivity (Dvijotham et al. 2024).
  """
  t = np.arange(1, total_rounds)
  return np.concatenate([[1.0], np.cumprod((2 * t - 1) / (2 * t))])


def solve(coefficients: np.ndarray, right: np.ndarray) -> np.ndarray:
  """Solves C x = right for a Toeplitz C by forward substitution."""
  return scipy.signal.lfilter([1.0], np.trim_zeros(coefficients, 'b'), right)


def sum_of_columns(
  coefficients: np.ndarray, min_separation: int, count: int
) -> np.ndarray:
  """The sum of the first `count` columns that lie `min_separation` apart."""
  total = np.zeros(len(coefficients))
  for start in range(0, count * min_separation, min_separation):
    total[start:] += coefficients[: len(total) - start]
  return total


def error_weights(total_rounds: int, error: str) -> np.ndarray:
  """The share of a squared entry of B's first column in the squared error."""
  if error == 'max':
    return np.ones(total_rounds)
  if error == 'rmse':
    return 1 - np.arange(total_rounds) / total_rounds
  raise ValueError(f'error is {error!r}; it must be one of {ERRORS}.')


def log_loss(
  coefficients: np.ndarray,
  weights: np.ndarray,
  min_separation: int,
  count: int,
) -> tuple[float, np.ndarray]:
  """The logarithm of squared error times squared sensitivity, and its gradient.

  Args:
    coefficients: The first ones of C; the others are zeros.
    weights: Of the error, float64 [total_rounds].
    min_separation: Of a client's rounds.
    count: A client's rounds.

  Returns:
    The value and float64 [len(coefficients)].
  """
  size, bands = len(weights), len(coefficients)
  b = solve(coefficients, np.ones(size))
  error = np.sum(weights * b**2)
  adjoint = solve(coefficients, (2 * weights * b)[::-1])
  # The derivative of b by c_k is -C^-1 applied to b, k rounds later.
  by_error = -scipy.signal.fftconvolve(adjoint, b)[::-1][size - 1 :][:bands]

  column = np.concatenate([coefficients, np.zeros(size - bands)])
  total = sum_of_columns(column, min_separation, count)
  by_sensitivity = 2 * sum_of_columns(total[::-1], min_separation, count)[::-1]
  sensitivity = np.sum(total**2)
  gradient = by_error / error + by_sensitivity[:bands] / sensitivity
  return math.log(error) + math.log(sensitivity), gradient


def minimize(
  loss: Callable[[np.ndarray], tuple[float, np.ndarray]],
  start: np.ndarray,
  bounds: Sequence[tuple[float, float]],
) -> np.ndarray:
  """Where a loss, of which value and gradient are known, is least."""
  options = {'maxiter': 2000, 'maxcor': 20, 'ftol': 1e-13, 'gtol': 1e-8}
  return scipy.optimize.minimize(
    loss, start, jac=True, method='L-BFGS-B', bounds=bounds, options=options
  ).x


def first_blt(total_rounds: int, buffers: int) -> np.ndarray:
  """Logarithms of scales and rates that come near the square root of A.

  Rates are spread evenly from one over the horizon to one per round, and scales
  fitted to the relative error.
  """
  if total_rounds < 2:
    return np.zeros(2 * buffers)
  rates = np.geomspace(1 / total_rounds, 1.0, buffers)
  target = square_root_coefficients(total_rounds)[1:]
  age = np.arange(total_rounds - 1)
  relative = np.exp(-np.outer(age, rates)) / target[:, np.newaxis]
  scales, _ = scipy.optimize.nnls(relative, np.ones(len(age)))
  return np.log(np.concatenate([np.maximum(scales, 1e-4), rates]))
