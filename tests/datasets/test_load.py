"""Loading by name: defaults, partitions, validation and refusals."""

import dataclasses

import numpy as np
import pytest

from datasets import fetch
from datasets import load as load_lib


def _load(dataset, **settings):
  return load_lib.load(load_lib.LoadConfig(dataset, **settings))


@pytest.mark.parametrize(
  'dataset, partition, clients',
  [
    ('synthetic_emnist_digits', 'natural', 20),
    ('synthetic_emnist_characters', 'natural', 20),
    ('synthetic_digits', 'natural', 14),
    ('digits', 'natural', 14),
    ('synthetic_mnist', 'iid', 100),
    ('synthetic_fashion_mnist', 'iid', 100),
    ('synthetic_cifar10', 'iid', 100),
  ],
)
def test_default_partition(dataset, partition, clients):
  data = _load(dataset)
  assert (data.name, data.partition) == (dataset, partition)
  assert len(data.train.client_ids) == clients
  assert data.validation is None


@pytest.mark.parametrize(
  'partition', sorted(set(load_lib.PARTITIONS) - {'natural', 'writer'})
)
@pytest.mark.parametrize('dataset', ['synthetic_mnist', 'synthetic_digits'])
def test_partitions_give_out_every_example(dataset, partition):
  whole = _load(dataset, partition='natural')
  data = _load(dataset, partition=partition, num_clients=10)
  assert data.partition == partition and len(data.train.client_ids) == 10
  assert data.content_sha256 == whole.content_sha256

  def images(split):
    return sorted(image.tobytes() for image in split.pooled()['x'])

  assert images(data.train) == images(whole.train)
  assert images(data.test) == images(whole.test)


def test_settings_reach_the_partition():
  one = _load('synthetic_mnist', partition='shards', shards_per_client=1)
  labels = [
    len(np.unique(one.train.client(c)['y'])) for c in one.train.client_ids
  ]
  assert max(labels) <= 2
  many = _load('synthetic_mnist', partition='shards', shards_per_client=20)
  assert len(np.unique(many.train.client('client_0000')['y'])) > 5
  two = _load('synthetic_mnist', partition='classes', num_clients=10)
  three = _load(
    'synthetic_mnist', partition='classes', num_clients=10, classes_per_client=3
  )
  for data, number in ((two, 2), (three, 3)):
    held = np.unique(data.train.client('client_0000')['y'])
    assert len(held) == number
  for partition, setting in (
    ('dirichlet', 'dirichlet_alpha'),
    ('power_law', 'power_law_exponent'),
    ('quantity_skew', 'quantity_skew_alpha'),
  ):
    sizes = [
      _load(
        'synthetic_mnist', partition=partition, num_clients=10, **{setting: v}
      ).train.num_examples
      for v in (0.1, 2.0)
    ]
    assert sizes[0] != sizes[1]


def test_validation_by_examples_comes_before_the_partition():
  data = _load('synthetic_mnist', validation_examples=170, num_clients=20)
  assert data.validation.client_ids == ('validation',)
  assert data.validation.total_examples == 170
  assert set(data.train.num_examples.values()) == {100}


def test_validation_keeps_natural_clients():
  data = _load('digits', validation_examples=100)
  assert data.validation.total_examples == 100
  assert set(data.validation.client_ids) <= set(data.train.client_ids)
  assert data.train.total_examples == 1437 - 100
  other = _load('digits', validation_examples=100, validation_by='clients')
  assert other.validation.client_ids[0] not in other.train.client_ids
  assert other.validation.total_examples >= 100


def test_writer_is_natural_where_clients_are_writers():
  natural = _load('synthetic_mnist', partition='natural').train
  writer = _load('synthetic_mnist', partition='writer').train
  assert natural.client_ids == writer.client_ids
  for client in natural.client_ids:
    np.testing.assert_array_equal(
      natural.client(client)['x'], writer.client(client)['x']
    )


@pytest.mark.parametrize(
  'settings, text',
  [
    ({'dataset': 'mnits'}, "dataset must be one of emnist_digits.*'mnits'"),
    ({'partition': 'idd'}, "partition must be one of natural.*'idd'"),
    ({'validation_by': 'x'}, 'validation_by must be one of examples, clients'),
    ({'validation_examples': -1}, 'must not be negative'),
    ({'data_dir': '.'}, 'data_dir is not used by the data set digits'),
    ({'data_file': 'x.csv'}, 'data_file goes with the data set file'),
    ({'dataset': 'file'}, 'data_file goes with the data set file'),
    (
      {'dataset': 'cifar10', 'partition': 'natural'},
      'no clients of its own.*use one of iid, shards',
    ),
    (
      {'dataset': 'synthetic_fashion_mnist', 'partition': 'writer'},
      'no clients of its own',
    ),
    (
      {'dataset': 'file', 'data_file': 'x.csv', 'partition': 'writer'},
      'use partition=natural',
    ),
  ],
)
def test_refusals_say_what_would_be_right(settings, text):
  with pytest.raises(ValueError, match=text):
    _load(**{'dataset': 'digits'} | settings)


def test_every_name_is_described_and_has_a_source():
  assert set(load_lib.DATASETS) == set(load_lib._SOURCES)
  for names in (load_lib.DATASETS, load_lib.PARTITIONS):
    assert all('\n' not in text and len(text) < 75 for text in names.values())
  config = load_lib.LoadConfig('digits')
  assert dataclasses.replace(config, seed=1) != config


def test_fetch_prints_a_line_or_an_error(capsys, tmp_path):
  assert fetch.main(['digits', 'synthetic_mnist:shards']) == 0
  out = capsys.readouterr().out.splitlines()
  assert 'digits: 1437 training examples of 14 clients (natural)' in out[0]
  assert '(shards)' in out[1]
  assert fetch.main(['mnist', '--data_dir', str(tmp_path)]) == 1
  assert str(tmp_path) in capsys.readouterr().err
