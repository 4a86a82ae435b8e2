"""metrics.csv: exact numbers, equal bytes, torn rows, truncation."""

import math
import os

import numpy as np
import pytest

from research.training import metrics

_COLUMNS = ('round', 'loss', 'test_accuracy', 'note')


def _written(path, rounds):
  table = metrics.MetricsCsv(path, _COLUMNS)
  for r in rounds:
    table.append({'round': r, 'loss': 1 / r})
  return table


def test_bytes_are_as_written_by_hand(tmp_path):
  path = tmp_path / 'metrics.csv'
  table = metrics.MetricsCsv(path, _COLUMNS)
  table.append({'round': 1, 'loss': 0.1, 'test_accuracy': None})
  table.append({'round': np.int64(2), 'loss': np.float32(0.1), 'note': 'a,"b'})
  table.append({'round': 3, 'loss': np.array(float('nan')), 'note': True})
  table.append({'round': 4, 'loss': 1e300, 'test_accuracy': 5})

  assert path.read_bytes() == (
    b'round,loss,test_accuracy,note\n'
    b'1,0.1,,\n'
    b'2,0.10000000149011612,,"a,""b"\n'
    b'3,nan,,1\n'
    b'4,1e+300,5,\n'
  )


def test_numbers_read_back_exactly(tmp_path):
  values = np.random.default_rng(0).standard_normal(200)
  path = tmp_path / 'metrics.csv'
  table = metrics.MetricsCsv(path, _COLUMNS)
  for r, value in enumerate(values):
    table.append({'round': r, 'loss': value, 'note': 'x'})

  rows = metrics.read(path)

  assert [row['loss'] for row in rows] == list(values)
  assert rows[7] == {
    'round': 7,
    'loss': values[7],
    'test_accuracy': None,
    'note': 'x',
  }
  assert [type(row['round']) for row in rows] == [int] * 200


def test_special_numbers_read_back(tmp_path):
  path = tmp_path / 'metrics.csv'
  table = metrics.MetricsCsv(path, _COLUMNS)
  table.append({'round': 0, 'loss': math.inf, 'test_accuracy': math.nan})
  (row,) = metrics.read(path)
  assert row['loss'] == math.inf
  assert math.isnan(row['test_accuracy'])


def test_truncated_file_equals_the_shorter_run(tmp_path):
  short, long = tmp_path / 'short.csv', tmp_path / 'long.csv'
  _written(short, [1, 2, 10])
  table = _written(long, [1, 2, 10, 11, 100])

  table.truncate_after(10)

  assert long.read_bytes() == short.read_bytes()
  assert table.last_round == 10
  table.append({'round': 11})
  table.truncate_after(0)
  assert metrics.read(long) == []
  assert table.last_round == -1


@pytest.mark.parametrize('torn', [b'3', b'3,0.33', b'3,0.33,,"a', b'3,0.5,,x'])
def test_torn_last_row_is_dropped(tmp_path, torn):
  path = tmp_path / 'metrics.csv'
  _written(path, [1, 2])
  whole = path.read_bytes()
  path.write_bytes(whole + torn)

  assert [row['round'] for row in metrics.read(path)] == [1, 2]
  assert path.read_bytes() == whole + torn
  assert metrics.MetricsCsv(path, _COLUMNS).last_round == 2
  assert path.read_bytes() == whole


def test_row_is_on_disk_when_append_returns(tmp_path, monkeypatch):
  path = tmp_path / 'metrics.csv'
  synced = []
  table = metrics.MetricsCsv(path, _COLUMNS)
  monkeypatch.setattr(os, 'fsync', lambda fd: synced.append(path.read_bytes()))
  table.append({'round': 1})
  assert synced[-1].endswith(b'1,,,\n')


@pytest.mark.parametrize('round_num', [1, 2])
def test_round_that_is_there_already_is_refused(tmp_path, round_num):
  table = _written(tmp_path / 'metrics.csv', [1, 2])
  with pytest.raises(ValueError, match='already has round 2'):
    table.append({'round': round_num})


def test_unknown_column_is_refused(tmp_path):
  table = _written(tmp_path / 'metrics.csv', [1])
  with pytest.raises(ValueError, match=r"no column \['los'\]"):
    table.append({'round': 2, 'los': 1.0})


@pytest.mark.parametrize('text', ['a\nb', 'a\n', 'a\r', 'a\x0bb'])
def test_text_of_several_lines_is_refused(tmp_path, text):
  table = _written(tmp_path / 'metrics.csv', [1])
  before = (tmp_path / 'metrics.csv').read_bytes()
  with pytest.raises(ValueError, match='one line'):
    table.append({'round': 2, 'note': text})
  assert (tmp_path / 'metrics.csv').read_bytes() == before


def test_file_with_other_columns_is_refused_and_kept(tmp_path):
  path = tmp_path / 'metrics.csv'
  _written(path, [1])
  before = path.read_bytes()
  with pytest.raises(ValueError, match='has the columns'):
    metrics.MetricsCsv(path, ('round', 'loss'))
  assert path.read_bytes() == before


@pytest.mark.parametrize(
  'columns', [(), ('loss', 'round'), ('round', 'a', 'a')]
)
def test_wrong_columns_are_refused(tmp_path, columns):
  with pytest.raises(ValueError, match='column'):
    metrics.MetricsCsv(tmp_path / 'metrics.csv', columns)
