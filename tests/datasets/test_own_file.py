"""Own data in four formats, and errors that say where."""

import re

import numpy as np
import pandas as pd
import pyarrow
import pytest
import tensorflow as tf
from pyarrow import parquet

from datasets import federated_data, own_file, tables
from datasets import load as load_lib

CLIENTS = ['b', 'a', 'b', 'c', 'a', 'b', 'b', 'c', 'a', 'b']
LABELS = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
WEIGHTS = [0.5 * k for k in range(10)]
HEIGHTS = [10 - k for k in range(10)]


def _frame(**changes):
  columns = {
    'client_id': CLIENTS,
    'weight': WEIGHTS,
    'height': HEIGHTS,
    'label': LABELS,
  }
  return pd.DataFrame(columns | changes)


def _write(path, **changes):
  frame = _frame(**changes)
  if path.suffix == '.csv':
    frame.to_csv(path, index=False)
  elif path.suffix == '.parquet':
    frame.to_parquet(path)
  elif path.suffix == '.npz':
    arrays = {name: frame[name].to_numpy() for name in frame}
    arrays['client_id'] = arrays['client_id'].astype(str)
    np.savez(path, **arrays)
  else:
    with tf.io.TFRecordWriter(str(path)) as writer:
      for row in frame.to_dict('records'):
        example = tf.train.Example()
        feature = example.features.feature
        feature['client_id'].bytes_list.value.append(row['client_id'].encode())
        feature['label'].int64_list.value.append(row['label'])
        feature['weight'].float_list.value.append(row['weight'])
        feature['height'].int64_list.value.append(row['height'])
        writer.write(example.SerializeToString())
  return str(path)


def _load(file, **settings):
  return load_lib.load(load_lib.LoadConfig('file', data_file=file, **settings))


def _expect_error(file, *parts, **settings):
  with pytest.raises(federated_data.DataError) as caught:
    _load(file, **settings)
  text = str(caught.value)
  assert file in text and '\n' not in text
  for part in parts:
    assert part in text, text


@pytest.mark.parametrize('suffix', tables.READERS)
def test_every_format_gives_the_same_clients(tmp_path, suffix):
  data = _load(_write(tmp_path / f'mine{suffix}'))
  assert data.train.client_ids == ('a', 'b', 'c')
  assert (data.num_classes, data.class_names) == (3, ('0', '1', '2'))
  order = [0, 1] if suffix != '.tfrecord' else [1, 0]
  for client in 'abc':
    rows = [k for k, c in enumerate(CLIENTS) if c == client]
    assert data.test.num_examples[client] == round(0.2 * len(rows))
    parts = [s.client(client) for s in (data.train, data.test)]
    x = np.concatenate([p['x'] for p in parts])
    y = np.concatenate([p['y'] for p in parts])
    assert x.dtype == np.float32 and y.dtype == np.int32
    got = sorted((*map(float, a), int(b)) for a, b in zip(x, y, strict=True))
    features = [(WEIGHTS[k], HEIGHTS[k]) for k in rows]
    expected = [
      (*(f[i] for i in order), LABELS[k])
      for f, k in zip(features, rows, strict=True)
    ]
    assert got == sorted(map(tuple, expected))


def test_split_column_and_names_of_columns(tmp_path):
  parts = ['train'] * 6 + ['validation'] * 2 + ['test'] * 2
  frame = _frame(part=parts).rename(
    columns={'client_id': 'who', 'label': 'what'}
  )
  frame['what'] = [('dog', 'cat', 'emu')[k] for k in LABELS]
  file = str(tmp_path / 'mine.csv')
  frame.to_csv(file, index=False)
  data = _load(
    file, client_column='who', label_column='what', split_column='part'
  )
  assert data.class_names == ('cat', 'dog', 'emu')
  assert data.train.client('a')['y'].tolist() == [0, 0]
  assert data.validation.client_ids == ('b', 'c')
  assert data.test.client('b')['x'].tolist() == [[4.5, 1.0]]


def test_images_keep_shape_and_uint8_in_npz(tmp_path):
  images = np.random.default_rng(0).integers(256, size=(10, 4, 4, 1))
  images = images.astype(np.uint8)
  file = str(tmp_path / 'mine.npz')
  np.savez(file, client_id=np.zeros(10, int), label=LABELS, x=images)
  data = _load(file, test_fraction=0.5)
  assert data.train.client_ids == ('0',)
  got = data.train.client('0')
  assert got['x'].dtype == np.uint8 and got['x'].shape == (5, 4, 4, 1)
  assert {i.tobytes() for i in got['x']} <= {i.tobytes() for i in images}


def test_array_columns_and_feature_shape(tmp_path):
  file = str(tmp_path / 'mine.parquet')
  table = {
    'client_id': CLIENTS,
    'label': LABELS,
    'x': [[float(k)] * 4 for k in range(10)],
  }
  parquet.write_table(pyarrow.table(table), file)
  data = _load(file, feature_shape=(2, 2, 1))
  assert data.train.client('a')['x'].shape[1:] == (2, 2, 1)
  _expect_error(file, 'feature_shape (3,)', feature_shape=(3,))
  table['x'][6] = [1.0]
  parquet.write_table(pyarrow.table(table), file)
  _expect_error(file, 'row 7', "column 'x'", 'shape (1,)')


def test_partition_of_own_data(tmp_path):
  data = _load(_write(tmp_path / 'mine.csv'), partition='iid', num_clients=2)
  assert list(data.train.num_examples.values()) == [4, 4]


