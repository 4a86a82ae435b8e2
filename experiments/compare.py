"""Runs several flag files over seeds, and puts what they reach side by side.

Private beside plain training, on MNIST over 1,000 clients:

  python -m experiments.compare --binary=emnist \\
    --flag_files=experiments/private --seeds=0,1,2

  python -m experiments.compare --binary=emnist \\
    --flag_files=experiments/private --vary=target_epsilon=1,2,4,8

Each file and seed is a run directory below the comparison's. The same command
goes on with what has not finished; more files, values or seeds extend it. Runs
do not export unless --extra_flag=--export says so.
"""

import pathlib
import sys
from collections.abc import Sequence

import pandas as pd
from absl import flags

from research import cli, flag_values
from research.sweeps import comparison, forms, processes
from research.training import interrupts, progress, run_directory

# Of experiments.export.
_FAILED_FORM = 4
_BINARY = flags.DEFINE_string(
  'binary', None, 'Training binary in experiments/, as emnist.'
)
_FILES = flags.DEFINE_list(
  'flag_files', None, 'Flag files to compare, or a folder of them.'
)
_VARY = flags.DEFINE_string(
  'vary', None, 'A flag and its values, for the files that have it.'
)
_SEEDS = flags.DEFINE_list('seeds', ['0'], 'Seeds, a run of each file each.')
_METRIC = flags.DEFINE_string(
  'metric', 'test_accuracy', 'Column of metrics.csv that is compared.'
)
_ROUNDS = flags.DEFINE_list(
  'table_rounds', [], 'Rounds on the way that the table shows as well.'
)
_EXTRA = flags.DEFINE_multi_string(
  'extra_flag', [], 'A flag for every run, as --extra_flag=--total_rounds=9'
)
_FORMS = flags.DEFINE_list(
  'forms', [], 'Also judge each run in these exported forms (docs/export.md).'
)
_PROCESSES = flags.DEFINE_integer(
  'processes', 1, 'Runs at once, which share out the cores.', lower_bound=1
)
_ROOT = flags.DEFINE_string('root_output_dir', 'runs', 'Folder of all runs.')
_NAME = flags.DEFINE_string(
  'experiment_name', 'comparison', 'Folder of the comparison.'
)


def _flag_files() -> list[pathlib.Path]:
  """The files that --flag_files names.

  Raises:
    flags.IllegalFlagValueError: If there is none, or two have the same name.
  """
  found = []
  for word in _FILES.value:
    path = pathlib.Path(word)
    found += sorted(path.glob('*.flags')) if path.is_dir() else [path]
  missing = [str(path) for path in found if not path.is_file()]
  if missing or not found:
    raise flags.IllegalFlagValueError(
      f'--flag_files={",".join(_FILES.value)}: '
      f'{", ".join(missing) or "no *.flags file"} is not there.'
    )
  if len({path.stem for path in found}) < len(found):
    raise flags.IllegalFlagValueError(
      f'--flag_files={",".join(_FILES.value)}: two files have the same name, '
      'which is what the comparison calls them.'
    )
  return found


def _lines() -> list[comparison.Line]:
  name, _, values = (_VARY.value or '').partition('=')
  if _VARY.value and not (name and values):
    raise flags.IllegalFlagValueError(
      f'--vary={_VARY.value}: write a flag and its values, as '
      'target_epsilon=1,2,4.'
    )
  files = _flag_files()
  found = comparison.lines(files, name or None, values.split(','))
  if name and all(line.value is None for line in found):
    raise flags.IllegalFlagValueError(
      f'--vary={_VARY.value}: none of the files has --{name}.'
    )
  return found


def _numbers(flag: flags.FlagHolder) -> list[int]:
  if not all(word.isdecimal() for word in flag.value):
    raise flags.IllegalFlagValueError(
      f'--{flag.name}={",".join(flag.value)} must be whole numbers, as 0,1.'
    )
  return [int(word) for word in flag.value]


