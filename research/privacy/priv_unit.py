"""PrivUnit with Gaussian numbers: reports of an update's direction.

Bhowmick, Duchi, Freudiger, Kapoor and Rogers 2018, "Protection Against
Reconstruction and Its Applications in Private Federated Learning",
arXiv:1812.00984, Section 4.1 (PrivUnit); Asi, Feldman and Talwar 2022, "Optimal
Algorithms for Mean Estimation under Local Differential Privacy",
arXiv:2205.02466, Section 4 (PrivUnitG, the form that is here).

A report of a unit vector v is x / m, where x has the density of standard normal
numbers, but that <x, v> >= gamma has the probability p and not 1 - Phi(gamma).
Two densities differ by a factor of at most

  exp(epsilon) = p Phi(gamma) / ((1 - p) (1 - Phi(gamma))),

and m = E <x, v> = phi(gamma) (p / (1 - Phi(gamma)) - (1 - p) / Phi(gamma)). The
square error is about d / m^2 for d coordinates. For a given epsilon m is
largest where its derivative by gamma is 0, and that is where gamma = m: so one
number, the standard deviation 1 / gamma of a coordinate's noise, says
everything, and

  exp(epsilon) = (phi(gamma) + gamma Phi(gamma))
                 / (phi(gamma) - gamma (1 - Phi(gamma))).
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize, special, stats

# With less an epsilon of a report is above 57, and protects nothing.
LEAST_NOISE_MULTIPLIER = 0.1


def epsilon(noise_multiplier: float) -> float:
  """Of one report: no update makes it more than exp(epsilon) times as likely.

  Args:
    noise_multiplier: Standard deviation of a coordinate's noise / clipping
      norm, at least `LEAST_NOISE_MULTIPLIER`; or 0, of which it is infinite.
  """
  if not noise_multiplier:
    return math.inf
  gamma = 1 / noise_multiplier
  density, below = stats.norm.pdf(gamma), stats.norm.cdf(gamma)
  # Mills' ratio: 1 - Phi, of which little is left, without its rounding.
  mills = math.sqrt(math.pi / 2) * special.erfcx(gamma / math.sqrt(2))
  return math.log1p(gamma * below / density) - math.log1p(-gamma * mills)


def probability_above(noise_multiplier: float) -> float:
  """p, with which a report is at least gamma along the update's direction."""
  gamma = 1 / noise_multiplier
  above, below = stats.norm.sf(gamma), stats.norm.cdf(gamma)
  return above / (above + math.exp(-epsilon(noise_multiplier)) * below)


def _losses(noise_multiplier: float) -> np.ndarray:
  """Probabilities of the privacy losses -epsilon, 0 and epsilon, float64 [3].

  The ratio of the densities for v and w is exp(epsilon) where <x, v> is above
  gamma and <x, w> is not. That has the probability p at most, and exactly p for
  w = -v, since gamma is above 0: opposite directions are worst.
  """
  above = probability_above(noise_multiplier)
  opposite = above * math.exp(-epsilon(noise_multiplier))
  return np.array([opposite, 1 - above - opposite, above])


def renyi_divergence(
  noise_multiplier: float, orders: Sequence[float]
) -> np.ndarray:
  """Of two clients' reports, at most.

  Args:
    noise_multiplier: See `epsilon`.
    orders: Above 1, [n].

  Returns:
    float64 [n].
  """
  powers = np.outer(np.asarray(orders) - 1, [-1, 0, 1])
  logs = np.log(_losses(noise_multiplier)) + powers * epsilon(noise_multiplier)
  return special.logsumexp(logs, axis=1) / powers[:, 2]


def composed_epsilon(
  noise_multiplier: float, reports: int, delta: float
) -> float:
  """Epsilon of several reports, by the distribution of their privacy loss.

  Args:
    noise_multiplier: See `epsilon`.
    reports: How many.
    delta: Of the guarantee.
  """
  one = epsilon(noise_multiplier)
  losses = one * np.arange(-reports, reports + 1)
  masses = np.polynomial.polynomial.polypow(_losses(noise_multiplier), reports)

  def excess(total: float) -> float:
    return masses @ -np.expm1(np.minimum(total - losses, 0)) - delta

  if excess(0) <= 0:
    return 0.0
  return optimize.brentq(excess, 0, reports * one, xtol=1e-12)
