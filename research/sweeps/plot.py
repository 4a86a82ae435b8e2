"""Draws a sweep: a heat map of two flags, or points where there is no grid."""

import io
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import cm, colors, figure, patheffects

from research.sweeps import results as results_lib
from research.sweeps import space as space_lib
from research.training import atomic

_DPI = 150
_WIDE = 30
_DIVERGED = '#bbbbbb'
_HOW = {results_lib.LAST: 'last round', results_lib.BEST: 'best round'}


def draw(
  space: space_lib.Space,
  found: Sequence[results_lib.Result],
  criterion: results_lib.Criterion,
  path: pathlib.Path,
) -> pathlib.Path:
  """Draws the means of all cells over the first one or two flags.

  Args:
    space: All cells.
    found: What there is of each cell.
    criterion: Resolved.
    path: The PNG file.

  Returns:
    The path.
  """
  fig = figure.Figure(figsize=(7, 5), layout='constrained')
  axes = fig.subplots()
  axes.set_title(f'{criterion.metric}, {_HOW[criterion.score]}')
  dimensions = space.dimensions
  if len(dimensions) == 1:
    _curve(axes, dimensions[0], found, criterion)
  elif all(d.texts is not None for d in dimensions[:2]):
    _heat_map(fig, axes, dimensions[:2], found, criterion)
    if len(dimensions) > 2:
      others = ', '.join(d.name for d in dimensions[2:])
      axes.set_title(f'{axes.get_title()}, best of {others}')
  else:
    _points(fig, axes, dimensions[:2], found, criterion)
  buffer = io.BytesIO()
  fig.savefig(buffer, format='png', dpi=_DPI)
  atomic.write_bytes(path, buffer.getvalue())
  return path


def best_of_rest(
  names: tuple[str, str],
  found: Sequence[results_lib.Result],
  criterion: results_lib.Criterion,
) -> Mapping[tuple[str, str], results_lib.Result]:
  """The best cell for each pair of values of two flags.

  Args:
    names: The two flags.
    found: What there is of each cell.
    criterion: Resolved.

  Returns:
    By the pair of values, the best finished cell, or the first one if there is
    none.
  """
  groups: dict[tuple[str, str], list[results_lib.Result]] = {}
  for result in found:
    pair = tuple(result.cell[name] for name in names)
    groups.setdefault(pair, []).append(result)
  return {
    pair: group[results_lib.best_index(group, criterion) or 0]
    for pair, group in groups.items()
  }


def _ticks(dimension: space_lib.Dimension) -> list[str]:
  if dimension.is_number:
    return sorted(dimension.texts, key=float)
  return list(dimension.texts)


def _colours(
  found: Sequence[results_lib.Result], criterion: results_lib.Criterion
) -> cm.ScalarMappable:
  """Bright is good; a loss over orders of magnitude gets a log scale."""
  means = [r.mean for r in found if r.status == 'finished'] or [0.0, 1.0]
  low, high = min(means), max(means)
  if criterion.goal == results_lib.MIN and 0 < _WIDE * low < high:
    norm = colors.LogNorm(low, high)
  else:
    norm = colors.Normalize(low, high)
  name = 'viridis' if criterion.goal == results_lib.MAX else 'viridis_r'
  return cm.ScalarMappable(norm, name)


def _heat_map(fig, axes, dimensions, found, criterion) -> None:
  down, across = dimensions
  rows, columns = _ticks(down), _ticks(across)
  shown = best_of_rest((down.name, across.name), found, criterion)
  best = results_lib.best_index(found, criterion)
  colours = _colours(found, criterion)
  pixels = np.ones([len(rows), len(columns), 4])
  for (row, column), result in shown.items():
    y, x = rows.index(row), columns.index(column)
    finished = result.status == 'finished'
    if finished:
      pixels[y, x] = colours.to_rgba(result.mean)
    elif result.status == 'diverged':
      pixels[y, x] = colors.to_rgba(_DIVERGED)
    is_best = best is not None and result is found[best]
    bright = pixels[y, x, :3] @ [0.3, 0.6, 0.1] > 0.5
    axes.text(
      x,
      y,
      _value(result) if finished else result.status,
      ha='center',
      va='center',
      size=(11 if is_best else 9) if finished else 7,
      weight='bold' if is_best else 'normal',
      color='black' if bright else 'white',
    )
  axes.imshow(pixels, aspect='auto', interpolation='none', origin='lower')
  axes.set_xticks(range(len(columns)), columns)
  axes.set_yticks(range(len(rows)), rows)
  axes.set_xlabel(across.name)
  axes.set_ylabel(down.name)
  fig.colorbar(colours, ax=axes, label=criterion.metric)


