"""Epsilon of distributed noise over rounds, by Renyi differential privacy.

Two adversaries are told apart. Those who see the models but not who took part
are kept in the dark by the sampling too, which amplifies the noise. The server
sees no update alone but knows each cohort, so that against it a client has luck
only in how many rounds it is drawn.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import dp_accounting as da
import numpy as np
from dp_accounting import rdp
from scipy import special

from research.privacy import accounting, distributed, least_noise, spending
from research.privacy import guarantee as guarantee_lib

_ORDERS = np.array([*range(2, 65), 80, 96, 128, 192, 256, 512])

OfOrders = Callable[[np.ndarray], np.ndarray]
Sampled = Callable[[OfOrders, float, int], float]


def poisson_sampled(
  divergence: OfOrders, probability: float, order: int
) -> float:
  """Renyi divergence if a client is in a round with some probability.

  Zhu and Wang 2019, "Poisson Subsampled Renyi Differential Privacy", Theorem 6.
  It holds in both directions, since the noise is symmetric and the same with
  and without the client: Mironov, Talwar and Zhang 2019, arXiv:1908.10530,
  Theorem 5.

  Args:
    divergence: Of the noise and the shifted noise, by integer orders.
    probability: Of the client, independent of all others.
    order: An integer from 2 on.
  """
  if probability == 1:
    return divergence(np.array([order]))[0]
  counts = np.arange(order + 1)
  logs = _log_binomial(order, counts) + counts * math.log(probability)
  logs += (order - counts) * math.log1p(-probability)
  logs[2:] += (counts[2:] - 1) * divergence(counts[2:])
  return max(special.logsumexp(logs), 0.0) / (order - 1)


def fixed_size_sampled(
  divergence: OfOrders, probability: float, order: int
) -> float:
  """Renyi divergence if so many clients are drawn without replacement.

  Wang, Balle and Kasiviswanathan 2019, "Subsampled Renyi Differential Privacy
  and Analytical Moments Accountant", arXiv:1808.00087, Theorem 9, without a
  bound on the privacy loss; or what holds for known cohorts, if that is less.

  Args:
    divergence: By integer orders, if one client of a cohort is replaced.
    probability: Share of the clients in a cohort.
    order: An integer from 2 on.
  """
  known = known_cohorts(divergence, probability, order)
  counts = np.arange(order + 1)
  logs = _log_binomial(order, counts) + counts * math.log(probability)
  second = divergence(np.array([2]))[0]
  if second < math.log(2):
    # The least of 4 (exp(D_2) - 1) and 2 exp(D_2).
    logs[2] += math.log(4 * math.expm1(second)) if second else -math.inf
  else:
    logs[2] += math.log(2) + second
  logs[3:] += math.log(2) + (counts[3:] - 1) * divergence(counts[3:])
  logs[1] = -math.inf
  return min(known, special.logsumexp(logs) / (order - 1))


def _log_binomial(n: int, k: np.ndarray) -> np.ndarray:
  gammaln = special.gammaln
  return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)


def known_cohorts(
  divergence: OfOrders, probability: float, order: int
) -> float:
  """Renyi divergence if a client is drawn at random and all know whether.

  What is released with who took part is a mixture of disjoint parts:
  exp((a - 1) D) = 1 - q + q exp((a - 1) D_a).

  Args:
    divergence: Of two releases in which the client takes part.
    probability: q, with which it does.
    order: a, above 1.
  """
  inside = (order - 1) * divergence(np.array([order]))[0]
  if probability == 1:
    return inside / (order - 1)
  outside = math.log1p(-probability)
  return np.logaddexp(outside, math.log(probability) + inside) / (order - 1)


class Spending:
  """Distributed noise on clients that are sampled in each round.

  A round that is released again has the clients that it had: its releases are
  one sample, and their divergences add up.

  Args:
    noise: Of the sum.
    change: L2 norm by which a client can move the sum.
    sampling: How clients come into rounds.
    delta: Of the guarantee.
    sampled: What the sampling makes of a round's divergence, one of the
      functions of this module.
  """

  pld_is_valid = False

  def __init__(
    self,
    noise: distributed.Noise,
    change: float,
    sampling: guarantee_lib.Sampling,
    delta: float,
    sampled: Sampled,
  ):
    self._noise = noise
    self._change = change
    self._sampling = sampling
    self._delta = delta
    self._sampled = sampled
    self.amplified = sampled is not known_cohorts and sampling.probability < 1
    self._round_rdp = functools.cache(self._round_rdp)

  def by_rdp(self, rounds: int, repeated: Sequence[int]) -> float:
    """Epsilon by Renyi differential privacy."""
    composed = spending.counts(self._sampling, rounds, repeated)
    total = sum(n * self._round_rdp(times) for times, n in composed.items())
    return float(rdp.compute_epsilon(_ORDERS, total, self._delta)[0])

  def _round_rdp(self, times: int) -> np.ndarray:
    def divergence(orders):
      return times * self._noise.rdp(orders, self._change)

    probability = self._sampling.probability
    found = [self._sampled(divergence, probability, int(a)) for a in _ORDERS]
    # Probabilities off by a factor of exp(m) on both sides.
    mismatch = (2 * _ORDERS - 1) / (_ORDERS - 1) * times * self._noise.mismatch
    return np.array(found) + mismatch


@dataclasses.dataclass(frozen=True)
class Guarantee(guarantee_lib.Guarantee):
  """With what holds against the server.

  Attributes:
    epsilon_server: Against the server, with the same delta: what a client sends
      is protected, not that it took part.
  """

  epsilon_server: float = math.inf

  def summary(self) -> str:
    """See base class."""
    server = guarantee_lib.round_up(self.epsilon_server)
    return f'{super().summary()}, {server} against the server'

  def _adversary(self) -> str:
    number = guarantee_lib.round_up(self.epsilon_server)
    secret = (
      'This number uses that it is secret who took part in which round: keep '
      'the seed that the cohorts were drawn from, too, and take one that '
      'nobody guesses, which the default of --seed is not. '
      if self.amplified
      else ''
    )
    return (
      '**Against whom.** Anyone who sees the model of every round, with any '
      "computing power and any knowledge of the other clients' data. "
      f'{secret}Against the server, who knows the cohorts but sees no more '
      'than the noised sum of each, if it follows the protocol: '
      f'({number}, {self.delta:g})-differential privacy of what a client sends '
      '(its update, or zeros). If a share of a cohort tells the server its '
      'noise, so much less noise is left. **This is a simulation**: one '
      "process computed the secure sum and all clients' noise, and hid "
      'nothing from whoever ran it.'
    )


class Accountant(accounting.Accountant):
  """An accountant that also knows what holds against the server."""

  def __init__(
    self,
    sampling: guarantee_lib.Sampling,
    delta: float,
    noise_multiplier: float,
    mechanism: str,
    spent: Spending,
    server: Spending,
    event: da.DpEvent,
  ):
    super().__init__(sampling, delta, noise_multiplier, mechanism, spent)
    self._server = server
    self.event = event

  def _compute(self, rounds: int, repeated: tuple[int, ...]) -> Guarantee:
    known = super()._compute(rounds, repeated)
    epsilon = self._server.by_rdp(rounds, repeated) if rounds else 0.0
    return Guarantee(**vars(known), epsilon_server=epsilon)


def most_clients(sampling: guarantee_lib.Sampling) -> int:
  """The largest cohort that can be."""
  if sampling.scheme == guarantee_lib.FIXED_SIZE:
    return sampling.clients_per_round
  return math.ceil(sampling.population / (sampling.min_separation or 1))


def build(
  mechanism: str,
  encoding: distributed.Encoding,
  sampling: guarantee_lib.Sampling,
  delta: float,
) -> Accountant:
  """An accountant of distributed noise.

  Under `fixed_size` sampling a client is replaced by another, which moves the
  sum by twice the norm.

  Args:
    mechanism: One of `distributed.MECHANISMS`.
    encoding: The grid and the noise on it.
    sampling: How clients come into rounds.
    delta: Of the guarantee.

  Raises:
    guarantee.AccountingError: If delta is too large, or there is no noise or
      too little for this mechanism.
  """
  guarantee_lib.check_delta(delta, sampling.population)
  guarantee_lib.check_noise(encoding.noise_multiplier)
  noise = distributed.noise(mechanism, encoding, most_clients(sampling))
  if noise.mismatch == math.inf:
    raise guarantee_lib.AccountingError(
      f'In a cohort of {most_clients(sampling)} clients, the largest that can '
      f'be, the noise of each has a standard deviation below half a step of '
      f'the grid, where nothing is known of the sum of {noise.name} noise. Use '
      f'--dp_mechanism={distributed.SKELLAM}, or more bits or noise.'
    )
  change = math.sqrt(encoding.squared_norm)
  return Accountant(
    sampling,
    delta,
    encoding.noise_multiplier,
    f'{noise.name} noise of each client, on a grid and modulo '
    f'2^{encoding.bits}, in a simulated secure sum',
    _spending(noise, encoding, sampling, delta),
    Spending(noise, change, sampling, delta, known_cohorts),
    noise.event(change),
  )


def noise_multiplier(
  target_epsilon: float,
  mechanism: str,
  encoding: distributed.Encoding,
  sampling: guarantee_lib.Sampling,
  delta: float,
) -> float:
  """The least noise that keeps all rounds within a budget.

  Args:
    target_epsilon: Of the guarantee after all rounds.
    mechanism: One of `distributed.MECHANISMS`.
    encoding: What to send, with any noise.
    sampling: How clients come into rounds, with their number.
    delta: Of the guarantee.

  Raises:
    guarantee.AccountingError: If no sensible noise gives the target; with few
      bits much noise makes the grid so coarse that rounding is all there is.
  """

  def epsilon(multiplier: float) -> float:
    noisy = dataclasses.replace(encoding, noise_multiplier=multiplier)
    noise = distributed.noise(mechanism, noisy, most_clients(sampling))
    spent = _spending(noise, noisy, sampling, delta)
    return spent.by_rdp(sampling.total_rounds, ())

  advice = (
    'The rounding to a grid alone may ask for so much: give more '
    '--secure_sum_bits than '
    f'{encoding.bits}, or ask for a larger epsilon or for fewer rounds.'
  )
  return least_noise.search(target_epsilon, epsilon, advice)


def _spending(
  noise: distributed.Noise,
  encoding: distributed.Encoding,
  sampling: guarantee_lib.Sampling,
  delta: float,
) -> Spending:
  change = math.sqrt(encoding.squared_norm)
  if sampling.relation == guarantee_lib.REPLACE:
    return Spending(noise, 2 * change, sampling, delta, fixed_size_sampled)
  return Spending(noise, change, sampling, delta, poisson_sampled)
