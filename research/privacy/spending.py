"""Epsilon of Gaussian noise over rounds, by dp_accounting's two accountants.

Renyi differential privacy (Mironov 2017, arXiv:1702.07476) bounds all that is
here. Privacy loss distributions (Koskela et al. 2020, arXiv:1906.03049;
Doroshenko et al. 2022, arXiv:2207.04380) are tighter and hold for Gaussian
noise without sampling, where they have a closed form (Balle and Wang 2018,
arXiv:1805.06530), and for Poisson sampling.
"""

import collections
import contextlib
import functools
import math
from collections.abc import Callable, Sequence

import dp_accounting as da
import numpy as np
from absl import logging
from dp_accounting import rdp
from dp_accounting.pld import privacy_loss_distribution as pld

from research.privacy import guarantee as guarantee_lib

_RELATIONS = {
  guarantee_lib.ADD_OR_REMOVE: da.NeighboringRelation.ADD_OR_REMOVE_ONE,
  guarantee_lib.REPLACE: da.NeighboringRelation.REPLACE_ONE,
  guarantee_lib.ZERO_OUT: da.NeighboringRelation.REPLACE_SPECIAL,
}
_ORDERS = rdp.RdpAccountant().orders
# By how much, relative, the grid of losses may raise epsilon.
_GRID_ERROR = 2e-4
_FINEST_INTERVAL = 1e-6
_USUAL_INTERVAL = 1e-4
# Compositions by FFT are off by some 1e-13 in delta, in either direction.
_FFT_ERROR = 2e-12
_LEAST_FFT_DELTA = 1e-10
# What is cut off the losses of one round and of their sum, relative to delta.
_ROUND_TAIL = 1e-9
_SUM_TAIL = 1e-6
# Rounds are composed at once up to a multiple of this, then one by one, which
# is quicker where each round is asked for.
_BLOCK = 16


class Gaussian:
  """A Gaussian mechanism.

  Args:
    delta: Of the guarantee.
    mu: Sensitivity / standard deviation of all that is released, a function of
      the rounds and of how often each repeated round was released.
  """

  amplified = False
  pld_is_valid = True

  def __init__(self, delta: float, mu: Callable[[int, Sequence[int]], float]):
    self._delta = delta
    self._mu = mu

  def by_rdp(self, rounds: int, repeated: Sequence[int]) -> float:
    """Epsilon by Renyi differential privacy."""
    event = da.GaussianDpEvent(1 / self._mu(rounds, repeated))
    accountant = rdp.RdpAccountant(_ORDERS)
    return accountant.compose(event).get_epsilon(self._delta)

  def by_pld(self, rounds: int, repeated: Sequence[int]) -> float:
    """Epsilon by the privacy loss distribution, which is a Gaussian."""
    return da.get_epsilon_gaussian(1 / self._mu(rounds, repeated), self._delta)


