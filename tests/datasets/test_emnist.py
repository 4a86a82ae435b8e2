"""Federated EMNIST, from a small database of the real one's form."""

import lzma

import numpy as np
import pytest
import tensorflow_federated as tff

from datasets import download, emnist, federated_data
from datasets import load as load_lib
from tests.datasets import conftest


@pytest.fixture(autouse=True)
def small_emnist(server, emnist_lzma, monkeypatch):
  server.content = emnist_lzma
  monkeypatch.setattr(emnist, 'URL', server.url('emnist_all.sqlite.lzma'))
  monkeypatch.setattr(emnist, 'EXPECTED_COUNTS', conftest.EMNIST_COUNTS)


def _load(dataset='emnist_characters', **settings):
  return load_lib.load(load_lib.LoadConfig(dataset, **settings))


def _check_examples(data, prefix):
  for split in ('train', 'test'):
    expected = conftest.EMNIST_EXAMPLES[f'{prefix}_{split}']
    got = getattr(data, split)
    assert got.client_ids == tuple(sorted(expected))
    for client, labels in expected.items():
      arrays = got.client(client)
      assert arrays['y'].tolist() == labels
      assert arrays['y'].dtype == np.int32
      assert arrays['x'].dtype == np.float32
      pixels = [conftest.emnist_pixels(client, label) for label in labels]
      np.testing.assert_array_equal(arrays['x'], np.stack(pixels)[..., None])


@pytest.mark.parametrize(
  'dataset, prefix, classes',
  [('emnist_digits', 'digits_only', 10), ('emnist_characters', 'all', 62)],
)
def test_fetched_and_read(server, own_cache, dataset, prefix, classes):
  data = _load(dataset)
  _check_examples(data, prefix)
  assert data.partition == 'natural' and data.validation is None
  assert data.num_classes == len(data.class_names) == classes
  assert (data.name, server.requests) == (dataset, 1)
  # The archive is gone; its hash stays.
  assert sorted(path.name for path in own_cache.iterdir()) == [
    'emnist_all.sqlite',
    'emnist_all.sqlite.lzma.manifest.json',
    'emnist_all.sqlite.manifest.json',
  ]
  again = _load(dataset)
  assert server.requests == 1
  assert again.content_sha256 == data.content_sha256
  assert data.content_sha256 == download.file_hash(
    own_cache / 'emnist_all.sqlite'
  )


def test_examples_are_those_that_tff_reads_in_its_order(emnist_file):
  split = _load(data_dir=str(emnist_file.parent)).train
  theirs = tff.simulation.datasets.SqlClientData(str(emnist_file), 'all_train')
  assert list(split.client_ids) == theirs.client_ids
  for client in theirs.client_ids:
    dataset = theirs.create_tf_dataset_for_client(client)
    labels = []
    for proto in dataset.as_numpy_iterator():
      example = emnist.tf.train.Example.FromString(proto)
      labels.append(example.features.feature['label'].int64_list.value[0])
    assert labels == split.client(client)['y'].tolist()


def test_class_names_follow_tffs_labels():
  names = emnist.CLASS_NAMES['all']
  assert (names[7], names[11], names[37]) == ('7', 'B', 'b')


@pytest.mark.parametrize('mode', ['cut', 'corrupt', 'short'])
@pytest.mark.parametrize('send_md5', [False, True])
def test_damaged_download_never_looks_finished(
  server, own_cache, mode, send_md5
):
  server.mode, server.send_md5 = mode, send_md5
  with pytest.raises(download.DownloadError) as caught:
    _load()
  text = str(caught.value)
  assert '\n' not in text and emnist.URL in text and '--data_dir' in text
  assert list(own_cache.iterdir()) == []
  server.mode = 'whole'
  _check_examples(_load(), 'all')


def test_a_kill_before_unpacking_is_made_good(server, own_cache):
  # The archive is there and recorded, but damaged: as after a kill between
  # the download and the check of what it holds.
  server.mode = 'short'
  archive = download.fetch(emnist.URL, own_cache)
  assert download.is_finished(archive)
  server.mode = 'whole'
  with pytest.raises(download.DownloadError, match='came damaged'):
    _load()
  assert list(own_cache.iterdir()) == []
  _check_examples(_load(), 'all')


