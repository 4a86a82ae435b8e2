"""What `rounds.py` measured as Markdown, for docs/benchmark.md.

python -m experiments.benchmark.table experiments/benchmark/recorded/*.json
"""

import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from absl import app

from experiments.benchmark import stats

_HEADS = (
  'workload',
  'system',
  's per round',
  '/ best bare loop (95 %)',
  'start, s',
  'peak, MB',
)
_TARGET_HEADS = ('workload', 'target', 'against', 'measured', 'met')


def rounds(results: dict[str, Any]) -> str:
  """The table of all measured systems.

  Args:
    results: As in results.json.

  Returns:
    Lines of Markdown.
  """
  return _table(_HEADS, _round_rows(results))


def targets(results: dict[str, Any]) -> str:
  """The table of the targets; see `rounds`."""
  return _table(_TARGET_HEADS, _target_rows(results))


def _table(heads: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
  lines = [heads, ['---'] * len(heads), *rows]
  return ''.join(f'| {" | ".join(cells)} |\n' for cells in lines)


def _round_rows(results: dict[str, Any]) -> Iterator[list[str]]:
  for workload, measured in results['workloads'].items():
    for name, arm in measured['arms'].items():
      if arm['error']:
        continue
      ratio = measured['ratios_to_bare'].get(name)
      yield [
        workload,
        name,
        f'{arm["median_seconds"]:.4f}',
        str(stats.Ratio(**ratio)) if ratio else '',
        f'{arm["cold_start_seconds"]:.1f}',
        f'{arm["peak_megabytes"]:.0f}',
      ]


def _target_rows(results: dict[str, Any]) -> Iterator[list[str]]:
  for workload, measured in results['workloads'].items():
    for row in measured['targets']:
      value = row['value']
      is_ratio = isinstance(value, dict)
      yield [
        workload,
        f'{row["what"]} {row["bound"]:.3g}',
        row['reference'],
        str(stats.Ratio(**value)) if is_ratio else f'{value:.1f}',
        'yes' if row['met'] else '**no**',
      ]


def main(argv: Sequence[str]) -> None:
  """Prints the tables of the files that are named."""
  for path in argv[1:]:
    results = json.loads(pathlib.Path(path).read_text())
    print(targets(results))
    print(rounds(results))


if __name__ == '__main__':
  app.run(main)
