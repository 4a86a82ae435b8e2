"""Which clients of a round can be vectorised together."""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from research.runtime import cohort as cohort_lib
from research.runtime import sequences


@dataclasses.dataclass(frozen=True, eq=False)
class Segments:
  """How many batches of which sizes the clients of a chunk have, per sequence.

  Attributes:
    lengths: Sizes of the batches of one period.
    counts: int32 [clients, segments], each client's batches of each size.
    repeats: Periods that every client has.
    begin: int32 [clients], where a client begins in the cohort's `rows`.
    is_whole: Whether all clients of the cohort are in this group.
  """

  lengths: tuple[int, ...]
  counts: np.ndarray
  repeats: int
  begin: np.ndarray
  is_whole: bool = True

  def form(self, fixed_lengths: bool, fixed_counts: bool) -> sequences.Form:
    """What a function for these clients is traced for."""
    # Groups of a ragged cohort come and go: one form for all of them.
    is_uniform = self.is_whole and bool((self.counts == self.counts[0]).all())
    fixed = fixed_counts and is_uniform
    is_single = [is_uniform and count == 1 for count in self.counts[0]]
    return sequences.Form(
      lengths=tuple(n if fixed_lengths else None for n in self.lengths),
      is_single=tuple(map(bool, is_single)),
      is_uniform=is_uniform,
      is_repeated=self.repeats != 1,
      counts=tuple(self.counts[0].tolist()) if fixed else None,
      repeats=self.repeats if fixed else None,
    )

  def take(self, clients: np.ndarray) -> 'Segments':
    """The segments of some of the clients."""
    return dataclasses.replace(
      self, counts=self.counts[clients], begin=self.begin[clients]
    )


def period(lengths: Sequence[int]) -> tuple[tuple[int, ...], list[int], int]:
  """Describes a client's batch sizes by their shortest period.

  Args:
    lengths: Sizes of the batches, as 10 10 10 4 10 10 10 4.

  Returns:
    The sizes of one period's runs, how long each run is, and how often the
    period comes: (10, 4), [3, 1], 2.
  """
  lengths = list(lengths)
  size = len(lengths)
  short = next(
    (
      n
      for n in range(1, size + 1)
      if size % n == 0 and lengths == lengths[:n] * (size // n)
    ),
    0,
  )
  # Batches of one size are one run, not a period of one batch.
  if short == 1:
    return (lengths[0],), [size], 1
  runs, counts = [], []
  for length in lengths[:short]:
    if runs and runs[-1] == length:
      counts[-1] += 1
    else:
      runs.append(length)
      counts.append(1)
  return tuple(runs), counts, size // short if short else 0


def group(cohort: cohort_lib.Cohort) -> list[tuple[np.ndarray, Segments]]:
  """Groups clients that one call of a traced function can take.

  Clients with full batches and one smaller batch at the end of an epoch differ
  by that batch's size only: each size is a group, and clients that have no
  smaller batch join the largest. So all groups have one form, and few functions
  are traced.

  Args:
    cohort: All clients' batches.

  Returns:
    Positions of each group's clients, and their segments.
  """
  if not len(cohort):
    return []
  begin = cohort.starts[cohort.clients[:-1]]
  steps, sizes = np.diff(cohort.clients), np.diff(cohort.starts)
  if len(sizes) and (sizes == sizes[0]).all():
    clients = np.arange(len(cohort))
    return [(clients, Segments((int(sizes[0]),), steps[:, None], 1, begin))]
  found = [period(lengths.tolist()) for lengths in cohort.lengths]
  if sizes.size:
    found = _with_remainders(found, int(sizes.max()))
  groups = collections.defaultdict(list)
  for client, (runs, _, repeats) in enumerate(found):
    groups[runs, repeats].append(client)
  return [
    (
      np.array(members),
      Segments(
        runs,
        np.array([found[client][1] for client in members], np.int32).reshape(
          len(members), len(runs)
        ),
        repeats,
        begin[members],
        is_whole=len(groups) == 1,
      ),
    )
    for (runs, repeats), members in sorted(groups.items())
  ]


_Period = tuple[tuple[int, ...], list[int], int]


def _with_remainders(found: Sequence[_Period], full: int) -> list[_Period]:
  """Gives clients with full batches, a remainder or both one form, if all can.

  Args:
    found: What `period` says of each client.
    full: The size of a full batch.

  Returns:
    Periods (full, remainder), [batches, 0 or 1], epochs; `found` itself where
    batches come in another order.
  """
  # `period` takes epochs of one small batch for one run of them.
  remainders = collections.Counter(
    (runs[-1], repeats if len(runs) > 1 else counts[0])
    for runs, counts, repeats in found
    if runs and runs[-1] < full
  )
  if not remainders:
    return list(found)
  (usual, epochs), _ = max(
    remainders.items(), key=lambda item: (item[1], item[0])
  )
  result = []
  for runs, counts, repeats in found:
    if runs == (full,) and counts[0] % epochs == 0:
      result.append(((full, usual), [counts[0] // epochs, 0], epochs))
    elif len(runs) == 2 and runs[0] == full and counts[1] == 1:
      result.append((runs, counts, repeats))
    elif len(runs) == 1 and runs[0] < full and counts[0] == epochs:
      result.append(((full, runs[0]), [0, 1], epochs))
    elif not runs:
      result.append(((full, usual), [0, 0], epochs))
    else:
      return list(found)
  return result


def refine(
  groups: Iterable[tuple[np.ndarray, list[Segments]]],
  cohort: cohort_lib.Cohort,
) -> Iterator[tuple[np.ndarray, list[Segments]]]:
  """Splits groups so that a further sequence has one form in each, too.

  Args:
    groups: Positions of each group's clients, and their segments in the
      sequences so far.
    cohort: All clients' batches of the further sequence.

  Yields:
    The smaller groups.
  """
  for positions, segments in group(cohort):
    for members, earlier in groups:
      common, left, right = np.intersect1d(
        members, positions, assume_unique=True, return_indices=True
      )
      if len(common):
        yield (
          common,
          [
            *(s.take(left) for s in earlier),
            segments.take(right),
          ],
        )
