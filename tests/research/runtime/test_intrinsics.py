"""Each intrinsic by hand, on every plan."""

import collections

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from research.runtime import tree
from tests.research.runtime import equality

CLIENT_FLOAT = tff.FederatedType(np.float32, tff.CLIENTS)
CLIENT_INT = tff.FederatedType(np.int32, tff.CLIENTS)
VALUES = [3, 1, 4, 1, 5]


@pytest.fixture(autouse=True, params=equality.PLANS)
def plan(request):
  with equality.in_process_runtime(request.param):
    yield request.param


@pytest.mark.parametrize(
  'intrinsic, expected, dtype',
  [
    (tff.federated_sum, 14, np.int32),
    (tff.federated_min, 1, np.int32),
    (tff.federated_max, 5, np.int32),
    (tff.federated_sum, 14, np.float32),
    (tff.federated_min, 1, np.float32),
    (tff.federated_max, 5, np.float32),
    # TFF has means of fractions only.
    (tff.federated_mean, 2.8, np.float32),
  ],
)
def test_reductions(intrinsic, expected, dtype):
  @tff.federated_computation(tff.FederatedType(dtype, tff.CLIENTS))
  def run(values):
    return intrinsic(values)

  result = run([dtype(value) for value in VALUES])
  np.testing.assert_allclose(result, expected, rtol=1e-6)
  assert np.asarray(result).dtype == dtype


def test_negative_extrema_and_structures():
  member = tff.StructType([('a', np.int32), ('b', (np.float32, [2]))])

  @tff.federated_computation(tff.FederatedType(member, tff.CLIENTS))
  def run(values):
    return (
      tff.federated_max(values),
      tff.federated_min(values),
      tff.federated_sum(values),
    )

  largest, smallest, total = run(
    [
      {'a': -3, 'b': np.array([-1.5, 2], np.float32)},
      {'a': -7, 'b': np.array([-0.5, -4], np.float32)},
    ]
  )
  assert (largest['a'], smallest['a'], total['a']) == (-3, -7, -10)
  np.testing.assert_array_equal(largest['b'], [-0.5, 2])
  np.testing.assert_array_equal(smallest['b'], [-1.5, -4])
  np.testing.assert_array_equal(total['b'], [-2, -2])


def test_weighted_mean():
  @tff.federated_computation(CLIENT_FLOAT, CLIENT_FLOAT)
  def run(values, weights):
    return tff.federated_mean(values, weights)

  values, weights = np.float32(VALUES), np.float32([1, 0, 2, 3, 4])
  expected = (values * weights).sum() / weights.sum()
  np.testing.assert_allclose(run(list(values), list(weights)), expected)


def test_aggregation_takes_clients_in_order():
  @tff.tensorflow.computation(np.int32, np.int32)
  def append(digits, value):
    return digits * 10 + value

  @tff.tensorflow.computation(np.int32)
  def report(digits):
    return digits + 1000000

  @tff.federated_computation(CLIENT_INT)
  def run(values):
    zero = tff.tensorflow.computation(lambda: np.int32(7))()
    return tff.federated_aggregate(values, zero, append, append, report)

  assert run(VALUES) == 1731415
  assert run([]) == 1000007


def test_a_second_pass_sees_what_the_first_one_made():
  @tff.tensorflow.computation(np.float32)
  def square(value):
    return value * value

  @tff.tensorflow.computation(np.float32, np.float32)
  def difference(value, mean):
    return value - mean

  @tff.federated_computation(CLIENT_FLOAT)
  def run(values):
    squares = tff.federated_map(square, values)
    mean = tff.federated_mean(squares)
    at_clients = tff.federated_broadcast(mean)
    apart = tff.federated_map(difference, (squares, at_clients))
    variance = tff.federated_mean(tff.federated_map(square, apart))
    return mean, variance, apart

  mean, variance, apart = run([np.float32(value) for value in VALUES])
  squares = np.square(np.float32(VALUES))
  np.testing.assert_allclose(mean, squares.mean(), rtol=1e-6)
  np.testing.assert_allclose(variance, squares.var(), rtol=1e-6)
  np.testing.assert_allclose(apart, squares - squares.mean(), rtol=1e-5)


def test_values_stay_with_their_clients_when_groups_are_mixed():
  """Clients are grouped by their batches, and come back in their order."""

  @tff.tensorflow.computation(
    tff.SequenceType(tff.TensorType(np.int32, [None])), np.int32
  )
  def count(batches, own):
    total = batches.reduce(0, lambda n, batch: n + tf.reduce_sum(batch))
    return total * 100 + own

  @tff.federated_computation(
    tff.FederatedType(count.type_signature.parameter[0], tff.CLIENTS),
    CLIENT_INT,
  )
  def run(batches, own):
    return tff.federated_map(count, (batches, own))

  clients = [[[1, 2], [3]], [], [[4]], [[5, 6], [7]], [[8], [9]], []]
  clients = [[np.int32(batch) for batch in client] for client in clients]
  assert run(clients, [1, 2, 3, 4, 5, 6]) == [601, 2, 403, 1804, 1705, 6]


