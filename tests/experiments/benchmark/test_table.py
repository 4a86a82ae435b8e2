"""Tables of benchmark results; the documentation has those recorded."""

import json
import pathlib

from experiments.benchmark import table

ROOT = pathlib.Path(__file__).parents[3]
RECORDED = sorted((ROOT / 'experiments/benchmark/recorded').glob('*.json'))

RATIO = {'median': 1.2345, 'low': 1.1, 'high': 1.3, 'pairs': 15}
RESULTS = {
  'workloads': {
    'A': {
      'arms': {
        'bare_lanes': {
          'median_seconds': 0.25,
          'cold_start_seconds': 3.04,
          'peak_megabytes': 811.7,
          'error': '',
        },
        'peer_flower': {'error': 'not there'},
      },
      'ratios_to_bare': {'bare_lanes': RATIO},
      'targets': [
        {
          'reference': 'bare_lanes',
          'what': 'time ratio, at most',
          'bound': 1.2,
          'value': RATIO,
          'met': False,
        },
        {
          'reference': 'stock_reduce',
          'what': 'cold start, s',
          'bound': 12.34,
          'value': 7.06,
          'met': True,
        },
      ],
    }
  }
}


def test_an_arm_is_a_line_and_one_that_failed_is_none():
  assert table.rounds(RESULTS).splitlines()[2:] == [
    '| A | bare_lanes | 0.2500 | 1.23 [1.1, 1.3] | 3.0 | 812 |'
  ]


def test_a_target_is_a_line():
  assert table.targets(RESULTS).splitlines()[2:] == [
    '| A | time ratio, at most 1.2 | bare_lanes | 1.23 [1.1, 1.3] | **no** |',
    '| A | cold start, s 12.3 | stock_reduce | 7.1 | yes |',
  ]


def test_the_documentation_has_what_was_recorded_and_no_more():
  results = [json.loads(path.read_text()) for path in RECORDED]
  recorded = [
    line
    for result in results
    for render in (table.targets, table.rounds)
    for line in render(result).splitlines()
  ]
  text = (ROOT / 'docs/benchmark.md').read_text()
  documented = [
    line
    for line in text.splitlines()
    if line.startswith(
      ('| A', '| B', '| C', '| D', '| E', '| F', '| G', '| sweep:')
    )
  ]
  rows = [
    line for line in recorded if not line.startswith(('| workload', '| ---'))
  ]
  assert sorted(documented) == sorted(rows)
  assert set(recorded) <= set(text.splitlines())
