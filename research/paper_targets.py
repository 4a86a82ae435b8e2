"""Papers' numbers: what a flag file says of its paper, and the ledger."""

import dataclasses
import pathlib
import statistics
from collections.abc import Sequence

import pandas as pd

from research.training import atomic


@dataclasses.dataclass(frozen=True)
class Target:
  """A paper's number: the rounds to a value of a metric, or its value.

  Attributes:
    name: The flag file below the folder of papers, without its ending.
    paper: Where the number is.
    metric: Column of metrics.csv.
    target: The value to reach, or that the paper reports at `at_round`.
    paper_rounds: Rounds to the target that the paper reports, or None.
    at_round: The round whose value is compared, if `paper_rounds` is None.
    tolerance: Deviation that counts as reproduced: relative in rounds, absolute
      in the metric.
    provenance: How the paper's number is known.
    flag_file: The flag file of the runs.
    binary: What runs it, a module of `experiments`.
  """

  name: str
  paper: str
  metric: str
  target: float
  paper_rounds: float | None
  at_round: int | None
  tolerance: float
  provenance: str
  flag_file: pathlib.Path
  binary: str = 'emnist'

  @property
  def paper_number(self) -> float:
    """What the paper reports: rounds or a value."""
    return self.target if self.paper_rounds is None else self.paper_rounds

  @property
  def question(self) -> str:
    """What the number is."""
    if self.paper_rounds is None:
      return f'{self.metric} at round {self.at_round}'
    return f'rounds to {self.metric} >= {self.target}'

  def number(self, rows: Sequence[dict]) -> float | None:
    """What a run reached.

    Args:
      rows: Rows of its metrics.csv.

    Returns:
      Rounds or a value as in the paper; None if the run has not come so far.
    """
    if self.paper_rounds is None:
      found = [r[self.metric] for r in rows if r['round'] == self.at_round]
      return found[0] if found else None
    return rounds_to_target(rows, self.metric, self.target)


def read_target(papers: pathlib.Path, name: str) -> Target:
  """Reads what a flag file says about its paper.

  Args:
    papers: The folder of all flag files.
    name: The file below it, without its ending.

  Returns:
    The target.

  Raises:
    ValueError: If there is no such file, or it lacks a line.
  """
  path = papers / f'{name}.flags'
  if not path.is_file():
    known = sorted(
      str(p.relative_to(papers).with_suffix(''))
      for p in papers.rglob('*.flags')
    )
    raise ValueError(
      f'--target={name} is unknown; there are {", ".join(known)}.'
    )
  comments = [
    line[1:].partition(':')
    for line in path.read_text().splitlines()
    if line.startswith('#')
  ]
  said = {key.strip(): value.strip() for key, _, value in comments}
  rounds, at_round = said.get('paper_rounds'), said.get('at_round')
  if (rounds is None) == (at_round is None):
    raise ValueError(f'{path} needs the comment paper_rounds or at_round.')
  try:
    return Target(
      name=name,
      paper=said['paper'],
      metric=said['metric'],
      target=float(said['target']),
      paper_rounds=None if rounds is None else float(rounds),
      at_round=None if at_round is None else int(at_round),
      tolerance=float(said['tolerance']),
      provenance=said['provenance'],
      flag_file=path,
      binary=said.get('binary', 'emnist'),
    )
  except (KeyError, ValueError) as error:
    raise ValueError(f'{path} lacks the comment {error}.') from error


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


def guarantee(rows: Sequence[dict]) -> tuple[float, float] | None:
  """Epsilon and delta of all rounds of a private run; None of another.

  Args:
    rows: Rows of its metrics.csv.
  """
  if not rows or rows[-1].get('epsilon') is None:
    return None
  return rows[-1]['epsilon'], rows[-1]['delta']


def outcome(
  target: Target,
  numbers: dict[int, float | None],
  git_revision: str | None,
  guarantees: Sequence[tuple[float, float] | None] = (),
) -> dict:
  """Returns the ledger's row: the paper's number and ours with its spread.

  Args:
    target: The paper's number.
    numbers: What `Target.number` says of each seed's run.
    git_revision: The code of the runs.
    guarantees: What `guarantee` says of the runs, of which the weakest is told.
  """
  private = [pair for pair in guarantees if pair is not None]
  epsilon, delta = max(private, default=(None, None))
  reached = [value for value in numbers.values() if value is not None]
  all_reached = len(reached) == len(numbers)
  mean = statistics.fmean(reached) if all_reached else None
  deviation = statistics.stdev(reached) if len(reached) > 1 else None
  allowed = target.tolerance * (target.paper_rounds or 1)
  within = all_reached and abs(mean - target.paper_number) <= allowed
  return {
    'target': target.name,
    'number': target.question,
    'paper': target.paper_number,
    'mean': mean,
    'std': deviation if all_reached else None,
    'seeds': ' '.join(map(str, numbers)),
    'by_seed': ' '.join(
      'not reached' if value is None else f'{value:.4g}'
      for value in numbers.values()
    ),
    'within_tolerance': within,
    'epsilon': epsilon,
    'delta': delta,
    'git_revision': git_revision,
    'source': target.paper,
    'provenance': target.provenance,
  }


def write_ledger(path: str, row: dict) -> None:
  """Replaces the target's row in the ledger, or adds it."""
  file = pathlib.Path(path)
  # As text: what stays keeps its digits.
  as_text = {'dtype': str, 'keep_default_na': False}
  rows = pd.read_csv(file, **as_text) if file.exists() else pd.DataFrame()
  if len(rows):
    rows = rows[rows['target'] != row['target']]
  table = pd.concat([rows, pd.DataFrame([row])]).sort_values('target')
  others = [name for name in table.columns if name not in row]
  table = table[[*row, *others]]
  atomic.write_text(file, table.to_csv(index=False))
