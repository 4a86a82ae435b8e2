"""Order, laziness and exactness of client data."""

import collections
import itertools

import numpy as np
import pytest
import tensorflow as tf

from datasets import federated_data


def _split(counts=(7, 0, 5), shape=(2, 3)):
  total = sum(counts)
  arrays = {
    'x': np.arange(total * np.prod(shape)).reshape(total, *shape) % 251,
    'y': np.arange(total, dtype=np.int32),
  }
  arrays['x'] = arrays['x'].astype(np.uint8)
  rows = np.random.default_rng(0).permutation(total)
  pieces = np.split(rows, np.cumsum(counts)[:-1])
  indices = {f'c{k}': piece for k, piece in enumerate(pieces)}
  return arrays, indices, federated_data.Split.from_arrays(arrays, indices)


def test_batches_in_stored_order_by_hand():
  batches = federated_data.client_batches(
    5, batch_size=2, epochs=2, seed=None, max_examples=3
  )
  assert [b.tolist() for b in batches] == [[0, 1], [2], [0, 1], [2]]


@pytest.mark.parametrize('n', [1, 7, 20])
@pytest.mark.parametrize('batch_size', [1, 3, 20, 50])
@pytest.mark.parametrize('epochs', [1, 4])
def test_every_epoch_sees_everything_once(n, batch_size, epochs):
  batches = federated_data.client_batches(
    n, batch_size=batch_size, epochs=epochs, seed=(3, 1)
  )
  sizes = [batch_size] * (n // batch_size) + [n % batch_size] * (
    n % batch_size > 0
  )
  assert [len(b) for b in batches] == sizes * epochs
  per_epoch = len(sizes)
  for epoch in range(epochs):
    seen = np.concatenate(batches[epoch * per_epoch : (epoch + 1) * per_epoch])
    assert sorted(seen.tolist()) == list(range(n))


def test_epochs_differ_and_seeds_decide():
  def order(seed, epochs=2):
    return np.concatenate(
      federated_data.client_batches(50, batch_size=8, epochs=epochs, seed=seed)
    ).tolist()

  assert order((1, 2)) == order((1, 2))
  orders = [order(s) for s in [(1, 2), (2, 1), (1, 3), (1,), (1, 2, 0, 1)]]
  assert all(a != b for a, b in itertools.combinations(orders, 2))
  assert order((1, 2))[:50] != order((1, 2))[50:]
  assert order((1, 2), epochs=1) == order((1, 2))[:50]


def test_cap_keeps_the_same_random_examples_in_all_epochs():
  def epochs_of(seed):
    batches = federated_data.client_batches(
      100, batch_size=0, epochs=3, seed=seed, max_examples=10
    )
    assert [len(b) for b in batches] == [10, 10, 10]
    return [set(b.tolist()) for b in batches]

  first, second, third = epochs_of((5,))
  assert first == second == third != set(range(10))
  assert first != epochs_of((6,))[0]
  uncapped = federated_data.client_batches(
    4, batch_size=None, epochs=1, seed=(5,), max_examples=9
  )
  assert [len(b) for b in uncapped] == [4]


def test_no_examples_no_batches():
  assert federated_data.client_batches(0, batch_size=0, seed=(1,)) == []


@pytest.mark.parametrize(
  'wrong',
  [{'batch_size': -1}, {'epochs': -1}, {'max_examples': -2}, {'seed': (1, -1)}],
)
def test_negative_arguments_are_named(wrong):
  arguments = {'batch_size': 2, 'epochs': 1, 'seed': (0,)} | wrong
  with pytest.raises(ValueError, match=f'{next(iter(wrong))} must not be neg'):
    federated_data.client_batches(5, **arguments)


def test_from_arrays_gives_each_client_its_rows():
  arrays, indices, split = _split()
  assert split.client_ids == ('c0', 'c1', 'c2')
  assert dict(split.num_examples) == {'c0': 7, 'c1': 0, 'c2': 5}
  assert split.total_examples == 12
  for client, rows in indices.items():
    got = split.client(client)
    assert list(got) == ['x', 'y']
    np.testing.assert_array_equal(got['x'], arrays['x'][rows])
    np.testing.assert_array_equal(got['y'], arrays['y'][rows])
    assert got['x'].dtype == np.uint8 and got['x'].shape[1:] == (2, 3)


def test_a_client_is_a_slice_that_nobody_can_spoil():
  arrays, _, split = _split()
  client = split.client('c0')
  assert np.shares_memory(client['x'], split.client('c0')['x'])
  with pytest.raises(ValueError, match='read-only'):
    client['x'][0] = 1
  in_order = federated_data.Split.from_arrays(arrays, {'all': np.arange(12)})
  assert np.shares_memory(in_order.client('all')['x'], arrays['x'])
  arrays['x'][0] = 1


