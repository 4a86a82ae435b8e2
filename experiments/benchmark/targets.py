"""What the in-process runtime must show, and whether a run shows it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.benchmark import harness, stats, workloads

ARM = 'in_process_auto'
# Seconds that the in-process runtime's cold start may take beyond stock's.
_COLD_START_MARGIN = 5.0
# Seconds that building a process may take. Stock TFF took 63 s for G.
_MOST_CONSTRUCTION: Mapping[str, float] = {'F': 15.0, 'G': 15.0}
# Of the updates of round 1, relative. Rounding explains so much: it decides
# ReLUs and maxima that are nearly ties, each worth a unit's gradient.
MOST_DIFFERENT = 1e-3


@dataclasses.dataclass(frozen=True)
class Target:
  """A bound on a paired ratio of an arm and a reference.

  Attributes:
    reference: An arm, or a prefix of arms of which the fastest counts.
    at_most: Bound on seconds over the reference's seconds.
    at_least: Bound on the reference's seconds over the arm's: a speed-up.
    arm: The arm.
  """

  reference: str
  at_most: float | None = None
  at_least: float | None = None
  arm: str = ARM


# What quantization may cost of a round.
_QUANTIZED = Target(ARM, at_most=1.5, arm=workloads.WITH_QUANTIZATION)
_MANY_SMALL = (
  Target('bare_vmap', at_most=2),
  Target('stock_reduce', at_least=500),
  Target('stock_iterator', at_least=200),
)
TARGETS: Mapping[str, tuple[Target, ...]] = {
  'A': (
    Target('bare_', at_most=1.2),
    Target('stock_reduce', at_least=2.5),
    Target('peer_', at_least=1),
    _QUANTIZED,
  ),
  'B': (
    Target('bare_', at_most=1.2),
    Target('stock_reduce', at_least=4),
    Target('peer_', at_least=1),
    _QUANTIZED,
  ),
  'C': (*_MANY_SMALL, Target('peer_', at_least=15)),
  'D': (
    Target('bare_', at_most=1.2),
    Target('stock_reduce', at_least=4),
    Target('peer_', at_least=1),
  ),
  'E': (
    Target('bare_', at_most=1.2),
    Target('stock_reduce', at_least=2.5),
    Target('peer_', at_least=1),
    # What differential privacy may cost of a round.
    Target(workloads.WITHOUT_PRIVACY, at_most=1.1),
  ),
  'F': (Target('bare_', at_most=1.2), _QUANTIZED),
  'G': (Target('bare_', at_most=1.2),),
  'sweep:1000x10k': _MANY_SMALL,
  'sweep:10x10M': (Target('stock_', at_least=10),),
}

Results = Mapping[str, harness.Result]


def fastest(results: Results, reference: str) -> str | None:
  """The arm of that name, or the fastest whose name starts so; None if none.

  Args:
    results: What was measured, by arm.
    reference: An arm's name, or a prefix that ends with an underscore.
  """
  fits = str.startswith if reference.endswith('_') else str.__eq__
  names = [
    name
    for name, result in results.items()
    if result.seconds and fits(name, reference)
  ]
  return min(names, key=lambda n: np.median(results[n].turns), default=None)


def ratios(results: Results) -> dict[str, stats.Ratio]:
  """Each arm's seconds over those of the fastest bare loop."""
  bare = fastest(results, 'bare_')
  if bare is None:
    return {}
  return {
    name: stats.paired_ratio(result.turns, results[bare].turns)
    for name, result in results.items()
    if result.seconds
  }


def check(workload: str, results: Results) -> list[dict[str, Any]]:
  """Compares a workload's results with its targets.

  Args:
    workload: Its name.
    results: What was measured, by arm.

  Returns:
    One dict per target whose arms were measured: `reference` (an arm), `what`,
    `bound`, `value` (a number, or a dict of `stats.Ratio`) and `met`.
  """
  if not results.get(ARM, harness.Result()).seconds:
    return []
  rows = [
    row
    for target in TARGETS.get(workload, ())
    if (row := _check_speed(target, results))
  ]
  if (bound := _MOST_CONSTRUCTION.get(workload)) is not None:
    seconds = results[ARM].construction_seconds
    what = 'process construction, s'
    rows.append(_row(ARM, what, bound, seconds, seconds <= bound))
  stock = fastest(results, 'stock_')
  if stock is None:
    return rows
  seconds = results[ARM].cold_start_seconds
  bound = results[stock].cold_start_seconds + _COLD_START_MARGIN
  rows.append(_row(stock, 'cold start, s', bound, seconds, seconds <= bound))
  if workload == 'sweep:10x10M':
    used, bound = results[ARM].peak_megabytes, results[stock].peak_megabytes
    rows.append(_row(stock, 'peak memory, MB', bound, used, used <= bound))
  return rows


def _check_speed(target: Target, results: Results) -> dict[str, Any] | None:
  reference = fastest(results, target.reference)
  measured = results.get(target.arm, harness.Result())
  if reference is None or not measured.seconds:
    return None
  ours, theirs = measured.turns, results[reference].turns
  if target.at_most is not None:
    ratio, what = stats.paired_ratio(ours, theirs), 'time ratio, at most'
  else:
    ratio, what = stats.paired_ratio(theirs, ours), 'speed-up, at least'
  if target.arm != ARM:
    what = what.replace(',', f' of {target.arm},')
  met = stats.meets(ratio, target.at_most, target.at_least)
  bound = target.at_least if target.at_most is None else target.at_most
  return _row(reference, what, bound, dataclasses.asdict(ratio), met)


def _row(reference, what, bound, value, met) -> dict[str, Any]:
  return {
    'reference': reference,
    'what': what,
    'bound': bound,
    'value': value,
    'met': bool(met),
  }


def agrees(name: str, relative_difference: float) -> bool:
  """Whether an arm's update of round 1 is that of the others, but for rounding.

  Args:
    name: The arm's; some do other things than the others.
    relative_difference: As in `harness.Result`.
  """
  if name in workloads.CHANGED:
    return True
  return relative_difference <= MOST_DIFFERENT


def wrong(results: dict[str, Any]) -> list[str]:
  """The arms whose weights after round 1 differ by more than rounding.

  Args:
    results: As in results.json.

  Returns:
    Texts WORKLOAD/ARM.
  """
  return [
    f'{workload}/{name}'
    for workload, measured in results['workloads'].items()
    for name, arm in measured['arms'].items()
    if not arm['error'] and not agrees(name, arm['relative_difference'])
  ]
