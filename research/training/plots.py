"""Pictures of a run: its learning curves and how its data is spread.

Figures are made by matplotlib's object interface, so that neither a display
nor the global state of pyplot is involved.
"""

import io
import math
import pathlib
import re
from collections.abc import Mapping, Sequence

import matplotlib.axes
import numpy as np
from matplotlib import figure, ticker

from datasets import federated_data
from research.training import atomic, metrics

_COLOURS = {'train': '#1f77b4', 'validation': '#ff7f0e', 'test': '#2ca02c'}
_COLUMN = re.compile(r'(?:(train|validation|test)[_/])?(\w+)')
# Metrics that are shares of the examples: more is better.
_SHARES = ('accuracy', 'purity')
_MARKERS_UP_TO = 40
_DPI = 150
_IMAGES_IN_A_ROW = 10
_LARGEST = 1e38


def learning_curves(
  rows: Sequence[Mapping[str, metrics.Cell]], directory: atomic.Path
) -> list[pathlib.Path]:
  """Draws loss, accuracy and purity by round, each into a file of its name.

  Args:
    rows: The rows of metrics.csv. The metrics are looked for under their own
      names and behind `train_`, `validation_` and `test_`. Empty cells are
      skipped, and so are values that are not finite.
    directory: Where to write.

  Returns:
    The files written; a metric without any value has none.
  """
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  paths = []
  for name in ('loss', *_SHARES):
    curves = _curves(rows, name)
    if not curves:
      continue
    fig, axes = new_figure(
      f'{name.capitalize()} by round',
      'round',
      f'{name} (%)' if name in _SHARES else 'mean loss per example',
    )
    for split, (rounds, values) in curves.items():
      axes.plot(
        rounds,
        values,
        color=_COLOURS[split],
        marker='o' if len(rounds) <= _MARKERS_UP_TO else None,
        markersize=4,
        label=_summary(split, name, rounds, values),
      )
    if name in _SHARES:
      axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0, symbol=''))
    else:
      _log_scale_if_wide(
        axes, [v for _, values in curves.values() for v in values]
      )
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.legend()
    _draw_epsilon(axes, rows)
    paths.append(save(fig, directory / f'{name}.png'))
  return paths


def _draw_epsilon(
  axes: matplotlib.axes.Axes, rows: Sequence[Mapping[str, metrics.Cell]]
) -> None:
  """Adds what privacy was spent by each round, if there is any."""
  spent = [row for row in rows if row.get('epsilon') is not None]
  if not spent:
    return
  right = axes.twinx()
  right.plot(
    [row['round'] for row in spent],
    [row['epsilon'] for row in spent],
    color='grey',
    linestyle='--',
  )
  right.set_ylim(bottom=0)
  delta = spent[-1]['delta']
  right.set_ylabel(f'epsilon at delta = {delta:g} (dashed)', color='grey')


def before_and_after(
  before: Sequence[float],
  after: Sequence[float],
  name: str,
  path: atomic.Path,
) -> pathlib.Path:
  """Draws a metric of each client after fine-tuning against before it.

  Args:
    before: By client.
    after: By client, in the same order.
    name: Of the metric.
    path: The file to write.
  """
  fig, axes = new_figure(
    f'{name.capitalize()} of {len(before)} clients', 'global model', 'own model'
  )
  axes.scatter(before, after, s=12, alpha=0.5)
  ends = min([*before, *after]), max([*before, *after])
  axes.plot(ends, ends, color='grey', linewidth=1, label='no change')
  axes.legend()
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  return save(fig, path)


