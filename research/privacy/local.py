"""Local differential privacy: each client's report is private by itself.

Dwork, McSherry, Nissim and Smith 2006, "Calibrating Noise to Sensitivity in
Private Data Analysis", for Laplace noise; `priv_unit` for PrivUnit;
Kasiviswanathan et al. 2011, "What Can We Learn Privately?", for the model. A
client clips its update and adds the whole noise itself, so that the server,
too, may see the report. Any two updates are twice the clipping norm apart at
most, and nothing is hidden by others or by chance: a client spends its budget
in each round that it takes part in, and the guarantee is for the most rounds it
can.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import dp_accounting as da
import numpy as np
from dp_accounting import rdp
from scipy import special

from research.privacy import accounting, least_noise, priv_unit, spending
from research.privacy import guarantee as guarantee_lib

GAUSSIAN = 'local_gaussian'
LAPLACE = 'local_laplace'
PRIV_UNIT = 'local_priv_unit'
MECHANISMS = (GAUSSIAN, LAPLACE, PRIV_UNIT)
_ORDERS = rdp.RdpAccountant().orders
_CAVEATS = {
  PRIV_UNIT: (
    ' It sent one key to all clients of a round, so that clients with the very '
    'same update sent the same report; in a deployment each has a key of its '
    'own.'
  )
}

ANY_TWO_VALUES = 'any_two_values_of_a_client'

_NAMES = {
  GAUSSIAN: 'Gaussian noise',
  LAPLACE: 'Laplace noise',
  PRIV_UNIT: "PrivUnit's noise",
}
_NORMS = {GAUSSIAN: 'L2', LAPLACE: 'L1', PRIV_UNIT: 'L2'}


def event(mechanism: str, noise_multiplier: float) -> da.DpEvent:
  """What one report releases, in units of what lies between any two.

  Args:
    mechanism: One of `MECHANISMS`.
    noise_multiplier: Standard deviation of a coordinate's noise / clipping
      norm; the L1 norm for Laplace noise.

  Returns:
    A `GaussianDpEvent` or, with its own parameter, a `LaplaceDpEvent`. PrivUnit
    has the randomized response of the same epsilon, which tells no less.
  """
  if mechanism == PRIV_UNIT:
    epsilon = priv_unit.epsilon(noise_multiplier)
    return da.RandomizedResponseDpEvent(2 * special.expit(-epsilon), 2)
  relative = noise_multiplier / 2
  if mechanism == LAPLACE:
    # The variance of Laplace noise is twice the square of its parameter.
    return da.LaplaceDpEvent(relative / math.sqrt(2))
  return da.GaussianDpEvent(relative)


class PureReports:
  """Reports of a client of which each is private with a delta of 0.

  Args:
    sampling: Says how often a client takes part at most.
    delta: Of the guarantee.
    epsilon: Of one report.
    divergence: Renyi divergence of one report at the orders of `_ORDERS`.
    composed: Epsilon of a number of reports by the distribution of their
      privacy loss; None if it isn't known.
  """

  amplified = False

  def __init__(
    self,
    sampling: guarantee_lib.Sampling,
    delta: float,
    epsilon: float,
    divergence: np.ndarray,
    composed: Callable[[int], float] | None = None,
  ):
    self._count = functools.partial(_reports, sampling)
    self._delta = delta
    self._one_epsilon = epsilon
    self._divergence = divergence
    self._composed = composed
    self.pld_is_valid = composed is not None

  def by_rdp(self, rounds: int, repeated: Sequence[int]) -> float:
    """By Renyi differential privacy, or as the sum of the reports' epsilons."""
    count = self._count(rounds, repeated)
    total = count * self._divergence
    found, _ = rdp.compute_epsilon(_ORDERS, total, self._delta)
    return min(found, count * self._one_epsilon)

  def by_pld(self, rounds: int, repeated: Sequence[int]) -> float:
    """By the distribution of the privacy loss, where `pld_is_valid`."""
    return self._composed(self._count(rounds, repeated))


def _reports(
  sampling: guarantee_lib.Sampling, rounds: int, repeated: Sequence[int]
) -> int:
  """How many reports a client can have given, at most."""
  counts = spending.counts(sampling, rounds, repeated)
  return sum(times * count for times, count in counts.items())


@dataclasses.dataclass(frozen=True)
class Guarantee(guarantee_lib.Guarantee):
  """Of one client, against everyone, the server included.

  Attributes:
    epsilon_report: Of one report.
    reports: That a client can have given, at most.
    norm: L1 or L2, by which updates are clipped.
    caveat: What the simulation of this noise does otherwise than a deployment.
  """

  epsilon_report: float = math.inf
  reports: int = 0
  norm: str = 'L2'
  caveat: str = ''

  kind = 'local differential privacy of each client'

  def summary(self) -> str:
    """See base class."""
    one = guarantee_lib.round_up(self.epsilon_report)
    return f'{super().summary()}, {one} for one report'

  def statement(self) -> str:
    """See base class."""
    delta = f'{self.delta:g}'
    total = guarantee_lib.round_up(self.epsilon)
    report = guarantee_lib.round_up(self.epsilon_report)
    return '\n\n'.join(
      [
        f'**Guarantee.** ({total}, {delta})-local differential privacy of each '
        f'client for at most {self.reports} reports, after {self.rounds} '
        f'rounds; ({report}, {delta}) for one report.',
        '**What is protected.** What a client reports, so everything that it '
        'holds for training: from its reports one can hardly tell which data '
        f'it has, whatever these are ({self.relation}). Not protected are in '
        'which rounds it took part, and that it has examples at all: clients '
        'without any are not asked.',
        '**Against whom.** Everyone, the server included, with any computing '
        'power and any knowledge. **This is a simulation**: one process drew '
        f"all clients' noise and hid nothing from whoever ran it.{self.caveat}",
        f'**Noise.** {self.mechanism}, noise multiplier '
        f'{self.noise_multiplier:g} (standard deviation / clipping norm; no '
        f"client's update has a longer {self.norm} norm)."
        + self._repetitions(),
        f'**Sampling.** {self.sampling.assumption().capitalize()}. It does not '
        'hide anyone; it only bounds the reports.',
        f'**Delta.** {delta}: but for events of about this probability, no '
        "client's reports are more than exp(epsilon) times as likely for one "
        'set of data as for another.',
        self._accountants(),
        '**Not covered.** Whatever else a client made known; people who are '
        'behind several clients; and that a computer adds rounded numbers, not '
        'real ones.',
      ]
    )


