"""Groups of clients by hand."""

import numpy as np
import pytest

from research.runtime import cohort, grouping


def pack(*clients):
  """A cohort whose clients have batches of the given sizes."""
  return cohort.pack(
    [
      cohort.ClientBatches(
        {'x': np.zeros(sum(lengths))},
        np.arange(sum(lengths), dtype=np.int32),
        np.array(lengths, np.int32),
      )
      for lengths in clients
    ]
  )


@pytest.mark.parametrize(
  'lengths, expected',
  [
    ([], ((), [], 0)),
    ([4], ((4,), [1], 1)),
    ([4, 4, 4], ((4,), [3], 1)),
    ([4, 4, 1], ((4, 1), [2, 1], 1)),
    ([4, 4, 1, 4, 4, 1], ((4, 1), [2, 1], 2)),
    ([4, 1, 4, 4], ((4, 1, 4), [1, 1, 2], 1)),
    ([4, 1, 4, 1, 4, 1], ((4, 1), [1, 1], 3)),
  ],
)
def test_periods(lengths, expected):
  assert grouping.period(lengths) == expected


def batches(segments, client):
  """The sizes of a client's batches, written out."""
  one = [
    length
    for length, count in zip(
      segments.lengths, segments.counts[client], strict=True
    )
    for _ in range(count)
  ]
  return one * segments.repeats


COHORTS = [
  [[4, 4], [4, 4]],
  [[4, 4], [4], []],
  [[4, 4, 1], [4, 2], [4], [3], []],
  [[4, 1] * 2, [4, 4, 1] * 2, [4] * 4, [3] * 2, [], [4, 2] * 2],
  [[4, 1, 4], [4], []],
  [[4], [4, 1] * 2],
  [[], []],
  [[5], [3], [2, 2]],
]


@pytest.mark.parametrize('clients', COHORTS)
def test_every_client_is_in_one_group_with_its_batches(clients):
  packed = pack(*clients)
  begin = np.cumsum([0, *(sum(lengths) for lengths in clients)])
  seen = []
  for members, segments in grouping.group(packed):
    for position, client in enumerate(members):
      assert batches(segments, position) == clients[client]
      assert segments.begin[position] == begin[client]
      seen.append(client)
  assert sorted(seen) == list(range(len(clients)))


@pytest.mark.parametrize(
  'clients, groups',
  [
    ([[4, 4], [4], []], 1),
    ([[4, 4, 1], [4], [4, 1], []], 1),
    ([[4, 4, 1], [4, 2], [4, 1], [4], [2]], 2),
    ([[4, 1] * 2, [4] * 6, [1] * 2], 1),
    ([[4, 1] * 2, [4] * 3], 2),
    ([[4, 2] * 2, [4, 4, 1] * 2, [4] * 2, [3] * 2, [4] * 4, []], 3),
  ],
)
def test_clients_that_differ_in_counts_alone_are_one_group(clients, groups):
  assert len(grouping.group(pack(*clients))) == groups


def test_groups_of_two_sequences_are_groups_of_both():
  first = pack([4], [4], [2, 1], [2, 1], [4])
  second = pack([3, 1, 3], [2], [2], [3, 1, 3], [2])
  groups = [(np.arange(5), [])]
  for packed in (first, second):
    groups = list(grouping.refine(groups, packed))
  seen = []
  for members, (one, other) in groups:
    for position, client in enumerate(members):
      expected = ([4], [4], [2, 1], [2, 1], [4])[client]
      assert batches(one, position) == expected
      expected = ([3, 1, 3], [2], [2], [3, 1, 3], [2])[client]
      assert batches(other, position) == expected
      seen.append(client)
  assert sorted(seen) == list(range(5))


def test_what_a_function_is_traced_for():
  (_, segments), *_ = grouping.group(pack([4, 4, 4], [4, 4, 4]))
  form = segments.form(fixed_lengths=True, fixed_counts=False)
  assert (form.lengths, form.is_single, form.is_uniform) == (
    (4,),
    (False,),
    True,
  )
  assert not form.is_repeated and form.counts is None
  form = segments.form(fixed_lengths=False, fixed_counts=True)
  assert (form.lengths, form.counts, form.repeats) == ((None,), (3,), 1)
  (_, segments), *_ = grouping.group(pack([4], [4]))
  assert segments.form(True, False).is_single == (True,)
  (_, segments), *_ = grouping.group(pack([4, 4], [4]))
  form = segments.form(True, True)
  assert not form.is_uniform and form.counts is None