def centroids(images: np.ndarray, path: atomic.Path) -> pathlib.Path:
  """Draws the centroids of clusters as images, numbered from 0.

  Args:
    images: Float [clusters, height, width, channels] in [0, 1]; of 3 channels
      in colour, of others the first in grey.
    path: The PNG file.

  Returns:
    The path of the file.
  """
  columns = min(len(images), _IMAGES_IN_A_ROW)
  rows = math.ceil(len(images) / columns)
  fig = figure.Figure(
    figsize=(0.9 * columns + 0.4, 1.1 * rows + 0.6), layout='constrained'
  )
  fig.suptitle(f'Centroids of {len(images)} clusters')
  grid = fig.subplots(rows, columns, squeeze=False)
  for axes in grid.flat:
    axes.set_axis_off()
  for number, (image, axes) in enumerate(zip(images, grid.flat, strict=False)):
    is_colour = image.shape[-1] == 3
    axes.imshow(
      np.clip(image, 0, 1) if is_colour else image[..., 0],
      cmap='gray',
      vmin=0,
      vmax=1,
      interpolation='none',
    )
    axes.set_title(str(number), fontsize=8)
  return save(fig, path)


def label_histogram(
  split: federated_data.Split,
  num_classes: int,
  path: atomic.Path,
  class_names: Sequence[str] | None = None,
  max_clients: int = 30,
) -> pathlib.Path:
  """Draws which labels the clients have, one line of a heat map per client.

  Only the clients that are drawn are loaded: when there are more than
  `max_clients`, so many are taken at equal distances, and the title says so.

  Args:
    split: The clients; their `y` holds integer labels.
    num_classes: Labels are 0 to num_classes - 1.
    path: The PNG file.
    class_names: What to write below the columns instead of the numbers.
    max_clients: How many clients to draw at most.

  Returns:
    The path of the file.
  """
  ids = split.client_ids
  shown = np.linspace(0, len(ids) - 1, min(len(ids), max_clients))
  chosen = [ids[i] for i in np.round(shown).astype(int)]
  counts = _label_counts(split, chosen, num_classes)
  totals = counts.sum(axis=1)
  shares = 100 * counts / np.maximum(totals, 1)[:, np.newaxis]

  width = 4.5 + min(0.3 * num_classes, 10)
  fig = figure.Figure(
    figsize=(width, max(1.8 + 0.2 * len(chosen), 3.6)), layout='constrained'
  )
  heat, bars = fig.subplots(1, 2, sharey=True, width_ratios=[width - 3, 1.6])
  part = 'all' if len(chosen) == len(ids) else f'{len(chosen)} evenly spaced of'
  fig.suptitle(f'Labels of {part} {len(ids):,} clients')
  image = heat.imshow(
    shares, aspect='auto', cmap='Blues', vmin=0, interpolation='none'
  )
  fig.colorbar(
    image, ax=[heat, bars], label="share of client's examples (%)", pad=0.02
  )
  heat.set_xlabel('label')
  heat.set_ylabel('client')
  heat.set_yticks(range(len(chosen)), chosen, fontsize=7)
  names = class_names or [str(i) for i in range(num_classes)]
  size = 8 if num_classes <= 30 else 6
  heat.set_xticks(range(num_classes), names, fontsize=size)
  if max(map(len, names)) > 3:
    for text in heat.get_xticklabels():
      text.set(rotation=45, horizontalalignment='right')
  bars.barh(range(len(chosen)), totals, color=_COLOURS['train'])
  bars.tick_params(labelleft=False, left=False)
  bars.set_xlabel('examples')
  bars.grid(axis='x', alpha=0.3)
  bars.set_axisbelow(True)
  return save(fig, path)


def confusion_matrix(
  matrix: np.ndarray, names: Sequence[str], path: atomic.Path
) -> pathlib.Path:
  """Draws how often each class is taken for each other one.

  Args:
    matrix: Counts [classes, classes]; a row for each true class.
    names: Of the classes.
    path: The PNG file.

  Returns:
    The path of the file.
  """
  size = 3 + 0.35 * min(len(names), 40)
  fig = figure.Figure(figsize=(size + 1, size), layout='constrained')
  axes = fig.subplots()
  shares = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
  image = axes.imshow(
    shares, cmap='Blues', vmin=0, vmax=100, interpolation='none'
  )
  fig.colorbar(image, ax=axes, label="share of the class's examples (%)")
  axes.set_title('Confusion matrix')
  axes.set_xlabel('predicted')
  axes.set_ylabel('true')
  axes.set_xticks(range(len(names)), names, rotation=45, ha='right')
  axes.set_yticks(range(len(names)), names)
  if len(names) <= 20:
    for row, column in np.ndindex(*matrix.shape):
      colour = 'white' if shares[row, column] > 50 else 'black'
      text = f'{matrix[row, column]}'
      axes.text(column, row, text, ha='center', va='center', color=colour)
  return save(fig, path)


