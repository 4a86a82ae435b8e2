"""Learning rates as a pure function of the round."""

import dataclasses
import math

CONSTANT = 'constant'
KINDS = (CONSTANT, 'exponential', 'inverse_sqrt', 'cosine')


@dataclasses.dataclass(frozen=True)
class Schedule:
  """A learning rate by round, with an optional linear warm-up before it.

  With t the number of rounds since the warm-up, T `decay_rounds` and r
  `decay_rate`: constant 1; exponential r^(t/T); inverse_sqrt 1/sqrt(1 + t/T);
  cosine (1 + cos(pi min(t/T, 1)))/2; each times `learning_rate`.

  Attributes:
    learning_rate: The highest value.
    kind: One of `KINDS`.
    decay_rounds: T, in rounds; unused by constant.
    decay_rate: r; used by exponential only.
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
      'decay_rate': self.kind == 'exponential',
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

  def __call__(self, round_num: int) -> float:
    """Returns the learning rate of round `round_num`, counted from 1."""
    if round_num <= self.warmup_rounds:
      return self.learning_rate * round_num / (self.warmup_rounds + 1)
    if self.kind == CONSTANT:
      return self.learning_rate
    progress = (round_num - 1 - self.warmup_rounds) / self.decay_rounds
    if self.kind == 'exponential':
      return self.learning_rate * self.decay_rate**progress
    if self.kind == 'inverse_sqrt':
      return self.learning_rate / math.sqrt(1 + progress)
    return self.learning_rate * (1 + math.cos(math.pi * min(progress, 1))) / 2
