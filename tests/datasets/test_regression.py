"""Tables by name: embedded, generated and own files."""

import numpy as np
import pandas as pd
import pytest
from sklearn import datasets as sklearn_datasets

from datasets import federated_data, regression


def test_diabetes_is_whole_and_divided():
  data = regression.load(regression.Config('diabetes', num_clients=7))
  raw = sklearn_datasets.load_diabetes(scaled=False)
  assert data.partition == 'iid'
  assert len(data.train.client_ids) == 7
  sizes = list(data.train.num_examples.values())
  assert max(sizes) - min(sizes) <= 1
  rows = np.concatenate(
    [np.c_[s.pooled()['x'], s.pooled()['y']] for s in (data.train, data.test)]
  )
  expected = np.c_[raw.data, raw.target].astype(np.float32)
  order = [np.lexsort(table.T) for table in (rows, expected)]
  np.testing.assert_array_equal(rows[order[0]], expected[order[1]])
  assert data.test.total_examples == 88
  assert data.feature_names[:3] == ('age', 'sex', 'bmi')
  assert data.target_names == ('progression',)


def test_shards_are_sorted_by_target():
  data = regression.load(
    regression.Config('diabetes', 'shards', num_clients=5, shards_per_client=1)
  )
  ends = sorted(
    (c['y'].min(), c['y'].max())
    for c in map(data.train.client, data.train.client_ids)
  )
  assert all(a[1] <= b[0] for a, b in zip(ends, ends[1:], strict=False))


def test_breast_cancer_has_classes():
  data = regression.load(regression.Config('breast_cancer'))
  assert data.class_names == ('malignant', 'benign')
  assert len(data.feature_names) == 30
  assert regression.responses(data) == 'classes'


@pytest.mark.parametrize(
  'name, found',
  [('synthetic_numbers', 'numbers'), ('synthetic_counts', 'counts')],
)
def test_responses_are_recognised(name, found):
  assert regression.responses(regression.load(regression.Config(name))) == found


@pytest.fixture
def table(tmp_path):
  rng = np.random.default_rng(0)
  frame = pd.DataFrame(rng.normal(size=(12, 4)), columns=[*'abyz'])
  frame['user'] = ['u', 'v', 'w'] * 4
  frame['kind'] = ['no', 'yes'] * 6
  path = tmp_path / 'mine.csv'
  frame.to_csv(path, index=False)
  return path, frame


def test_an_own_file_has_targets_of_several_columns(table):
  path, frame = table
  frame.drop(columns='kind').to_csv(path, index=False)
  data = regression.load(
    regression.Config(
      'file',
      data_file=str(path),
      client_column='user',
      target_columns=('z', 'y'),
      test_fraction=0.25,
    )
  )
  assert data.train.client_ids == ('u', 'v', 'w')
  assert data.feature_names == ('a', 'b')
  assert data.target_names == ('z', 'y')
  found = np.concatenate(
    [
      np.c_[c['x'], c['y']]
      for s in (data.train, data.test)
      for c in [s.client('v')]
    ]
  )
  expected = frame[frame['user'] == 'v'][[*'abzy']].to_numpy(np.float32)
  order = [np.lexsort(rows.T) for rows in (found, expected)]
  np.testing.assert_array_equal(found[order[0]], expected[order[1]])


def test_an_own_file_has_classes(table):
  data = regression.load(
    regression.Config(
      'file',
      data_file=str(table[0]),
      client_column='user',
      target_columns=('kind',),
      classes=True,
    )
  )
  assert data.class_names == ('no', 'yes')
  assert data.target_names == ()
  assert data.feature_names == tuple('abyz')


def test_a_target_that_is_no_number_is_named(table):
  config = regression.Config(
    'file',
    data_file=str(table[0]),
    client_column='user',
    target_columns=('kind',),
  )
  with pytest.raises(
    federated_data.DataError, match="column 'kind': 'no' is not a number"
  ):
    regression.load(config)


@pytest.mark.parametrize(
  'wrong, message',
  [
    ({'dataset': 'moon'}, 'dataset must be one of'),
    ({'dataset': 'file'}, 'data_file goes with'),
    ({'partition': 'natural'}, 'no clients of its own'),
    ({'partition': 'dirichlet'}, 'partition must be one of'),
    ({'classes': True, 'target_columns': ('a', 'b')}, 'one target column'),
  ],
)
def test_impossible_configurations_are_refused(wrong, message):
  with pytest.raises(ValueError, match=message):
    regression.load(regression.Config(**{'dataset': 'diabetes', **wrong}))
