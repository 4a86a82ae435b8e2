"""How long is a round, beside stock TFF, a bare loop and other frameworks?

Measures workloads A to G (`workloads.py`) or the cohort sweep: cold start,
seconds per round and peak memory of each system, interleaved, and writes
results.json with every sample, and a plot:

  python -m experiments.benchmark.rounds --workloads=A,C
  python -m experiments.benchmark.rounds --sweep --pairs=5
  python -m experiments.benchmark.rounds --peers --all_plans
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from experiments.benchmark import (
  arms,
  bare,
  harness,
  machine,
  peer_arms,
  plot,
  stats,
  targets,
  workloads,
)
from research import cli, flag_values

_WORKLOADS = flags.DEFINE_list(
  'workloads', list('ABCDEFG'), 'Names in workloads.py.'
)
_SWEEP = flags.DEFINE_bool('sweep', False, 'The cohort sweep in their place.')
_ARMS = flags.DEFINE_list('arms', [], 'Only these arms; empty is all.')
_ALL_PLANS = flags.DEFINE_bool(
  'all_plans', False, 'Also plans and bare loops that are known to lose.'
)
_PEERS = flags.DEFINE_bool(
  'peers', False, 'Also other frameworks, each in an environment of its own.'
)
_PAIRS = flags.DEFINE_integer(
  'pairs', 15, 'Repetitions, in each of which every arm has a turn.', 2
)
_OUTPUT = flags.DEFINE_string(
  'output', 'runs/benchmark', 'Directory of results.json and the plot.'
)


def _launches(workload: workloads.Workload, directory: pathlib.Path):
  launches = [
    harness.Launch(
      name,
      (
        *(sys.executable, '-m', 'experiments.benchmark.worker'),
        *(f'--workload={workload.name}', f'--arm={name}'),
      ),
    )
    for name in arms.names(workload, _ALL_PLANS.value)
  ]
  if _PEERS.value:
    launches += peer_arms.launches(workload, directory)
  if _ARMS.value:
    launches = [launch for launch in launches if launch.name in _ARMS.value]
  return launches


def _measure(workload: workloads.Workload) -> dict[str, Any]:
  directory = pathlib.Path(_OUTPUT.value) / workload.name.replace(':', '_')
  directory.mkdir(parents=True, exist_ok=True)
  print(f'\n{workload.name}: {workload}', flush=True)
  launches = _launches(workload, directory.resolve())
  weights = [w.numpy() for w in bare.initial_weights(workload)]
  results = harness.measure(launches, weights, _PAIRS.value, directory)
  ratios = targets.ratios(results)
  rows = targets.check(workload.name, results)
  _print_results(results, ratios)
  _print_targets(rows)
  return {
    'workload': dataclasses.asdict(workload),
    'arms': {
      name: {
        **dataclasses.asdict(result),
        'median_seconds': float(np.median(result.turns or [np.nan])),
      }
      for name, result in results.items()
    },
    'ratios_to_bare': {k: dataclasses.asdict(v) for k, v in ratios.items()},
    'targets': rows,
  }


def _print_results(
  results: targets.Results, ratios: dict[str, stats.Ratio]
) -> None:
  print(
    f'{"":20}{"s/round":>9} {"/ best bare loop":22}{"start, s":>9}'
    f'{"peak, MB":>9}{"idle cores":>11}{"difference":>11}{"relative":>9}'
  )
  for name, result in results.items():
    if result.error:
      print(f'{name:20} not measured: {result.error[:200]}')
      continue
    agrees = targets.agrees(name, result.relative_difference)
    print(
      f'{name:20}{np.median(result.turns):9.4f} {ratios.get(name, "")!s:22}'
      f'{result.cold_start_seconds:9.1f}{result.peak_megabytes:9.0f}'
      f'{result.idle_cores:11.3f}{result.max_difference:11.1e}'
      f'{result.relative_difference:9.1e}{"" if agrees else "  WRONG"}'
    )


def _print_targets(rows: list[dict[str, Any]]) -> None:
  for row in rows:
    value = row['value']
    shown = stats.Ratio(**value) if isinstance(value, dict) else f'{value:.1f}'
    print(
      f'{"met   " if row["met"] else "MISSED"} {row["what"]} {row["bound"]:.3g}'
      f' against {row["reference"]}: {shown}'
    )


def main(argv: Sequence[str]) -> None:
  """Measures, prints, and writes results.json and rounds.png."""
  flag_values.refuse_arguments(argv)
  names = workloads.sweep() if _SWEEP.value else _WORKLOADS.value
  try:
    chosen = [workloads.get(name) for name in names]
  except ValueError as error:
    raise flags.IllegalFlagValueError(str(error)) from error
  results = {
    'machine': machine.describe(),
    'pairs': _PAIRS.value,
    'workloads': {},
  }
  output = pathlib.Path(_OUTPUT.value)
  output.mkdir(parents=True, exist_ok=True)
  for workload in chosen:
    results['workloads'][workload.name] = _measure(workload)
    # After each, so that a run that is cut short leaves what it has.
    text = json.dumps(results, indent=1)
    (output / 'results.json').write_text(text + '\n')
  draw = plot.draw_sweep if _SWEEP.value else plot.draw
  draw(results, output / 'rounds.png')
  print(f'\n{output / "results.json"} and {output / "rounds.png"}')
  if different := targets.wrong(results):
    print(f'different results: {", ".join(different)}', file=sys.stderr)
    sys.exit(1)


if __name__ == '__main__':
  cli.run(main)
