"""Computations without clients, and those that this runtime refuses."""

import collections

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from research.runtime import program, tree
from tests.research.runtime import equality


@pytest.fixture(autouse=True)
def runtime():
  with equality.in_process_runtime('scan') as runtime:
    yield runtime


def test_a_computation_without_an_argument():
  @tff.tensorflow.computation
  def local():
    return tf.constant([1.0, 2.0])

  @tff.federated_computation
  def at_server():
    return tff.federated_eval(local, tff.SERVER)

  np.testing.assert_array_equal(local(), [1, 2])
  np.testing.assert_array_equal(at_server(), [1, 2])


def test_a_dataset_at_the_server_is_an_argument_and_a_result():
  sequence = tff.SequenceType(np.int32)

  @tff.tensorflow.computation(sequence, np.int32)
  def scaled(dataset, factor):
    return dataset.map(lambda value: value * factor)

  @tff.federated_computation(
    tff.FederatedType(sequence, tff.SERVER),
    tff.FederatedType(np.int32, tff.SERVER),
  )
  def run(dataset, factor):
    return tff.federated_map(scaled, (dataset, factor))

  dataset = tf.data.Dataset.range(3, output_type=tf.int32)
  assert list(run(dataset, 10).as_numpy_iterator()) == [0, 10, 20]
  assert list(run([4, 5], 2).as_numpy_iterator()) == [8, 10]


def test_sequences_at_the_server():
  sequence = tff.SequenceType(np.int32)

  @tff.tensorflow.computation(np.int32)
  def double(value):
    return 2 * value

  @tff.federated_computation(sequence)
  def local(values):
    return tff.sequence_sum(tff.sequence_map(double, values))

  @tff.federated_computation(tff.FederatedType(sequence, tff.SERVER))
  def run(values):
    return tff.federated_map(local, values)

  assert run([1, 2, 3]) == 12


def test_structures_keep_their_names_and_containers():
  member = collections.OrderedDict(b=np.int32, a=(np.float32, np.float32))

  @tff.tensorflow.computation(member)
  def swap(value):
    first, second = value['a']
    return collections.OrderedDict(z=(second, first), b=value['b'] + 1)

  result = swap(collections.OrderedDict(b=1, a=(2.0, 3.0)))
  assert list(result) == ['z', 'b']
  assert result == {'z': (3.0, 2.0), 'b': 2}
  # Names decide, not the order that a user gives.
  assert swap({'a': (2.0, 3.0), 'b': 1}) == result


def test_values_of_unequal_numbers_of_clients_are_refused():
  @tff.federated_computation(
    tff.FederatedType(np.int32, tff.CLIENTS),
    tff.FederatedType(np.int32, tff.CLIENTS),
  )
  def run(first, second):
    return tff.federated_sum(first), tff.federated_sum(second)

  with pytest.raises(ValueError, match=r'\[1, 2\] clients'):
    run([1], [2, 3])


def test_an_unknown_intrinsic_is_named(monkeypatch):
  monkeypatch.delattr(tree._Builder, '_federated_min')

  @tff.federated_computation(tff.FederatedType(np.int32, tff.CLIENTS))
  def run(values):
    return tff.federated_min(values)

  with pytest.raises(tree.UnknownIntrinsicError) as error:
    run([1, 2])
  assert 'federated_min' in str(error.value)
  assert '--runtime=stock' in str(error.value)


def test_stages_and_what_clients_keep():
  @tff.tensorflow.computation(np.float32)
  def square(value):
    return value * value

  @tff.tensorflow.computation(np.float32, np.float32)
  def subtract(value, mean):
    return value - mean

  @tff.federated_computation(tff.FederatedType(np.float32, tff.CLIENTS))
  def run(values):
    squares = tff.federated_map(square, values)
    unused = tff.federated_map(square, squares)
    del unused
    total = tff.federated_broadcast(tff.federated_sum(squares))
    apart = tff.federated_map(subtract, (squares, total))
    return tff.federated_max(apart)

  stages = tree.build(run).stages
  first, second, last = stages
  assert [len(stage.ops) for stage in stages] == [0, 0, 0]
  assert [op.kind for op in first.clients.reductions] == ['sum']
  assert [op.kind for op in second.clients.reductions] == ['max']
  assert last.clients is None
  # The squares are computed once, and kept for the second pass.
  assert [len(stage.clients.ops) for stage in (first, second)] == [1, 1]
  assert first.clients.kept == first.clients.ops[0].results
  assert second.clients.inputs == first.clients.kept
  (total,) = second.clients.shared
  assert total.placement == program.SERVER


def test_equal_values_at_clients_are_computed_once():
  @tff.tensorflow.computation(np.int32)
  def double(value):
    return value * 2

  @tff.federated_computation(
    tff.FederatedType(np.int32, tff.SERVER),
    tff.FederatedType(np.int32, tff.CLIENTS),
  )
  def run(shared, values):
    doubled = tff.federated_map(double, tff.federated_broadcast(shared))
    return doubled, tff.federated_sum(values)

  doubled, total = run(21, [1, 2, 3])
  assert (doubled, total) in ((42, 6), ([42, 42, 42], 6))
