"""Runs of several flag files side by side: what each reached, by round."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import ticker

from research.aggregators import bits
from research.training import atomic, metrics, plots

EPSILON, DELTA, RELATION = 'epsilon', 'delta', 'relation'


@dataclasses.dataclass(frozen=True)
class Line:
  """One line of a comparison: a flag file, with a value of the varied flag.

  Attributes:
    name: Of the flag file.
    value: Of the varied flag; None without one.
    flags: What the runs are given besides the seed.
  """

  name: str
  value: str | None
  flags: tuple[str, ...]

  def run_name(self, seed: int) -> str:
    """The name of a run directory."""
    parts = [self.name, *([self.value] if self.value else []), f'seed{seed}']
    return '_'.join(parts)


def lines(
  files: Sequence[pathlib.Path], flag: str | None, values: Sequence[str]
) -> list[Line]:
  """The lines of a comparison.

  Args:
    files: Flag files with different names.
    flag: That is varied; None is none.
    values: Of it; a file that does not have the flag is run once, without it.

  Returns:
    By file, then by value.
  """
  found = []
  for file in files:
    given = (f'--flagfile={file}',)
    is_varied = flag is not None and f'--{flag}=' in file.read_text()
    for value in values if is_varied else [None]:
      extra = () if value is None else (f'--{flag}={value}',)
      found.append(Line(file.stem, value, given + extra))
  return found


def by_round(
  runs: Mapping[tuple[Line, int], pathlib.Path], metric: str
) -> pd.DataFrame:
  """What the runs reached.

  Args:
    runs: Line and seed to a run directory with a metrics.csv.
    metric: A column of it.

  Returns:
    A row per run and round in which the metric was taken: name, value, seed,
    round, the metric, and epsilon, delta and the neighbouring relation, which
    are NaN and None without privacy.

  Raises:
    ValueError: If a metrics.csv lacks the metric.
  """
  rows = []
  for (line, seed), directory in runs.items():
    relation = _relation(directory)
    for row in metrics.read(directory / 'metrics.csv'):
      if metric not in row:
        raise ValueError(
          f'--metric={metric} is no column of {directory / "metrics.csv"}; '
          f'there are {", ".join(name for name in row if name != "round")}.'
        )
      if row[metric] is not None:
        spent = {name: row.get(name) for name in (EPSILON, DELTA)}
        rows.append(
          {
            'name': line.name,
            'value': line.value,
            'seed': seed,
            'round': row['round'],
            metric: row[metric],
            **{k: math.nan if v is None else v for k, v in spent.items()},
            RELATION: relation,
          }
        )
  return pd.DataFrame(rows)


def _relation(directory: pathlib.Path) -> str | None:
  """Between which neighbours a run's guarantee holds; None without one."""
  path = directory / 'privacy.json'
  return json.loads(path.read_text())[RELATION] if path.exists() else None


def final(found: pd.DataFrame, metric: str) -> pd.DataFrame:
  """The last value of each line: mean and deviation (n - 1) over seeds.

  Args:
    found: Of `by_round`.
    metric: As there.

  Returns:
    A row per line: name, value, seeds, rounds, mean, deviation, epsilon, delta,
    relation.
  """
  last = found.sort_values('round', kind='stable').groupby(
    ['name', 'value', 'seed'], sort=False, dropna=False, as_index=False
  )
  groups = last.tail(1).groupby(['name', 'value'], sort=False, dropna=False)
  return groups.agg(
    seeds=('seed', 'size'),
    rounds=('round', 'max'),
    mean=(metric, 'mean'),
    deviation=(metric, 'std'),
    epsilon=(EPSILON, 'max'),
    delta=(DELTA, 'max'),
    relation=(RELATION, 'first'),
  ).reset_index()


def costs(
  runs: Mapping[tuple[Line, int], pathlib.Path],
) -> pd.DataFrame:
  """What a round of each line costs.

  Args:
    runs: Line and seed to a run directory with metrics.csv and timing.csv.

  Returns:
    A row per line: name, value, megabytes that a client uploads and downloads
    in a round, and the median seconds of a round's training. Seconds compare
    runs that had the machine to themselves.
  """
  rows = []
  for (line, _), directory in runs.items():
    timing = pd.DataFrame(metrics.read(directory / 'timing.csv'))
    last = metrics.read(directory / 'metrics.csv')[-1]
    rows.append(
      {
        'name': line.name,
        'value': line.value,
        'upload_megabytes': _megabytes(last.get(bits.UPLOAD)),
        'download_megabytes': _megabytes(last.get(bits.DOWNLOAD)),
        'seconds_per_round': timing['train_seconds'].median(),
      }
    )
  groups = pd.DataFrame(rows).groupby(
    ['name', 'value'], sort=False, dropna=False
  )
  return groups.median().reset_index()


def _megabytes(number_of_bits: float | None) -> float:
  return math.nan if number_of_bits is None else number_of_bits / 8e6


def constant_class_accuracy(directory: pathlib.Path) -> float | None:
  """Of a run's test data, of whoever names its most frequent class always."""
  config = json.loads((directory / 'config.json').read_text())
  return config.get('constant_class_accuracy')


