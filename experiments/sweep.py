"""Runs a binary over values of its flags, and says which are best.

McMahan's kind of search, two learning rates on a logarithmic grid:

  python -m experiments.sweep --binary=emnist \\
    --grid=client_learning_rate=log:0.01:1:3 \\
    --grid=server_learning_rate=0.3,1 \\
    --extra_flag=--flagfile=experiments/emnist.flags \\
    --extra_flag=--validation_examples=1000 --processes=2

Each cell and seed is a run directory below the sweep's. The same command goes
on with what has not finished or has failed; more values, trials or seeds extend
the sweep. Runs do not export unless --extra_flag=--export says so:
experiments.export makes a model of the best one.
"""

import pathlib
import re
import sys
from collections.abc import Sequence

from absl import flags

from research import cli, flag_values
from research.sweeps import probe, processes, results, search
from research.sweeps import record as record_lib
from research.sweeps import space as space_lib
from research.sweeps import sweep as sweep_lib
from research.training import interrupts, run_directory

_FOLDER = pathlib.Path(__file__).parent
# How a training binary names itself.
_TRAINS = re.compile(r'^BINARY = ', re.MULTILINE)

_BINARY = flags.DEFINE_string(
  'binary', None, 'Training binary in experiments/, as emnist.'
)
_GRID = flags.DEFINE_multi_string(
  'grid', [], f'A flag and its values; once per flag: {space_lib.FORMS}.'
)
_SEARCH = flags.DEFINE_enum(
  'search', search.GRID, search.KINDS, 'All cells, random, or by a model.'
)
_TRIALS = flags.DEFINE_integer(
  'trials', None, 'Cells of a random or Bayesian search.', lower_bound=1
)
_SEARCH_SEED = flags.DEFINE_integer(
  'search_seed', 0, 'Of the choice of cells.', lower_bound=0
)
_SEEDS = flags.DEFINE_list('seeds', ['0'], 'Seeds, a run of each cell each.')
_EXTRA = flags.DEFINE_multi_string(
  'extra_flag', [], 'A flag for every run, as --extra_flag=--flagfile=...'
)
_METRIC = flags.DEFINE_string(
  'metric',
  None,
  'Column of metrics.csv; by default the validation or test accuracy, or loss.',
)
_GOAL = flags.DEFINE_enum(
  'goal', None, results.GOALS, 'By default min for a loss, else max.'
)
_SCORE = flags.DEFINE_enum(
  'score', results.LAST, results.SCORES, "A run's last or best value."
)
_PROCESSES = flags.DEFINE_integer(
  'processes', 1, 'Runs at once, which share out the cores.', lower_bound=1
)
_ROOT = flags.DEFINE_string('root_output_dir', 'runs', 'Folder of all runs.')
_NAME = flags.DEFINE_string('experiment_name', 'sweep', 'Folder of the sweep.')
_DRY_RUN = flags.DEFINE_boolean('dry_run', False, 'List the cells, and stop.')


def binaries() -> list[str]:
  """The training binaries of this folder."""
  return sorted(
    path.stem
    for path in _FOLDER.glob('*.py')
    if _TRAINS.search(path.read_text())
  )


def _check_flags() -> None:
  """Raises for what can be refused without asking the binary."""
  if _BINARY.value not in binaries():
    raise flags.IllegalFlagValueError(
      f'--binary={_BINARY.value} is unknown; there are {", ".join(binaries())}.'
    )
  seeds = _SEEDS.value
  if not all(s.isdecimal() for s in seeds) or len({*map(int, seeds)}) < len(
    seeds
  ):
    raise flags.IllegalFlagValueError(
      f'--seeds={",".join(seeds)}: give different whole numbers, as 0,1,2.'
    )
  if not seeds:
    raise flags.IllegalFlagValueError('--seeds is empty: give one, as 0.')
  if _SEARCH.value == search.GRID:
    flag_values.refuse_unused(['trials', 'search_seed'], 'by --search=grid')
  elif _TRIALS.value is None:
    raise flags.IllegalFlagValueError(
      f'--search={_SEARCH.value} needs --trials, the number of cells.'
    )
  for extra in _EXTRA.value:
    if not extra.startswith('-'):
      raise flags.IllegalFlagValueError(
        f'--extra_flag={extra}: write the whole flag, as '
        f'--extra_flag=--{extra}.'
      )


def _refuse_swept_twice(dimensions: Sequence[space_lib.Dimension]) -> None:
  given = {e.lstrip('-').partition('=')[0] for e in _EXTRA.value}
  for d in dimensions:
    if d.name in given:
      raise flags.IllegalFlagValueError(
        f'--{d.name} is in --grid and in --extra_flag: leave one out.'
      )


def _list_cells(cells: Sequence[space_lib.Cell], space: space_lib.Space) -> str:
  lines = [f'cell {i}: {sweep_lib.words(cell)}' for i, cell in enumerate(cells)]
  count = _TRIALS.value or len(cells)
  if count > len(cells):
    names = ', '.join(f'{d.name} in {d.spec}' for d in space.dimensions)
    lines.append(f'{count - len(cells)} more, chosen by results: {names}')
  seeds = len(_SEEDS.value)
  lines.append(f'{count} cells, {seeds} seeds, {count * seeds} runs')
  return '\n'.join(lines)


def main(argv: Sequence[str]) -> None:
  """Runs the sweep, and prints and writes what came out."""
  flag_values.refuse_arguments(argv)
  _check_flags()
  dimensions = space_lib.parse(_GRID.value)
  _refuse_swept_twice(dimensions)
  binary = f'experiments.{_BINARY.value}'
  asked = probe.ask(
    binary, _EXTRA.value, {d.name: d.examples for d in dimensions}
  )
  space = space_lib.Space(
    tuple(space_lib.typed(d, asked.flag_types[d.name]) for d in dimensions)
  )
  cells = search.planned(
    space, _SEARCH.value, _TRIALS.value, _SEARCH_SEED.value
  )
  if _DRY_RUN.value:
    print(_list_cells(cells, space))
    return
  settings = record_lib.Settings(
    binary=binary,
    search=_SEARCH.value,
    grid=record_lib.grid_of(space),
    trials=_TRIALS.value,
    search_seed=_SEARCH_SEED.value,
    seeds=tuple(map(int, _SEEDS.value)),
    flags=asked.decisive,
  )
  try:
    folder = run_directory.RunDirectory(_ROOT.value, _NAME.value)
  except ValueError as error:
    raise flags.IllegalFlagValueError(str(error)) from error
  quiet = ['--noexport'] if asked.exports else []
  advice = 'The same command goes on with the sweep.'
  with interrupts.exit_tidily(advice), folder:
    criterion = results.Criterion(_METRIC.value, _GOAL.value, _SCORE.value)
    record = record_lib.Record(
      folder.path / 'sweep.json', settings, criterion, cells
    )
    if record.extended_by:
      print(f'{folder.path}: extended by {record.extended_by} cells.')
    sweep = sweep_lib.Sweep(
      folder.path, record, space, [*quiet, *_EXTRA.value], asked.lines
    )
    with processes.LocalQueue(_PROCESSES.value) as queue:
      sweep.run(queue)
    print(sweep.finish())
  failed = sweep.failed()
  if failed:
    print(
      f'{len(failed)} runs failed, the same command runs them again: '
      f'{", ".join(failed)}',
      file=sys.stderr,
    )
    sys.exit(1)


if __name__ == '__main__':
  flags.mark_flag_as_required('binary')
  cli.run(main)
