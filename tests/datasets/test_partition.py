"""Invariants and closed forms of the partitioners."""

import functools

import numpy as np
import pytest

from datasets import partition

LABELS = np.random.default_rng(0).integers(10, size=5_000).astype(np.int32)
FUNCTIONS = {
  'iid': partition.iid,
  'shards': functools.partial(partition.shards, shards_per_client=2),
  'dirichlet': functools.partial(partition.dirichlet, alpha=0.3),
  'power_law': functools.partial(partition.power_law, exponent=1.2),
  'classes': functools.partial(partition.classes, classes_per_client=2),
  'quantity_skew': functools.partial(partition.quantity_skew, alpha=0.3),
}


@pytest.mark.parametrize('name', FUNCTIONS)
@pytest.mark.parametrize('num_clients', [9, 37, 100])
def test_every_example_goes_to_exactly_one_client(name, num_clients):
  clients = FUNCTIONS[name](LABELS, num_clients, seed=3)
  assert len(clients) == num_clients
  everything = np.concatenate(list(clients.values()))
  assert sorted(everything.tolist()) == list(range(len(LABELS)))


@pytest.mark.parametrize('name', FUNCTIONS)
def test_a_pure_function_of_the_seed(name):
  def rows(seed):
    clients = FUNCTIONS[name](LABELS, 20, seed=seed)
    return [piece.tolist() for piece in clients.values()]

  assert rows(1) == rows(1) != rows(2)


def test_client_names():
  assert list(partition.iid(LABELS, 3, seed=0)) == [
    'client_0000',
    'client_0001',
    'client_0002',
  ]
  assert partition.client_name(7, 100_000) == 'client_00007'


@pytest.mark.parametrize('num_clients', [1, 7, 5_000])
def test_iid_sizes_differ_by_one(num_clients):
  sizes = [len(c) for c in partition.iid(LABELS, num_clients, seed=0).values()]
  assert max(sizes) - min(sizes) <= 1


def test_iid_mixes_labels():
  for rows in partition.iid(LABELS, 10, seed=0).values():
    shares = np.bincount(LABELS[rows], minlength=10) / len(rows)
    # 500 draws of 10 labels: a share's standard deviation is 0.0134.
    assert np.abs(shares - 0.1).max() < 5 * 0.0134


def test_shards_by_hand():
  labels = np.asarray([1, 0, 1, 0])
  clients = partition.shards(labels, 2, shards_per_client=1, seed=0)
  assert sorted(c.tolist() for c in clients.values()) == [[0, 2], [1, 3]]


def test_mcmahan_shards_have_at_most_two_labels_for_balanced_data():
  # As in the paper's text: 200 shards of 300 of the 60,000 examples.
  labels = np.random.default_rng(1).permutation(np.repeat(np.arange(10), 6_000))
  clients = partition.shards(labels, 100, shards_per_client=2, seed=0)
  assert {len(rows) for rows in clients.values()} == {600}
  numbers = [len(np.unique(labels[rows])) for rows in clients.values()]
  assert set(numbers) == {1, 2}
  # A second shard has the first one's label with chance 19 / 199.
  assert abs(numbers.count(1) - 100 * 19 / 199) < 15


def test_dirichlet_follows_alpha():
  def largest_share(alpha):
    clients = partition.dirichlet(LABELS, 10, alpha=alpha, seed=0)
    counts = [np.bincount(LABELS[r], minlength=10) for r in clients.values()]
    return (np.max(counts, axis=0) / np.sum(counts, axis=0)).mean()

  # Symmetric with alpha to infinity: a tenth each; with alpha to 0: one client.
  assert largest_share(1e6) == pytest.approx(0.1, abs=0.005)
  assert largest_share(1e-3) > 0.95
  assert 0.2 < largest_share(0.5) < 0.7


def test_dirichlet_first_moment():
  counts = [
    len(partition.dirichlet(LABELS, 4, alpha=1.0, seed=s)['client_0002'])
    for s in range(200)
  ]
  # Each label's share is Beta(1, 3): variance 3/80; ten labels of one tenth.
  deviation = 5_000 * np.sqrt(3 / 80 / 10 / 200)
  assert abs(np.mean(counts) - 1_250) < 4 * deviation


@pytest.mark.parametrize('classes', [1, 2, 5])
def test_power_law_clients_have_neighbouring_classes(classes):
  clients = partition.power_law(
    LABELS, 30, exponent=1.0, classes_per_client=classes, seed=0
  )
  for k, rows in enumerate(clients.values()):
    expected = {(k + j) % 10 for j in range(classes)}
    assert set(LABELS[rows].tolist()) == expected


def test_power_law_sizes_fall_as_told():
  labels = np.zeros(100_000, np.int32)
  clients = partition.power_law(
    labels, 50, exponent=1.5, classes_per_client=1, seed=4
  )
  sizes = np.sort([len(rows) for rows in clients.values()])[::-1]
  weights = np.arange(1, 51) ** -1.5
  expected = 1 + (100_000 - 50) * weights / weights.sum()
  assert np.abs(sizes - expected).max() < 1
  equal = partition.power_law(
    labels, 50, exponent=0.0, classes_per_client=1, seed=4
  )
  assert {len(rows) for rows in equal.values()} == {2_000}


