"""Reads CSV, NPZ, Parquet and TFRecord files as named columns."""

import dataclasses
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
import pyarrow
import tensorflow as tf
from google.protobuf import message
from pyarrow import parquet

from datasets import federated_data


@dataclasses.dataclass(frozen=True)
class Table:
  """What a file holds, and how to speak of its rows.

  Attributes:
    path: The file.
    columns: Arrays of equal length [n, ...]; of dtype object where cells are
      not all numbers of one shape.
    row_name: What a person calls row k (from 0) of this kind of file.
  """

  path: pathlib.Path
  columns: dict[str, np.ndarray]
  row_name: Callable[[int], str]

  def error(
    self, row: int, column: str, problem: str
  ) -> federated_data.DataError:
    """Returns the error that says where in the file something is wrong."""
    return federated_data.DataError(
      f'{self.path}, {self.row_name(row)}, column {column!r}: {problem}'
    )


def read(path: pathlib.Path, text_columns: Sequence[str]) -> Table:
  """Reads a file by its suffix.

  Args:
    path: The file.
    text_columns: Columns to leave as text where the format has no types (CSV).

  Returns:
    Its columns.

  Raises:
    DataError: If it is missing, damaged or of another format.
  """
  reader = READERS.get(path.suffix.lower())
  if reader is None:
    raise federated_data.DataError(
      f'{path}: the suffix must be one of {", ".join(READERS)}, given '
      f'{path.suffix!r}.'
    )
  if not path.is_file():
    raise federated_data.DataError(f'{path}: there is no such file.')
  table = reader(path, text_columns)
  lengths = {name: len(column) for name, column in table.columns.items()}
  if len(set(lengths.values())) != 1 or 0 in lengths.values():
    raise federated_data.DataError(
      f'{path}: needs equally long columns of one row or more, given {lengths}.'
    )
  return table


def _read_csv(path: pathlib.Path, text_columns: Sequence[str]) -> Table:
  try:
    frame = pd.read_csv(
      path,
      dtype=dict.fromkeys(text_columns, str),
      keep_default_na=False,
      skip_blank_lines=False,
      low_memory=False,
    )
  except ValueError as error:
    raise _damaged(path, error) from error
  if not isinstance(frame.index, pd.RangeIndex):
    raise federated_data.DataError(
      f'{path}: its rows have more cells than its first line has names.'
    )
  columns = {str(name): frame[name].to_numpy() for name in frame.columns}
  return Table(path, columns, lambda row: f'row {row + 1} (line {row + 2})')


def _read_npz(path: pathlib.Path, _: Sequence[str]) -> Table:
  try:
    with np.load(path, allow_pickle=False) as stored:
      columns = {name: np.atleast_1d(stored[name]) for name in stored.files}
  except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
    raise _damaged(path, error) from error
  return Table(path, columns, lambda row: f'row {row} (from 0)')


def _read_parquet(path: pathlib.Path, _: Sequence[str]) -> Table:
  try:
    table = parquet.read_table(path)
  except (pyarrow.ArrowException, OSError) as error:
    raise _damaged(path, error) from error
  columns = {}
  for name, column in zip(table.column_names, table.columns, strict=True):
    kind = column.type
    plain = pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind)
    if plain and not column.null_count:
      columns[name] = column.to_numpy()
    else:
      columns[name] = _objects(column.to_pylist())
  return Table(path, columns, lambda row: f'row {row + 1}')


def _read_tfrecord(path: pathlib.Path, _: Sequence[str]) -> Table:
  records = []
  try:
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
      records.append(_parse_example(record))
  except (tf.errors.OpError, message.DecodeError) as error:
    raise federated_data.DataError(
      f'{path}, record {len(records) + 1}: cannot be read as a '
      f'tf.train.Example: {" ".join(str(error).split())}'
    ) from error
  names = sorted({name for record in records for name in record})
  columns = {
    name: _objects(record.get(name) for record in records) for name in names
  }
  return Table(path, columns, lambda row: f'record {row + 1}')


def _parse_example(record: bytes) -> dict[str, object]:
  """Returns features by name: a value, or an array where there are several."""
  values = {}
  for name, feature in tf.train.Example.FromString(
    record
  ).features.feature.items():
    kind = feature.WhichOneof('kind')
    items = getattr(feature, kind).value if kind else []
    if len(items) == 1:
      values[name] = items[0]
    elif len(items) > 1:
      values[name] = items[:] if kind == 'bytes_list' else np.asarray(items)
  return values


def _objects(values: Iterable[object]) -> np.ndarray:
  """Returns a one-dimensional array of anything, lists among it."""
  values = list(values)
  array = np.empty(len(values), object)
  for position, value in enumerate(values):
    array[position] = value
  return array


def _damaged(path: pathlib.Path, error: Exception) -> federated_data.DataError:
  return federated_data.DataError(
    f'{path} cannot be read: {" ".join(str(error).split())}'
  )


READERS = {
  '.csv': _read_csv,
  '.npz': _read_npz,
  '.parquet': _read_parquet,
  '.tfrecord': _read_tfrecord,
}
