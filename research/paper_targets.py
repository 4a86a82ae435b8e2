"""Papers' numbers: what a flag file says of its paper, and the ledger."""

import dataclasses
import pathlib
import statistics
from collections.abc import Sequence

import pandas as pd

from research.training import atomic


@dataclasses.dataclass(frozen=True)
class Target:
  """A paper's number: the rounds until a metric reaches a value.

  Attributes:
    name: The flag file below the folder of papers, without its ending.
    paper: Where the number is.
    metric: Column of metrics.csv.
    target: The value to reach.
    paper_rounds: Rounds that the paper reports.
    tolerance: Relative deviation in rounds that counts as reproduced.
    provenance: How the paper's number is known.
    flag_file: The flag file of the runs.
  """

  name: str
  paper: str
  metric: str
  target: float
  paper_rounds: float
  tolerance: float
  provenance: str
  flag_file: pathlib.Path


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
  try:
    return Target(
      name=name,
      paper=said['paper'],
      metric=said['metric'],
      target=float(said['target']),
      paper_rounds=float(said['paper_rounds']),
      tolerance=float(said['tolerance']),
      provenance=said['provenance'],
      flag_file=path,
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


def outcome(
  target: Target, rounds: dict[int, float | None], git_revision: str | None
) -> dict:
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
    'git_revision': git_revision,
    'paper': target.paper,
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
  atomic.write_text(file, table.to_csv(index=False))