def test_selection():
  @tff.tensorflow.computation(tff.TensorType(np.float32, [4]), np.int32)
  def pick(values, key):
    return tf.gather(values, key)

  @tff.tensorflow.computation(tff.SequenceType(np.float32))
  def digits(values):
    return values.reduce(0.0, lambda total, value: total * 10 + value)

  @tff.federated_computation(
    tff.FederatedType(tff.TensorType(np.int32, [2]), tff.CLIENTS),
    tff.FederatedType(tff.TensorType(np.float32, [4]), tff.SERVER),
  )
  def run(keys, values):
    count = tff.federated_value(np.int32(4), tff.SERVER)
    chosen = tff.federated_select(keys, count, values, pick)
    return tff.federated_map(digits, chosen)

  keys = [np.int32([0, 3]), np.int32([2, 2]), np.int32([1, 0])]
  assert run(keys, np.float32([5, 6, 7, 8])) == [58, 77, 65]


@tff.tensorflow.computation(np.int32)
def double(value):
  return 2 * value


@tff.tensorflow.computation(np.int32, np.int32)
def append_digit(digits, value):
  return digits * 10 + value


def test_sequences_at_clients():
  @tff.federated_computation(tff.SequenceType(np.int32))
  def local(values):
    doubled = tff.sequence_map(double, values)
    zero = tff.tensorflow.computation(lambda: np.int32(0))()
    return (
      tff.sequence_sum(doubled),
      tff.sequence_reduce(doubled, zero, append_digit),
    )

  @tff.federated_computation(
    tff.FederatedType(tff.SequenceType(np.int32), tff.CLIENTS)
  )
  def run(values):
    return tff.federated_map(local, values)

  clients = [[1, 2, 3], [], [4]]
  found = run([[np.int32(v) for v in client] for client in clients])
  assert [tuple(pair) for pair in found] == [(12, 246), (0, 0), (8, 8)]


def test_elements_with_names_that_are_not_sorted():
  element = collections.OrderedDict(b=np.int32, a=np.int32)

  @tff.tensorflow.computation(element)
  def swap(value):
    return collections.OrderedDict(z=value['b'], c=10 * value['a'])

  @tff.tensorflow.computation((np.int32, np.int32), swap.type_signature.result)
  def add(total, value):
    return total[0] + value['z'], total[1] + value['c']

  @tff.federated_computation(tff.SequenceType(element))
  def local(values):
    swapped = tff.sequence_map(swap, values)
    zero = tff.tensorflow.computation(lambda: (np.int32(0), np.int32(0)))()
    return tff.sequence_sum(swapped), tff.sequence_reduce(swapped, zero, add)

  @tff.federated_computation(
    tff.FederatedType(tff.SequenceType(element), tff.CLIENTS)
  )
  def run(values):
    return tff.federated_map(local, values)

  ((total, reduced),) = run([[{'b': 1, 'a': 2}, {'b': 3, 'a': 4}]])
  assert (dict(total), reduced) == ({'z': 4, 'c': 60}, (4, 60))


def secure(intrinsic, bound):
  @tff.federated_computation(CLIENT_INT)
  def run(values):
    return intrinsic(values, np.int32(bound))

  return run


@pytest.mark.parametrize(
  'intrinsic, bound, expected',
  [
    (tff.federated_secure_sum, 5, 14),
    (tff.federated_secure_sum_bitwidth, 3, 14),
  ],
)
def test_secure_sums(intrinsic, bound, expected):
  assert secure(intrinsic, bound)(VALUES) == expected


@pytest.mark.parametrize(
  'intrinsic, bound, values',
  [
    (tff.federated_secure_sum, 4, VALUES),
    (tff.federated_secure_sum, 4, [1, -1]),
    (tff.federated_secure_sum_bitwidth, 2, [4, 1]),
    (tff.federated_secure_sum_bitwidth, 3, [2, -1]),
  ],
)
def test_a_value_beyond_the_bound_of_a_secure_sum_is_refused(
  intrinsic, bound, values
):
  with pytest.raises(tree.SecureSumBoundError, match='negative or larger'):
    secure(intrinsic, bound)(values)


@pytest.mark.parametrize(
  'symmetric, values, expected',
  [(False, VALUES, 6), (False, [3, 7], 2), (True, [3, -7], -4), (True, [7], 7)],
)
def test_modular_sums(symmetric, values, expected):
  factory = tff.aggregators.SecureModularSumFactory(8, symmetric)
  process = factory.create(tff.TensorType(np.int32))
  assert process.next(process.initialize(), values).result == expected


def test_the_modulus_of_negative_values_is_positive():
  run = secure(tff.backends.mapreduce.federated_secure_modular_sum, 8)
  assert run([-3, 1]) == 6


def test_no_clients():
  @tff.tensorflow.computation(np.float32, np.float32)
  def subtract(value, mean):
    return value - mean

  @tff.federated_computation(CLIENT_FLOAT)
  def run(values):
    mean = tff.federated_mean(values)
    apart = tff.federated_map(subtract, (values, tff.federated_broadcast(mean)))
    return tff.federated_sum(values), mean, apart, tff.federated_sum(apart)

  total, mean, apart, total_apart = run([])
  assert (total, total_apart, apart) == (0, 0, [])
  assert np.isnan(mean)
