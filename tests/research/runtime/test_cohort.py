"""Packed clients have the batches that they were given."""

import collections

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from research.runtime import cohort as cohort_lib
from research.runtime import loop

BATCH = tff.StructWithPythonType(
  [
    ('x', tff.TensorType(np.float32, [None, 2])),
    ('y', tff.TensorType(np.int32, [None])),
  ],
  collections.OrderedDict,
)
SCALAR = tff.TensorType(np.int32)


def client(number, lengths, order=None):
  total = sum(lengths) if order is None else max(order, default=-1) + 1
  return cohort_lib.ClientBatches(
    {
      'x': np.arange(2 * total, dtype=np.float32).reshape(total, 2) + number,
      'y': np.arange(total, dtype=np.int32) + 100 * number,
    },
    np.arange(total, dtype=np.int32) if order is None else np.int32(order),
    np.array(lengths, np.int32),
    lambda batch: collections.OrderedDict(x=batch['x'] / 2, y=batch['y']),
  )


@pytest.fixture(autouse=True)
def eager():
  """Lets a test see the batches that a step is traced for."""
  tf.config.run_functions_eagerly(True)
  yield
  tf.config.run_functions_eagerly(False)


def batches_of(cohort):
  """Each client's batches, as the scan plan reads them."""
  found = []
  for number in range(len(cohort)):
    own = []
    ragged = cohort.layout.batches(cohort.tensors, tf.constant(number))

    def step(state, batch, own=own):
      own.append([np.asarray(part) for part in batch])
      return state

    ragged.reduce(step, [], [])
    found.append(own)
  return found


def expected_batches(clients):
  found = []
  for one in clients:
    ends = np.cumsum(one.lengths)
    rows = [
      one.order[end - size : end]
      for end, size in zip(ends, one.lengths, strict=True)
    ]
    found.append(
      [[one.examples['x'][r] / 2, one.examples['y'][r]] for r in rows]
    )
  return found


def assert_same(found, expected):
  assert [len(own) for own in found] == [len(own) for own in expected]
  for own, wanted in zip(found, expected, strict=True):
    for batch, parts in zip(own, wanted, strict=True):
      for part, array in zip(batch, parts, strict=True):
        np.testing.assert_array_equal(part, array)


RAGGED = [client(1, [3, 3, 1]), client(2, []), client(3, [2])]
REPEATED = [client(1, [2, 1, 2, 1], [2, 0, 1, 1, 2, 0]), client(2, [1], [0])]


@pytest.mark.parametrize('clients', [RAGGED, REPEATED, RAGGED[1:2]])
def test_batches_are_packed_and_read_again(clients):
  assert_same(batches_of(cohort_lib.pack(clients)), expected_batches(clients))


@pytest.mark.parametrize('clients', [RAGGED, REPEATED])
def test_the_loop_makes_datasets_of_the_same_batches(clients):
  cohort = cohort_lib.pack(clients)
  plan = loop.Loop.__new__(loop.Loop)
  plan._datasets = {}
  sequence = tff.SequenceType(BATCH)
  structure = collections.OrderedDict(
    x=tf.TensorSpec([None, 2]), y=tf.TensorSpec([None], tf.int32)
  )
  found = [
    [
      list(batch.values())
      for batch in tf.data.experimental.from_variant(
        plan._dataset(cohort, number, sequence), structure
      )
    ]
    for number in range(len(cohort))
  ]
  assert_same(found, expected_batches(clients))


def test_datasets_and_lists_become_the_same_cohort():
  clients = expected_batches(RAGGED)
  named = [
    [collections.OrderedDict(x=x, y=y) for x, y in own] for own in clients
  ]
  spec = collections.OrderedDict(
    x=tf.TensorSpec([None, 2]), y=tf.TensorSpec([None], tf.int32)
  )
  datasets = [
    tf.data.Dataset.from_generator(lambda own=own: own, output_signature=spec)
    for own in named
  ]
  for given in (named, datasets):
    assert_same(batches_of(cohort_lib.pack(given, BATCH)), clients)


def test_elements_that_are_no_batches_are_elements_again():
  cohort = cohort_lib.pack([[1, 2, 3], [], [4]], SCALAR)
  found = [[int(part) for (part,) in own] for own in batches_of(cohort)]
  assert found == [[1, 2, 3], [], [4]]


@pytest.mark.parametrize('element_type', [BATCH, SCALAR])
def test_cohorts_without_any_element(element_type):
  cohort = cohort_lib.pack([[], []], element_type)
  assert batches_of(cohort) == [[], []]
  assert len(cohort_lib.pack([], element_type)) == 0


def test_elements_of_unequal_shapes_are_refused():
  ragged = tff.TensorType(np.int32, [2, None])
  given = [[np.zeros([2, 3], np.int32), np.zeros([2, 1], np.int32)]]
  with pytest.raises(cohort_lib.RaggedElementsError, match=r'\(2, 1\)'):
    cohort_lib.pack(given, ragged)


def test_batches_and_datasets_do_not_mix():
  with pytest.raises(TypeError, match='for all'):
    cohort_lib.pack([RAGGED[0], []], BATCH)


def test_examples_that_clients_share_are_read_by_each_in_its_order():
  examples = {'x': np.float32([[1, 2], [3, 4]]), 'y': np.int32([5, 6])}
  clients = [
    cohort_lib.ClientBatches(examples, np.int32(order), np.int32([1, 1]))
    for order in ([1, 0], [0, 1])
  ]
  found = batches_of(cohort_lib.pack(clients))
  assert [[int(y[0]) for _, y in own] for own in found] == [[6, 5], [5, 6]]


def test_blocks_are_for_equal_batches_in_the_order_of_the_examples():
  cohort = cohort_lib.pack([client(1, [2, 2]), client(2, [2, 2])])
  assert cohort.block_shape == (2, 2)
  x, y = cohort.blocks(2)
  assert x.shape == (2, 2, 2, 2)
  np.testing.assert_array_equal(
    y, [[[100, 101], [102, 103]], [[200, 201], [202, 203]]]
  )
  padded = cohort.blocks(4)[1]
  assert padded.shape == (4, 2, 2)
  np.testing.assert_array_equal(padded[:2], y)
  for other in (RAGGED, REPEATED, [client(1, [2]), client(2, [2, 2])]):
    assert cohort_lib.pack(other).block_shape is None


@pytest.mark.parametrize(
  'size, expected', [(0, 1), (1, 1), (2, 2), (3, 4), (8, 8), (9, 16)]
)
def test_buckets_are_powers_of_two(size, expected):
  assert cohort_lib.bucket(size) == expected
  assert len(cohort_lib.pad(np.ones([max(size, 1), 2]), expected)) == expected
