"""Re-runs a paper's number and puts it next to the paper's.

  python -m experiments.reproduce \\
    --target=mcmahan2017/table2_mnist_cnn_iid --seeds=0,1,2

A target is a flag file in experiments/papers; its first lines say what the
paper reports. Each seed is a run of its own, resumed where it stopped. The
outcome goes into the ledger, experiments/papers/results.csv.
"""

import pathlib
import subprocess
import sys
from collections.abc import Sequence

from absl import flags

from research import cli, experiment, flag_values, paper_targets
from research.training import metrics

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


def train(target: paper_targets.Target, seed: int) -> float | None:
  """Runs, or resumes, one seed, unless it has reached the target already.

  Args:
    target: What to reach.
    seed: Of the run.

  Returns:
    Rounds to the target, or None.

  Raises:
    subprocess.CalledProcessError: If the run fails.
  """
  name = f'{target.name.replace("/", "_")}_seed{seed}'
  csv = pathlib.Path(_ROOT.value) / name / 'metrics.csv'
  if csv.exists():
    rounds = paper_targets.rounds_to_target(
      metrics.read(csv), target.metric, target.target
    )
    if rounds is not None:
      return rounds
  command = [
    sys.executable,
    '-m',
    'experiments.emnist',
    f'--flagfile={target.flag_file}',
    f'--seed={seed}',
    f'--root_output_dir={_ROOT.value}',
    f'--experiment_name={name}',
    *_EXTRA.value,
  ]
  subprocess.run(command, check=True)
  return paper_targets.rounds_to_target(
    metrics.read(csv), target.metric, target.target
  )


def main(argv: Sequence[str]) -> None:
  """Runs every seed, and prints and records the outcome."""
  flag_values.refuse_arguments(argv)
  try:
    target = paper_targets.read_target(PAPERS, _TARGET.value)
  except ValueError as error:
    raise flags.IllegalFlagValueError(str(error)) from error
  rounds = {seed: train(target, seed) for seed in map(int, _SEEDS.value)}
  row = paper_targets.outcome(target, rounds, experiment.git_revision())
  paper_targets.write_ledger(_LEDGER.value, row)
  for name, value in row.items():
    print(f'{name:<18}{value}')


if __name__ == '__main__':
  flags.mark_flag_as_required('target')
  cli.run(main)