class Accountant(accounting.Accountant):
  """An accountant of one client's reports."""

  def __init__(
    self,
    mechanism: str,
    noise_multiplier: float,
    sampling: guarantee_lib.Sampling,
    delta: float,
  ):
    super().__init__(
      sampling,
      delta,
      noise_multiplier,
      f'{_NAMES[mechanism]} in each report of a client',
      _spending(mechanism, noise_multiplier, sampling, delta),
    )
    self._norm = _NORMS[mechanism]
    self._caveat = _CAVEATS.get(mechanism, '')
    self.event = event(mechanism, noise_multiplier)

  def _compute(self, rounds: int, repeated: tuple[int, ...]) -> Guarantee:
    known = vars(super()._compute(rounds, repeated))
    known['relation'] = ANY_TWO_VALUES
    return Guarantee(
      **known,
      epsilon_report=self._epsilon(1),
      reports=_reports(self.sampling, rounds, repeated),
      norm=self._norm,
      caveat=self._caveat,
    )

  def _epsilon(self, rounds: int) -> float:
    if self._spent.pld_is_valid:
      return self._spent.by_pld(rounds, ())
    return self._spent.by_rdp(rounds, ())


def _spending(
  mechanism: str,
  noise_multiplier: float,
  sampling: guarantee_lib.Sampling,
  delta: float,
) -> spending.Gaussian | PureReports:
  if mechanism == PRIV_UNIT:
    return PureReports(
      sampling,
      delta,
      priv_unit.epsilon(noise_multiplier),
      priv_unit.renyi_divergence(noise_multiplier, _ORDERS),
      lambda reports: priv_unit.composed_epsilon(
        noise_multiplier, reports, delta
      ),
    )
  if mechanism == LAPLACE:
    # A change of an L1 norm is worst in a single coordinate: the divergence is
    # convex in a coordinate's change and 0 without one.
    one = event(mechanism, noise_multiplier)
    divergence = rdp.RdpAccountant(_ORDERS).compose(one).rdp
    return PureReports(sampling, delta, 1 / one.noise_multiplier, divergence)

  def mu(rounds: int, repeated: Sequence[int]) -> float:
    reports = _reports(sampling, rounds, repeated)
    return 2 * math.sqrt(reports) / noise_multiplier

  return spending.Gaussian(delta, mu)


def build(
  mechanism: str,
  noise_multiplier: float,
  sampling: guarantee_lib.Sampling,
  delta: float,
) -> Accountant:
  """An accountant of what one client reports.

  Args:
    mechanism: One of `MECHANISMS`.
    noise_multiplier: See `event`.
    sampling: Says how often a client takes part at most.
    delta: Of the guarantee.

  Raises:
    guarantee.AccountingError: If delta is too large, or there is no noise.
  """
  guarantee_lib.check_delta(delta, sampling.population)
  guarantee_lib.check_noise(noise_multiplier)
  least = priv_unit.LEAST_NOISE_MULTIPLIER
  if mechanism == PRIV_UNIT and noise_multiplier < least:
    raise guarantee_lib.AccountingError(
      f'A noise multiplier of {noise_multiplier:g} for {mechanism}: give at '
      f'least {least:g}, whose epsilon is {priv_unit.epsilon(least):.3g} for '
      'each report already.'
    )
  return Accountant(mechanism, noise_multiplier, sampling, delta)


def noise_multiplier(
  target_epsilon: float,
  mechanism: str,
  sampling: guarantee_lib.Sampling,
  delta: float,
) -> float:
  """The least noise that keeps all reports of a client within a budget.

  Args:
    target_epsilon: Of the guarantee after all rounds.
    mechanism: One of `MECHANISMS`.
    sampling: Says how often a client takes part at most.
    delta: Of the guarantee.

  Raises:
    guarantee.AccountingError: If no sensible noise gives the target.
  """
  rounds = sampling.total_rounds

  def epsilon(multiplier: float) -> float:
    accountant = build(mechanism, multiplier, sampling, delta)
    return accountant.guarantee(rounds).epsilon

  advice = 'Ask for more, or for fewer rounds.'
  least = least_noise.LEAST
  if mechanism == PRIV_UNIT:
    least = priv_unit.LEAST_NOISE_MULTIPLIER
  return least_noise.search(target_epsilon, epsilon, advice, least)