def test_later_download_must_have_the_first_ones_hash(
  server, own_cache, tmp_path
):
  _load()
  (own_cache / 'emnist_all.sqlite').unlink()
  changed = dict(conftest.EMNIST_EXAMPLES, all_test={'f0002_01': [9, 8, 7, 6]})
  conftest.write_emnist(tmp_path / 'other.sqlite', changed)
  server.content = lzma.compress((tmp_path / 'other.sqlite').read_bytes())
  with pytest.raises(download.DownloadError, match='could not be fetched'):
    _load()


def test_counts_are_asserted(monkeypatch, own_cache, emnist_file):
  monkeypatch.setattr(
    emnist, 'EXPECTED_COUNTS', dict(conftest.EMNIST_COUNTS, all=(3, 7, 5))
  )
  problem = 'all_test has 3 clients with 4 examples, right are 3 with 5'
  with pytest.raises(download.DownloadError, match=problem):
    _load()
  assert list(own_cache.iterdir()) == []
  with pytest.raises(federated_data.DataError, match=problem):
    _load(data_dir=str(emnist_file.parent))


def test_the_published_counts(monkeypatch):
  monkeypatch.undo()
  assert emnist.EXPECTED_COUNTS == {
    'digits_only': (3383, 341_873, 40_832),
    'all': (3400, 671_585, 77_483),
  }


def test_promised_but_missing_examples_are_noticed(server, tmp_path):
  path = tmp_path / 'lossy.sqlite'
  conftest.write_emnist(path, conftest.EMNIST_EXAMPLES)
  connection = emnist.sqlite3.connect(path)
  connection.execute("DELETE FROM examples WHERE client_id = 'f0003_9'")
  connection.commit()
  connection.close()
  server.content = lzma.compress(path.read_bytes(), format=lzma.FORMAT_ALONE)
  with pytest.raises(download.DownloadError, match='all_train holds 6 examp'):
    _load()


def test_structural_damage_is_noticed(server, emnist_file):
  data = bytearray(emnist_file.read_bytes())
  connection = emnist.sqlite3.connect(emnist_file)
  root, page_size = connection.execute(
    'SELECT rootpage, (SELECT page_size FROM pragma_page_size) '
    "FROM sqlite_master WHERE name = 'client_metadata'"
  ).fetchone()
  connection.close()
  # A leaf page's first cell is its length and row id: 1 becomes 127, which
  # no query minds but which is out of order.
  page = (root - 1) * page_size
  cell = page + int.from_bytes(data[page + 8 : page + 10], 'big')
  assert data[page] == 13 and data[cell + 1] == 1
  data[cell + 1] = 127
  server.content = lzma.compress(bytes(data), format=lzma.FORMAT_ALONE)
  with pytest.raises(download.DownloadError, match='is damaged: .*127'):
    _load()


def test_data_dir_packed_or_not_fetches_nothing(
  server, emnist_file, emnist_lzma, tmp_path
):
  unpacked = _load(data_dir=str(emnist_file.parent))
  _check_examples(unpacked, 'all')
  (tmp_path / 'emnist_all.sqlite.lzma').write_bytes(emnist_lzma)
  packed = _load(data_dir=str(tmp_path))
  _check_examples(packed, 'all')
  assert packed.content_sha256 == unpacked.content_sha256
  assert server.requests == 0


def test_data_dir_errors_name_file_and_address(tmp_path):
  with pytest.raises(federated_data.DataError) as caught:
    _load(data_dir=str(tmp_path))
  assert str(tmp_path) in str(caught.value) and emnist.URL in str(caught.value)
  (tmp_path / 'emnist_all.sqlite').write_bytes(b'not a database' * 100)
  with pytest.raises(federated_data.DataError, match='as a SQLite database'):
    _load(data_dir=str(tmp_path))
  (tmp_path / 'emnist_all.sqlite').unlink()
  emnist.sqlite3.connect(tmp_path / 'emnist_all.sqlite').close()
  with pytest.raises(federated_data.DataError, match='not federated EMNIST'):
    _load(data_dir=str(tmp_path))


def test_artificial_partition_pools_the_writers():
  data = _load('emnist_digits', partition='iid', num_clients=5)
  assert data.train.client_ids[-1] == 'client_0004'
  assert sorted(data.train.pooled()['y'].tolist()) == [1, 1, 3, 4, 5]
  assert data.test.client_ids == ('f0001_00', 'f0002_01')