def test_bad_csv_cells_are_located(tmp_path):
  path = tmp_path / 'mine.csv'
  bad = [*WEIGHTS[:6], 'heavy', *WEIGHTS[7:]]
  place = 'row 7 (line 8)'
  _expect_error(
    _write(path, weight=bad), place, "column 'weight'", "'heavy' is not a num"
  )
  bad[6] = ''
  _expect_error(_write(path, weight=bad), place, "'weight'", 'cell is empty')
  bad[6] = 'nan'
  _expect_error(_write(path, weight=bad), place, "'weight'", 'not a finite')
  clients = [*CLIENTS[:6], '', *CLIENTS[7:]]
  _expect_error(_write(path, client_id=clients), place, "'client_id'", 'empty')
  for label in ('two', '1.5', '-1', ''):
    labels = [*LABELS[:6], label, *LABELS[7:]]
    _expect_error(_write(path, label=labels), place, "column 'label'")


def test_bad_csv_files(tmp_path):
  path = tmp_path / 'mine.csv'
  file = _write(path)
  whole = path.read_text()
  path.write_text(whole + 'a,1,2,3,4,5\n')
  _expect_error(file, 'line 12')
  path.write_text(whole + 'a,1\n')
  _expect_error(file, 'row 11 (line 12)')
  path.write_text(whole.replace('b,0.0', '\nb,0.0', 1))
  _expect_error(file, 'row 1 (line 2)')
  path.write_text(re.sub('\n(?=.)', '\nb,', whole))
  _expect_error(file, 'more cells than its first line')
  path.write_text('client_id,weight,label\n')
  _expect_error(file, 'one row or more')
  path.write_text('')
  _expect_error(file, 'cannot be read')
  path.write_bytes(b'client_id,label,x\n\xff\xfe,1,2\n')
  _expect_error(file, 'cannot be read')


def test_missing_columns_and_files(tmp_path):
  file = _write(tmp_path / 'mine.csv')
  _expect_error(
    file, "no column 'user'", "'client_id', 'height'", client_column='user'
  )
  _expect_error(str(tmp_path / 'none.csv'), 'no such file')
  _expect_error(str(tmp_path / 'mine.xlsx'), '.csv, .npz, .parquet, .tfrecord')
  only = tmp_path / 'only.csv'
  _frame()[['client_id', 'label']].to_csv(only, index=False)
  _expect_error(str(only), 'no feature columns')


def test_bad_split_column(tmp_path):
  parts = ['train'] * 5 + ['tset'] * 5
  file = _write(tmp_path / 'mine.csv', part=parts)
  _expect_error(
    file, 'row 6', "column 'part'", "'tset' is none of", split_column='part'
  )
  file = _write(tmp_path / 'mine.csv', part=['train'] * 10)
  _expect_error(file, "no row has 'test'", split_column='part')


def test_bad_npz(tmp_path):
  file = str(tmp_path / 'mine.npz')
  np.savez(file, client_id=CLIENTS, label=LABELS, x=np.zeros((9, 2)))
  _expect_error(file, 'equally long', "'x': 9")
  x = np.zeros((10, 2))
  x[4, 1] = np.inf
  np.savez(file, client_id=CLIENTS, label=LABELS, x=x)
  _expect_error(file, 'row 4 (from 0)', "column 'x'")
  np.savez(file, client_id=CLIENTS, label=LABELS, x=x, z=x)
  _expect_error(file, 'row 4 (from 0)')
  np.savez(
    file, client_id=CLIENTS, label=LABELS, x=np.zeros(10), z=np.ones((10, 2))
  )
  _expect_error(file, "column 'z'", 'beside other')
  objects = np.asarray([{}] * 10)
  np.savez(file, client_id=CLIENTS, label=LABELS, x=objects)
  _expect_error(file, 'cannot be read')
  (tmp_path / 'mine.npz').write_bytes(b'PK half')
  _expect_error(file, 'cannot be read')
  np.savez(file, client_id=CLIENTS, label=[0.5] * 10, x=np.zeros(10))
  _expect_error(file, "column 'label'", '0.5 is neither')


def test_bad_parquet(tmp_path):
  path = tmp_path / 'mine.parquet'
  file = _write(path, weight=[*WEIGHTS[:3], None, *WEIGHTS[4:]])
  _expect_error(file, 'row 4', "column 'weight'", 'empty')
  path.write_bytes(path.read_bytes()[:-9])
  _expect_error(file, 'cannot be read')


def test_bad_tfrecord(tmp_path):
  path = tmp_path / 'mine.tfrecord'
  file = _write(path)
  whole = path.read_bytes()
  path.write_bytes(whole[:-7])
  _expect_error(file, 'record 10', 'cannot be read')
  with tf.io.TFRecordWriter(file) as writer:
    for record in tf.data.TFRecordDataset([_write(tmp_path / 'o.tfrecord')]):
      writer.write(record.numpy())
    example = tf.train.Example()
    example.features.feature['client_id'].bytes_list.value.append(b'a')
    example.features.feature['label'].int64_list.value.append(1)
    writer.write(example.SerializeToString())
  _expect_error(file, 'record 11', "'height'", 'empty')


def test_the_test_split_is_fixed(tmp_path):
  file = _write(tmp_path / 'mine.csv')
  first, second = _load(file, seed=1), _load(file, seed=2)
  np.testing.assert_array_equal(
    first.test.pooled()['x'], second.test.pooled()['x']
  )
  with pytest.raises(ValueError, match='test_fraction must be between'):
    own_file.load(file, own_file.Columns('client_id', 'label'), test_fraction=1)


def test_a_column_of_fractions_is_no_label(tmp_path):
  path = tmp_path / 'own.csv'
  path.write_text('client_id,label,x\na,0.5,1\nb,1.5,2\n')
  with pytest.raises(federated_data.DataError, match="'0.5' is not a class"):
    own_file.load(str(path), own_file.Columns('client_id', 'label', None))
