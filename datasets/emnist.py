"""TFF's federated EMNIST (Caldas et al. 2018, LEAF), read client by client.

The file is a SQLite database with a table client_metadata (client_id,
split_name, num_examples) and a table examples (client_id, split_name,
serialized_example_proto), the last a tf.train.Example with 28x28 'pixels'
(1.0 is the background) and a 'label'.
"""

import contextlib
import pathlib
import sqlite3
import string
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from datasets import download, federated_data

URL = (
  'https://storage.googleapis.com/tff-datasets-public/emnist_all.sqlite.lzma'
)
FILE = 'emnist_all.sqlite'
# By prefix of the split names: clients, training examples, test examples.
EXPECTED_COUNTS = {
  'digits_only': (3_383, 341_873, 40_832),
  'all': (3_400, 671_585, 77_483),
}
CLASS_NAMES = {
  'digits_only': tuple(string.digits),
  'all': tuple(string.digits + string.ascii_uppercase + string.ascii_lowercase),
}
SOURCE = federated_data.Source(
  title='Federated EMNIST (TFF, from LEAF)',
  licence='CC0 (NIST Special Database 19), BSD-2-Clause (LEAF)',
  citation=(
    'S. Caldas et al. LEAF: a benchmark for federated settings. '
    'arXiv:1812.01097, 2018. G. Cohen et al. EMNIST: an extension of MNIST to '
    'handwritten letters. arXiv:1702.05373, 2017.'
  ),
  url='https://www.tensorflow.org/federated/api_docs/python/tff/simulation/'
  'datasets/emnist/load_data',
)
_COLUMNS = {
  'client_metadata': {'client_id', 'split_name', 'num_examples'},
  'examples': {'client_id', 'split_name', 'serialized_example_proto'},
}
_FEATURES = {
  'pixels': tf.io.FixedLenFeature([28, 28], tf.float32),
  'label': tf.io.FixedLenFeature([], tf.int64),
}


def load(
  name: str, part: str, data_dir: str | None, cache_dir: str | None
) -> federated_data.FederatedData:
  """Returns EMNIST by writer.

  Args:
    name: What to call it.
    part: 'digits_only' (10 classes) or 'all' (62).
    data_dir: The user's directory with emnist_all.sqlite, packed or not. When
      it is given nothing is fetched.
    cache_dir: See `download.cache_directory`.

  Returns:
    The data, with 'x' float32 [n, 28, 28, 1] in [0, 1] and 'y' int32 [n].

  Raises:
    DataError: If the file cannot be had or is not the right one.
  """
  if data_dir is None:
    try:
      path = download.fetch_lzma(
        URL, download.cache_directory(cache_dir), check_database
      )
    except download.DownloadError as error:
      raise download.DownloadError(
        f'{error} Without network, get {FILE}.lzma from {URL} and name its '
        'directory with --data_dir.'
      ) from error
    sha256 = download.recorded_sha256(path)
  else:
    path = _in_directory(pathlib.Path(data_dir).expanduser(), cache_dir)
    sha256 = download.file_hash(path)
  return federated_data.FederatedData(
    name=name,
    partition='natural',
    train=_split(path, f'{part}_train'),
    validation=None,
    test=_split(path, f'{part}_test'),
    num_classes=len(CLASS_NAMES[part]),
    class_names=CLASS_NAMES[part],
    source=SOURCE,
    content_sha256=sha256,
  )


def check_database(path: pathlib.Path) -> None:
  """Checks that a file is the complete database, reading all of it.

  Raises:
    DataError: If it is damaged, or `check_counts` or the stored examples say
      that it is not complete.
  """
  damage = _query(path, 'PRAGMA quick_check(1)')[0][0]
  if damage != 'ok':
    reason = ' '.join(damage.split())
    raise federated_data.DataError(f'{path} is damaged: {reason}')
  check_counts(path)
  stored = dict(
    _query(
      path, 'SELECT split_name, COUNT(*) FROM examples GROUP BY split_name'
    )
  )
  for part, (_, *totals) in EXPECTED_COUNTS.items():
    for split, total in zip(('train', 'test'), totals, strict=True):
      found = stored.get(f'{part}_{split}', 0)
      if found != total:
        raise federated_data.DataError(
          f'{path} is not the complete federated EMNIST: {part}_{split} holds '
          f'{found} examples, right are {total}.'
        )


def check_counts(path: pathlib.Path) -> None:
  """Checks the form of a database and what it says that it holds.

  Raises:
    DataError: If tables or columns are missing, or the numbers of clients or
      examples are not those that are published.
  """
  for table, columns in _COLUMNS.items():
    found = {row[1] for row in _query(path, f'PRAGMA table_info({table})')}
    if not columns <= found:
      raise federated_data.DataError(
        f'{path} is not federated EMNIST: its table {table} has the columns '
        f'{sorted(found)}, needed are {sorted(columns)}.'
      )
  for part, (clients, *totals) in EXPECTED_COUNTS.items():
    for split, total in zip(('train', 'test'), totals, strict=True):
      counts = _counts(path, f'{part}_{split}')
      found = (len(counts), sum(counts.values()))
      if found != (clients, total):
        raise federated_data.DataError(
          f'{path} is not the complete federated EMNIST: {part}_{split} has '
          f'{found[0]} clients with {found[1]} examples, right are {clients} '
          f'with {total}.'
        )


def _in_directory(
  directory: pathlib.Path, cache_dir: str | None
) -> pathlib.Path:
  path = directory / FILE
  if path.exists():
    check_counts(path)
    return path
  packed = directory / f'{FILE}.lzma'
  if not packed.exists():
    raise federated_data.DataError(
      f'--data_dir={directory} has no file {FILE} or {FILE}.lzma; get the '
      f'second from {URL}'
    )
  digest = download.file_hash(packed)
  target = download.cache_directory(cache_dir) / f'emnist_{digest[:16]}.sqlite'
  if not download.is_finished(target):
    download.unpack_lzma(packed, target, check_database)
  return target


def _split(path: pathlib.Path, split_name: str) -> federated_data.Split:
  def read_client(client_id: str) -> Mapping[str, np.ndarray]:
    # TFF's own statement, so that the examples come in TFF's order.
    rows = _query(
      path,
      'SELECT serialized_example_proto FROM examples '
      'WHERE client_id = ? AND split_name = ?',
      client_id,
      split_name,
    )
    parsed = tf.io.parse_example([row[0] for row in rows], _FEATURES)
    return {
      'x': parsed['pixels'].numpy()[..., None],
      'y': parsed['label'].numpy().astype(np.int32),
    }

  return federated_data.Split(_counts(path, split_name), read_client)


def _counts(path: pathlib.Path, split_name: str) -> dict[str, int]:
  return dict(
    _query(
      path,
      'SELECT client_id, num_examples FROM client_metadata '
      'WHERE split_name = ? ORDER BY client_id',
      split_name,
    )
  )


def _query(path: pathlib.Path, statement: str, *values: str) -> list[tuple]:
  """Runs a statement on a connection of its own: any thread may call."""
  address = f'{path.resolve().as_uri()}?mode=ro'
  try:
    with contextlib.closing(sqlite3.connect(address, uri=True)) as connection:
      return connection.execute(statement, values).fetchall()
  except sqlite3.Error as error:
    raise federated_data.DataError(
      f'{path} cannot be read as a SQLite database: {error}'
    ) from error
