"""Pictures of a regression: coefficients, residuals and client drift."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from research.training import atomic, plots

_MOST_COEFFICIENTS = 40
_MOST_POINTS = 5_000


def coefficients(table: pd.DataFrame, path: atomic.Path) -> pathlib.Path:
  """Draws trained coefficients beside the pooled ones, with two errors.

  Args:
    table: Of `regression_report.coefficients`; intercepts are left out, and
      all but the largest coefficients if there are many.
    path: The PNG file.

  Returns:
    The path of the file.
  """
  table = table[table['feature'] != '(intercept)']
  order = table['coefficient'].abs().sort_values(ascending=False, kind='stable')
  shown = table.loc[sorted(order.index[:_MOST_COEFFICIENTS])]
  names = shown['feature']
  if table['output'].nunique() > 1:
    names = shown['output'] + ': ' + names
  title = 'Coefficients, standardised'
  if len(shown) < len(table):
    title = f'The {len(shown)} largest of {len(table)} coefficients'
  fig, axes = plots.new_figure(
    title, 'coefficient', '', height=max(3.6, 1.6 + 0.25 * len(shown))
  )
  rows = np.arange(len(shown))
  axes.errorbar(
    shown['pooled_coefficient'],
    rows,
    xerr=2 * shown['standard_error'].fillna(0),
    fmt='o',
    markersize=9,
    markerfacecolor='none',
    color='black',
    label='pooled solution, two standard errors',
  )
  axes.plot(shown['coefficient'], rows, '.', color='#1f77b4', label='federated')
  axes.axvline(0, color='grey', linewidth=0.8)
  axes.set_yticks(rows, names)
  axes.invert_yaxis()
  axes.legend()
  return plots.save(fig, path)


def residuals(
  predicted: np.ndarray,
  y: np.ndarray,
  names: Sequence[str],
  path: atomic.Path,
) -> pathlib.Path:
  """Draws residuals against predictions.

  Args:
    predicted: [n, targets].
    y: [n, targets]; of many examples some at equal distances are drawn.
    names: Of the targets.
    path: The PNG file.

  Returns:
    The path of the file.
  """
  fig, axes = plots.new_figure(
    f'Residuals of {len(y):,} test examples',
    'prediction',
    'target - prediction',
  )
  size = min(len(y), _MOST_POINTS)
  chosen = np.linspace(0, len(y) - 1, size).astype(int)
  for k, name in enumerate(names):
    axes.plot(
      predicted[chosen, k],
      (y - predicted)[chosen, k],
      '.',
      alpha=0.5,
      label=name,
    )
  axes.axhline(0, color='black', linewidth=0.8)
  axes.legend()
  return plots.save(fig, path)


def drift(distances: Mapping[int, float], path: atomic.Path) -> pathlib.Path:
  """Draws how far FedAvg ends from the pooled solution.

  Args:
    distances: The largest difference of a coefficient by local steps.
    path: The PNG file.

  Returns:
    The path of the file.
  """
  fig, axes = plots.new_figure(
    'Client drift: where FedAvg ends, by algebra',
    'full-batch local steps of a round',
    'largest difference from the pooled solution',
  )
  axes.plot(list(distances), list(distances.values()), 'o-', color='#1f77b4')
  axes.set_xscale('log')
  return plots.save(fig, path)
