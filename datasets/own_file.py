"""The user's own data: one CSV, NPZ, Parquet or TFRecord file.

Every example has a client id and a label; all other columns are features.
Errors name the file, the row and the column.
"""

import collections
import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from datasets import digits, download, federated_data, tables

SPLITS = ('train', 'validation', 'test')
# The test examples are the same in every run.
_TEST_SEED = 1_602_056


@dataclasses.dataclass(frozen=True)
class Columns:
  """Which columns have a meaning of their own.

  Attributes:
    client: The client id: text or integers.
    label: The class: integers from 0, or names.
    split: 'train', 'validation' or 'test' for each example; None draws a test
      split from each client instead.
    targets: Numbers to explain, in place of a label.
  """

  client: str
  label: str | None
  split: str | None = None
  targets: tuple[str, ...] = ()

  @property
  def texts(self) -> list[str]:
    """The columns that are read as text."""
    return [c for c in (self.client, self.label, self.split) if c is not None]

  @property
  def names(self) -> list[str]:
    """The columns that are no features."""
    return [*self.texts, *self.targets]


def load(
  file: str,
  columns: Columns,
  *,
  test_fraction: float = 0.2,
  feature_shape: Sequence[int] | None = None,
) -> federated_data.FederatedData:
  """Reads a file.

  Args:
    file: Its path; the suffix says the format (.csv, .npz, .parquet,
      .tfrecord).
    columns: Which columns are the client id, the label and the split.
    test_fraction: Share of each client's examples for the test split where no
      column says the split; a fixed choice.
    feature_shape: Shape of one example's features, such as (28, 28, 1).

  Returns:
    The data. 'x' is float32 [n, features] (an array column keeps its shape and
    an NPZ's uint8 its type), 'y' int32 [n] or targets, float32 [n, targets].

  Raises:
    DataError: If the file is not as described here.
  """
  path = pathlib.Path(file).expanduser()
  table = tables.read(path, columns.texts)
  for column in columns.names:
    if column not in table.columns:
      raise federated_data.DataError(
        f'{path} has no column {column!r}; it has {sorted(table.columns)}.'
      )
  x = _features(table, columns, feature_shape)
  if columns.targets:
    y, class_names = _targets(table, columns.targets), ()
  else:
    y, class_names = label_column(table, columns.label)
  ids = text_column(table, columns.client)
  rows = rows_by_split(table, ids, columns.split, test_fraction)
  return federated(
    path,
    {'x': x, 'y': y},
    rows,
    class_names,
    feature_names=_feature_names(table, columns, x),
    target_names=columns.targets,
  )


def federated(
  path: pathlib.Path,
  arrays: Mapping[str, np.ndarray],
  rows: Mapping[str, Mapping[str, np.ndarray]],
  class_names: tuple[str, ...],
  **names: tuple[str, ...],
) -> federated_data.FederatedData:
  """Makes the data of an own file.

  Args:
    path: The file.
    arrays: 'x' and 'y' of all examples.
    rows: Which rows belong to each client of each split.
    class_names: One name per label.
    **names: Names of features and targets, as `FederatedData` has them.
  """
  splits = {
    split: federated_data.Split.from_arrays(arrays, clients)
    if clients
    else None
    for split, clients in rows.items()
  }
  return federated_data.FederatedData(
    name='file',
    partition='natural',
    num_classes=len(class_names),
    class_names=class_names,
    source=federated_data.Source(
      title=f'Own data: {path.name}',
      licence='as given by its owner',
      citation='',
      url='',
    ),
    content_sha256=download.file_hash(path),
    **names,
    **splits,
  )


def rows_by_split(
  table: tables.Table,
  ids: np.ndarray,
  split_column: str | None,
  fraction: float,
) -> dict[str, dict[str, np.ndarray]]:
  """Returns the rows of each client of each split."""
  if split_column is None:
    return hold_out(_group(ids, np.arange(len(ids))), fraction, _TEST_SEED)
  given = text_column(table, split_column)
  wrong = np.flatnonzero(~np.isin(given, SPLITS))
  if wrong.size:
    raise table.error(
      wrong[0],
      split_column,
      f'{given[wrong[0]]!r} is none of {", ".join(SPLITS)}',
    )
  for split in ('train', 'test'):
    if split not in given:
      raise federated_data.DataError(
        f'{table.path}: no row has {split!r} in the column {split_column!r}.'
      )
  return {s: _group(ids, np.flatnonzero(given == s)) for s in SPLITS}


def hold_out(
  clients: Mapping[str, np.ndarray], fraction: float, seed: int
) -> dict[str, dict[str, np.ndarray]]:
  """Returns the rows of each split, drawn from each client's rows.

  Args:
    clients: Rows of each client.
    fraction: Share of each client's rows for the test split.
    seed: Of the draw.

  Raises:
    ValueError: If the fraction is not between 0 and 1.
  """
  if not 0 < fraction < 1:
    raise ValueError(
      f'test_fraction must be between 0 and 1, given {fraction}.'
    )
  train, test = digits.split_each(clients, fraction, seed)
  return {'train': train, 'validation': {}, 'test': test}


