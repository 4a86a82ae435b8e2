"""Exported forms of compared runs: what each keeps of what was trained."""

import json
import pathlib
from collections.abc import Mapping, Sequence

import pandas as pd

from research.sweeps import comparison
from research.training import atomic, plots

_LINE = ['name', 'value']
TRAINED = 'trained'


def missing(
  runs: Mapping[str, pathlib.Path], names: Sequence[str]
) -> dict[str, pathlib.Path]:
  """The runs that lack a report on some form.

  Args:
    runs: Run directories by name.
    names: Keys of `research.export.forms.FORMS`.
  """
  return {
    run: directory
    for run, directory in runs.items()
    if not all(_report(directory, name).exists() for name in names)
  }


def read(
  runs: Mapping[tuple[comparison.Line, int], pathlib.Path],
  names: Sequence[str],
) -> pd.DataFrame:
  """What each form of each run reached on the test examples.

  Args:
    runs: Line and seed to a run directory with reports on forms.
    names: Of the forms.

  Returns:
    A row per run and form, and one with the form `trained` for the model that
    they were made of: name, value, seed, form, quality (accuracy, or RMSE for
    numbers), megabytes (10^6 bytes) as it is and after gzip, and whether the
    form passed its check.
  """
  rows = []
  for (line, seed), directory in runs.items():
    row = {'name': line.name, 'value': line.value, 'seed': seed}
    for name in names:
      report = json.loads(_report(directory, name).read_text())
      if name == names[0]:
        trained = {'form': TRAINED, 'quality': _quality(report, 'model_')}
        rows.append({**row, **trained, 'passed': True})
      rows.append(
        {
          **row,
          'form': name,
          'quality': _quality(report),
          'megabytes': report.get('bytes', float('nan')) / 1e6,
          'gzip_megabytes': report.get('gzip_bytes', float('nan')) / 1e6,
          'passed': report['passed'],
        }
      )
  return pd.DataFrame(rows)


def final(found: pd.DataFrame) -> pd.DataFrame:
  """Means over seeds, with standard deviations (n - 1).

  Args:
    found: Of `read`.

  Returns:
    A row per line and form: name, value, form, seeds, mean, deviation,
    megabytes, megabytes after gzip, and how many failed their check.
  """
  return (
    found.groupby([*_LINE, 'form'], sort=False, dropna=False)
    .agg(
      seeds=('seed', 'size'),
      mean=('quality', 'mean'),
      deviation=('quality', 'std'),
      megabytes=('megabytes', 'mean'),
      gzip_megabytes=('gzip_megabytes', 'mean'),
      failed=('passed', lambda passed: int((~passed).sum())),
    )
    .reset_index()
  )


def write(found: pd.DataFrame, directory: pathlib.Path) -> pathlib.Path:
  """Writes forms.csv with the means over seeds."""
  path = directory / 'forms.csv'
  atomic.write_text(path, final(found).to_csv(index=False))
  return path


def draw(
  found: pd.DataFrame, flag: str, directory: pathlib.Path
) -> pathlib.Path | None:
  """Draws each form's quality against the flag that was varied.

  Args:
    found: Of `read`.
    flag: Whose values the lines have; they must be numbers.
    directory: Where to write forms.png.

  Returns:
    The file; None without such values.
  """
  varied = found.dropna(subset=['value'])
  if varied.empty:
    return None
  fig, axes = plots.new_figure(f'quality against {flag}', flag, 'test accuracy')
  reached = final(varied)
  for (name, form), group in reached.groupby(['name', 'form'], sort=False):
    group = group.assign(value=group['value'].astype(float))
    group = group.sort_values('value')
    axes.errorbar(
      group['value'],
      group['mean'],
      group['deviation'].fillna(0),
      marker='o',
      capsize=3,
      label=f'{name}, {form}',
    )
  for (name, form), group in final(found[found['value'].isna()]).groupby(
    ['name', 'form'], sort=False
  ):
    axes.axhline(
      group['mean'].iloc[0],
      linestyle=':',
      color='grey',
      label=f'{name}, {form}',
    )
  axes.set_xticks(sorted(reached['value'].astype(float).unique()))
  axes.legend(fontsize=8)
  return plots.save(fig, directory / 'forms.png')


def _report(directory: pathlib.Path, name: str) -> pathlib.Path:
  return directory / 'forms' / f'{name}.json'


def _quality(report: Mapping[str, float], prefix: str = '') -> float:
  keys = f'{prefix}accuracy', f'{prefix}rmse'
  return next((report[k] for k in keys if k in report), float('nan'))
