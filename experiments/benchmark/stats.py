"""Paired ratios, their bootstrap intervals, and whether a target is met."""

import dataclasses
from collections.abc import Sequence

import numpy as np

_RESAMPLES = 10_000
_LEVEL = 0.95
# How far the median may be from a target that the interval reaches.
_TOLERANCE = 0.1


@dataclasses.dataclass(frozen=True)
class Ratio:
  """The median of paired ratios.

  Attributes:
    median: The median ratio.
    low: Lower end of its 95 % interval.
    high: Upper end of it.
    pairs: How many pairs.
  """

  median: float
  low: float
  high: float
  pairs: int

  def __str__(self) -> str:
    return f'{self.median:.3g} [{self.low:.3g}, {self.high:.3g}]'


def paired_ratio(
  numerators: Sequence[float], denominators: Sequence[float], seed: int = 0
) -> Ratio:
  """Median of paired ratios with a percentile bootstrap interval.

  The percentile interval of Efron and Tibshirani 1993, "An Introduction to the
  Bootstrap", section 13.3, over resampled pairs.

  Args:
    numerators: Measured in the same repetitions as `denominators`, as [pairs].
    denominators: As [pairs], not zero.
    seed: Of the resampling.

  Raises:
    ValueError: If the lengths differ or are zero.
  """
  if len(numerators) != len(denominators) or not len(numerators):
    raise ValueError(f'{len(numerators)} and {len(denominators)} do not pair.')
  ratios = np.asarray(numerators, float) / np.asarray(denominators, float)
  draws = np.random.default_rng(seed).integers(
    0, len(ratios), (_RESAMPLES, len(ratios))
  )
  medians = np.median(ratios[draws], axis=1)
  tail = (1 - _LEVEL) / 2
  low, high = np.quantile(medians, [tail, 1 - tail])
  return Ratio(float(np.median(ratios)), float(low), float(high), len(ratios))


def meets(ratio: Ratio, at_most: float | None, at_least: float | None) -> bool:
  """Whether a ratio meets its bounds.

  It does if its interval reaches the bound and its median is within 10 % of it.

  Args:
    ratio: What was measured.
    at_most: Upper bound; None is none.
    at_least: Lower bound; None is none.
  """
  if at_most is not None and (
    ratio.low > at_most or ratio.median > at_most * (1 + _TOLERANCE)
  ):
    return False
  return at_least is None or (
    ratio.high >= at_least and ratio.median >= at_least * (1 - _TOLERANCE)
  )