def table(
  found: pd.DataFrame,
  metric: str,
  rounds: Sequence[int] = (),
  cost: pd.DataFrame | None = None,
) -> str:
  """The comparison as text.

  Args:
    found: Of `by_round`.
    metric: As there.
    rounds: Rounds on the way that get a row each.
    cost: Of `costs`; None leaves them out.

  Returns:
    Rows of rounds for each line, then the last ones.
  """
  text = []
  for (name, value), group in found.groupby(
    ['name', 'value'], sort=False, dropna=False
  ):
    shown = group[group['round'].isin(rounds)]
    if shown.empty:
      continue
    means = shown.groupby('round').agg(
      mean=(metric, 'mean'),
      deviation=(metric, 'std'),
      epsilon=(EPSILON, 'max'),
      delta=(DELTA, 'max'),
    )
    text.append(f'{_title(name, value)}, {metric} by round:')
    text.append(as_text(means.reset_index()))
  text.append(f'{metric} at the end:')
  reached = final(found, metric)
  if cost is not None:
    reached = reached.merge(cost, on=['name', 'value'], how='left')
  text.append(as_text(reached))
  return '\n'.join(text)


def _title(name: str, value: str | None) -> str:
  return name if not isinstance(value, str) else f'{name} {value}'


def as_text(frame: pd.DataFrame) -> str:
  """A frame's rows; columns without any value are left out."""
  frame = frame.dropna(axis='columns', how='all')
  if DELTA in frame:
    deltas = ['-' if math.isnan(x) else f'{x:g}' for x in frame[DELTA]]
    frame = frame.assign(delta=deltas)
  if RELATION in frame:
    frame = frame.fillna({RELATION: '-'})
  return frame.to_string(
    index=False, na_rep='-', float_format=lambda number: f'{number:.4f}'
  )


def draw(
  found: pd.DataFrame,
  metric: str,
  directory: pathlib.Path,
  baseline: float | None = None,
) -> list[pathlib.Path]:
  """Draws the metric by round, and against epsilon where there is any.

  Args:
    found: Of `by_round`.
    metric: As there.
    directory: Where to write comparison.png and privacy.png.
    baseline: What the constant class reaches.

  Returns:
    The files.
  """
  fig, axes = plots.new_figure(f'{metric} by round', 'round', metric)
  for (name, value), group in found.groupby(
    ['name', 'value'], sort=False, dropna=False
  ):
    _band(axes, group, 'round', metric, _title(name, value))
  axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
  _finish(axes, baseline)
  paths = [plots.save(fig, directory / 'comparison.png')]
  private = found.dropna(subset=[EPSILON])
  if not private.empty:
    paths.append(_draw_privacy(found, private, metric, directory, baseline))
  return paths


def _draw_privacy(found, private, metric, directory, baseline):
  deltas = ' to '.join(
    f'{x:g}' for x in sorted({private[DELTA].min(), private[DELTA].max()})
  )
  fig, axes = plots.new_figure(
    f'{metric} against epsilon',
    f'epsilon of a client at delta {deltas}',
    metric,
  )
  for name, group in private.groupby('name', sort=False):
    if group['value'].notna().any():
      # Each value is a run of its own that ends with its epsilon.
      group = (
        group.sort_values('round')
        .groupby(['value', 'seed'], sort=False)
        .tail(1)
      )
      group = group.assign(round=group['value'].astype(float))
    relation = group[RELATION].iloc[0].replace('_', ' ')
    _band(axes, group, EPSILON, metric, f'{name} ({relation})')
  others = found[found[EPSILON].isna()]
  for name, group in others.groupby('name', sort=False):
    reached = final(group, metric)['mean'].iloc[0]
    axes.axhline(reached, color='black', linewidth=1, label=name)
  _finish(axes, baseline)
  return plots.save(fig, directory / 'privacy.png')


def _band(axes, group: pd.DataFrame, x: str, metric: str, label: str) -> None:
  """A line of means over seeds, with a standard deviation around it."""
  by = group.groupby('round')
  across, mean = by[x].mean(), by[metric].mean()
  deviation = np.nan_to_num(by[metric].std())
  (drawn,) = axes.plot(across, mean, marker='o', markersize=3, label=label)
  axes.fill_between(
    across,
    mean - deviation,
    mean + deviation,
    color=drawn.get_color(),
    alpha=0.2,
    linewidth=0,
  )


def _finish(axes, baseline: float | None) -> None:
  if baseline is not None:
    axes.axhline(baseline, color='grey', linestyle=':', label='constant class')
  axes.legend(fontsize=8)


def write(
  found: pd.DataFrame,
  metric: str,
  directory: pathlib.Path,
  cost: pd.DataFrame,
) -> list[pathlib.Path]:
  """Writes by_round.csv, and comparison.csv with the costs."""
  paths = [directory / 'by_round.csv', directory / 'comparison.csv']
  reached = final(found, metric).merge(cost, on=['name', 'value'], how='left')
  for path, frame in zip(paths, (found, reached), strict=True):
    atomic.write_text(path, frame.to_csv(index=False))
  return paths