def _run_all(
  folder: pathlib.Path,
  commands: dict[str, list[str]],
  good: Sequence[int] = (0,),
) -> list[pathlib.Path]:
  """Runs commands in the queue; returns the logs of those that failed.

  Args:
    folder: Of the comparison.
    commands: By name.
    good: Exit codes that are no failure.
  """
  logs = folder / 'logs'
  logs.mkdir(exist_ok=True)
  failed, waiting = [], list(commands)
  with processes.LocalQueue(_PROCESSES.value) as queue:
    while waiting or queue.running:
      while waiting and not queue.is_full:
        name = waiting.pop(0)
        queue.start(name, commands[name], logs / f'{name}.log')
      for ended in queue.wait(60.0):
        done = len(commands) - len(waiting) - len(queue.running)
        outcome = 'done' if ended.exit_code in good else 'FAILED'
        print(
          f'[{done}/{len(commands)}] {ended.name}: {outcome} '
          f'({progress.duration(ended.seconds)})',
          flush=True,
        )
        if ended.exit_code not in good:
          failed.append(logs / f'{ended.name}.log')
  return failed


def _succeed(failed: Sequence[pathlib.Path]) -> None:
  """Ends the process if there are logs of what failed."""
  if failed:
    print(f'Failed, see {", ".join(map(str, failed))}', file=sys.stderr)
    sys.exit(1)


def _judge(
  folder: pathlib.Path,
  directories: dict[tuple[comparison.Line, int], pathlib.Path],
) -> pd.DataFrame:
  """Exports what lacks forms, and reads what these reached."""
  runs = {
    f'{line.run_name(seed)}_forms': directory
    for (line, seed), directory in directories.items()
  }
  commands = {
    name: [
      *(sys.executable, '-m', 'experiments.export'),
      *(f'--run_dir={directory}', f'--forms={",".join(_FORMS.value)}'),
    ]
    for name, directory in forms.missing(runs, _FORMS.value).items()
  }
  # A form that fails its check is a result, which the table has.
  _succeed(_run_all(folder, commands, good=(0, _FAILED_FORM)))
  return forms.read(directories, _FORMS.value)


def main(argv: Sequence[str]) -> None:
  """Runs what has not finished, and writes tables and plots."""
  flag_values.refuse_arguments(argv)
  seeds, rounds = _numbers(_SEEDS), _numbers(_ROUNDS)
  runs = {
    (line, seed): line.run_name(seed) for line in _lines() for seed in seeds
  }
  try:
    folder = run_directory.RunDirectory(_ROOT.value, _NAME.value)
  except ValueError as error:
    raise flags.IllegalFlagValueError(str(error)) from error
  root = folder.path / 'runs'
  commands = {
    name: [
      *(sys.executable, '-m', f'experiments.{_BINARY.value}', *line.flags),
      *('--noexport', *_EXTRA.value, f'--seed={seed}'),
      *(f'--root_output_dir={root}', f'--experiment_name={name}'),
    ]
    for (line, seed), name in runs.items()
  }
  advice = 'The same command goes on with the comparison.'
  with interrupts.exit_tidily(advice), folder:
    _succeed(_run_all(folder.path, commands))
    metric = _METRIC.value
    directories = {key: root / name for key, name in runs.items()}
    try:
      found = comparison.by_round(directories, metric)
    except ValueError as error:
      raise flags.IllegalFlagValueError(str(error)) from error
    baseline = None
    if metric == 'test_accuracy':
      baseline = comparison.constant_class_accuracy(
        next(iter(directories.values()))
      )
    cost = comparison.costs(directories)
    paths = comparison.write(found, metric, folder.path, cost)
    paths += comparison.draw(found, metric, folder.path, baseline)
    judged = _judge(folder.path, directories) if _FORMS.value else None
  print(comparison.table(found, metric, rounds, cost))
  if baseline is not None:
    print(f'The most frequent class alone: {baseline:.4f}')
  if judged is not None:
    print(
      f'exported forms, {metric}:\n{comparison.as_text(forms.final(judged))}'
    )
    paths.append(forms.write(judged, folder.path))
    drawn = forms.draw(judged, (_VARY.value or '').split('=')[0], folder.path)
    paths += [drawn] if drawn else []
  print('\n'.join(map(str, paths)))


if __name__ == '__main__':
  flags.mark_flags_as_required(['binary', 'flag_files'])
  cli.run(main)
