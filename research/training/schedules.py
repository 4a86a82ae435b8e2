"""Learning rates as a pure function of the round and the losses before it."""

import dataclasses
import math
from collections.abc import Sequence

CONSTANT = 'constant'
PLATEAU = 'plateau'
KINDS = (CONSTANT, 'exponential', 'inverse_sqrt', 'cosine', PLATEAU)


@dataclasses.dataclass(frozen=True)
class Schedule:
  """A learning rate by round, with an optional linear warm-up before it.

  With t the number of rounds since the warm-up, T `decay_rounds` and r
  `decay_rate`: constant 1; exponential r^(t/T); inverse_sqrt 1/sqrt(1 + t/T);
  cosine (1 + cos(pi min(t/T, 1)))/2; plateau r^p, where p is how often the
  training loss has been T rounds without a new minimum, as counted by Keras'
  ReduceLROnPlateau; each times `learning_rate`.

  Attributes:
    learning_rate: The highest value.
    kind: One of `KINDS`.
    decay_rounds: T, in rounds; unused by constant.
    decay_rate: r; used by exponential and plateau.
    warmup_rounds: Round i of these has i / (warmup_rounds + 1) of the value.
  """

  learning_rate: float
  kind: str = CONSTANT
  decay_rounds: int | None = None
  decay_rate: float | None = None
  warmup_rounds: int = 0

  def __post_init__(self):
    needed = {
      'decay_rounds': self.kind != CONSTANT,
      'decay_rate': self.kind in ('exponential', PLATEAU),
    }
    for name, is_needed in needed.items():
      given = getattr(self, name)
      if is_needed and given is None:
        raise ValueError(f'The schedule {self.kind!r} needs {name}.')
      if not is_needed and given is not None:
        raise ValueError(
          f'The schedule {self.kind!r} does not use {name} (given {given}).'
        )
      if given is not None and given <= 0:
        raise ValueError(f'{name} must be positive, not {given}.')

  @property
  def is_constant(self) -> bool:
    """Whether every round has the same learning rate."""
    return self.kind == CONSTANT and not self.warmup_rounds

  def __call__(
    self, round_num: int, losses: Sequence[float | None] = ()
  ) -> float:
    """Returns the learning rate of a round.

    Args:
      round_num: The round, counted from 1.
      losses: Training losses of all rounds before it, None where there is none;
        used by plateau alone.
    """
    if round_num <= self.warmup_rounds:
      return self.learning_rate * round_num / (self.warmup_rounds + 1)
    if self.kind == CONSTANT:
      return self.learning_rate
    if self.kind == PLATEAU:
      count = _plateaus(losses[self.warmup_rounds :], self.decay_rounds)
      return self.learning_rate * self.decay_rate**count
    progress = (round_num - 1 - self.warmup_rounds) / self.decay_rounds
    if self.kind == 'exponential':
      return self.learning_rate * self.decay_rate**progress
    if self.kind == 'inverse_sqrt':
      return self.learning_rate / math.sqrt(1 + progress)
    return self.learning_rate * (1 + math.cos(math.pi * min(progress, 1))) / 2


def _plateaus(losses: Sequence[float | None], patience: int) -> int:
  """How often `patience` losses in a row were no new minimum."""
  best, waited, count = math.inf, 0, 0
  for loss in losses:
    if loss is not None and loss < best:
      best, waited = loss, 0
    else:
      waited += 1
    if waited == patience:
      waited, count = 0, count + 1
  return count
