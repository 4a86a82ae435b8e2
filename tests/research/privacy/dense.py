"""Strategies as dense matrices, straight from their definitions."""

from collections.abc import Iterator

import numpy as np
import scipy.linalg
import scipy.stats

from research.privacy import matrix_factorization


def toeplitz(coefficients: np.ndarray) -> np.ndarray:
  """The lower-triangular Toeplitz matrix with this first column."""
  return scipy.linalg.toeplitz(coefficients, np.zeros(len(coefficients)))


def prefix_sums(total_rounds: int) -> np.ndarray:
  """A: the lower-triangular matrix of ones."""
  return np.tril(np.ones([total_rounds, total_rounds]))


def patterns(
  total_rounds: int, min_separation: int, max_participations: int
) -> Iterator[list[int]]:
  """All sets of rounds in which a client may take part."""

  def extend(chosen, start):
    yield chosen
    if len(chosen) < max_participations:
      for t in range(start, total_rounds):
        yield from extend([*chosen, t], t + min_separation)

  return extend([], 0)


def sensitivity(
  strategy: np.ndarray, min_separation: int, max_participations: int
) -> float:
  """Over all patterns; of a matrix without negative entries."""
  return max(
    np.linalg.norm(strategy[:, pattern].sum(axis=1))
    for pattern in patterns(
      strategy.shape[1], min_separation, max_participations
    )
  )


def tree(total_rounds: int, restart_period: int) -> tuple[np.ndarray, ...]:
  """Trees of nodes, and Honaker's estimates of the prefix sums from them.

  Returns:
    nodes [nodes, total_rounds], 1 where a round is in a node; and estimates
    [total_rounds, nodes], what a prefix sum makes of the noisy nodes.
  """
  position = {}
  for start in range(0, total_rounds, restart_period):
    end, size = min(start + restart_period, total_rounds), 1
    while size <= end - start:
      for first in range(start, end - size + 1, size):
        position[first, size] = len(position)
      size *= 2
  nodes = np.zeros([len(position), total_rounds])
  for (first, size), row in position.items():
    nodes[row, first : first + size] = 1

  def recursive(first, size):
    estimate = np.eye(len(position))[position[first, size]]
    if size > 1:
      halves = (
        recursive(first, size // 2),
        recursive(first + size // 2, size // 2),
      )
      estimate = estimate + sum(halves) / 2
    return estimate

  estimates = np.zeros([total_rounds, len(position)])
  for t in range(total_rounds):
    first = 0
    while first <= t:
      start = first - first % restart_period
      room = min(t + 1, start + restart_period) - first
      size = 1 << (room.bit_length() - 1)
      node = recursive(first, size)
      # Scaled so that each round in the node counts once.
      estimates[t] += node / (node @ nodes)[first]
      first += size
  return nodes, estimates


def noise_covariance(strategy: matrix_factorization.Strategy) -> np.ndarray:
  """The covariance over rounds of the noise y, for z with variance 1."""
  if isinstance(strategy, matrix_factorization.BinaryTree):
    _, estimates = tree(strategy.total_rounds, strategy.restart_period)
    noise = np.diff(estimates, axis=0, prepend=0)
  else:
    noise = np.linalg.inv(toeplitz(strategy.coefficients))
  return noise @ noise.T


def covariance_p_value(noises: np.ndarray, covariance: np.ndarray) -> float:
  """Of normal noise [rounds, samples] if that is its covariance over rounds.

  Whitened, the second moments over n samples are those of the identity, their
  errors independent and nearly normal: of variance 1 / n, 2 / n on the
  diagonal.
  """
  rounds, samples = noises.shape
  white = np.linalg.solve(np.linalg.cholesky(covariance), noises)
  errors = np.sqrt(samples) * (white @ white.T / samples - np.eye(rounds))
  errors[np.diag_indices(rounds)] /= np.sqrt(2)
  statistic = np.sum(errors[np.tril_indices(rounds)] ** 2)
  return scipy.stats.chi2.sf(statistic, rounds * (rounds + 1) // 2)
