"""A CSV file with one row per round that survives kills and resumes.

Equal runs write equal bytes: numbers are written by `repr`, and nothing but
the row goes into the file. A row is appended before the checkpoint of its
round is saved; after a resume `truncate_after` the restored round takes away
what the killed process had written beyond it.
"""

import csv
import io
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from research.training import atomic, fault_injection

_reached = fault_injection.reached

_INTEGER = re.compile(r'-?\d+')

Cell = int | float | str | None


class MetricsCsv:
  """Writes one CSV file whose first column is `round`."""

  def __init__(self, path: atomic.Path, columns: Sequence[str]):
    """Opens the file, or starts it with its header.

    A last line that a kill has torn is removed.

    Args:
      path: The file.
      columns: The names of the columns, the first of which is `round`.

    Raises:
      ValueError: If `columns` is not like that, or the file has others.
    """
    self._path = pathlib.Path(path)
    self._columns = tuple(columns)
    if self._columns[:1] != ('round',):
      raise ValueError(f'the first column must be "round", given {columns}')
    if len(set(self._columns)) < len(self._columns):
      raise ValueError(f'a column is named twice in {columns}')
    header = _line(self._columns)
    if not self._path.exists():
      atomic.write_bytes(self._path, header)
    found = _complete_lines(self._path)
    if found[:1] != [header]:
      raise ValueError(
        f'{self._path} has the columns {found[:1]}, not {header}: it belongs '
        'to another version or run'
      )
    self._last_round = -1
    self._keep(found, limit=None)

  @property
  def path(self) -> pathlib.Path:
    """The file."""
    return self._path

  @property
  def last_round(self) -> int:
    """The round of the last row, or -1 when there is none."""
    return self._last_round

  def append(self, row: Mapping[str, object]) -> None:
    """Appends a row; it is on disk when this returns.

    Args:
      row: The value of each column: an int, float, bool, NumPy scalar, text of
        one line, or None. A column that is not given stays empty.

    Raises:
      ValueError: If `row` has an unknown column, or text of several lines, or
        its round does not come after the last one.
    """
    unknown = [name for name in row if name not in self._columns]
    if unknown:
      raise ValueError(
        f'{self._path} has no column {unknown}; it has {self._columns}'
      )
    round_num = int(row['round'])
    if round_num <= self._last_round:
      raise ValueError(
        f'{self._path} already has round {self._last_round}, given round '
        f'{round_num}: call truncate_after the restored round first'
      )
    line = _line([_text(row.get(name)) for name in self._columns])
    middle = len(line) // 2
    with open(self._path, 'ab', buffering=0) as file:
      file.write(line[:middle])
      _reached('metrics_row')
      file.write(line[middle:])
      os.fsync(file.fileno())
    self._last_round = round_num

  def truncate_after(self, round_num: int) -> None:
    """Keeps the rows of rounds up to `round_num`, byte for byte."""
    self._keep(_complete_lines(self._path), round_num)

  def _keep(self, lines: Sequence[bytes], limit: int | None) -> None:
    rounds = [_round_of(line, self._path) for line in lines[1:]]
    kept = [r for r in rounds if limit is None or r <= limit]
    content = b''.join(lines[: len(kept) + 1])
    if content != self._path.read_bytes():
      atomic.write_bytes(self._path, content)
    self._last_round = kept[-1] if kept else -1


def last_round(path: atomic.Path) -> int:
  """The last round that such a file tells of; 0 if it has none or isn't there.

  Args:
    path: The file.
  """
  rows = read(path) if pathlib.Path(path).exists() else []
  return rows[-1]['round'] if rows else 0


def read(path: atomic.Path) -> list[dict[str, Cell]]:
  """Reads the complete rows of such a file, also while it is being written.

  Args:
    path: The file.

  Returns:
    One dict per row: column to int, float, text, or None for an empty cell.
  """
  lines = _complete_lines(pathlib.Path(path))
  text = b''.join(lines).decode('utf-8')
  return [
    {name: _value(cell) for name, cell in row.items()}
    for row in csv.DictReader(io.StringIO(text))
  ]


def _complete_lines(path: pathlib.Path) -> list[bytes]:
  lines = path.read_bytes().splitlines(keepends=True)
  return [line for line in lines if line.endswith(b'\n')]


def _round_of(line: bytes, path: pathlib.Path) -> int:
  try:
    return int(line.split(b',')[0])
  except ValueError as error:
    raise ValueError(f'{path} has a row without a round: {line!r}') from error


def _line(cells: Sequence[str]) -> bytes:
  buffer = io.StringIO()
  csv.writer(buffer, lineterminator='\n').writerow(cells)
  return buffer.getvalue().encode('utf-8')


def _text(value: object) -> str:
  if value is None:
    return ''
  if isinstance(value, str):
    if value and value.splitlines() != [value]:
      raise ValueError(f'a cell must be one line of text, given {value!r}')
    return value
  # repr is the shortest text that reads back as the same float64.
  value = np.asarray(value).item()
  return repr(float(value) if isinstance(value, float) else int(value))


def _value(cell: str) -> Cell:
  if not cell:
    return None
  if _INTEGER.fullmatch(cell):
    return int(cell)
  try:
    return float(cell)
  except ValueError:
    return cell
