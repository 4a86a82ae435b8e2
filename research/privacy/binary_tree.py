"""Sensitivity and error of binary trees over rounds, exactly.

Rounds are the leaves, and every complete dyadic interval of a tree's rounds is
a node, that of one round included. A tree of n rounds falls into complete
subtrees, one per binary digit of n, the largest first.
"""

import numpy as np


def complete_subtrees(total_rounds: int, restart_period: int) -> list[int]:
  """Sizes of the largest complete subtrees of all trees, in their order."""
  sizes = []
  for start in range(0, total_rounds, restart_period):
    leaves = min(restart_period, total_rounds - start)
    digits = range(leaves.bit_length() - 1, -1, -1)
    sizes += [1 << digit for digit in digits if leaves >> digit & 1]
  return sizes


def noise_variances(total_rounds: int, restart_period: int) -> np.ndarray:
  """Variances of the noise in the prefix sums, for nodes with noise of 1.

  Honaker's estimate of a node of height h from the tree below it has variance
  1 / (2 - 2^-h); a prefix sum is one of such nodes per binary digit, and the
  trees that are done stay in it.

  Returns:
    float64 [total_rounds].
  """
  rounds = np.arange(1, total_rounds + 1)
  done, position = np.divmod(rounds, restart_period)
  heights = np.arange(restart_period.bit_length())

  def variance(leaves):
    digits = np.asarray(leaves)[..., np.newaxis] >> heights & 1
    return digits @ (1 / (2 - 0.5**heights))

  return done * variance(restart_period) + variance(position)


def estimates(restart_period: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """How Honaker's estimates of nodes come from new noise and earlier ones.

  When a node of height h is complete, its estimate, not yet divided by what it
  counts the leaves, is e_h = own + (e_left + e_right) / 2, and all estimates
  in its right half are new. Their noise occurs nowhere else, so that a single
  normal number of their joint variance stands for it:
  e_h = deviations[h] * z + sum over l < h of halves[h, l] * e_l, with e_l the
  estimates that stood for the previous round.

  Returns:
    deviations float64 [heights], halves float64 [heights, heights] and weights
    float64 [heights], by which an estimate is multiplied in a prefix sum.
  """
  heights = np.arange(restart_period.bit_length())
  deviations = np.sqrt(np.cumsum(0.25**heights))
  halves = np.tril(0.5 ** np.abs(heights[:, np.newaxis] - heights), -1)
  return deviations, halves, 1 / (2 - 0.5**heights)


def sensitivity_squared(
  total_rounds: int,
  restart_period: int,
  min_separation: int,
  max_participations: int,
) -> float:
  """The largest sum over nodes of the squared number of a client's rounds.

  Dynamic programming over subtrees, as Kairouz et al. 2021, arXiv:2103.00039,
  Appendix D.2, but over few states. Nodes of at most `min_separation` rounds
  meet a client once at most, so that a table starts with blocks of the next
  power of two, which meet it twice at most. Its entry [c, i, j] is the largest
  sum for c participations when the first may be starts[i] rounds into the
  subtree and the next one starts[j] rounds into what follows. Participations as
  early as a block allows lose nothing: all blocks are alike and subtrees become
  smaller towards a tree's end.

  Args:
    total_rounds: Of all trees.
    restart_period: Rounds of a tree.
    min_separation: A client's rounds are at least so many apart.
    max_participations: A client's rounds.
  """
  sizes = complete_subtrees(total_rounds, restart_period)
  block = 1 << min_separation.bit_length()
  units = []
  for size in sizes:
    units += [block] * (size // block) if size >= block else [size]
  starts = _reachable(units, min_separation)
  tables = {}

  def table(size):
    if size not in tables:
      if size > block:
        half = table(size // 2)
        both = _join(half, half, max_participations)
        counts = np.arange(len(both), dtype=np.float64)
        tables[size] = both + counts[:, np.newaxis, np.newaxis] ** 2
      else:
        tables[size] = _unit(size, starts, min_separation)
    return tables[size]

  total = np.full([1, 1, len(starts)], -np.inf)
  total[0, 0, starts.index(0)] = 0.0
  for size in sizes:
    total = _join(total, table(size), max_participations)
  return float(total.max())


def _next_start(
  start: int, count: int, size: int, separation: int
) -> int | None:
  """The next participation's earliest place in what follows a unit.

  Args:
    start: The first participation's earliest place in the unit.
    count: Participations in it.
    size: Its rounds.
    separation: Of two participations.

  Returns:
    It, or None if they do not fit in.
  """
  if count == 0:
    return max(0, start - size)
  last = start + (count - 1) * separation
  return max(0, last + separation - size) if last < size else None


def _reachable(units: list[int], separation: int) -> list[int]:
  """All earliest starts that can occur at the border of two units."""
  found, here = {0}, {0}
  for size in units:
    following = {
      _next_start(start, count, size, separation)
      for start in here
      for count in range(3)
    }
    here = following - {None}
    found |= here
  return sorted(found)


def _unit(size: int, starts: list[int], separation: int) -> np.ndarray:
  """The table of a subtree whose halves meet a client once at most."""
  result = np.full([3, len(starts), len(starts)], -np.inf)
  halvings = size.bit_length() - 1
  for count in range(3):
    for i, start in enumerate(starts):
      following = _next_start(start, count, size, separation)
      if following in starts:
        result[count, i, starts.index(following)] = count * halvings + count**2
  return result


def _join(left: np.ndarray, right: np.ndarray, limit: int) -> np.ndarray:
  """The table of two subtrees in a row, without a node for both.

  Args:
    left: [counts, i, j].
    right: [counts, j, k].
    limit: The largest count that is kept.

  Returns:
    [counts, i, k].
  """
  counts = min(limit + 1, len(left) + len(right) - 1)
  result = np.full([counts, left.shape[1], right.shape[2]], -np.inf)
  for count, first in enumerate(left[:counts]):
    both = (first[np.newaxis, :, :, np.newaxis] + right[:, np.newaxis]).max(2)
    upper = result[count : count + len(right)]
    np.maximum(upper, both[: len(upper)], out=upper)
  return result
