"""Re-runs a paper's number and puts it next to the paper's.

  python -m experiments.reproduce \\
    --target=mcmahan2017/table2_mnist_cnn_iid --seeds=0,1,2

A target is a flag file in experiments/papers; its first lines say what the
paper reports. Each seed is a run of its own, which ends once it has the paper's
value or round and is resumed where it stopped. The outcome goes into the
ledger, experiments/papers/results.csv.
"""

import contextlib
import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from absl import flags

from research import cli, flag_values, paper_targets
from research.training import interrupts, metrics, run_directory

PAPERS = pathlib.Path(__file__).parent / 'papers'

_TARGET = flags.DEFINE_string(
  'target', None, 'Flag file below experiments/papers, without its ending.'
)
_SEEDS = flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds, one run each.')
_ROOT = flags.DEFINE_string('root_output_dir', 'runs', 'Folder of all runs.')
_LEDGER = flags.DEFINE_string(
  'ledger', str(PAPERS / 'results.csv'), 'CSV file that gets the outcome.'
)
_EXTRA = flags.DEFINE_multi_string(
  'extra_flag', [], 'A flag for every run, as --extra_flag=--data_dir=...'
)


# How often a running seed's metrics are looked at.
_POLL_SECONDS = 2.0


def _number(target: paper_targets.Target, csv: pathlib.Path) -> float | None:
  return target.number(metrics.read(csv) if csv.exists() else [])


def _run(command: list[str], enough: Callable[[], bool]) -> None:
  """Runs a command until it ends or has done enough.

  Whatever ends this process ends the command too.

  Args:
    command: What to run; it ends tidily on SIGTERM.
    enough: Whether it may be ended.

  Raises:
    SystemExit: If the command fails; it has said why.
  """
  child = subprocess.Popen(command)
  ended_here = False
  try:
    while child.poll() is None:
      if not ended_here and enough():
        child.terminate()
        ended_here = True
      with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(_POLL_SECONDS)
  except BaseException:
    child.terminate()
    child.wait()
    raise
  if child.returncode and not ended_here:
    sys.exit(child.returncode)


class Run(NamedTuple):
  """What has become of one seed.

  Attributes:
    number: What `Target.number` says.
    guarantee: What `paper_targets.guarantee` says.
    git_revision: The commit that the run started from.
  """

  number: float | None
  guarantee: tuple[float, float] | None
  git_revision: str | None


def train(target: paper_targets.Target, seed: int) -> Run:
  """Runs, or resumes, one seed, until it has reached the target.

  Args:
    target: What to reach.
    seed: Of the run.

  Raises:
    SystemExit: If the run fails; it has said why.
  """
  name = f'{target.name.replace("/", "_")}_seed{seed}'
  run_dir = pathlib.Path(_ROOT.value).expanduser() / name
  csv = run_dir / 'metrics.csv'
  command = [
    sys.executable,
    '-m',
    f'experiments.{target.binary}',
    f'--flagfile={target.flag_file}',
    f'--seed={seed}',
    f'--root_output_dir={_ROOT.value}',
    f'--experiment_name={name}',
    *_EXTRA.value,
  ]
  if _number(target, csv) is None:
    _run(command, enough=lambda: _number(target, csv) is not None)
  if _number(target, csv) is not None:
    print(f'seed {seed}: {target.question}: {_number(target, csv):.4g}')
    # Trains no more; exports, and refuses a directory that has other flags.
    last_round = metrics.read(csv)[-1]['round']
    _run([*command, f'--total_rounds={last_round}'], enough=lambda: False)
  config = run_directory.RunDirectory.existing(run_dir).read_config()
  return Run(
    _number(target, csv),
    paper_targets.guarantee(metrics.read(csv)),
    config['git_revision'],
  )


def main(argv: Sequence[str]) -> None:
  """Runs every seed, and prints and records the outcome."""
  flag_values.refuse_arguments(argv)
  try:
    target = paper_targets.read_target(PAPERS, _TARGET.value)
  except ValueError as error:
    raise flags.IllegalFlagValueError(str(error)) from error
  if not all(seed.isdecimal() for seed in _SEEDS.value):
    raise flags.IllegalFlagValueError(f'--seeds={_SEEDS.value}: give numbers.')
  if _EXTRA.value and not flags.FLAGS['ledger'].present:
    raise flags.IllegalFlagValueError(
      '--extra_flag can make another experiment of it: name another --ledger.'
    )
  with interrupts.exit_tidily('The same command goes on with the runs.'):
    runs = {seed: train(target, seed) for seed in map(int, _SEEDS.value)}
  row = paper_targets.outcome(
    target,
    {seed: run.number for seed, run in runs.items()},
    ' '.join(sorted({str(run.git_revision) for run in runs.values()})),
    [run.guarantee for run in runs.values()],
  )
  paper_targets.write_ledger(_LEDGER.value, row)
  for name, value in row.items():
    print(f'{name:<18}{value}')


if __name__ == '__main__':
  flags.mark_flag_as_required('target')
  cli.run(main)
