"""Distributions on the integers from -m to m, by plain NumPy and SciPy."""

import numpy as np
from scipy import special, stats


def discrete_gaussian(variance: float, most: int) -> np.ndarray:
  """Probabilities [2 most + 1] in proportion to exp(-x^2 / (2 variance))."""
  x = np.arange(-most, most + 1)
  weights = np.exp(-(x**2) / (2 * variance))
  return weights / weights.sum()


def skellam(variance: float, most: int) -> np.ndarray:
  """The difference of two Poisson numbers, [2 most + 1]."""
  last = most + int(variance / 2 + 40 * variance**0.5) + 60
  poisson = stats.poisson.pmf(np.arange(last + 1), variance / 2)
  difference = np.convolve(poisson, poisson[::-1])
  return difference[last - most : last + most + 1]


def sum_of(one: np.ndarray, count: int) -> np.ndarray:
  """Of independent numbers, with the same support."""
  total = one
  for _ in range(count - 1):
    total = np.convolve(total, one, 'same')
  return total


def shifted(one: np.ndarray, shift: int) -> np.ndarray:
  """With numbers that are larger by `shift`."""
  return np.concatenate([np.zeros(shift), one[: len(one) - shift]])


def renyi_divergence(p: np.ndarray, q: np.ndarray, order: int) -> float:
  """Of p from q, where both are above 0 up to negligible tails."""
  both = (p > 0) & (q > 0)
  logs = order * np.log(p[both]) + (1 - order) * np.log(q[both])
  return float(special.logsumexp(logs) / (order - 1))


def chi_square(numbers: np.ndarray, probabilities: np.ndarray) -> float:
  """The p-value of integers under a distribution from -m to m.

  Neighbouring values are merged until at least 20 are expected of each.
  """
  most = len(probabilities) // 2
  assert np.abs(numbers).max() <= most
  counts = np.bincount(numbers + most, minlength=len(probabilities))
  expected = probabilities / probabilities.sum() * numbers.size
  group = np.floor(np.cumsum(expected) / 20).astype(int)
  group = np.minimum(group, group[-1] - 1)
  merged, wanted = np.bincount(group, counts), np.bincount(group, expected)
  filled = wanted > 0
  return float(stats.chisquare(merged[filled], wanted[filled]).pvalue)
