"""Privacy losses integrated with NumPy and SciPy alone, to check a library.

Nothing here imports dp_accounting or research.
"""

from collections.abc import Sequence

import numpy as np
from scipy import integrate, optimize, special, stats


def gaussian_delta(epsilon: float, mu: float) -> float:
  """Delta of the Gaussian mechanism, sensitivity / standard deviation = mu.

  Dong, Roth and Su 2019 (arXiv:1905.02383), corollary 2.13:
  Phi(-epsilon / mu + mu / 2) - exp(epsilon) Phi(-epsilon / mu - mu / 2).
  """
  first = stats.norm.logcdf(-epsilon / mu + mu / 2)
  second = epsilon + stats.norm.logcdf(-epsilon / mu - mu / 2)
  return float(np.exp(first) * -np.expm1(second - first))


def gaussian_epsilon(delta: float, mu: float) -> float:
  """Epsilon of the Gaussian mechanism, the inverse of `gaussian_delta`."""
  return optimize.brentq(
    lambda e: gaussian_delta(e, mu) / delta - 1,
    0.0,
    mu * mu / 2 + 20 * mu,
    xtol=1e-13,
  )


def renyi_divergence(q: float, z: float, order: float) -> float:
  """Of (1 - q) N(0, z^2) + q N(1, z^2) from N(0, z^2), by quadrature.

  The larger of the two directions (Mironov, Talwar and Zhang 2019,
  arXiv:1908.10530, section 3).
  """

  def integrand(x):
    ratio = np.logaddexp(np.log1p(-q), np.log(q) + (2 * x - 1) / (2 * z * z))
    return np.exp(order * ratio + stats.norm.logpdf(x, scale=z))

  ends = -12 * z, order + 12 * z
  peaks = [0.0, order / 2, order]
  value, _ = integrate.quad(
    integrand, *ends, points=peaks, limit=500, epsabs=0, epsrel=1e-12
  )
  return float(np.log(value) / (order - 1))


def epsilon_of_renyi(orders, divergences, delta: float) -> float:
  """Of divergences: Canonne, Kamath and Steinke 2020, proposition 12."""
  a, r = np.asarray(orders), np.asarray(divergences)
  return float(
    np.min(r + np.log1p(-1 / a) - (np.log(delta) + np.log(a)) / (a - 1))
  )


class PoissonGaussian:
  """Rounds of Gaussian noise on Poisson samples, composed by FFT.

  A round adds N(0, z^2) to a sum in which the client has 1 with probability q
  and else 0. The loss of an output x is +-log(1 - q + q exp((2x - 1) / (2
  z^2))), under the distribution of x with the client ("remove") or without it.
  Before the FFT losses are weighted by exp(tilt * loss), so that rounding
  errors are relative to the tail which delta is made of.

  Args:
    parts: Of (q, z, rounds).
    points: Grid points for the standard deviation of one round's loss.
  """

  def __init__(
    self, parts: Sequence[tuple[float, float, int]], points: float = 80.0
  ):
    scale = min(q * np.sqrt(np.expm1(1 / z**2)) for q, z, _ in parts)
    self._step = scale / points
    self._parts = {
      remove: [(*self._masses(q, z, remove), n) for q, z, n in parts]
      for remove in (True, False)
    }

  def delta(self, epsilon: float) -> float:
    """Delta for add-or-remove."""
    return float(np.exp(max(self._log_delta(epsilon, s) for s in self._parts)))

  def _masses(self, q: float, z: float, remove: bool):
    """First index on the grid of losses, and the masses from there on."""
    reach = np.log1p(q * np.expm1((11 * z + 0.5) / z**2))
    low, high = np.log1p(-q), reach
    if not remove:
      low, high = -high, -low
    first, last = int(low / self._step) - 2, int(high / self._step) + 2
    edges = (np.arange(first, last + 2) - 0.5) * self._step
    # The output whose loss is an edge; -inf below the least loss.
    ratio = np.expm1(edges if remove else -edges) / q
    inside = ratio > -1
    x = np.where(inside, z * z * np.log1p(np.where(inside, ratio, 0)), -np.inf)
    x = x + 0.5
    if remove:
      tail = (1 - q) * stats.norm.sf(x / z) + q * stats.norm.sf((x - 1) / z)
    else:
      tail = stats.norm.cdf(x / z)
    return first, np.maximum(tail[:-1] - tail[1:], 0)

  def _log_delta(self, epsilon: float, remove: bool) -> float:
    parts = [
      ((first + np.arange(len(mass))) * self._step, first, mass, n)
      for first, mass, n in self._parts[remove]
    ]

    def cumulant(tilt):
      return sum(n * special.logsumexp(tilt * x, b=m) for x, _, m, n in parts)

    tilt = optimize.minimize_scalar(
      lambda t: cumulant(t) - t * epsilon, bounds=(0.01, 400), method='bounded'
    ).x
    mean, variance, offset, widest = 0.0, 0.0, 0, 0
    weighted = []
    for x, first, m, n in parts:
      w = m * np.exp(tilt * x - special.logsumexp(tilt * x, b=m))
      weighted.append((w, n))
      mean += n * (w @ x)
      variance += n * (w @ x**2 - (w @ x) ** 2)
      offset += n * first
      widest = max(widest, len(x))
    reach = int(12 * np.sqrt(variance) / self._step) + widest
    size = 2 ** int(np.ceil(np.log2(2 * reach)))
    spectrum = np.prod([np.fft.rfft(w, size) ** n for w, n in weighted], axis=0)
    # The circular grid is cut open far from the mean.
    start = int(mean / self._step) - size // 2
    mass = np.roll(np.fft.irfft(spectrum, size), offset - start)
    over = (start + np.arange(size)) * self._step - epsilon
    over, mass = over[over > 0], mass[over > 0]
    rest = mass @ (np.exp(-tilt * over) * -np.expm1(-over))
    if rest <= 0:
      return -np.inf
    return cumulant(tilt) - tilt * epsilon + float(np.log(rest))
