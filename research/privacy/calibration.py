"""The noise that a privacy budget asks for."""

import functools
import hashlib
import importlib.metadata
import json
import math
import pathlib
from collections.abc import Callable

from scipy import optimize

from research.privacy import accounting
from research.privacy import guarantee as guarantee_lib
from research.training import atomic

LEAST_NOISE = 0.1
MOST_NOISE = 1e4
# Noise multipliers are multiples of 10^-4 of their first digit's place.
_DIGITS = 5
# An epsilon this far below the target, relative, is close enough.
TOLERANCE = 1e-3

_known: dict[str, float] = {}


def noise_multiplier(
  target_epsilon: float,
  delta: float,
  sampling: guarantee_lib.Sampling,
  strategy: accounting.Strategy | None = None,
  cache_folder: str | pathlib.Path | None = None,
) -> float:
  """The least noise, to five digits, that keeps all rounds within a budget.

  Renyi differential privacy brackets it, as a quick upper bound of epsilon;
  where privacy loss distributions are valid they decide.

  Args:
    target_epsilon: Of the guarantee after all rounds.
    delta: Of the guarantee.
    sampling: How clients come into rounds, with their number.
    strategy: The matrix factorization of correlated noise; None for noise that
      is independent in each round.
    cache_folder: Where the answer is kept for the next process.

  Returns:
    The noise multiplier. Its epsilon is never above the target, and at most
    0.1 % below. A smaller target never gives a smaller noise multiplier.

  Raises:
    guarantee.AccountingError: If no sensible noise gives the target.
  """
  guarantee_lib.check_target(target_epsilon)

  def accountant(noise: float) -> accounting.Accountant:
    return accounting.build_gaussian(noise, sampling, delta, strategy)

  # Refuses what has no accounting, before anything is looked up.
  accountant(1.0)
  arguments = _arguments(target_epsilon, delta, sampling, strategy)
  key = json.dumps(arguments, sort_keys=True)
  path = None
  if cache_folder is not None:
    name = hashlib.sha256(key.encode()).hexdigest()[:32] + '.json'
    path = pathlib.Path(cache_folder) / 'noise_multipliers' / name
  if key not in _known:
    found = _read(path, arguments)
    rounds = sampling.total_rounds
    # A file is not believed where the noise decides about privacy.
    if (
      not found or accountant(found).guarantee(rounds).epsilon > target_epsilon
    ):
      found = _search(target_epsilon, rounds, accountant)
    _known[key] = found
  if path is not None and _read(path, arguments) != _known[key]:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_json(path, {**arguments, 'noise_multiplier': _known[key]})
  return _known[key]


def _arguments(target_epsilon, delta, sampling, strategy) -> dict:
  arguments = {
    'target_epsilon': target_epsilon,
    'delta': delta,
    'sampling': vars(sampling),
    'dp_accounting': importlib.metadata.version('dp-accounting'),
  }
  if strategy is not None:
    separation = sampling.min_separation
    most = sampling.participations(sampling.total_rounds)
    arguments['strategy'] = {
      'name': strategy.name,
      'bands': strategy.bands,
      'sensitivities': [
        strategy.sensitivity(separation, count) for count in (1, most)
      ],
    }
  return arguments


def _read(path: pathlib.Path | None, arguments: dict) -> float | None:
  """What an earlier process found for the same arguments."""
  if path is None:
    return None
  try:
    found = json.loads(path.read_text())
  except (OSError, ValueError):
    return None
  value = found.get('noise_multiplier') if isinstance(found, dict) else None
  same = found == {**arguments, 'noise_multiplier': value}
  return value if same and isinstance(value, float) and value > 0 else None


def _search(
  target: float,
  rounds: int,
  accountant: Callable[[float], accounting.Accountant],
) -> float:
  @functools.cache
  def rdp_epsilon(noise: float) -> float:
    return accountant(noise).rdp_epsilon(rounds)

  @functools.cache
  def epsilon(noise: float) -> float:
    return accountant(noise).guarantee(rounds).epsilon

  if epsilon(MOST_NOISE) > target:
    reachable = guarantee_lib.round_up(epsilon(MOST_NOISE))
    raise guarantee_lib.AccountingError(
      f'Epsilon {target:g} is out of reach: even a noise multiplier of '
      f'{MOST_NOISE:g} gives {reachable}. Ask for at least that, for fewer '
      'rounds, or for fewer clients per round.'
    )
  # Renyi differential privacy only bounds epsilon, so it may ask for more.
  upper = _root(rdp_epsilon, target, LEAST_NOISE, MOST_NOISE, tolerance=0.01)
  lower = upper
  while epsilon(lower) <= target:
    if lower <= LEAST_NOISE:
      raise guarantee_lib.AccountingError(
        f'Epsilon {target:g} asks for next to no noise: a noise multiplier of '
        f'{LEAST_NOISE:g} gives {epsilon(LEAST_NOISE):.4g} already. Ask for '
        'less than that, or give the noise multiplier itself.'
      )
    lower = max(0.8 * lower, LEAST_NOISE)
  upper = max(upper, lower)
  while epsilon(upper) > target:
    upper *= 1.02
  # Slightly to the noisy side, so that seldom more than two steps are left.
  noise = _root(epsilon, target, lower, upper, tolerance=1e-5)
  noise = _on_grid(noise, steps=1)
  while epsilon(noise) > target:
    noise = _on_grid(noise, steps=1)
  while epsilon(_on_grid(noise, steps=-1)) <= target:
    noise = _on_grid(noise, steps=-1)
  return noise


def _root(
  epsilon: Callable[[float], float],
  target: float,
  lower: float,
  upper: float,
  tolerance: float,
) -> float:
  """The noise that gives an epsilon, or the end of the range next to it."""

  def gap(log_noise: float) -> float:
    return math.log(max(epsilon(math.exp(log_noise)), 1e-12) / target)

  ends = math.log(lower), math.log(upper)
  if gap(ends[0]) <= 0:
    return lower
  if gap(ends[1]) >= 0:
    return upper
  return math.exp(optimize.brentq(gap, *ends, xtol=tolerance))


def _on_grid(noise: float, steps: int) -> float:
  """The number of `_DIGITS` digits that is `steps` of them up or down."""
  unit = 10.0 ** (math.floor(math.log10(noise)) - _DIGITS + 1)
  return float(f'{(round(noise / unit) + steps) * unit:.{_DIGITS - 1}e}')
