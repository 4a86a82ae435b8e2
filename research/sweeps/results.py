"""What came out of a sweep: scores, the table, and the best flags."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from absl import flags

from research.sweeps import space as space_lib

# In this order: choosing on test data makes the test result too good.
_DEFAULTS = (
  'validation_accuracy',
  'test_accuracy',
  'validation_loss',
  'test_loss',
)
LAST, BEST = SCORES = ('last', 'best')
MAX, MIN = GOALS = ('max', 'min')


@dataclasses.dataclass(frozen=True)
class Criterion:
  """What makes a run good.

  Attributes:
    metric: Column of metrics.csv; by default accuracy on validation data, or on
      test data where there are none.
    goal: max or min; by default min for a loss.
    score: `last` is the value of the last round, `best` the best of all rounds.
  """

  metric: str | None
  goal: str | None
  score: str

  def resolve(self, columns: Sequence[str]) -> 'Criterion':
    """Fills in the defaults.

    Args:
      columns: Of metrics.csv.

    Returns:
      A criterion without None.

    Raises:
      flags.IllegalFlagValueError: If there is no such column.
    """
    metric = self.metric or next((n for n in _DEFAULTS if n in columns), None)
    if metric not in columns or metric == 'round':
      given = f'={metric}' if metric else ' is not given and has no default'
      raise flags.IllegalFlagValueError(
        f'--metric{given}: choose a column of metrics.csv: '
        f'{", ".join(name for name in columns if name != "round")}.'
      )
    goal = self.goal or (MIN if metric.endswith('loss') else MAX)
    return Criterion(metric, goal, self.score)

  def of(self, rows: Sequence[Mapping[str, object]]) -> float:
    """Scores the rows of a finished run's metrics.csv.

    Args:
      rows: At least one, of the metrics module's `read`.

    Returns:
      The score; NaN if the run diverged: its last value is not finite or
      missing or, for `best`, no value is finite.
    """
    values = [_number(row.get(self.metric)) for row in rows]
    if self.score == LAST:
      return values[-1] if math.isfinite(values[-1]) else math.nan
    finite = [value for value in values if math.isfinite(value)]
    best = max if self.goal == MAX else min
    return best(finite, default=math.nan)

  def gain(self, score: float) -> float:
    """The score, or its negative, so that more is better."""
    return score if self.goal == MAX else -score


def _number(cell: object) -> float:
  if cell is None:
    return math.nan
  if isinstance(cell, str):
    raise flags.IllegalFlagValueError(
      f'--metric: {cell!r} is not a number; choose another column.'
    )
  return float(cell)


@dataclasses.dataclass(frozen=True)
class Result:
  """A cell and what its runs gave.

  Attributes:
    cell: The swept flags.
    scores: Of each seed; NaN if the run diverged, None without a result.
    failed: Seeds whose run failed.
  """

  cell: space_lib.Cell
  scores: dict[int, float | None]
  failed: tuple[int, ...] = ()

  @property
  def status(self) -> str:
    """finished, diverged, failed, or unfinished."""
    if self.failed:
      return 'failed'
    if None in self.scores.values():
      return 'unfinished'
    return 'finished' if math.isfinite(self.mean) else 'diverged'

  @property
  def mean(self) -> float:
    """Mean over seeds; NaN if one diverged or has no result."""
    return float(np.mean([_or_nan(v) for v in self.scores.values()]))

  @property
  def deviation(self) -> float | None:
    """Standard deviation over seeds (n - 1); None if it is not defined."""
    if len(self.scores) < 2 or not math.isfinite(self.mean):
      return None
    return statistics.stdev(self.scores.values())


def best_index(results: Sequence[Result], criterion: Criterion) -> int | None:
  """The cell with the best mean, of equal ones the first; None if none has."""
  finished = [i for i, r in enumerate(results) if r.status == 'finished']
  return max(
    finished, key=lambda i: criterion.gain(results[i].mean), default=None
  )


def table(results: Sequence[Result], criterion: Criterion) -> pd.DataFrame:
  """One row per cell, in the order of cells.

  Args:
    results: At least one.
    criterion: Resolved.

  Returns:
    Columns: cell, each swept flag, the metric's mean and standard deviation
    over seeds, the seeds and their values, status, and best, which marks one.
  """
  best = best_index(results, criterion)
  rows = [
    {
      'cell': index,
      **result.cell,
      f'{criterion.metric}_mean': result.mean,
      f'{criterion.metric}_std': _or_nan(result.deviation),
      'seeds': ' '.join(map(str, result.scores)),
      'values': ' '.join(map(_shown, result.scores.values())),
      'status': result.status,
      'best': 'best' if index == best else '',
    }
    for index, result in enumerate(results)
  ]
  return pd.DataFrame(rows)


def _or_nan(value: float | None) -> float:
  return math.nan if value is None else value


def _shown(score: float | None) -> str:
  return '-' if score is None else repr(score)


def ranking(frame: pd.DataFrame, criterion: Criterion) -> str:
  """The table as text, best cell first, what has no mean last."""
  ordered = frame.sort_values(
    f'{criterion.metric}_mean',
    ascending=criterion.goal == MIN,
    kind='stable',
    na_position='last',
  ).drop(columns='values')
  return ordered.to_string(
    index=False, na_rep='-', float_format=lambda value: f'{value:.6g}'
  )


def flag_file(
  binary: str,
  result: Result,
  criterion: Criterion,
  shared: Sequence[str],
) -> str:
  """The best cell as a flag file.

  Args:
    binary: Its module.
    result: The cell.
    criterion: Resolved.
    shared: Lines with the flags of all cells.

  Returns:
    The text; comments say what was reached.
  """
  spread = '' if result.deviation is None else f' +- {result.deviation:.4g}'
  seeds = ', '.join(map(str, result.scores))
  return '\n'.join(
    [
      f'# python -m {binary} --flagfile=THIS_FILE',
      f'# {criterion.metric} ({criterion.score}) {result.mean:.6g}{spread}, '
      f'best of a sweep; seeds {seeds}',
      *shared,
      *(f'--{name}={text}' for name, text in result.cell.items()),
      '',
    ]
  )
