"""The generated twins have the real sets' form and can be learned."""

import numpy as np
import pytest
from sklearn import linear_model

from datasets import digits, emnist, federated_data, synthetic
from datasets import load as load_lib

SHAPES = {
  'emnist_digits': ((28, 28, 1), np.float32, 10),
  'emnist_characters': ((28, 28, 1), np.float32, 62),
  'mnist': ((28, 28, 1), np.uint8, 10),
  'fashion_mnist': ((28, 28, 1), np.uint8, 10),
  'cifar10': ((32, 32, 3), np.uint8, 10),
  'digits': ((8, 8, 1), np.uint8, 10),
}


def _load(name, **settings):
  return load_lib.load(load_lib.LoadConfig(f'synthetic_{name}', **settings))


@pytest.mark.parametrize('name', SHAPES)
def test_form_of_the_real_set(name):
  data = _load(name)
  shape, dtype, classes = SHAPES[name]
  assert data.num_classes == len(data.class_names) == classes
  for split in (data.train, data.test):
    pooled = split.pooled()
    assert list(pooled) == ['x', 'y']
    assert pooled['x'].shape[1:] == shape and pooled['x'].dtype == dtype
    assert pooled['y'].dtype == np.int32
    assert pooled['y'].min() >= 0 and pooled['y'].max() < classes
  top = 1.0 if dtype == np.float32 else 255
  assert pooled['x'].min() >= 0 and top * 0.75 < pooled['x'].max() <= top


@pytest.mark.parametrize('name', SHAPES)
def test_a_linear_model_learns_it(name):
  data = _load(name)
  train, test = data.train.pooled(), data.test.pooled()

  def flat(x):
    return x.reshape(len(x), -1) / (255 if x.dtype == np.uint8 else 1)

  model = linear_model.RidgeClassifier().fit(flat(train['x']), train['y'])
  assert model.score(flat(test['x']), test['y']) > 0.95


def test_the_same_in_every_run_and_different_between_twins():
  hashes = [_load(name).content_sha256 for name in SHAPES]
  assert len(set(hashes)) == len(SHAPES)
  again = _load('mnist', partition='writer')
  assert again.content_sha256 == hashes[2]
  content = {
    f'{split}_{key}': array
    for split in ('train', 'test')
    for key, array in getattr(again, split).pooled().items()
  }
  assert federated_data.content_hash(content) == hashes[2]


def test_natural_clients_where_the_real_set_has_them():
  assert _load('digits').train.client_ids == digits.load().train.client_ids
  assert len(_load('emnist_digits').test.client_ids) == 20
  assert _load('mnist').test.client_ids == ('test',)
  assert len(_load('mnist', partition='writer').test.client_ids) == 31
  assert set(synthetic.TWINS) == set(load_lib.REAL_DATASETS)


def test_emnist_background_is_bright():
  # As in TFF's EMNIST: 1.0 is the background.
  data = _load('emnist_characters')
  assert data.class_names == emnist.CLASS_NAMES['all']
  assert data.train.pooled()['x'].mean() > 0.5
