"""Draws what `rounds.py` measured."""

import pathlib
from typing import Any

import matplotlib
from matplotlib import figure

_COLOURS = {
  'stock': 'tab:gray',
  'in_process': 'tab:blue',
  'bare': 'tab:green',
  'peer': 'tab:orange',
}


def _colour(arm: str) -> str:
  return next(c for kind, c in _COLOURS.items() if arm.startswith(kind))


def draw(results: dict[str, Any], path: pathlib.Path) -> None:
  """Draws a panel per workload: each arm's time over the best bare loop's.

  Args:
    results: As in results.json.
    path: The picture to write.
  """
  measured = results['workloads']
  canvas = figure.Figure(
    figsize=(4.2 * len(measured), 4.5), layout='constrained'
  )
  axes = canvas.subplots(1, len(measured), squeeze=False)[0]
  for axis, (name, workload) in zip(axes, measured.items(), strict=True):
    ratios = workload['ratios_to_bare']
    arms = list(reversed(ratios))
    medians = [ratios[arm]['median'] for arm in arms]
    lows = [ratios[arm]['median'] - ratios[arm]['low'] for arm in arms]
    highs = [ratios[arm]['high'] - ratios[arm]['median'] for arm in arms]
    axis.barh(arms, medians, color=[_colour(arm) for arm in arms])
    axis.errorbar(medians, arms, xerr=[lows, highs], fmt='none', color='black')
    axis.set_xscale('log')
    axis.axvline(1, color='black', linewidth=0.8)
    for arm, median in zip(arms, medians, strict=True):
      seconds = workload['arms'][arm]['median_seconds']
      axis.annotate(f' {seconds:.3g} s', (median, arm), va='center', fontsize=7)
    axis.margins(x=0.2)
    axis.set_title(f'Workload {name}')
    axis.set_xlabel('time per round / best bare loop')
    axis.tick_params(labelsize=8)
  _save(canvas, path)


def draw_sweep(results: dict[str, Any], path: pathlib.Path) -> None:
  """Draws a panel per model size: seconds per round against the cohort.

  Args:
    results: As in results.json, of `--sweep`.
    path: The picture to write.
  """
  lines: dict[str, dict[str, list[tuple[int, float]]]] = {}
  for name, workload in results['workloads'].items():
    parameters = name.rpartition('x')[2]
    for arm, measured in workload['arms'].items():
      if measured['seconds']:
        point = (workload['workload']['clients'], measured['median_seconds'])
        panel = lines.setdefault(parameters, {})
        panel.setdefault(arm, []).append(point)
  canvas = figure.Figure(figsize=(5 * len(lines), 4.5), layout='constrained')
  axes = canvas.subplots(1, len(lines), squeeze=False, sharey=True)[0]
  markers = matplotlib.lines.Line2D.filled_markers
  for axis, (parameters, by_arm) in zip(axes, lines.items(), strict=True):
    for marker, (arm, points) in zip(markers, by_arm.items(), strict=False):
      axis.loglog(
        *zip(*points, strict=True), label=arm, marker=marker, color=_colour(arm)
      )
    axis.set_title(f'{parameters} parameters')
    axis.set_xlabel('clients per round')
    axis.legend(fontsize=7)
  axes[0].set_ylabel('seconds per round')
  _save(canvas, path)


def _save(canvas: figure.Figure, path: pathlib.Path) -> None:
  canvas.savefig(path, dpi=120)
