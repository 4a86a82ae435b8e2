"""How much privacy a run has spent, by the event of the mechanism that ran."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import dp_accounting as da

from research.privacy import guarantee as guarantee_lib
from research.privacy import spending
from research.training import sampling as sampling_lib

# PLD above RDP by more than this, relative, is an error.
_AGREEMENT = 1e-3


class Strategy(Protocol):
  """What accounting asks of a matrix factorization C; noise is C^-1 z.

  Attributes:
    name: In words.
    bands: Diagonals of C that are not zero; None if C is not banded.
  """

  name: str
  bands: int | None

  def sensitivity(self, min_separation: int, max_participations: int) -> float:
    """L2 norm of C u, at most, where u is 1 where a client takes part."""


class Accountant:
  """Says what has been spent after any number of rounds.

  What it says is a function of the arguments alone, in whatever order it is
  asked, so that a resumed run has the numbers of one that was never stopped.

  Attributes:
    event: What a round releases, of a mechanism that has an event of its own;
      else None.
  """

  event: da.DpEvent | None = None

  def __init__(
    self,
    sampling: guarantee_lib.Sampling,
    delta: float,
    noise_multiplier: float,
    mechanism: str,
    spent: spending.Spending,
  ):
    self.sampling = sampling
    self.delta = delta
    self.noise_multiplier = noise_multiplier
    self._mechanism = mechanism
    self._spent = spent
    self._known: dict[tuple, guarantee_lib.Guarantee] = {}

  def guarantee(
    self, rounds: int, repeated: Sequence[int] = ()
  ) -> guarantee_lib.Guarantee:
    """The guarantee of everything that was released.

    Args:
      rounds: How many different rounds were released, 0 to the planned total.
      repeated: For each round that was released more than once, as after a kill
        before its checkpoint, how often it was, so at least 2.

    Raises:
      guarantee.AccountingError: If the arguments are no such numbers, or the
        two accountants contradict each other.
    """
    self._check(rounds, repeated)
    key = rounds, tuple(sorted(repeated))
    if key not in self._known:
      self._known[key] = self._compute(*key)
    return self._known[key]

  def rdp_epsilon(self, rounds: int) -> float:
    """By Renyi differential privacy alone, which is quicker."""
    self._check(rounds, ())
    return self._spent.by_rdp(rounds, ()) if rounds else 0.0

  def most_rounds(
    self,
    max_epsilon: float,
    done: int = 0,
    spent: Callable[[int], tuple[int, Sequence[int]]] = lambda r: (r, ()),
  ) -> int:
    """To which round a run may go on without epsilon above a limit.

    Args:
      max_epsilon: The limit.
      done: The round that the run has come to.
      spent: Of a later round: the arguments of `guarantee` once the run has
        come to it, which nowhere spend less.

    Returns:
      A round from `done` to the planned ones; `done` if the next is too much.
    """
    low, high = done, self.sampling.total_rounds
    while low < high:
      middle = (low + high + 1) // 2
      if self.guarantee(*spent(middle)).epsilon <= max_epsilon:
        low = middle
      else:
        high = middle - 1
    return low

  def check_sampler(self, sampler: sampling_lib.ClientSampler) -> None:
    """Raises if clients are sampled otherwise than accounting assumes."""
    actual = guarantee_lib.Sampling.of(sampler, self.sampling.total_rounds)
    if actual != self.sampling:
      raise guarantee_lib.AccountingError(
        f'Privacy is accounted for {self.sampling}, but clients are sampled by '
        f'{actual}: the epsilon would not hold. Account for what is done.'
      )

  def _compute(self, rounds: int, repeated: tuple[int, ...]):
    by_rdp = self._spent.by_rdp(rounds, repeated) if rounds else 0.0
    by_pld = None
    if self._spent.pld_is_valid:
      by_pld = self._spent.by_pld(rounds, repeated) if rounds else 0.0
    if by_pld is not None and by_pld > by_rdp * (1 + _AGREEMENT):
      raise guarantee_lib.AccountingError(
        f'After {rounds} rounds privacy loss distributions give epsilon '
        f'{by_pld:.6g}, more than the {by_rdp:.6g} of Renyi differential '
        'privacy, which is an upper bound: one of the two is wrong.'
      )
    return guarantee_lib.Guarantee(
      epsilon_rdp=by_rdp,
      epsilon_pld=by_pld,
      delta=self.delta,
      relation=self.sampling.relation,
      sampling=self.sampling,
      mechanism=self._mechanism,
      noise_multiplier=self.noise_multiplier,
      amplified=self._spent.amplified,
      rounds=rounds,
      repeated=repeated,
    )

  def _check(self, rounds: int, repeated: Sequence[int]) -> None:
    total = self.sampling.total_rounds
    if not 0 <= rounds <= total:
      raise guarantee_lib.AccountingError(
        f'{rounds} rounds of {total} planned ones: give 0 to {total}. Rounds '
        'that were released again are told by `repeated`.'
      )
    if len(repeated) > rounds or any(times < 2 for times in repeated):
      raise guarantee_lib.AccountingError(
        f'{list(repeated)} for rounds that were released again, of {rounds} '
        'rounds: give for each of them how often it was, at least 2.'
      )


def build(
  event: da.DpEvent, sampling: guarantee_lib.Sampling, delta: float
) -> Accountant:
  """An accountant of Gaussian noise that is drawn anew in each round.

  Args:
    event: What one round does to the sum of the clipped updates, without
      sampling: a `GaussianDpEvent`, or several, of which all are released.
    sampling: How clients come into rounds.
    delta: Of the guarantee.

  Raises:
    guarantee.AccountingError: If delta is too large, or the event is not
      Gaussian, says itself how it was sampled, or has no noise.
  """
  guarantee_lib.check_delta(delta, sampling.population)
  noise_multiplier = merged_noise_multiplier(event)
  return Accountant(
    sampling,
    delta,
    noise_multiplier,
    'Independent Gaussian noise in each round',
    spending.independent(noise_multiplier, sampling, delta),
  )


def build_gaussian(
  noise_multiplier: float,
  sampling: guarantee_lib.Sampling,
  delta: float,
  strategy: Strategy | None = None,
) -> Accountant:
  """An accountant of Gaussian noise, independent in each round or correlated.

  Args:
    noise_multiplier: Standard deviation of the noise / clipping norm.
    sampling: See `build`, as for delta.
    delta: See there.
    strategy: See `build_correlated`; None for independent noise.

  Raises:
    guarantee.AccountingError: As these two.
  """
  if strategy is None:
    return build(da.GaussianDpEvent(noise_multiplier), sampling, delta)
  return build_correlated(strategy, noise_multiplier, sampling, delta)


def build_correlated(
  strategy: Strategy,
  noise_multiplier: float,
  sampling: guarantee_lib.Sampling,
  delta: float,
) -> Accountant:
  """An accountant of Gaussian noise that is correlated between rounds.

  A banded matrix with at most `min_separation` bands keeps the rounds of a
  client apart, so that it is as private as independent noise in these rounds,
  amplified by sampling (Choquette-Choo et al. 2023, arXiv:2306.08153).
  Other matrices are one Gaussian mechanism whose sensitivity is that of
  the rounds which a client can be in, up to the last one released (Denisov et
  al. 2022, arXiv:2202.08312): sampling does not help.

  Args:
    strategy: The factorization; entries of C are not negative.
    noise_multiplier: Standard deviation of z / clipping norm.
    sampling: `cyclic_poisson`.
    delta: Of the guarantee.

  Raises:
    guarantee.AccountingError: If delta is too large, there is no noise, or
      sampling does not bound how often a client takes part.
  """
  guarantee_lib.check_delta(delta, sampling.population)
  guarantee_lib.check_noise(noise_multiplier)
  separation = sampling.min_separation
  if separation is None:
    raise guarantee_lib.AccountingError(
      f'{strategy.name} under {sampling.scheme} sampling: correlated noise '
      'protects a client that takes part a bounded number of times, a number '
      f'of rounds apart. Sample by {guarantee_lib.CYCLIC_POISSON}.'
    )
  if strategy.bands is not None and strategy.bands <= separation:
    column_norm = strategy.sensitivity(separation, 1)
    spent = spending.independent(
      noise_multiplier / column_norm, sampling, delta
    )
  else:
    spent = spending.correlated(
      functools.partial(strategy.sensitivity, separation),
      noise_multiplier,
      sampling,
      delta,
    )
  return Accountant(
    sampling,
    delta,
    noise_multiplier,
    f'Gaussian noise that is correlated between rounds ({strategy.name})',
    spent,
  )


def merged_noise_multiplier(event: da.DpEvent) -> float:
  """The one Gaussian that is as private as an event's Gaussians together.

  Args:
    event: A `GaussianDpEvent` or a composition of such.

  Returns:
    z with 1 / z^2 = sum of 1 / z_i^2.

  Raises:
    guarantee.AccountingError: If the event has anything else in it.
  """
  return 1 / math.sqrt(_precision(event))


def _precision(event: da.DpEvent) -> float:
  """The sum of 1 / z_i^2."""
  if isinstance(event, da.ComposedDpEvent) and event.events:
    return sum(_precision(part) for part in event.events)
  if isinstance(event, da.SelfComposedDpEvent):
    return event.count * _precision(event.event)
  if isinstance(event, da.GaussianDpEvent):
    guarantee_lib.check_noise(event.noise_multiplier)
    return event.noise_multiplier**-2
  if 'Sampled' in type(event).__name__:
    raise guarantee_lib.AccountingError(
      f'{event} is sampled already: give what a round does to its cohort. How '
      'clients come into it is told once, by the sampling.'
    )
  raise guarantee_lib.AccountingError(
    f'{event} has no accounting here: give Gaussian noise, and for noise that '
    'is correlated between rounds its matrix factorization.'
  )
