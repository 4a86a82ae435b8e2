"""The least noise that keeps within a privacy budget, for any accountant."""

import math
from collections.abc import Callable

from research.privacy import guarantee as guarantee_lib

LEAST, MOST = 1e-3, 1e5
_STEP = 1e-5


def search(
  target_epsilon: float,
  epsilon: Callable[[float], float],
  advice: str,
  least: float = LEAST,
) -> float:
  """Finds a noise multiplier.

  Args:
    target_epsilon: The budget.
    epsilon: Of a noise multiplier; nowhere does it rise.
    advice: What to change if the target is out of reach.
    least: Where the search begins.

  Returns:
    The least noise multiplier, up to 2e-5 of itself, whose epsilon is not above
    the target.

  Raises:
    guarantee.AccountingError: If no sensible noise gives the target.
  """
  guarantee_lib.check_target(target_epsilon)
  low, high = least, MOST
  if epsilon(high) > target_epsilon:
    raise guarantee_lib.AccountingError(
      f'Epsilon {target_epsilon:g} is out of reach: even a noise multiplier of '
      f'{high:g} gives {guarantee_lib.round_up(epsilon(high))}. {advice}'
    )
  while high > low * (1 + _STEP):
    middle = math.sqrt(low * high)
    if epsilon(middle) <= target_epsilon:
      high = middle
    else:
      low = middle
  return float(guarantee_lib.round_up(high, digits=6))
