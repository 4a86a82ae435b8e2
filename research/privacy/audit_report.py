"""What an audit of a run found, for people and for programs."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from research.privacy import audit, guarantee
from research.privacy import canaries as canaries_lib

CONFIDENCE = 0.95


class ViolationError(RuntimeError):
  """What was released tells more of clients than the guarantee allows."""


@dataclasses.dataclass(frozen=True)
class Report:
  """The result of an audit; audit.json has the attributes.

  Attributes:
    canaries: In the training and out.
    included: Of them in the training.
    guesses: That were made on who was in, their number fixed before.
    correct: Of the guesses.
    confidence: Of the lower bound.
    epsilon_lower_bound: See `audit.epsilon_lower_bound`.
    epsilon_if_all_were_right: The bound that so many right guesses would give,
      beyond which the audit is blind.
    epsilon_one_shot_estimate: See `audit.one_shot_epsilon`; None where fewer
      than two canaries were in, or the model is not finite.
    epsilon_claimed: Of the guarantee.
    delta: Of the guarantee, at which all the others are.
  """

  canaries: int
  included: int
  guesses: int
  correct: int
  confidence: float
  epsilon_lower_bound: float
  epsilon_if_all_were_right: float
  epsilon_one_shot_estimate: float | None
  epsilon_claimed: float
  delta: float

  @property
  def is_violated(self) -> bool:
    """Whether the guarantee is disproved, with the confidence."""
    return self.epsilon_lower_bound > self.epsilon_claimed

  def line(self) -> str:
    """The result on a line."""
    sign = '>' if self.is_violated else '<='
    return (
      f'epsilon >= {self.epsilon_lower_bound:.4g} ({self.confidence:.0%} '
      f'confidence; {self.correct} of {self.guesses} guesses), {sign} '
      f'{self.epsilon_claimed:.4g} claimed'
    )

  def statement(self) -> str:
    """The result in sentences, for the model card."""
    text = (
      f'{self.canaries} canary clients, {self.included} of them in the '
      'training by the toss of a coin, sent random directions. Of '
      f'{self.guesses} guesses from the final model on who was in, '
      f'{self.correct} were right: with {self.confidence:.0%} confidence '
      f'epsilon is at least {self.epsilon_lower_bound:.4g} at delta '
      f'{self.delta:g} (Steinke et al. 2023), and claimed are '
      f'{guarantee.round_up(self.epsilon_claimed)}. So many guesses can show '
      f'{self.epsilon_if_all_were_right:.4g} at most; a low bound is no proof '
      'of privacy.'
    )
    if self.epsilon_one_shot_estimate is not None:
      text += (
        f' An estimate, which is no bound: {self.epsilon_one_shot_estimate:.4g}'
        ' (Andrew et al. 2023).'
      )
    if not self.is_violated:
      return f'**Audit.** {text}'
    return (
      '**THE AUDIT CONTRADICTS THE GUARANTEE: do not rely on it.** '
      f'{text} Sound training comes to this in at most '
      f'{1 - self.confidence:.0%} of all audits.'
    )

  def to_json(self) -> dict[str, Any]:
    """For audit.json."""
    return {
      **dataclasses.asdict(self),
      'is_violated': self.is_violated,
      'statement': self.statement(),
    }

  def check(self) -> None:
    """Raises if the guarantee is disproved.

    Raises:
      ViolationError: If so.
    """
    if self.is_violated:
      raise ViolationError(self.statement().replace('**', ''))


def examine(
  canaries: canaries_lib.Canaries,
  released: Sequence[np.ndarray],
  rounds: int,
  claim: guarantee.Guarantee,
) -> Report:
  """Audits what was released.

  Args:
    canaries: Of the training.
    released: As of `canaries.Canaries.scores`.
    rounds: Of the training.
    claim: What is claimed of everything that was released.

  Returns:
    The report.
  """
  scores = canaries.scores(released)
  included = canaries.is_included
  guesses = canaries.guesses(rounds)
  correct = guesses.correct(scores, included)

  def bound(right: int) -> float:
    return audit.epsilon_lower_bound(
      claim.delta, canaries.number, guesses.total, right, CONFIDENCE
    )

  estimate = None
  norm = np.linalg.norm(np.concatenate([np.ravel(r) for r in released]))
  if included.sum() >= 2 and np.isfinite(norm) and norm > 0:
    estimate = audit.one_shot_epsilon(
      scores[included] / norm, canaries.dimensions, claim.delta
    )
  return Report(
    canaries=canaries.number,
    included=int(included.sum()),
    guesses=guesses.total,
    correct=correct,
    confidence=CONFIDENCE,
    epsilon_lower_bound=bound(correct),
    epsilon_if_all_were_right=bound(guesses.total),
    epsilon_one_shot_estimate=estimate,
    epsilon_claimed=claim.epsilon,
    delta=claim.delta,
  )
