"""The real image sets, where `python -m datasets.fetch` has put them."""

import os

import numpy as np
import pytest

from datasets import download, writers
from datasets import load as load_lib

# Taken before the fixture that gives each test a cache of its own.
CACHE = download.cache_directory()
LABELS = os.environ.get(writers.DIRECTORY_VARIABLE)


def _load(dataset, **settings):
  if not (CACHE / f'{dataset}.npz').exists():
    pytest.skip(f'not fetched: python -m datasets.fetch {dataset}')
  config = load_lib.LoadConfig(dataset, cache_dir=str(CACHE), **settings)
  return load_lib.load(config)


@pytest.mark.parametrize('dataset', ['mnist', 'fashion_mnist', 'cifar10'])
def test_complete_and_balanced(dataset):
  data = _load(dataset)
  train = 50_000 if dataset == 'cifar10' else 60_000
  assert data.train.total_examples == train
  assert data.test.total_examples == 10_000
  counts = np.bincount(data.test.client('test')['y'])
  if dataset != 'mnist':
    assert set(counts.tolist()) == {1_000}
  assert len(counts) == 10


def test_mnist_by_writer(monkeypatch):
  if LABELS is None:
    pytest.skip(f'{writers.DIRECTORY_VARIABLE} is not set')
  monkeypatch.setenv(writers.DIRECTORY_VARIABLE, LABELS)
  data = _load('mnist', partition='writer')

  def summary(split):
    sizes = list(split.num_examples.values())
    return len(sizes), min(sizes), int(np.median(sizes)), max(sizes)

  assert summary(data.train) == (539, 19, 116, 131)
  assert summary(data.test) == (297, 8, 21, 130)


def test_mcmahan_shards_of_mnist():
  data = _load('mnist', partition='shards')
  assert set(data.train.num_examples.values()) == {600}
  labels = [
    len(np.unique(data.train.client(c)['y'])) for c in data.train.client_ids
  ]
  # MNIST's classes are not quite equal, so some shards straddle two.
  assert np.mean(labels) < 2.2 and max(labels) <= 4
