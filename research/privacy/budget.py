"""What privacy would cost: epsilon or noise for runs that aren't made yet."""

import csv
import dataclasses
import io
import pathlib
from collections.abc import Sequence

import numpy as np

from research.privacy import accounting, local, matrix_factorization
from research.privacy import guarantee as guarantee_lib
from research.privacy import mechanism as mechanism_lib
from research.training import atomic, plots

# What may differ between runs, and how an axis names it.
AXES = {
  'population': 'clients of the population',
  'clients_per_round': 'clients per round',
  'total_rounds': 'rounds',
  'noise_multiplier': 'noise multiplier',
}
_NUMBERS = (*AXES, 'epsilon', 'epsilon_pld', 'epsilon_rdp', 'delta')
_WORDS = (
  'dp_mechanism',
  'min_separation',
  'client_sampling',
  'relation',
  'unit',
)
_NOISE = {
  mechanism_lib.GAUSSIAN: 'independent in each round',
  **dict.fromkeys(
    matrix_factorization.MECHANISMS, 'Gaussian, correlated over rounds'
  ),
  **dict.fromkeys(local.MECHANISMS, "each client's own, in each report"),
}
_CURVE_POINTS = 40
_MOST_LINES = 10


@dataclasses.dataclass(frozen=True)
class Run:
  """A run as it is planned.

  Attributes:
    sampling: How clients come into rounds, with the number of rounds.
    noise_multiplier: Given, or what the target asks for.
    delta: Of the guarantee.
    target_epsilon: What the noise was computed from, if it was.
    mechanism: One of `mechanism.MECHANISMS`.
    correlation: Its strategy, where its noise is correlated over rounds.
  """

  sampling: guarantee_lib.Sampling
  noise_multiplier: float
  delta: float
  target_epsilon: float | None = None
  mechanism: str = mechanism_lib.GAUSSIAN
  correlation: matrix_factorization.Strategy | None = None

  def accountant(self) -> accounting.Accountant:
    """What says how much privacy the run spends."""
    return mechanism_lib.accountant(
      self.mechanism,
      self.noise_multiplier,
      self.sampling,
      self.delta,
      self.correlation,
    )

  def row(self) -> dict[str, float | int | str | None]:
    """The run as a row of a table; one value for each of `columns`."""
    after = self.accountant().guarantee(self.sampling.total_rounds)
    return {
      'population': self.sampling.population,
      'clients_per_round': self.sampling.clients_per_round,
      'total_rounds': self.sampling.total_rounds,
      'noise_multiplier': self.noise_multiplier,
      'epsilon': after.epsilon,
      'epsilon_pld': after.epsilon_pld,
      'epsilon_rdp': after.epsilon_rdp,
      'delta': self.delta,
      'dp_mechanism': self.mechanism,
      'min_separation': self.sampling.min_separation,
      'client_sampling': self.sampling.scheme,
      'relation': after.relation,
      'unit': 'client',
    }


def runs(
  samplings: Sequence[guarantee_lib.Sampling],
  delta: float | None,
  noise_multipliers: Sequence[float] = (),
  target_epsilons: Sequence[float] = (),
  cache_folder: str | pathlib.Path | None = None,
  mechanism: str = mechanism_lib.GAUSSIAN,
  **shape: int | None,
) -> list[Run]:
  """Plans a run for each sampling and each noise or target.

  Args:
    samplings: How clients come into rounds.
    delta: Of all guarantees; None for the default of each population.
    noise_multipliers: Of the runs.
    target_epsilons: In place of noise multipliers.
    cache_folder: Where computed noise multipliers are kept.
    mechanism: One of `mechanism.MECHANISMS`.
    **shape: Of correlated noise; see `mechanism.strategy`.

  Raises:
    ValueError: If a run makes no sense.
  """
  planned = []
  for sampling in samplings:
    its_delta = delta
    if delta is None:
      its_delta = guarantee_lib.default_delta(sampling.population)
    correlation = mechanism_lib.strategy(
      mechanism, sampling.total_rounds, sampling.min_separation, **shape
    )
    for noise in noise_multipliers:
      planned.append(
        Run(sampling, noise, its_delta, None, mechanism, correlation)
      )
      planned[-1].accountant()
    for target in target_epsilons:
      noise = mechanism_lib.noise_multiplier(
        target, mechanism, sampling, its_delta, correlation, cache_folder
      )
      planned.append(
        Run(sampling, noise, its_delta, target, mechanism, correlation)
      )
  return planned


