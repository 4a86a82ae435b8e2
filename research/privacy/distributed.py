"""Distributed differential privacy: what is sent, and what its noise must hide.

Kairouz, Liu and Steinke 2021, "The Distributed Discrete Gaussian Mechanism for
Federated Learning with Secure Aggregation", arXiv:2102.06387 ("DDG" below), and
Agarwal, Kairouz and Liu 2021, "The Skellam Mechanism for Differentially Private
Federated Learning", arXiv:2110.04995. Each client clips its update, rotates it,
rounds it at random to a grid, adds integer noise and sends it modulo 2^bits
into a secure sum, so that the server sees the noised sum alone.

In the papers a client's noise is a fixed share of what the expected cohort
adds. Then the variance of the sum's noise tells how many clients took part,
exactly if the update is long, and adding or removing a client is not hidden.
Here the server announces the number n of clients of a round, and each adds
noise of variance / n, or the server the whole if there are none: the noise of
the sum is the same whatever n is (exactly for Skellam noise, nearly for the
discrete Gaussian: see `DiscreteGaussian`).
"""

import dataclasses
import functools
import math
from typing import Protocol

import attr
import dp_accounting as da
import numpy as np

DISCRETE_GAUSSIAN = 'distributed_discrete_gaussian'
SKELLAM = 'distributed_skellam'
MECHANISMS = (DISCRETE_GAUSSIAN, SKELLAM)

LEAST_BITS, MOST_BITS = 2, 20

# DDG, Section 5: the bias of conditional rounding.
BETA = math.exp(-0.5)
# Standard deviations of a coordinate of the sum to either side of 0 that 2^bits
# makes room for.
_DEVIATIONS = 4.0


@dataclasses.dataclass(frozen=True)
class Encoding:
  """The grid to which updates are rounded, and the noise on it.

  Attributes:
    clip_norm: L2 norm c of an update.
    noise_multiplier: z; the sum's noise has the standard deviation z c.
    clients_per_round: Expected size n of the cohort.
    size: Coordinates of an update.
    bits: Of a coordinate of the sum, which is modulo 2^bits.
  """

  clip_norm: float
  noise_multiplier: float
  clients_per_round: int
  size: int
  bits: int

  def __post_init__(self):
    if not LEAST_BITS <= self.bits <= MOST_BITS:
      raise ValueError(
        f'Distributed noise with {self.bits} bits per coordinate: from '
        f'{LEAST_BITS} to {MOST_BITS} are possible.'
      )
    if self._room <= self.clients_per_round / 4:
      needed = math.log2(_DEVIATIONS * math.sqrt(self.clients_per_round))
      raise ValueError(
        f'{self.bits} bits per coordinate can not hold the rounding of '
        f'{self.clients_per_round} clients: give at least '
        f'{math.floor(needed) + 1} bits.'
      )

  @property
  def dimension(self) -> int:
    """Coordinates d after the rotation: the next power of two."""
    return 1 << (self.size - 1).bit_length()

  @property
  def _room(self) -> float:
    return 4.0**self.bits / (4 * _DEVIATIONS**2)

  @functools.cached_property
  def granularity(self) -> float:
    """The grid's step, gamma.

    Solves 2^bits gamma = 2 k sqrt(c^2 n^2 / d + n (gamma / 2)^2 + z^2 c^2) with
    k = 4 (DDG, Section 4.4, for updates that all point in one direction).
    """
    signal = (self.clip_norm * self.clients_per_round) ** 2 / self.dimension
    noise = (self.noise_multiplier * self.clip_norm) ** 2
    return math.sqrt(
      (signal + noise) / (self._room - self.clients_per_round / 4)
    )

  @property
  def stddev(self) -> float:
    """Standard deviation of the sum's noise, in steps of the grid."""
    return self.noise_multiplier * self.clip_norm / self.granularity

  @property
  def squared_norm(self) -> int:
    """Of a rounded update, at most, in squared steps of the grid."""
    return math.floor(
      rounded_norm(self.clip_norm / self.granularity, self.dimension) ** 2
    )


def rounded_norm(norm: float, dimension: int) -> float:
  """What the L2 norm of an update can be after conditional rounding.

  DDG, Theorem 1 and Proposition 22, with beta = exp(-1/2).

  Args:
    norm: Before, in steps of the grid.
    dimension: Number of coordinates.

  Returns:
    The bound, in steps of the grid.
  """
  root = math.sqrt(dimension)
  conditional = norm**2 + dimension / 4
  conditional += math.sqrt(2 * math.log(1 / BETA)) * (norm + root / 2)
  return min(math.sqrt(conditional), norm + root)


