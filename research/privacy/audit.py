"""How much privacy was lost at least, judged from canaries in one run.

A canary is in the training or not by the toss of a coin. Whoever sees what
training released scores each canary, the higher the likelier it was in. Under
differential privacy no score tells much, so that scores which tell a lot
disprove a guarantee. Nothing proves one: a low bound can be a weak attack.
"""

import dataclasses
import itertools
import math

import numpy as np
from scipy import optimize, special, stats

_BISECTIONS = 30


@dataclasses.dataclass(frozen=True)
class Guesses:
  """How many canaries are guessed about, fixed before there are scores.

  Attributes:
    included: So many of the highest scores are guessed to have been in.
    excluded: So many of the lowest scores are guessed to have been out.
  """

  included: int
  excluded: int

  @property
  def total(self) -> int:
    """Guesses of both kinds."""
    return self.included + self.excluded

  def correct(self, scores: np.ndarray, is_included: np.ndarray) -> int:
    """Counts the guesses that are right.

    Steinke et al. 2023, arXiv:2305.08846, Algorithm 1, with k+ and k-.

    Args:
      scores: Float [canaries].
      is_included: bool [canaries], the coins.
    """
    order = np.argsort(scores, kind='stable')
    lowest, highest = np.split(order, [len(order) - self.included])
    right_in = np.count_nonzero(is_included[highest])
    return right_in + np.count_nonzero(~is_included[lowest[: self.excluded]])


def plan_guesses(canaries: int, idle_probability: float) -> Guesses:
  """Chooses how many guesses are made, without a look at scores.

  An eighth of the canaries at either end is near the best for many mechanisms.
  That a canary was out can't be told where one that was in may never have taken
  part; and at most half of those that took part are worth a guess.

  Args:
    canaries: How many there are, in and out.
    idle_probability: That an included canary takes part in no round.

  Returns:
    The guesses.
  """
  share = min(1 / 8, (1 - idle_probability) / 4)
  included = max(1, round(share * canaries))
  return Guesses(included, included if idle_probability < 0.05 else 0)


def p_value(
  epsilon: float, delta: float, canaries: int, guesses: int, correct: int
) -> float:
  """How likely so many right guesses are at most, if a guarantee holds.

  Steinke et al. 2023, arXiv:2305.08846, Section 5, the bound for approximate
  differential privacy, which Appendix D computes: with W ~ Binomial(r, q) and
  q = e^epsilon / (e^epsilon + 1) it is

    P[W >= v] + 2 m delta max_{1 <= i <= v} P[v > W >= v - i] / i.

  Args:
    epsilon: Of the guarantee, for adding or removing one canary.
    delta: Of the guarantee.
    canaries: m, each in with probability 1/2, those without a guess included.
    guesses: r, fixed in advance.
    correct: v, of the guesses.

  Returns:
    The bound, at most 1.
  """
  if not correct:
    return 1.0
  q = 1 / (1 + math.exp(-epsilon))
  # P[W < w] for w = 0, ..., v.
  below = np.append(0.0, special.bdtr(np.arange(correct), guesses, q))
  fewer = np.arange(1, correct + 1)
  given_away = np.max((below[-1] - below[-2::-1]) / fewer)
  value = special.bdtrc(correct - 1, guesses, q)
  return min(float(value + 2 * canaries * delta * given_away), 1.0)


def epsilon_lower_bound(
  delta: float,
  canaries: int,
  guesses: int,
  correct: int,
  confidence: float = 0.95,
) -> float:
  """The least epsilon that so many right guesses leave possible.

  Whatever the mechanism, the bound exceeds its true epsilon at this delta with
  probability 1 - confidence at most (`p_value` has the source).

  Args:
    delta: As of `p_value`, as the following ones.
    canaries: m.
    guesses: r.
    correct: v.
    confidence: Of the bound.

  Returns:
    Epsilon; 0 if the guesses show nothing.
  """

  def is_refuted(epsilon: float) -> bool:
    p = p_value(epsilon, delta, canaries, guesses, correct)
    return p < 1 - confidence

  if not is_refuted(0.0):
    return 0.0
  high = 1.0
  while is_refuted(high):
    high *= 2
  low = 0.0
  for _ in range(_BISECTIONS):
    middle = (low + high) / 2
    low, high = (middle, high) if is_refuted(middle) else (low, middle)
  return low


def one_shot_epsilon(
  cosines: np.ndarray, dimensions: int, delta: float
) -> float:
  """Estimates epsilon from the cosines of the included canaries.

  Andrew et al. 2023, arXiv:2302.03098, Section 4: the cosine of a random
  direction with a vector that it had no part in is N(0, 1 / d) in many
  dimensions; those of the included canaries are fitted by another Gaussian, and
  epsilon is that of telling the two apart. It is an estimate for this attack:
  not a bound in either direction, and without a confidence.

  Args:
    cosines: Float [included canaries], at least 2, of each one's direction with
      what was released.
    dimensions: d; from about 1,000 on the cosines are Gaussian.
    delta: At which epsilon is wanted.

  Returns:
    Epsilon.
  """
  fitted = float(np.mean(cosines)), float(np.std(cosines, ddof=1))
  null = 0.0, dimensions**-0.5
  return max(
    epsilon_of_gaussians(fitted, null, delta),
    epsilon_of_gaussians(null, fitted, delta),
  )


def epsilon_of_gaussians(
  first: tuple[float, float], second: tuple[float, float], delta: float
) -> float:
  """The least epsilon with P(S) <= e^epsilon Q(S) + delta for all sets S.

  Args:
    first: Mean and standard deviation of P.
    second: Those of Q.
    delta: Above 0.
  """

  def excess(epsilon: float) -> float:
    return _excess(first, second, epsilon) - delta

  if excess(0.0) <= 0:
    return 0.0
  high = 1.0
  while excess(high) > 0:
    high *= 2
  return float(optimize.brentq(excess, 0.0, high))


def _excess(
  first: tuple[float, float], second: tuple[float, float], epsilon: float
) -> float:
  """P(S) - e^epsilon Q(S), where S makes it largest.

  In S the quadratic log p(x) - log q(x) - epsilon is positive.
  """
  (p_mean, p_std), (q_mean, q_std) = first, second
  square = (q_std**-2 - p_std**-2) / 2
  linear = p_mean / p_std**2 - q_mean / q_std**2
  constant = (
    math.log(q_std / p_std)
    + ((q_mean / q_std) ** 2 - (p_mean / p_std) ** 2) / 2
    - epsilon
  )
  roots = np.roots([square, linear, constant])
  edges = [-math.inf, *sorted(roots[np.isreal(roots)].real), math.inf]
  total = 0.0
  for low, high in itertools.pairwise(edges):
    x = _inside(low, high)
    if square * x**2 + linear * x + constant > 0:
      total += math.exp(_log_mass(low, high, *first))
      total -= math.exp(epsilon + _log_mass(low, high, *second))
  return total


def _inside(low: float, high: float) -> float:
  """A point between two that may be infinite."""
  if math.isinf(low):
    return 0.0 if math.isinf(high) else high - 1
  return low + 1 if math.isinf(high) else (low + high) / 2


def _log_mass(low: float, high: float, mean: float, std: float) -> float:
  """The logarithm of a Gaussian's mass between two points, low < high."""
  low, high = (low - mean) / std, (high - mean) / std
  if low > 0:
    # In the lower tail small masses keep their digits.
    low, high = -high, -low
  below_low, below_high = stats.norm.logcdf([low, high])
  if below_low == below_high:
    return -math.inf
  return below_high + math.log(-math.expm1(below_low - below_high))
