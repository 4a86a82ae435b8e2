"""What a run's differential privacy is: its assumptions, numbers and words."""

import dataclasses
import decimal
import importlib.metadata
import math
from collections.abc import Sequence
from typing import ClassVar

from research.training import sampling as sampling_lib

POISSON = sampling_lib.POISSON
FIXED_SIZE = sampling_lib.FIXED_SIZE
CYCLIC_POISSON = sampling_lib.CYCLIC_POISSON
SCHEMES = (POISSON, FIXED_SIZE, CYCLIC_POISSON)

ADD_OR_REMOVE = 'add_or_remove_one_client'
REPLACE = 'replace_one_client'
ZERO_OUT = 'zero_out_one_client'

_RELATIONS = {POISSON: ADD_OR_REMOVE, FIXED_SIZE: REPLACE}
_NEIGHBOURS = {
  ADD_OR_REMOVE: 'one of them has one client more than the other',
  REPLACE: 'one of them has another client in the place of one client',
  ZERO_OUT: 'in one of them one client sends zeros whenever it takes part',
}


class AccountingError(ValueError):
  """A guarantee was asked for that does not hold, or that makes no sense."""


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How clients come into rounds, which is what accounting rests on.

  Attributes:
    scheme: `poisson`, `fixed_size` or `cyclic_poisson`. In the last, clients
      are divided into `min_separation` groups, and round t, counted from 1,
      includes each client of group (t - 1) mod `min_separation` independently
      (Choquette-Choo et al. 2023, arXiv:2306.08153).
    population: Clients that can take part.
    clients_per_round: Size of a cohort, in expectation under Poisson sampling.
    total_rounds: That the run plans.
    min_separation: Rounds from one turn of a client's group to the next; only
      of `cyclic_poisson`.
  """

  scheme: str
  population: int
  clients_per_round: int
  total_rounds: int
  min_separation: int | None = None

  def __post_init__(self):
    if self.scheme not in SCHEMES:
      raise AccountingError(
        f'Client sampling {self.scheme!r} has no accounting; it is one of '
        f'{", ".join(SCHEMES)}.'
      )
    if not 1 <= self.clients_per_round <= self.population:
      raise AccountingError(
        f'{self.clients_per_round} clients per round of a population of '
        f'{self.population}: give 1 to {self.population} clients per round.'
      )
    if self.total_rounds < 1:
      raise AccountingError(f'{self.total_rounds} rounds: give at least 1.')
    if (self.scheme == CYCLIC_POISSON) != (self.min_separation is not None):
      raise AccountingError(
        f'A minimum separation of {self.min_separation} under {self.scheme} '
        f'sampling: it is needed for {CYCLIC_POISSON}, and only there.'
      )
    if self.min_separation is not None:
      if self.min_separation < 1:
        raise AccountingError(
          f'A minimum separation of {self.min_separation}: give at least 1.'
        )
      if self.probability > 1:
        most = self.population // self.clients_per_round
        raise AccountingError(
          f'{self.clients_per_round} clients per round of groups of '
          f'{self.population} / {self.min_separation} clients: a minimum '
          f'separation of at most {most} leaves groups that are large enough.'
        )

  @classmethod
  def of(
    cls, sampler: sampling_lib.ClientSampler, total_rounds: int
  ) -> 'Sampling':
    """The sampling that a sampler really does."""
    return cls(
      scheme=sampler.scheme,
      population=len(sampler.client_ids),
      clients_per_round=sampler.clients_per_round,
      total_rounds=total_rounds,
      min_separation=sampler.min_separation,
    )

  @property
  def probability(self) -> float:
    """With which a client is in a round that may include it."""
    groups = self.min_separation or 1
    return groups * self.clients_per_round / self.population

  @property
  def relation(self) -> str:
    """Which data sets are neighbours.

    The groups of `cyclic_poisson` are divided by a permutation of the whole
    population, so that a client more or less would move others, too: there a
    client is not removed but sends zeros.
    """
    return _RELATIONS.get(self.scheme, ZERO_OUT)

  def participations(self, rounds: int) -> int:
    """In how many of the first `rounds` rounds a client can be at most."""
    return math.ceil(rounds / (self.min_separation or 1))

  def assumption(self) -> str:
    """What is assumed about who takes part, as a sentence."""
    count, population = self.clients_per_round, self.population
    if self.scheme == FIXED_SIZE:
      return (
        f'each round has exactly {count} of the {population} clients, drawn '
        'uniformly without replacement'
      )
    if self.scheme == POISSON:
      return (
        f'each of the {population} clients is in each round independently with '
        f'probability {self.probability:.6g}'
      )
    return (
      f'the {population} clients are divided into {self.min_separation} groups '
      'whose turns come one after the other, one group a round; each client of '
      'the group is in the round independently with probability '
      f'{self.probability:.6g}, so that no client is in more than '
      f'{self.participations(self.total_rounds)} of {self.total_rounds} rounds'
    )


def default_delta(population: int) -> float:
  """A delta for so many clients: 1 / population^1.1, rounded down to a digit.

  Args:
    population: Number of clients, at least 2.

  Returns:
    Delta, with one significant digit.

  Raises:
    AccountingError: If there is only one client.
  """
  if population < 2:
    raise AccountingError(
      f'A population of {population} has no one to hide among: private '
      'training needs at least 2 clients.'
    )
  delta = decimal.Decimal(population**-1.1)
  digit = delta.scaleb(-delta.adjusted()).to_integral(decimal.ROUND_FLOOR)
  return float(digit.scaleb(delta.adjusted()))


def check_delta(delta: float, population: int) -> None:
  """Raises if a guarantee with this delta would be empty.

  Publishing one client's data in full, drawn at random, is (0, 1 / population)-
  differentially private.

  Args:
    delta: Of the guarantee.
    population: Number of clients.

  Raises:
    AccountingError: If delta is not between 0 and 1 / population.
  """
  if not 0 < delta < 1 / population:
    raise AccountingError(
      f'Delta {delta:g} for {population} clients: it must be above 0 and below '
      f'1 / {population} = {1 / population:.3g}, since a delta of that size '
      'allows publishing all data of one client. The default is '
      f'{default_delta(population):g}.'
    )


def check_noise(noise_multiplier: float) -> None:
  """Raises if there is no noise.

  Raises:
    AccountingError: If the noise multiplier is not above 0 and finite.
  """
  if not 0 < noise_multiplier < math.inf:
    raise AccountingError(
      f'A noise multiplier of {noise_multiplier:g}: without noise there is no '
      'privacy. Give a number above 0.'
    )


def check_target(epsilon: float) -> None:
  """Raises if a target is no epsilon.

  Raises:
    AccountingError: If it is not above 0 and finite.
  """
  if not 0 < epsilon < math.inf:
    raise AccountingError(
      f'A target of epsilon {epsilon:g}: give a number above 0.'
    )


def round_up(value: float, digits: int = 4) -> str:
  """Writes a number with so many significant digits, never below its value."""
  if not math.isfinite(value) or value == 0:
    return f'{value:g}'
  exact = decimal.Decimal(value)
  unit = decimal.Decimal(1).scaleb(exact.adjusted() - digits + 1)
  return f'{exact.quantize(unit, decimal.ROUND_CEILING):f}'


@dataclasses.dataclass(frozen=True)
class Guarantee:
  """(epsilon, delta)-differential privacy of clients, with what it rests on.

  Attributes:
    epsilon_rdp: By Renyi differential privacy.
    epsilon_pld: By privacy loss distributions; None where they aren't valid.
    delta: Below 1 / population.
    relation: Which data sets are neighbours.
    sampling: What is assumed about who takes part.
    mechanism: The noise, in words.
    noise_multiplier: Its standard deviation / clipping norm.
    amplified: Whether the numbers use that others don't know who takes part.
    rounds: That were released.
    repeated: How often each round that was released more than once was.
    kind: What it is, in words.
  """

  epsilon_rdp: float
  epsilon_pld: float | None
  delta: float
  relation: str
  sampling: Sampling
  mechanism: str
  noise_multiplier: float
  amplified: bool
  rounds: int
  repeated: Sequence[int] = ()

  kind: ClassVar[str] = 'differential privacy of clients'

  @property
  def epsilon(self) -> float:
    """By privacy loss distributions where they are valid, else by Renyi's."""
    return self.epsilon_rdp if self.epsilon_pld is None else self.epsilon_pld

  @property
  def releases(self) -> int:
    """How often something noised was released."""
    return self.rounds + sum(times - 1 for times in self.repeated)

  def summary(self) -> str:
    """Its numbers in a line."""
    numbers = f'epsilon {round_up(self.epsilon)}'
    if self.epsilon_pld is not None:
      numbers += f' ({round_up(self.epsilon_rdp)} by Renyi)'
    return f'{numbers} at delta {self.delta:g}'

  def statement(self) -> str:
    """The guarantee in sentences, for those who will rely on it."""
    delta = f'{self.delta:g}'
    return '\n\n'.join(
      [
        f'**Guarantee.** ({round_up(self.epsilon)}, {delta})-differential '
        f'privacy of clients after {self.releases} releases '
        f'({self.rounds} rounds).',
        '**What is protected.** Everything that one client holds for training, '
        'all its examples together. Two sets of clients are neighbours if '
        f'{_NEIGHBOURS[self.relation]} ({self.relation}): from what is '
        'released one can hardly tell which of two neighbours was trained on.',
        self._adversary(),
        f'**Noise.** {self.mechanism}, noise multiplier '
        f'{self.noise_multiplier:g} (standard deviation / clipping norm; no '
        "client's update is longer than the clipping norm)."
        + self._repetitions(),
        f'**Sampling.** The number assumes that {self.sampling.assumption()}. '
        "The simulation's sampler draws in this way, from a pseudo-random "
        'generator; a deployment has to see to it by itself.',
        f'**Delta.** {delta}, below 1 / {self.sampling.population} clients: '
        'but for events of about this probability, no output is more than '
        'exp(epsilon) times as likely under one neighbour as under the other.',
        self._accountants(),
        '**Not covered.** Whatever else was computed from the clients and made '
        'known, as their number and that of all their examples, metrics, or '
        'settings that were chosen by earlier runs on '
        'them; people who are behind several clients; what the model says '
        'about clients in general; and that a computer adds rounded numbers, '
        'not real ones.',
      ]
    )

  def _adversary(self) -> str:
    text = (
      '**Against whom.** Anyone who sees the model of every round, with any '
      "computing power and any knowledge of the other clients' data. The "
      'server is trusted: it sees updates before noise is added.'
    )
    if self.amplified:
      text += (
        ' The number uses that it is secret who took part in which round. '
        'Whoever knows that, or the seed that the cohorts were drawn from, has '
        'a larger epsilon: keep the seed, too, and take one that nobody '
        'guesses, which the default of --seed is not.'
      )
    return text

  def _repetitions(self) -> str:
    if not self.repeated:
      return ''
    return (
      f' {len(self.repeated)} rounds were released again after an '
      'interruption, to the same clients, and are charged each time.'
    )

  def _accountants(self) -> str:
    version = importlib.metadata.version('dp-accounting')
    rdp = f'Renyi differential privacy gives {round_up(self.epsilon_rdp)}'
    if self.epsilon_pld is None:
      rest = (
        'privacy loss distributions have no valid form for this sampling, this '
        'noise or this delta'
      )
    else:
      rest = (
        'privacy loss distributions give '
        f'{round_up(self.epsilon_pld)}, which is the number above'
      )
    return f'**Accountants** (dp-accounting {version}). {rdp}, {rest}.'