def table(rows: Sequence[dict]) -> str:
  """The rows for a terminal, with what all of them rest on above."""
  first = rows[0]
  cells = [_NUMBERS]
  for row in rows:
    cells.append([_cell(name, row[name]) for name in _NUMBERS])
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = [
    '  '.join(text.rjust(w) for text, w in zip(line, widths, strict=True))
    for line in cells
  ]
  separation = first['min_separation']
  noise = f'{first["dp_mechanism"]}: {_NOISE[first["dp_mechanism"]]}'
  apart = '' if separation is None else f', {separation} rounds apart'
  return '\n'.join(
    [
      'unit        client: all examples of one',
      f'relation    {first["relation"]}',
      f'sampling    {first["client_sampling"]}{apart}',
      f'noise       {noise}',
      'epsilon     by privacy loss distributions (pld) where they are valid,',
      '            else by Renyi differential privacy (rdp)',
      '',
      *lines,
    ]
  )


def write(rows: Sequence[dict], path: atomic.Path) -> pathlib.Path:
  """Writes the rows as a CSV file."""
  text = io.StringIO()
  writer = csv.DictWriter(text, [*_NUMBERS, *_WORDS], lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  atomic.write_text(path, text.getvalue())
  return pathlib.Path(path)


def plot(planned: Sequence[Run], against: str, path: atomic.Path):
  """Draws epsilon, or the noise that a target asks for, against one setting.

  Args:
    planned: The runs; those that differ in nothing else are one line.
    against: One of `AXES`. Epsilon is drawn after each of a run's rounds if it
      is `total_rounds`.
    path: The PNG file.
  """
  targets = planned[0].target_epsilon is not None
  lines: dict[tuple, list[Run]] = {}
  for run in planned:
    lines.setdefault(_settings(run, without=against), []).append(run)
  differing = [
    position
    for position, settings in enumerate(zip(*lines, strict=True))
    if len(set(settings)) > 1
  ]
  shown = list(lines.items())[:_MOST_LINES]
  part = f', the first {len(shown)} of {len(lines)} lines'
  deltas = sorted({run.delta for run in planned})
  sampling, relation = planned[0].sampling, planned[0].row()['relation']
  fig, axes = plots.new_figure(
    f'{"Noise" if targets else "Epsilon"} by {AXES[against]}'
    f'{part if len(lines) > len(shown) else ""}\n'
    f'unit client, {relation}, {sampling.scheme} sampling, delta '
    + ' to '.join(f'{delta:g}' for delta in (deltas[0], *deltas[1:][-1:])),
    AXES[against],
    'noise multiplier' if targets else 'epsilon',
  )
  axes.title.set_fontsize(10)
  for settings, runs_of_line in shown:
    x, y = _line(runs_of_line, against, targets)
    label = ', '.join(
      f'{settings[i][0].replace("_", " ")} {settings[i][1]:g}'
      for i in differing
    )
    smooth = len(x) > _CURVE_POINTS / 2
    axes.plot(x, y, marker=None if smooth else 'o', label=label)
  axes.set_ylim(bottom=0)
  if differing:
    axes.legend(fontsize=7)
  return plots.save(fig, path)


def _cell(name: str, value) -> str:
  if value is None:
    return '-'
  if name.startswith('epsilon'):
    return guarantee_lib.round_up(value)
  return f'{value:g}' if isinstance(value, float) else str(value)


def _settings(run: Run, without: str) -> tuple[tuple[str, float], ...]:
  """Names and values of what makes a line; a separation of 0 is none."""
  values = {
    'population': run.sampling.population,
    'clients_per_round': run.sampling.clients_per_round,
    'total_rounds': run.sampling.total_rounds,
    'min_separation': run.sampling.min_separation or 0,
  }
  if run.target_epsilon is None:
    values['noise_multiplier'] = run.noise_multiplier
  else:
    values['target_epsilon'] = run.target_epsilon
  values.pop(without, None)
  return tuple(values.items())


def _line(runs_of_line: Sequence[Run], against: str, targets: bool):
  """Coordinates of one line's points."""
  if against == 'total_rounds' and not targets:
    longest = max(runs_of_line, key=lambda run: run.sampling.total_rounds)
    rounds = longest.sampling.total_rounds
    # Dense at the start, where epsilon bends.
    fractions = np.linspace(0, 1, _CURVE_POINTS) ** 2
    x = np.unique(np.rint(1 + (rounds - 1) * fractions).astype(int)).tolist()
    accountant = longest.accountant()
    return x, [accountant.guarantee(r).epsilon for r in x]
  rows = sorted((run.row() for run in runs_of_line), key=lambda r: r[against])
  y = 'noise_multiplier' if targets else 'epsilon'
  return [row[against] for row in rows], [row[y] for row in rows]