def _group(ids: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
  """Groups rows by client; clients in the order of their ids."""
  groups = collections.OrderedDict()
  names, inverse = np.unique(ids[rows], return_inverse=True)
  order = np.argsort(inverse, kind='stable')
  cuts = np.cumsum(np.bincount(inverse, minlength=len(names)))[:-1]
  for name, piece in zip(names, np.split(rows[order], cuts), strict=False):
    groups[str(name)] = piece
  return groups


def text_column(table: tables.Table, column: str) -> np.ndarray:
  """Returns a column as text; an empty cell or a fraction is an error."""
  values = table.columns[column]
  texts = [v.decode() if isinstance(v, bytes) else v for v in values.tolist()]
  for row, value in enumerate(texts):
    if value is None or value == '' or value != value:
      raise table.error(row, column, 'the cell is empty')
    if not isinstance(value, str | int):
      raise table.error(row, column, f'{value!r} is neither text nor integer')
  return np.asarray([str(value) for value in texts], dtype=object).astype(str)


def label_column(
  table: tables.Table, column: str
) -> tuple[np.ndarray, tuple[str, ...]]:
  """Returns labels as int32 [n] and the class names.

  If the first label is an integer all must be, from 0 up; else they are names,
  numbered in alphabetical order.
  """
  texts = text_column(table, column)
  if re.fullmatch(r'[-+]?\d*\.\d*(e[-+]?\d+)?', texts[0]):
    raise table.error(
      0, column, f'{texts[0]!r} is not a class: an integer from 0, or a name'
    )
  if not texts[0].lstrip('-').isdigit():
    names, y = np.unique(texts, return_inverse=True)
    return y.astype(np.int32), tuple(names.tolist())
  y = np.zeros(len(texts), np.int32)
  for row, text in enumerate(texts):
    if not text.isdigit() or int(text) > np.iinfo(np.int32).max:
      raise table.error(
        row, column, f'{text!r} is not a class number: an integer from 0'
      )
    y[row] = int(text)
  return y, tuple(str(k) for k in range(int(y.max()) + 1))


def _targets(table: tables.Table, names: Sequence[str]) -> np.ndarray:
  """Returns the target columns as float32 [n, targets]."""
  parts = [_numbers(table, name).astype(np.float32) for name in names]
  for name, part in zip(names, parts, strict=True):
    if part.ndim != 1:
      raise table.error(0, name, 'an array where one number is to be explained')
  return np.stack(parts, axis=1)


def _feature_names(
  table: tables.Table, columns: Columns, x: np.ndarray
) -> tuple[str, ...]:
  """Names the features [n, features]; an array column's are numbered."""
  names = [c for c in table.columns if c not in columns.names]
  if x.ndim != 2:
    return ()
  if len(names) == 1 and x.shape[1] > 1:
    return tuple(f'{names[0]}_{k}' for k in range(x.shape[1]))
  return tuple(names)


def _features(
  table: tables.Table, columns: Columns, shape: Sequence[int] | None
) -> np.ndarray:
  """Returns the features [n, ...]: one array column, or scalar columns."""
  names = [c for c in table.columns if c not in columns.names]
  if not names:
    raise federated_data.DataError(
      f'{table.path} has no feature columns beside {columns.names}.'
    )
  parts = [_numbers(table, name) for name in names]
  if len(parts) == 1 and parts[0].ndim > 1:
    x = parts[0]
  else:
    for name, part in zip(names, parts, strict=True):
      if part.ndim != 1:
        raise table.error(
          0, name, f'an array beside other feature columns {names}'
        )
    x = np.stack(parts, axis=1)
  if shape is None:
    return x
  if np.prod(shape) != np.prod(x.shape[1:]):
    raise federated_data.DataError(
      f'{table.path}: feature_shape {tuple(shape)} does not fit '
      f'{x.shape[1:]} features of an example.'
    )
  x = x.reshape(len(x), *shape)
  # Text has no dtypes: whole numbers up to 255 in the shape of an image are
  # pixels, unless they are all 0 and 1.
  if len(shape) == 3 and x.dtype != np.uint8:
    whole = np.array_equal(x, np.clip(np.round(x), 0, 255))
    if whole and x.max(initial=0) > 1:
      return x.astype(np.uint8)
  return x


def _numbers(table: tables.Table, column: str) -> np.ndarray:
  """Returns a feature column as finite float32 or uint8."""
  values = table.columns[column]
  if values.dtype == np.uint8:
    return values
  if values.dtype == object or values.dtype.kind in 'US':
    cells = [_number(table, column, r, v) for r, v in enumerate(values)]
    for row, cell in enumerate(cells):
      if cell.shape != cells[0].shape:
        raise table.error(
          row, column, f'shape {cell.shape}, in the first row {cells[0].shape}'
        )
    values = np.stack(cells)
  if values.dtype.kind not in 'fiub':
    raise table.error(0, column, f'{values.dtype} is not a type of numbers')
  values = values.astype(np.float32)
  finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
  if not finite.all():
    row = int(np.argmin(finite))
    raise table.error(row, column, 'the cell is empty or not a finite number')
  return values


def _number(
  table: tables.Table, column: str, row: int, cell: object
) -> np.ndarray:
  if cell is None or cell == '':
    raise table.error(row, column, 'the cell is empty')
  try:
    return np.asarray(cell, np.float32)
  except (TypeError, ValueError):
    raise table.error(row, column, f'{cell!r} is not a number') from None
