"""Re-runs a paper's number and puts it next to the paper's.

  python -m experiments.reproduce \\
    --target=mcmahan2017/table2_mnist_cnn_iid --seeds=0,1,2

A target is a flag file in experiments/papers; its first lines say what the
paper reports. Each seed is a run of its own, resumed where it stopped. The
outcome goes into the ledger, experiments/papers/results.csv.
"""

import dataclasses
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Sequence

import pandas as pd
from absl import flags

from research import cli, experiment, flag_values
from research.training import atomic, metrics

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


@dataclasses.dataclass(frozen=True)
class Target:
  """A paper's number: the rounds until a metric reaches a value.

  Attributes:
    name: The flag file below experiments/papers, without its ending.
    paper: Where the number is.
    metric: Column of metrics.csv.
    target: The value to reach.
    paper_rounds: Rounds that the paper reports.
    tolerance: Relative deviation in rounds that counts as reproduced.
    provenance: How the paper's number is known.
  """

  name: str
  paper: str
  metric: str
  target: float
  paper_rounds: float
  tolerance: float
  provenance: str

  @property
  def flag_file(self) -> pathlib.Path:
    """The flag file of the runs."""
    return PAPERS / f'{self.name}.flags'


def read_target(name: str) -> Target:
  """Reads what a flag file says about its paper.

  Args:
    name: The file below experiments/papers, without its ending.

  Returns:
    The target.

  Raises:
    flags.IllegalFlagValueError: If there is no such file, or it lacks a line.
  """
  path = PAPERS / f'{name}.flags'
  if not path.is_file():
    known = sorted(
      str(p.relative_to(PAPERS).with_suffix(''))
      for p in PAPERS.rglob('*.flags')
    )
    raise flags.IllegalFlagValueError(
      f'--target={name} is unknown; there are {", ".join(known)}.'
    )
  comments = [
    line[1:].partition(':')
    for line in path.read_text().splitlines()
    if line.startswith('#')
  ]
  said = {key.strip(): value.strip() for key, _, value in comments}
  try:
    return Target(
      name=name,
      paper=said['paper'],
      metric=said['metric'],
      target=float(said['target']),
      paper_rounds=float(said['paper_rounds']),
      tolerance=float(said['tolerance']),
      provenance=said['provenance'],
    )
  except (KeyError, ValueError) as error:
    raise flags.IllegalFlagValueError(
      f'{path} lacks the comment {error}.'
    ) from error


def rounds_to_target(
  rows: Sequence[dict], metric: str, target: float
) -> float | None:
  """Returns the round at which a metric reaches a value.

  As in McMahan et al. 2017, Section 3: the curve is made monotone by the best
  value so far, and the crossing is interpolated linearly between rounds.

  Args:
    rows: Rows of metrics.csv.
    metric: One of its columns; rows without a value are passed over.
    target: The value to reach from below.

  Returns:
    A fractional round, or None if the value is not reached.
  """
  before_round, before = 0, 0.0
  for row in rows:
    if row[metric] is None:
      continue
    if row[metric] >= target:
      share = (target - before) / (row[metric] - before)
      return before_round + share * (row['round'] - before_round)
    before_round, before = row['round'], max(before, row[metric])
  return None


def train(target: Target, seed: int) -> float | None:
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
    rounds = rounds_to_target(metrics.read(csv), target.metric, target.target)
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
  return rounds_to_target(metrics.read(csv), target.metric, target.target)


def outcome(target: Target, rounds: dict[int, float | None]) -> dict:
  """Returns the ledger's row: the paper's number and ours with its spread."""
  reached = [value for value in rounds.values() if value is not None]
  all_reached = len(reached) == len(rounds)
  mean = statistics.fmean(reached) if all_reached else None
  deviation = statistics.stdev(reached) if len(reached) > 1 else None
  within = all_reached and (
    abs(mean - target.paper_rounds) <= target.tolerance * target.paper_rounds
  )
  return {
    'target': target.name,
    'metric': f'{target.metric} >= {target.target}',
    'paper_rounds': target.paper_rounds,
    'rounds_mean': mean,
    'rounds_std': deviation if all_reached else None,
    'seeds': ' '.join(map(str, rounds)),
    'rounds_by_seed': ' '.join(
      'not reached' if value is None else f'{value:.1f}'
      for value in rounds.values()
    ),
    'within_tolerance': within,
    'git_revision': experiment.git_revision(),
    'paper': target.paper,
    'provenance': target.provenance,
  }


def write_ledger(path: str, row: dict) -> None:
  """Replaces the target's row in the ledger, or adds it."""
  file = pathlib.Path(path)
  rows = pd.read_csv(file) if file.exists() else pd.DataFrame()
  if len(rows):
    rows = rows[rows['target'] != row['target']]
  table = pd.concat([rows, pd.DataFrame([row])]).sort_values('target')
  atomic.write_text(file, table.to_csv(index=False))


def main(argv: Sequence[str]) -> None:
  """Runs every seed, and prints and records the outcome."""
  flag_values.refuse_arguments(argv)
  target = read_target(_TARGET.value)
  rounds = {seed: train(target, seed) for seed in map(int, _SEEDS.value)}
  row = outcome(target, rounds)
  write_ledger(_LEDGER.value, row)
  for name, value in row.items():
    print(f'{name:<18}{value}')


if __name__ == '__main__':
  flags.mark_flag_as_required('target')
  cli.run(main)