def test_unknown_client_is_named_with_those_that_exist():
  _, _, split = _split()
  for call in (
    lambda: split.client('nobody'),
    lambda: split.subset(['c0', 'nobody']),
  ):
    with pytest.raises(KeyError, match="no client 'nobody'.*3 clients.*'c2'"):
      call()


def test_broken_promises_are_errors():
  split = federated_data.Split(
    {'a': 3}, lambda _: {'x': np.zeros((3, 1)), 'y': np.zeros(2)}
  )
  with pytest.raises(federated_data.DataError, match="'y': 2.*3 are promised"):
    split.client('a')
  with pytest.raises(ValueError, match='at least one client'):
    federated_data.Split({}, dict)


def test_a_clients_position_is_that_in_the_list():
  split = federated_data.Split({'b': 2, 'a': 1, 'c': 3}, dict)
  assert [split.position(c) for c in split.client_ids] == [0, 1, 2]
  with pytest.raises(KeyError, match="'d'"):
    split.position('d')


def test_loading_is_lazy():
  loaded = []

  def load(client):
    loaded.append(client)
    return {'x': np.zeros((2, 4), np.float32), 'y': np.zeros(2, np.int32)}

  split = federated_data.Split({'a': 2, 'b': 2}, load)
  assert split.total_examples == 4 and split.subset(['b']).client_ids == ('b',)
  assert loaded == []
  split.subset(['b']).client('b')
  assert loaded == ['b']


def test_pooled_is_all_clients_in_order():
  arrays, indices, split = _split()
  rows = np.concatenate(list(indices.values()))
  np.testing.assert_array_equal(split.pooled()['x'], arrays['x'][rows])
  chosen = split.subset(['c2', 'c0'])
  rows = np.concatenate([indices['c2'], indices['c0']])
  np.testing.assert_array_equal(chosen.pooled()['y'], arrays['y'][rows])


@pytest.mark.parametrize('client', ['c0', 'c1'])
@pytest.mark.parametrize('seed', [None, (4, 2)])
@pytest.mark.parametrize('batch_size', [0, 3])
def test_dataset_is_client_batches(client, seed, batch_size):
  _, _, split = _split()
  settings = {
    'batch_size': batch_size,
    'seed': seed,
    'epochs': 3,
    'max_examples': 5,
  }
  dataset = split.dataset(client, **settings)
  arrays = split.client(client)
  expected = federated_data.client_batches(len(arrays['y']), **settings)
  got = list(dataset.as_numpy_iterator())
  assert len(got) == len(expected)
  for batch, rows in zip(got, expected, strict=True):
    assert list(batch) == ['x', 'y']
    np.testing.assert_array_equal(batch['x'], arrays['x'][rows])
    np.testing.assert_array_equal(batch['y'], arrays['y'][rows])
  assert dataset.element_spec == collections.OrderedDict(
    x=tf.TensorSpec([None, 2, 3], tf.uint8),
    y=tf.TensorSpec([None], tf.int32),
  )


def test_serialised_graph_holds_the_data_once():
  _, _, split = _split(counts=(400,), shape=(28, 28))
  sizes = []
  for epochs in (1, 20):
    dataset = split.dataset('c0', batch_size=10, seed=(1,), epochs=epochs)
    graph = tf.raw_ops.DatasetToGraphV2(input_dataset=dataset._variant_tensor)
    sizes.append(len(graph.numpy()))
  data = 400 * (28 * 28 + 4)
  assert sizes[0] < data + 20_000
  indices = 4 * (400 + 2 * 40)
  assert sizes[1] - sizes[0] < 19 * indices + 1_000


def test_element_spec_of_one_example():
  _, _, split = _split()
  assert split.element_spec['x'].shape == (2, 3)
  assert split.element_spec['x'].dtype == tf.uint8
  assert split.element_spec['y'].shape == ()


def test_content_hash_knows_names_types_shapes_and_values():
  base = {'a': np.arange(6, dtype=np.int32)}
  others = [
    {'b': base['a']},
    {'a': base['a'].view(np.uint32)},
    {'a': base['a'].reshape(2, 3)},
    {'a': base['a'][::-1]},
  ]
  hashes = {federated_data.content_hash(arrays) for arrays in [base, *others]}
  assert len(hashes) == 5
  spread = np.arange(12, dtype=np.int32)[::2] // 2
  assert federated_data.content_hash({'a': spread}) in hashes
  swapped = {'a': base['a'].astype('>i4')}
  assert federated_data.content_hash(swapped) == federated_data.content_hash(
    base
  )
