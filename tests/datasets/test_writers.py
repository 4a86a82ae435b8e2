"""MNIST by writer."""

import gzip
import hashlib

import numpy as np
import pytest

from datasets import download, federated_data, image_sets, writers


def test_by_writer_by_hand():
  # Class, series, writer: writer 7 occurs in two series.
  table = np.asarray([[3, 4, 7], [1, 0, 7], [5, 4, 2], [3, 4, 7]])
  groups = writers.by_writer(table)
  assert {name: rows.tolist() for name, rows in groups.items()} == {
    'hsf0_writer0007': [1],
    'hsf4_writer0002': [2],
    'hsf4_writer0007': [0, 3],
  }
  assert list(groups) == sorted(groups)


LABELS = {'train': [5, 0, 4, 1], 'test': [7, 2]}


@pytest.fixture
def small(monkeypatch):
  """Four training and two test images instead of MNIST, and label files."""

  def load_images(image_set, data_dir, cache_dir):
    splits = {
      split: federated_data.Split.from_client_arrays(
        {
          split: {
            'x': np.arange(len(y), dtype=np.uint8)[:, None],
            'y': np.asarray(y, np.int32),
          }
        }
      )
      for split, y in LABELS.items()
    }
    return federated_data.FederatedData(
      name='mnist',
      partition='none',
      validation=None,
      num_classes=10,
      class_names=tuple('0123456789'),
      source=image_set.source,
      content_sha256='00',
      **splits,
    )

  monkeypatch.setattr(image_sets, 'load', load_images)
  files = {}
  for split, labels in LABELS.items():
    # QMNIST has more rows than MNIST.
    rows = [f'{y}\t4\t{30 + y % 2}\t0\t0\t0\t0\t0' for y in [*labels, 9, 9]]
    files[split] = gzip.compress('\n'.join(rows).encode(), mtime=0)
  hashes = {s: hashlib.sha256(data).hexdigest() for s, data in files.items()}
  monkeypatch.setattr(writers, 'SHA256', hashes)
  return files


def _write(folder, files):
  for split, data in files.items():
    (folder / writers.LABEL_FILES[split]).write_bytes(data)


def _check(data):
  assert data.partition == 'natural'
  train = {c: data.train.client(c) for c in data.train.client_ids}
  assert train['hsf4_writer0030']['y'].tolist() == [0, 4]
  assert train['hsf4_writer0030']['x'].ravel().tolist() == [1, 2]
  assert train['hsf4_writer0031']['y'].tolist() == [5, 1]
  assert data.test.client('hsf4_writer0031')['y'].tolist() == [7]


def test_labels_from_data_dir(small, tmp_path):
  _write(tmp_path, small)
  _check(writers.load(str(tmp_path), None))


def test_labels_from_the_variable(small, tmp_path, monkeypatch):
  _write(tmp_path, small)
  monkeypatch.setenv(writers.DIRECTORY_VARIABLE, str(tmp_path))
  _check(writers.load(None, None))
  (tmp_path / writers.LABEL_FILES['test']).unlink()
  with pytest.raises(federated_data.DataError, match='has no file qmnist-test'):
    writers.load(None, None)


def test_labels_from_their_repository(small, server, monkeypatch):
  monkeypatch.setattr(writers, 'ADDRESS', server.url(''))
  monkeypatch.setattr(
    writers, 'LABEL_FILES', dict.fromkeys(LABELS, 'labels.gz')
  )
  server.content = small['train']
  path = writers._find_labels('labels.gz', 'train', None, None)
  assert path.read_bytes() == small['train']
  server.content = small['train'][:-1]
  path.unlink()
  with pytest.raises(download.DownloadError) as caught:
    writers.load(None, None)
  for part in (
    server.url('labels.gz'),
    '--data_dir',
    'TFF_RESEARCH_QMNIST_DIR',
  ):
    assert part in str(caught.value)
  assert '\n' not in str(caught.value)


def test_wrong_label_file_is_refused(small, tmp_path):
  _write(tmp_path, dict(small, train=small['test']))
  with pytest.raises(federated_data.DataError, match='sha256'):
    writers.load(str(tmp_path), None)


def test_labels_of_other_images_are_refused(small, tmp_path, monkeypatch):
  _write(tmp_path, small)
  monkeypatch.setitem(LABELS, 'train', [5, 0, 1, 4])
  with pytest.raises(federated_data.DataError, match='not have the labels'):
    writers.load(str(tmp_path), None)


def test_data_dir_may_hold_labels_only(tmp_path):
  assert writers._image_directory(None) is None
  assert writers._image_directory(str(tmp_path)) == str(tmp_path)
  (tmp_path / writers.LABEL_FILES['test']).touch()
  assert writers._image_directory(str(tmp_path)) is None
  (tmp_path / 'train-images-idx3-ubyte.gz').touch()
  assert writers._image_directory(str(tmp_path)) == str(tmp_path)