class SampledGaussian:
  """Independent Gaussian noise on clients that are sampled in each round.

  A round that is released again has the clients that it had: its releases are
  one sample with less noise, not two samples.

  Args:
    sampling: How clients come into rounds, with a probability below 1.
    delta: Of the guarantee.
    noise_multiplier: Standard deviation / change between neighbours.
  """

  amplified = True

  def __init__(
    self,
    sampling: guarantee_lib.Sampling,
    delta: float,
    noise_multiplier: float,
  ):
    self._sampling = sampling
    self._delta = delta
    self._noise_multiplier = noise_multiplier
    self._relation = _RELATIONS[sampling.relation]
    fixed_size = sampling.scheme == guarantee_lib.FIXED_SIZE
    self.pld_is_valid = not fixed_size and delta >= _LEAST_FFT_DELTA
    # By how often a round is released.
    self._round_rdp = functools.cache(self._round_rdp)
    self._round_pld = functools.cache(self._round_pld)
    self._rounds_pld = functools.lru_cache(2 * _BLOCK)(self._rounds_pld)

  def by_rdp(self, rounds: int, repeated: Sequence[int]) -> float:
    """Epsilon by Renyi differential privacy."""
    return self._rdp_and_order(counts(self._sampling, rounds, repeated))[0]

  def by_pld(self, rounds: int, repeated: Sequence[int]) -> float:
    """Epsilon by privacy loss distributions, where `pld_is_valid`."""
    if self.by_rdp(rounds, repeated) == 0:
      # A grid of losses can't say less than about its interval.
      return 0.0
    composed = None
    for times, count in counts(self._sampling, rounds, repeated).items():
      part = self._rounds_pld(times, count)
      composed = self._compose(composed, part) if composed else part
    # Losses of some hundreds overflow on the way, without effect.
    with np.errstate(over='ignore'):
      return composed.get_epsilon_for_delta(self._delta - _FFT_ERROR)

  def _rdp_and_order(self, composed: dict[int, int]) -> tuple[float, float]:
    total = sum(n * self._round_rdp(times) for times, n in composed.items())
    return rdp.compute_epsilon(_ORDERS, total, self._delta)

  def _round_rdp(self, times: int) -> np.ndarray:
    noise = da.GaussianDpEvent(self._noise_multiplier / math.sqrt(times))
    if self._sampling.scheme == guarantee_lib.FIXED_SIZE:
      event = da.SampledWithoutReplacementDpEvent(
        self._sampling.population, self._sampling.clients_per_round, noise
      )
    else:
      event = da.PoissonSampledDpEvent(self._sampling.probability, noise)
    with _quiet():
      accountant = rdp.RdpAccountant(_ORDERS, self._relation)
      return accountant.compose(event).rdp

  def _round_pld(self, times: int) -> pld.PrivacyLossDistribution:
    return pld.from_gaussian_mechanism(
      self._noise_multiplier / math.sqrt(times),
      value_discretization_interval=self._interval,
      log_mass_truncation_bound=math.log(_ROUND_TAIL * self._delta),
      sampling_prob=self._sampling.probability,
      neighboring_relation=self._relation,
    )

  def _rounds_pld(self, times: int, count: int) -> pld.PrivacyLossDistribution:
    one = self._round_pld(times)
    if count == 1:
      return one
    if count % _BLOCK == 0:
      return one.self_compose(count, _SUM_TAIL * self._delta)
    return self._compose(self._rounds_pld(times, count - 1), one)

  def _compose(self, first, second) -> pld.PrivacyLossDistribution:
    return first.compose(second, _SUM_TAIL * self._delta)

  @functools.cached_property
  def _interval(self) -> float:
    """The grid of losses, so coarse that a row of metrics takes milliseconds.

    The library rounds losses so that a round's variance grows by h^2 / 4 at
    most for an interval h. Over n rounds that raises epsilon by order / 2 times
    n h^2 / 4, of the order that Renyi differential privacy finds best.
    """
    all_rounds = counts(self._sampling, self._sampling.total_rounds, ())
    epsilon, order = self._rdp_and_order(all_rounds)
    if not 0 < epsilon < math.inf:
      return _USUAL_INTERVAL
    growth = 8 * _GRID_ERROR * epsilon / (order * sum(all_rounds.values()))
    return max(math.sqrt(growth), _FINEST_INTERVAL)


Spending = Gaussian | SampledGaussian


def independent(
  noise_multiplier: float, sampling: guarantee_lib.Sampling, delta: float
) -> Spending:
  """Independent Gaussian noise in each round of a client.

  Args:
    noise_multiplier: Standard deviation / clipping norm.
    sampling: How clients come into rounds.
    delta: Of the guarantee.
  """
  # Noise in units of what changes between neighbours: a client that is replaced
  # takes its own update away and adds another's.
  replaced = sampling.relation == guarantee_lib.REPLACE
  effective = noise_multiplier / 2 if replaced else noise_multiplier
  if sampling.probability < 1:
    return SampledGaussian(sampling, delta, effective)

  def mu(rounds: int, repeated: Sequence[int]) -> float:
    released = counts(sampling, rounds, repeated)
    return math.sqrt(sum(t * n for t, n in released.items())) / effective

  return Gaussian(delta, mu)


def correlated(
  sensitivity: Callable[[int], float],
  noise_multiplier: float,
  sampling: guarantee_lib.Sampling,
  delta: float,
) -> Spending:
  """One Gaussian mechanism over all rounds; sampling does not amplify it.

  Args:
    sensitivity: Of the encoded updates of a client, in clipping norms, by how
      often it takes part.
    noise_multiplier: Standard deviation / clipping norm.
    sampling: How clients come into rounds.
    delta: Of the guarantee.
  """
  sensitivity = functools.cache(sensitivity)

  def mu(rounds: int, repeated: Sequence[int]) -> float:
    # A round that is released again adds its row of C; at worst all rows are.
    times = max(repeated, default=1)
    participations = sampling.participations(rounds)
    return sensitivity(participations) * math.sqrt(times) / noise_multiplier

  return Gaussian(delta, mu)


def counts(
  sampling: guarantee_lib.Sampling, rounds: int, repeated: Sequence[int]
) -> dict[int, int]:
  """In how many rounds a client is, at worst, by how often these are released.

  Args:
    sampling: How clients come into rounds.
    rounds: That were released.
    repeated: How often each of those was that was released more than once.

  Returns:
    From releases of a round to a number of rounds.
  """
  most = sampling.participations(rounds)
  worst = sorted(repeated, reverse=True)[:most]
  once = {1: most - len(worst)} if most > len(worst) else {}
  return {**once, **collections.Counter(worst)}


@contextlib.contextmanager
def _quiet():
  """Without the library's word on each order that it leaves out."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    yield
  finally:
    logging.set_verbosity(verbosity)