class Noise(Protocol):
  """Integer noise of all clients together.

  Attributes:
    name: In words.
  """

  name: str

  def rdp(self, orders: np.ndarray, change: float) -> np.ndarray:
    """Renyi divergences between the noise and itself, shifted.

    Args:
      orders: Integers from 2 on.
      change: L2 norm of the shift, an integer vector.
    """

  @property
  def mismatch(self) -> float:
    """How far the clients' noise is from the one that `rdp` is about.

    The logarithm of any outcome's probability is at most so far off.
    """

  def event(self, change: float) -> da.DpEvent:
    """What a round releases, for a shift by `change`."""


@attr.s(frozen=True, slots=True, auto_attribs=True)
class DiscreteGaussianDpEvent(da.DpEvent):
  """A sum with discrete Gaussian noise, in steps of a grid.

  Attributes:
    stddev: Of the noise.
    sensitivity: L2 norm of a client's vector, at most.
    dimension: Number of coordinates.
  """

  stddev: float
  sensitivity: float
  dimension: int


@attr.s(frozen=True, slots=True, auto_attribs=True)
class SkellamDpEvent(da.DpEvent):
  """A sum with Skellam noise; see `DiscreteGaussianDpEvent`."""

  stddev: float
  sensitivity: float
  dimension: int


@dataclasses.dataclass(frozen=True)
class DiscreteGaussian:
  """The sum of n discrete Gaussians of variance stddev^2 / n each.

  It is accounted for as one discrete Gaussian, which it is up to `mismatch`:
  the convolution of two, of variances s^2 and k s^2, has probabilities within a
  factor of exp(5 exp(-2 pi^2 s^2 k / (k + 1))) of those of the one with the sum
  of the variances if s >= 1/2 (DDG, Theorem 9), and so on for all n and all
  coordinates.

  Attributes:
    stddev: Of the sum, in steps of the grid.
    dimension: Number of coordinates.
    most_clients: The largest n that can be.
  """

  stddev: float
  dimension: int
  most_clients: int
  name = 'discrete Gaussian'

  def rdp(self, orders: np.ndarray, change: float) -> np.ndarray:
    """See `Noise`; Canonne, Kamath and Steinke 2020, arXiv:2004.00010."""
    return orders * change**2 / (2 * self.stddev**2)

  @functools.cached_property
  def mismatch(self) -> float:
    local_variance = self.stddev**2 / self.most_clients
    if self.most_clients == 1:
      return 0.0
    if local_variance < 0.25:
      return math.inf
    k = np.arange(1, self.most_clients)
    exponents = -2 * math.pi**2 * local_variance * k / (k + 1)
    return 5 * self.dimension * float(np.exp(exponents).sum())

  def event(self, change: float) -> da.DpEvent:
    return DiscreteGaussianDpEvent(self.stddev, change, self.dimension)


@dataclasses.dataclass(frozen=True)
class Skellam:
  """The sum of Skellam noise, which is Skellam noise.

  Attributes:
    stddev: Of the sum, in steps of the grid.
    dimension: Number of coordinates.
  """

  stddev: float
  dimension: int
  name = 'Skellam'
  mismatch = 0.0

  def rdp(self, orders: np.ndarray, change: float) -> np.ndarray:
    """See `Noise`; Agarwal et al. 2021, Corollary 3.6, for integer orders."""
    variance = self.stddev**2
    # Of integers, none is larger than its square.
    l1 = min(math.sqrt(self.dimension) * change, change**2)
    fine = ((2 * orders - 1) * change**2 + 6 * l1) / (4 * variance**2)
    coarse = 3 * l1 / (2 * variance)
    return orders * change**2 / (2 * variance) + np.minimum(fine, coarse)

  def event(self, change: float) -> da.DpEvent:
    return SkellamDpEvent(self.stddev, change, self.dimension)


def noise(mechanism: str, encoding: Encoding, most_clients: int) -> Noise:
  """The noise of a mechanism.

  Args:
    mechanism: One of `MECHANISMS`.
    encoding: Has its size.
    most_clients: That can be in a round.
  """
  if mechanism == SKELLAM:
    return Skellam(encoding.stddev, encoding.dimension)
  return DiscreteGaussian(encoding.stddev, encoding.dimension, most_clients)