def _value(result: results_lib.Result) -> str:
  spread = result.deviation
  return f'{result.mean:.4g}' + ('' if spread is None else f'\n±{spread:.2g}')


def _coordinates(
  axes,
  which: str,
  dimension: space_lib.Dimension,
  found: Sequence[results_lib.Result],
) -> list[float]:
  """Where cells are on the x or y axis, which is scaled and labelled here."""
  texts = [result.cell[dimension.name] for result in found]
  axes.set(**{f'{which}label': dimension.name})
  if not dimension.is_number:
    words = list(dimension.texts)
    axes.set(
      **{f'{which}ticks': range(len(words)), f'{which}ticklabels': words}
    )
    return [words.index(text) for text in texts]
  numbers = [float(text) for text in texts]
  low, high = min(numbers), max(numbers)
  if dimension.scale == 'log' or 0 < _WIDE * low < high:
    axes.set(**{f'{which}scale': 'log'})
  return numbers


def _curve(axes, dimension, found, criterion) -> None:
  """One flag: the mean with its deviation over seeds."""
  finished = [r for r in found if r.status == 'finished']
  if not finished:
    return
  x = _coordinates(axes, 'x', dimension, finished)
  order = np.argsort(x, kind='stable')
  means = [finished[i].mean for i in order]
  axes.errorbar(
    [x[i] for i in order],
    means,
    [finished[i].deviation or 0.0 for i in order],
    marker='o',
    capsize=3,
    linestyle='-' if dimension.is_number else 'none',
  )
  best = results_lib.best_index(finished, criterion)
  axes.annotate(
    _value(finished[best]),
    (x[best], finished[best].mean),
    xytext=(0, 8),
    textcoords='offset points',
    ha='center',
    weight='bold',
    path_effects=[patheffects.withStroke(linewidth=3, foreground='white')],
  )
  if criterion.goal == results_lib.MIN and 0 < _WIDE * min(means) < max(means):
    axes.set_yscale('log')
  axes.set_ylabel(criterion.metric)
  axes.margins(y=0.15)
  axes.grid(alpha=0.3)


def _points(fig, axes, dimensions, found, criterion) -> None:
  """Two flags that are not on a grid; crosses have diverged."""
  ended = [r for r in found if r.status in ('finished', 'diverged')]
  if not ended:
    return
  down, across = dimensions
  x = np.array(_coordinates(axes, 'x', across, ended))
  y = np.array(_coordinates(axes, 'y', down, ended))
  good = np.array([r.status == 'finished' for r in ended])
  colours = _colours(found, criterion)
  means = np.array([r.mean for r in ended if r.status == 'finished'])
  axes.scatter(x[good], y[good], 60, colours.to_rgba(means), edgecolors='black')
  axes.scatter(x[~good], y[~good], 50, 'black', marker='x')
  best = results_lib.best_index(ended, criterion)
  if best is not None:
    axes.scatter(
      x[best], y[best], 220, 'none', edgecolors='red', linewidths=2.5
    )
    axes.annotate(
      _value(ended[best]),
      (x[best], y[best]),
      xytext=(0, 12),
      textcoords='offset points',
      ha='center',
      weight='bold',
    )
  axes.grid(alpha=0.3)
  axes.set_axisbelow(True)
  fig.colorbar(colours, ax=axes, label=criterion.metric)