def examples_per_client(
  split: federated_data.Split, path: atomic.Path
) -> pathlib.Path:
  """Draws how many clients have how many examples; no data is loaded.

  Args:
    split: The clients.
    path: The PNG file.

  Returns:
    The path of the file.
  """
  sizes = np.array([split.num_examples[i] for i in split.client_ids])
  fig, axes = new_figure(
    f'{sizes.sum():,} examples of {len(sizes):,} clients',
    'examples per client',
    'clients',
  )
  # Whole numbers of examples per bar: otherwise some bars would hold more
  # integers than others and stand out for no reason.
  span = int(sizes.max() - sizes.min()) + 1
  step = math.ceil(span / 40)
  edges = sizes.min() - 0.5 + step * np.arange(math.ceil(span / step) + 1)
  axes.hist(sizes, bins=edges, color=_COLOURS['train'], edgecolor='white')
  if span == 1:
    axes.set_xlim(sizes[0] - 5, sizes[0] + 5)
  mean, median = float(np.mean(sizes)), float(np.median(sizes))
  axes.axvline(mean, color='black', label=f'mean {mean:,.1f}')
  axes.axvline(
    median, color='black', linestyle='--', label=f'median {median:,.1f}'
  )
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_locator(ticker.MaxNLocator(integer=True))
  axes.legend()
  return save(fig, path)


def _label_counts(
  split: federated_data.Split, client_ids: Sequence[str], num_classes: int
) -> np.ndarray:
  """Counts labels, an int array [client, class]."""
  labels = [np.ravel(split.client(i)['y']) for i in client_ids]
  return np.stack([np.bincount(y, minlength=num_classes) for y in labels])


def _curves(rows, name: str) -> dict[str, tuple[list[int], list[float]]]:
  """Finds the points of a metric in each split, in the order of _COLOURS."""
  curves = {}
  for split in _COLOURS:
    points = [
      (row['round'], row[column])
      for row in rows
      for column in row
      if _split_and_metric(column) == (split, name) and _is_number(row[column])
    ]
    if points:
      curves[split] = tuple(
        list(values) for values in zip(*points, strict=True)
      )
  return curves


def _split_and_metric(column: str) -> tuple[str, str] | None:
  match = _COLUMN.fullmatch(column)
  return (match[1] or 'train', match[2]) if match else None


def _is_number(cell: metrics.Cell) -> bool:
  # A diverged run comes close to the largest float; axes then overflow.
  return isinstance(cell, int | float) and abs(cell) < _LARGEST


def _summary(split, name, rounds, values) -> str:
  best = max(values) if name in _SHARES else min(values)
  form = '{:.2%}' if name in _SHARES else '{:.4g}'
  return (
    f'{split}: last {form.format(values[-1])}, best {form.format(best)} '
    f'(round {rounds[values.index(best)]})'
  )


def _log_scale_if_wide(axes, values: Sequence[float]) -> None:
  if min(values) > 0 and max(values) > 30 * min(values):
    axes.set_yscale('log')


def new_figure(title: str, xlabel: str, ylabel: str, height: float = 4.5):
  """Returns a figure and its axes in the style of all pictures."""
  fig = figure.Figure(figsize=(7, height), layout='constrained')
  axes = fig.subplots()
  axes.set_title(title)
  axes.set_xlabel(xlabel)
  axes.set_ylabel(ylabel)
  axes.grid(alpha=0.3)
  axes.set_axisbelow(True)
  return fig, axes


def save(fig: figure.Figure, path: atomic.Path) -> pathlib.Path:
  """Writes a figure as PNG, complete or not at all."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  buffer = io.BytesIO()
  fig.savefig(buffer, format='png', dpi=_DPI)
  atomic.write_bytes(path, buffer.getvalue())
  return path
