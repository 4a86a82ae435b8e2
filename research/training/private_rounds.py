"""What private training adds to a round: journal, key, accounting, silence."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import attr
import dp_accounting
import numpy as np

from research.aggregators import bits, dp
from research.algorithms import stateful
from research.privacy import (
  accounting,
  audit_report,
  distributed,
  guarantee,
  integer_noise,
  matrix_factorization,
  noise,
)
from research.privacy import canaries as canaries_lib
from research.privacy import journal as journal_lib
from research.training import atomic, sampling

# Columns of metrics.csv, with the guarantee of all rounds up to theirs.
COLUMNS = (
  'epsilon',
  'epsilon_rdp',
  'delta',
  'noise_multiplier',
  'noise_to_cohort_ratio',
  'insecure_seeded_noise',
  'clip_norm',
)

# What may be told of a round: none of it is computed from clients' data without
# noise. Test data is taken for public.
_PUBLIC = frozenset(
  [
    'round',
    bits.UPLOAD,
    bits.DOWNLOAD,
    'client_learning_rate',
    'server_learning_rate',
    *COLUMNS,
  ]
)
_PUBLIC_SPLIT = 'test_'


class MechanismError(RuntimeError):
  """The mechanism that ran is not the one that is accounted for."""


@dataclasses.dataclass(frozen=True)
class Settings:
  """What flags say about privacy, resolved for a population.

  Attributes:
    mechanism: A key of `settings.DP_MECHANISMS`.
    noise_multiplier: Of a round, all of its releases together.
    max_epsilon: The run ends before the round that would exceed it.
    seed: Of the noise; None is secure noise.
    noise_to_cohort_ratio: The noise multiplier / the clients that are expected
      to answer; of local noise, / the square root of their number.
    scheme: How clients are sampled; see `sampling.ClientSampler`.
    allow_unaccounted_release: Whether what is not noised is told, too.
    event: What a round must have released; None is Gaussian noise of the
      multiplier, in one or in several releases.
  """

  mechanism: str
  noise_multiplier: float
  noise_to_cohort_ratio: float
  max_epsilon: float | None = None
  seed: int | None = None
  scheme: str = sampling.POISSON
  allow_unaccounted_release: bool = False
  event: dp_accounting.DpEvent | None = None


class PrivateRounds:
  """Wraps the rounds of a run whose aggregator is private."""

  def __init__(
    self,
    settings: Settings,
    accountant: accounting.Accountant,
    journal: journal_lib.Journal,
    report: atomic.Path,
    canaries: canaries_lib.Canaries | None = None,
  ):
    """Prepares; nothing is written before the first round.

    Args:
      settings: See there.
      accountant: Of the mechanism, the sampling and delta.
      journal: Of the run's releases.
      report: The JSON file that has the guarantee so far.
      canaries: Clients by which the guarantee is audited.
    """
    self.settings = settings
    self.canaries = canaries
    self._accountant = accountant
    self._journal = journal
    self._report = report

  def last_round(self, done: int, total: int) -> int:
    """The last round of the run.

    Args:
      done: Rounds of the checkpoint from which it goes on.
      total: Rounds that are wanted.

    Returns:
      `total`, or the last one that the budget allows; `done` if none is left.

    Raises:
      journal_lib.JournalError: If the journal lacks one of the rounds done.
    """
    self._journal.check(done)
    limit = self.settings.max_epsilon
    if limit is None:
      return total

    def spent(last: int) -> tuple[int, list[int]]:
      return max(last, self._journal.rounds), self._repeated(done, last)

    return min(total, self._accountant.most_rounds(limit, done, spent))

  def resume(self, rounds_told: int) -> None:
    """Accounts for what a process that was killed has released.

    Args:
      rounds_told: The last round of metrics.csv.

    Raises:
      journal_lib.JournalError: If the journal lacks one of these rounds.
    """
    self._journal.check(rounds_told)
    if self._journal.releases:
      atomic.write_json(self._report, self.report())

  def entry(self) -> dict[str, Any]:
    """Of config.json: what a run that goes on may not change."""
    entry = {
      'mechanism': self.settings.mechanism,
      'noise_multiplier': self.settings.noise_multiplier,
      'delta': self._accountant.delta,
    }
    if self._is_correlated:
      entry['total_rounds'] = self._accountant.sampling.total_rounds
    return entry

  def begin(self, state: Any, round_num: int) -> Any:
    """Journals a round and returns its state with the noise's key."""
    self._journal.append(round_num)
    atomic.write_json(self._report, self.report())
    if self._is_seeded:
      key = noise.insecure_key(self.settings.seed, round_num)
    else:
      key = noise.secure_key()
    return dp.with_noise_key(state, key)

  def end(self, before: Any, after: Any) -> dict[str, Any]:
    """Accounts for a round.

    Args:
      before: State of the process before it.
      after: State after it.

    Returns:
      `COLUMNS` of its row.

    Raises:
      MechanismError: If it released something else than is accounted for.
    """
    self._check(dp.event(after.aggregator))
    now = self.guarantee()
    return {
      'epsilon': now.epsilon,
      'epsilon_rdp': now.epsilon_rdp,
      'delta': now.delta,
      'noise_multiplier': self.settings.noise_multiplier,
      'noise_to_cohort_ratio': self.settings.noise_to_cohort_ratio,
      'insecure_seeded_noise': int(self._is_seeded),
      'clip_norm': np.asarray(dp.clip_norm(before.aggregator)),
    }

  @property
  def _is_correlated(self) -> bool:
    return self.settings.mechanism in matrix_factorization.MECHANISMS

  def _check(self, event: dp_accounting.DpEvent) -> None:
    """Raises if a round released something else than is accounted for."""
    if self.settings.event is not None:
      if not _is_same(event, self.settings.event):
        raise MechanismError(
          f'the round released {event}, but the accounting is for '
          f'{self.settings.event}'
        )
      return
    # The guarantee of correlated noise is that of all rounds together.
    is_whole = isinstance(event, dp_accounting.UnsupportedDpEvent)
    if self._is_correlated or is_whole:
      if self._is_correlated != is_whole:
        raise MechanismError(
          f'the round released {event}, but the accounting is for '
          f'{self.settings.mechanism}'
        )
      return
    try:
      found = accounting.merged_noise_multiplier(event)
    except guarantee.AccountingError as error:
      raise MechanismError(f'the round released {event}: {error}') from error
    wanted = self.settings.noise_multiplier
    if not math.isclose(found, wanted, rel_tol=1e-5):
      raise MechanismError(
        f'the round was run with a noise multiplier of {found}, but the '
        f'accounting is for {wanted}'
      )

  @property
  def _is_seeded(self) -> bool:
    return self.settings.seed is not None

  def guarantee(self) -> guarantee.Guarantee:
    """What holds for all that was released so far."""
    return self._accountant.guarantee(self._journal.rounds, self._repeated())

  def _repeated(self, done: int = 0, last: int = 0) -> list[int]:
    """Repeated releases, with those of a run that goes on after `done`."""
    # A seeded round that is drawn again is the same release.
    if self._is_seeded:
      return []
    return self._journal.repeated(range(done + 1, last + 1))

  def audit(
    self, process: stateful.AnyProcess, state: Any, path: atomic.Path
  ) -> audit_report.Report | None:
    """Audits the guarantee by the final model.

    Args:
      process: What has learned.
      state: Its state after the last round.
      path: The JSON file that gets the report.

    Returns:
      The report; None without canaries.
    """
    if self.canaries is None:
      return None
    before, after = (
      process.get_model_weights(s).trainable
      for s in (process.initialize(), state)
    )
    released = [
      np.asarray(b) - np.asarray(a) for b, a in zip(before, after, strict=True)
    ]
    report = audit_report.examine(
      self.canaries, released, self._journal.rounds, self.guarantee()
    )
    atomic.write_json(path, report.to_json())
    return report

  def forecast(self) -> str:
    """What will hold after all rounds, as lines of text."""
    rounds = self._accountant.sampling.total_rounds
    planned = self._accountant.guarantee(rounds)
    return '\n'.join(
      [
        f'privacy      {planned.summary()} after {rounds} rounds',
        f'             {planned.kind}',
        f'             {planned.relation}, {planned.sampling.scheme} sampling '
        f'of {planned.sampling.population} clients',
        f'noise        {self.settings.mechanism}, noise multiplier '
        f'{self.settings.noise_multiplier:g}',
      ]
    )

  def report(self) -> dict[str, Any]:
    """The guarantee so far, for people and for programs."""
    now, settings = self.guarantee(), self.settings
    sentences = []
    if settings.allow_unaccounted_release:
      sentences.append(
        'Besides the model, figures of the clients were released without '
        'noise (--allow_unaccounted_release): the guarantee below is of the '
        'model alone and does not cover them.'
      )
    if self._is_seeded:
      sentences.append(
        'The noise is seeded (--insecure_seeded_noise): whoever knows the seed '
        'can take it away, so that nothing is protected.'
      )
    sentences.append(now.statement())
    if self._is_correlated:
      sentences.append(
        'The checkpoints of the run hold noise of earlier rounds, which '
        'whoever has them can take away again: keep them as secret as the '
        "clients' data."
      )
    if not self._is_seeded:
      sentences.append(_generator(settings.mechanism))
    return {
      'statement': '\n\n'.join(sentences),
      'kind': now.kind,
      'epsilon': _finite_or_none(now.epsilon),
      'epsilon_pld': _finite_or_none(now.epsilon_pld),
      'epsilon_rdp': _finite_or_none(now.epsilon_rdp),
      'delta': now.delta,
      'unit': 'client',
      'relation': now.relation,
      'client_sampling': now.sampling.scheme,
      'population': now.sampling.population,
      'is_amplified': now.amplified,
      'mechanism': settings.mechanism,
      'noise_multiplier': settings.noise_multiplier,
      'rounds': now.rounds,
      'releases': self._journal.releases,
      'is_seeded': self._is_seeded,
    }

  def public(self, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of metrics.csv without what must not be told."""
    if self.settings.allow_unaccounted_release:
      return dict(row)
    public = set(_PUBLIC)
    # How many clients were drawn is no secret where a flag says it.
    if self.settings.scheme == sampling.FIXED_SIZE:
      public.add('clients')
    return {
      name: value
      for name, value in row.items()
      if name in public or name.startswith(_PUBLIC_SPLIT)
    }


def _is_same(found: dp_accounting.DpEvent, wanted: dp_accounting.DpEvent):
  """Whether two events of numbers are the same, up to float32."""
  if type(found) is not type(wanted):
    return False
  pairs = zip(attr.astuple(found), attr.astuple(wanted), strict=True)
  return all(math.isclose(a, b, rel_tol=1e-5) for a, b in pairs)


def _generator(mechanism: str) -> str:
  key = 'with a key per round from the operating system that is kept nowhere'
  if mechanism in distributed.MECHANISMS:
    return f'The noise is of {integer_noise.GENERATOR}, {key}.'
  return (
    f'The noise is of {noise.GENERATOR}, {key}; floating-point noise has the '
    'gaps that Mironov (2012) describes.'
  )


def _finite_or_none(value: float | None) -> float | None:
  return value if value is not None and math.isfinite(value) else None
