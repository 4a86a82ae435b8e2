"""What a sweep varies: lists and ranges of flag values.

A cell is one choice, a dict from flag name to the text of its value. Texts are
what goes on a command line, so equal cells are equal runs.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np
from absl import flags

Cell = dict[str, str]

FORMS = (
  'NAME=0.01,0.1,1 (a list), NAME=log:0.001:1:4 (four values from 0.001 to 1 '
  'at equal ratios), NAME=linear:0:0.9:10 (at equal distances); without the '
  'number of values it is a range to draw from, for --search=random or bayesian'
)
_NAME = re.compile(r'[A-Za-z_]\w*')
_RANGES = ('log', 'linear')
# Digits of a value drawn from a range: enough to tune, and short to read.
_DRAWN_DIGITS = 4
# Makes two different words as far apart as the two ends of a range.
_ONE_HOT = 1 / np.sqrt(2)


@dataclasses.dataclass(frozen=True)
class Dimension:
  """One swept flag.

  Attributes:
    name: Of the flag.
    spec: Its values as the user wrote them.
    texts: All its values; None if it is a range to draw from.
    scale: list, log or linear.
    low: Least value of a range.
    high: Greatest value of a range.
    count: Number of values of a range, or None.
    kind: Of its values: float, int, or text for everything else.
  """

  name: str
  spec: str
  texts: tuple[str, ...] | None
  scale: str = 'list'
  low: float = 0.0
  high: float = 0.0
  count: int | None = None
  kind: str = 'text'

  @property
  def examples(self) -> tuple[str, ...]:
    """Values as the user wrote them, of a range its ends."""
    if self.scale == 'list':
      return self.texts
    return tuple(self.spec.split(':')[1:3])

  @property
  def is_number(self) -> bool:
    """Whether its values are numbers."""
    return self.kind != 'text'

  def value(self, position: float) -> str:
    """The value at a position of a range, from 0 (low) to 1 (high)."""
    if self.scale == 'log':
      number = self.low ** (1 - position) * self.high**position
    else:
      number = self.low + position * (self.high - self.low)
    digits = _DRAWN_DIGITS if self.count is None else 6
    return _text(min(max(number, self.low), self.high), self.kind, digits)

  def position(self, text: str) -> float:
    """The inverse of `value`; of a list of numbers, the rank from 0 to 1."""
    if self.scale == 'list':
      ordered = sorted(self.texts, key=float)
      return ordered.index(text) / max(len(ordered) - 1, 1)
    number, low, high = float(text), self.low, self.high
    if self.scale == 'log':
      number, low, high = np.log([number, low, high])
    return float((number - low) / (high - low))

  def features(self, text: str) -> list[float]:
    """Coordinates for a model: a position, or one per word (one-hot)."""
    if self.is_number:
      return [self.position(text)]
    return [_ONE_HOT * (text == word) for word in self.texts]

  def draw(self, rng: np.random.Generator) -> str:
    """Draws a value; of a range by its scale."""
    position = rng.uniform()
    if self.texts is None:
      return self.value(position)
    return self.texts[int(position * len(self.texts))]

  def near(self, text: str, rng: np.random.Generator) -> str:
    """Draws a value that is, mostly, near another or the same."""
    step, jump = rng.normal(0.0, 0.1), rng.uniform() < 0.2
    if self.texts is None:
      return self.value(float(np.clip(self.position(text) + step, 0, 1)))
    return self.draw(rng) if jump else text


def _text(number: float, kind: str, digits: int) -> str:
  return str(round(number)) if kind == 'int' else f'{number:.{digits}g}'


def _wrong(entry: str, what: str) -> flags.IllegalFlagValueError:
  return flags.IllegalFlagValueError(f'--grid={entry}: {what}. Write {FORMS}.')


def parse(grid: Sequence[str]) -> tuple[Dimension, ...]:
  """Reads `--grid`; what kind of value a flag takes is not known yet.

  Args:
    grid: One text per swept flag, in one of `FORMS`.

  Returns:
    The swept flags in order.

  Raises:
    flags.IllegalFlagValueError: If a text has another form, or a flag or value
      comes twice.
  """
  if not grid:
    raise flags.IllegalFlagValueError(f'--grid is missing. Write {FORMS}.')
  dimensions = [_dimension(entry) for entry in grid]
  for first, second in itertools.combinations(dimensions, 2):
    if first.name == second.name:
      raise _wrong(second.spec, f'--{second.name} is already swept')
  return tuple(dimensions)


def _dimension(entry: str) -> Dimension:
  name, equals, spec = entry.partition('=')
  if not equals or not _NAME.fullmatch(name):
    raise _wrong(entry, 'it is not a flag name with its values')
  if spec.partition(':')[0] in _RANGES:
    return _range(entry, name, spec)
  texts = tuple(text.strip() for text in spec.split(','))
  if not all(texts):
    raise _wrong(entry, 'a value is empty')
  return Dimension(name, spec, _distinct(entry, texts))


def _distinct(entry: str, texts: tuple[str, ...]) -> tuple[str, ...]:
  if len(set(texts)) < len(texts):
    raise _wrong(entry, 'a value comes twice')
  return texts


def _range(entry: str, name: str, spec: str) -> Dimension:
  scale, *parts = spec.split(':')
  try:
    low, high = map(float, parts[:2])
    count = int(parts[2]) if parts[2:] else None
  except ValueError as error:
    raise _wrong(entry, 'a range is two numbers and how many') from error
  if len(parts) > 3 or not -np.inf < low < high < np.inf:
    raise _wrong(entry, 'a range goes from a number to a greater one')
  if scale == 'log' and low <= 0:
    raise _wrong(entry, 'a logarithmic range is above 0')
  if count is not None and count < 2:
    raise _wrong(entry, 'a range has at least 2 values')
  return Dimension(name, spec, None, scale, low, high, count)


def typed(dimension: Dimension, flag_type: str) -> Dimension:
  """Gives a dimension its kind, its values one form, and a range its values.

  Args:
    dimension: Whose `examples` the flag takes.
    flag_type: As absl names it.

  Returns:
    The dimension.

  Raises:
    flags.IllegalFlagValueError: If the flag takes no numbers but has a range,
      or two values are the same number.
  """
  entry = f'{dimension.name}={dimension.spec}'
  kind = flag_type if flag_type in ('int', 'float') else 'text'
  result = dataclasses.replace(dimension, kind=kind)
  if dimension.scale == 'list':
    if kind != 'text':
      texts = tuple(_text(float(t), kind, 12) for t in dimension.texts)
      result = dataclasses.replace(result, texts=_distinct(entry, texts))
  elif kind == 'text':
    raise _wrong(entry, f'--{dimension.name} takes no numbers: give a list')
  elif dimension.count is not None:
    positions = np.linspace(0, 1, dimension.count)
    texts = tuple(dict.fromkeys(map(result.value, positions)))
    result = dataclasses.replace(result, texts=texts)
  return result


@dataclasses.dataclass(frozen=True)
class Space:
  """All cells of a sweep."""

  dimensions: tuple[Dimension, ...]

  @property
  def size(self) -> int | None:
    """How many cells there are; None if a range is drawn from."""
    if any(d.texts is None for d in self.dimensions):
      return None
    return int(np.prod([len(d.texts) for d in self.dimensions]))

  def all_cells(self) -> list[Cell]:
    """Every cell, the last flag varying fastest.

    Raises:
      flags.IllegalFlagValueError: If a range has no number of values.
    """
    for d in self.dimensions:
      if d.texts is None:
        raise _wrong(
          f'{d.name}={d.spec}', 'a grid needs the number of values, as in :5'
        )
    names = [d.name for d in self.dimensions]
    return [
      dict(zip(names, texts, strict=True))
      for texts in itertools.product(*(d.texts for d in self.dimensions))
    ]

  def draw(self, rng: np.random.Generator) -> Cell:
    """Draws a cell; every flag independently."""
    return {d.name: d.draw(rng) for d in self.dimensions}

  def near(self, cell: Mapping[str, str], rng: np.random.Generator) -> Cell:
    """Draws a cell near another."""
    return {d.name: d.near(cell[d.name], rng) for d in self.dimensions}

  def features(self, cells: Sequence[Mapping[str, str]]) -> np.ndarray:
    """Coordinates of cells, a float array [cell, feature]."""
    rows = [
      [x for d in self.dimensions for x in d.features(cell[d.name])]
      for cell in cells
    ]
    return np.array(rows, dtype=float)
