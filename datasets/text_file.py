"""The user's own texts: a CSV or JSONL file, or CoNLL columns.

Errors name the file, the row or line and the column.
"""

import dataclasses
import json
import pathlib
import re

import numpy as np

from datasets import (
  federated_data,
  own_file,
  tables,
  text_records,
)

COLUMN_SUFFIXES = ('.conll', '.txt')
_SUFFIXES = ('.csv', '.jsonl', *COLUMN_SUFFIXES)
# The test examples are the same in every run.
_TEST_SEED = 1_810_048


@dataclasses.dataclass(frozen=True)
class Columns:
  """Which columns have a meaning; others are ignored.

  Attributes:
    client: The client id: text or integers.
    text: The text.
    label: The class: integers from 0, or names; None for language models.
    split: 'train', 'validation' or 'test' for each example; None draws a test
      split from each client instead.
  """

  client: str
  text: str
  label: str | None
  split: str | None = None

  @property
  def names(self) -> list[str]:
    """The columns that the file must have."""
    named = (self.client, self.text, self.label, self.split)
    return [name for name in named if name is not None]


def is_columns(file: str) -> bool:
  """Says whether a file's suffix stands for CoNLL columns."""
  return pathlib.Path(file).suffix.lower() in COLUMN_SUFFIXES


def load(
  file: str, columns: Columns, *, test_fraction: float = 0.2
) -> federated_data.FederatedData:
  """Reads a file.

  Args:
    file: Its path; the suffix says the format (.csv, .jsonl, .conll or .txt).
    columns: Which columns are what, in CSV and JSONL. In CoNLL columns the
      first is the word and the last its tag; a blank line ends a sentence, and
      a line -DOCSTART- begins a document, which is a client.
    test_fraction: Share of each client's examples for the test split where no
      column says the split; a fixed choice.

  Returns:
    The data, as `text.load` describes it.

  Raises:
    DataError: If the file is not as described here.
  """
  path = pathlib.Path(file).expanduser()
  suffix = path.suffix.lower()
  if suffix not in _SUFFIXES:
    raise federated_data.DataError(
      f'{path}: the suffix must be one of {", ".join(_SUFFIXES)}, given '
      f'{path.suffix!r}.'
    )
  if not path.is_file():
    raise federated_data.DataError(f'{path}: there is no such file.')
  if suffix in COLUMN_SUFFIXES:
    return _load_columns(path, test_fraction)
  if suffix == '.csv':
    table = tables.read(path, columns.names)
  else:
    table = _read_jsonl(path, columns.names)
  for column in columns.names:
    if column not in table.columns:
      raise federated_data.DataError(
        f'{path} has no column {column!r}; it has {sorted(table.columns)}.'
      )
  return _load_table(path, table, columns, test_fraction)


def _load_table(
  path: pathlib.Path,
  table: tables.Table,
  columns: Columns,
  test_fraction: float,
) -> federated_data.FederatedData:
  texts = table.columns[columns.text].tolist()
  for row, text in enumerate(texts):
    if not isinstance(text, str):
      raise table.error(row, columns.text, f'{text!r} is not text')
    if not text.strip():
      raise table.error(row, columns.text, 'the cell is empty')
  labels, class_names = np.zeros(len(texts), np.int32), ()
  if columns.label is not None:
    labels, class_names = own_file.label_column(table, columns.label)
  rows = own_file.rows_by_split(
    table,
    own_file.text_column(table, columns.client),
    columns.split,
    test_fraction,
  )
  arrays = {'x': text_records.objects(texts), 'y': labels}
  return own_file.federated(path, arrays, rows, class_names)


def _load_columns(
  path: pathlib.Path, test_fraction: float
) -> federated_data.FederatedData:
  texts, tags, clients = read_columns(path)
  names = sorted({tag for sentence in tags for tag in sentence}, key=_tag_order)
  labels = [names.index(tag) for sentence in tags for tag in sentence]
  records = text_records.Records.of(texts, labels, clients)
  arrays = text_records.examples(records, text_records.TAGGING)
  documents = text_records.group(clients, np.arange(len(texts)))
  rows = own_file.hold_out(documents, test_fraction, _TEST_SEED)
  return own_file.federated(path, arrays, rows, tuple(names))


def read_columns(
  path: pathlib.Path,
) -> tuple[list[str], list[list[str]], list[str]]:
  """Reads CoNLL columns.

  Args:
    path: The file.

  Returns:
    The sentences, their words joined by one space; their tags; the documents
    that they are of.

  Raises:
    DataError: If a line has another number of columns than the first.
  """
  texts, tags, documents = [], [], []
  words, of_words, document, width = [], [], 1, None
  for number, line in enumerate([*_lines(path), ''], 1):
    cells = [cell for cell in re.split(r'[ \t]+', line.strip()) if cell]
    starts = bool(cells) and cells[0] == '-DOCSTART-'
    if words and (starts or not cells):
      texts.append(' '.join(words))
      tags.append(of_words)
      documents.append(f'document_{document:04d}')
      words, of_words = [], []
    if starts:
      document += bool(texts)
    elif cells:
      width = width or len(cells)
      if len(cells) != width or width < 2:
        right = f'{width} as before' if width > 1 else 'a word and a tag'
        raise federated_data.DataError(
          f'{path}, line {number}: {len(cells)} columns where {right} would be '
          'right.'
        )
      words.append(cells[0])
      of_words.append(cells[-1])
  if not texts:
    raise federated_data.DataError(f'{path} has no sentence.')
  return texts, tags, documents


def _tag_order(tag: str) -> tuple:
  """Puts 'O' first, and B-X and I-X of one type side by side."""
  begins = re.fullmatch(r'([BI])-(.+)', tag)
  kind, part = (begins[2], begins[1]) if begins else (tag, '')
  return tag != 'O', kind, part


def _lines(path: pathlib.Path) -> list[str]:
  try:
    return path.read_text('utf-8-sig').split('\n')
  except UnicodeDecodeError as error:
    raise federated_data.DataError(
      f'{path} cannot be read as UTF-8: {error}'
    ) from error


def _read_jsonl(path: pathlib.Path, names: list[str]) -> tables.Table:
  """Reads the named members of one JSON object a line."""
  cells = {name: [] for name in names}
  numbers = []
  for number, line in enumerate(_lines(path), 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except json.JSONDecodeError as error:
      raise federated_data.DataError(
        f'{path}, line {number}: is not JSON: {error}'
      ) from error
    if not isinstance(row, dict):
      raise federated_data.DataError(
        f'{path}, line {number}: must be a JSON object, given {line.strip()!r}.'
      )
    for name in names:
      if name not in row:
        raise federated_data.DataError(
          f'{path}, line {number}, column {name!r}: is not there; the line has '
          f'{sorted(row)}.'
        )
      cells[name].append(row[name])
    numbers.append(number)
  if not numbers:
    raise federated_data.DataError(f'{path} has no row.')
  columns = {k: text_records.objects(values) for k, values in cells.items()}
  return tables.Table(path, columns, lambda row: f'line {numbers[row]}')