def test_classes_by_hand():
  # Three clients of one label each: labels 0, 1 and, again, 0.
  labels = np.asarray([1, 0, 0, 1, 0, 0])
  clients = partition.classes(labels, 3, classes_per_client=1, seed=0)
  first, second, third = (rows.tolist() for rows in clients.values())
  assert sorted(second) == [0, 3]
  assert sorted(first + third) == [1, 2, 4, 5]
  assert len(first) == len(third) == 2
  # With all labels for each client nothing is left to chance but the rows.
  clients = partition.classes(labels, 2, classes_per_client=2, seed=0)
  counts = [np.bincount(labels[rows]).tolist() for rows in clients.values()]
  assert counts == [[2, 1], [2, 1]]


@pytest.mark.parametrize('num_clients, classes', [(5, 2), (10, 2), (25, 3)])
@pytest.mark.parametrize('seed', range(5))
def test_classes_gives_each_client_as_many(num_clients, classes, seed):
  clients = partition.classes(
    LABELS, num_clients, classes_per_client=classes, seed=seed
  )
  counts = np.asarray(
    [np.bincount(LABELS[rows], minlength=10) for rows in clients.values()]
  )
  assert ((counts > 0).sum(axis=1) == classes).all()
  for label, column in enumerate(counts.T):
    held = column[column > 0]
    assert held.sum() == np.count_nonzero(label == LABELS)
    assert held.max() - held.min() <= 1
  # Client i has label i, modulo 10; so no label goes without.
  assert all(counts[k, k % 10] for k in range(num_clients))


def test_classes_draws_the_other_label_uniformly():
  others = np.zeros(10)
  for seed in range(900):
    clients = partition.classes(
      np.arange(10).repeat(20), 10, classes_per_client=2, seed=seed
    )
    (other,) = set(clients['client_0003'] // 20) - {3}
    others[other] += 1
  # Nine labels of 900 / 9 draws with standard deviation 9.4.
  assert others[3] == 0
  assert np.abs(np.delete(others, 3) - 100).max() < 4 * 9.4


def test_quantity_skew_sizes_vary_and_labels_do_not():
  clients = partition.quantity_skew(LABELS, 20, alpha=0.5, seed=0)
  sizes = np.asarray([len(rows) for rows in clients.values()])
  assert sizes.min() >= 1 and sizes.max() > 3 * np.median(sizes)
  largest = list(clients.values())[int(sizes.argmax())]
  shares = np.bincount(LABELS[largest], minlength=10) / sizes.max()
  assert np.abs(shares - 0.1).max() < 0.06


def test_apportion_by_hand():
  weights = np.asarray([0.5, 0.3, 0.2])
  # 3.5, 2.1 and 1.4: the largest remainder gets the last one.
  assert partition.apportion(7, weights).tolist() == [4, 2, 1]
  assert partition.apportion(3, weights, minimum=1).tolist() == [1, 1, 1]
  assert partition.apportion(4, np.zeros(2)).tolist() == [2, 2]


@pytest.mark.parametrize(
  'call, text',
  [
    (lambda: partition.iid(LABELS, 0, seed=0), '5000 examples.*into 0 clients'),
    (lambda: partition.iid(LABELS, 5_001, seed=0), 'give 1 to 5000'),
    (
      lambda: partition.shards(LABELS, 5_000, shards_per_client=2, seed=0),
      '10000 shards',
    ),
    (
      lambda: partition.shards(LABELS, 5, shards_per_client=0, seed=0),
      'shards_per_client must be 1 or more',
    ),
    (
      lambda: partition.dirichlet(LABELS, 5, alpha=0.0, seed=0),
      'alpha must be above 0, given 0.0',
    ),
    (
      lambda: partition.power_law(LABELS, 8, exponent=1.0, seed=0),
      'give 9 clients or more',
    ),
    (
      lambda: partition.power_law(LABELS, 5_000, exponent=1.0, seed=0),
      'lower num_clients',
    ),
    (
      lambda: partition.power_law(LABELS, 20, exponent=-1.0, seed=0),
      'exponent must not be negative',
    ),
    (
      lambda: partition.classes(LABELS, 4, classes_per_client=2, seed=0),
      'give 5 clients or more',
    ),
    (
      lambda: partition.classes(LABELS, 5, classes_per_client=11, seed=0),
      'classes_per_client must be 1 to 10, given 11',
    ),
    (
      lambda: partition.classes(LABELS, 5, classes_per_client=0, seed=0),
      'classes_per_client must be 1 to 10, given 0',
    ),
    (
      lambda: partition.classes(LABELS, 5_000, classes_per_client=2, seed=0),
      'lower num_clients',
    ),
  ],
)
def test_errors_say_what_would_be_right(call, text):
  with pytest.raises(ValueError, match=text):
    call()
