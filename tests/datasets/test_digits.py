"""scikit-learn's digits by writer form: the real data, no network."""

import numpy as np
from sklearn import datasets as sklearn_datasets

from datasets import digits
from datasets import load as load_lib

FORM_SIZES = [130, 126, 130, 130, 130, 130, 130]
FORM_SIZES += [123, 128, 130, 128, 130, 122, 130]


def test_forms_have_the_aligned_sizes():
  data = digits.load()
  assert data.train.client_ids == tuple(f'form_{k:02d}' for k in range(14))
  sizes = [
    data.train.num_examples[c] + data.test.num_examples[c]
    for c in data.train.client_ids
  ]
  assert sizes == FORM_SIZES and sum(sizes) == 1797


def test_every_form_starts_as_the_form_does():
  # The form begins with 0..9 three times; writers left a few digits out.
  target = sklearn_datasets.load_digits().target
  for start in digits.FORM_STARTS:
    begin = target[start : start + 12].tolist()
    template = list(range(10)) * 3
    remaining = iter(template)
    assert all(label in remaining for label in begin)


def test_train_and_test_divide_each_form():
  raw = sklearn_datasets.load_digits()
  data = digits.load()
  rows = np.split(np.arange(1797), digits.FORM_STARTS[1:])
  for client, form in zip(data.train.client_ids, rows, strict=True):
    parts = [split.client(client) for split in (data.train, data.test)]
    assert len(parts[1]['y']) == round(0.2 * len(form))
    images = np.concatenate([part['x'] for part in parts])
    given = {tuple(image.ravel()) for image in images}
    expected = np.round(raw.images[form] * 255 / 16).astype(np.uint8)
    assert given == {tuple(image.ravel()) for image in expected}
    labels = np.concatenate([part['y'] for part in parts])
    np.testing.assert_array_equal(
      np.bincount(labels, minlength=10),
      np.bincount(raw.target[form], minlength=10),
    )


def test_types_and_range():
  client = digits.load().train.client('form_03')
  assert client['x'].dtype == np.uint8 and client['y'].dtype == np.int32
  assert client['x'].shape[1:] == (8, 8, 1)
  assert (client['x'].min(), client['x'].max()) == (0, 255)


def test_the_test_split_does_not_depend_on_the_seed():
  def test_of(seed):
    config = load_lib.LoadConfig('digits', seed=seed, validation_examples=100)
    data = load_lib.load(config)
    return data.test.pooled()['x'].tobytes(), data.content_sha256

  assert test_of(0) == test_of(1)


def test_split_each_by_hand():
  clients = {'a': np.arange(10), 'b': np.asarray([12, 11])}
  first, second = digits.split_each(clients, 0.3, seed=1)
  assert [len(part['a']) for part in (first, second)] == [7, 3]
  assert sorted([*first['a'], *second['a']]) == list(range(10))
  assert [len(part['b']) for part in (first, second)] == [1, 1]
