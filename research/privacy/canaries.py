"""Canary clients: who is in the training, when, and what they send.

Andrew et al. 2023, "One-shot Empirical Privacy Estimation for Federated
Learning", arXiv:2302.03098: a canary sends a random direction of its own
instead of a model update, which the released model then contains or not. Here a
coin decides whether a canary is in the training at all, as Steinke et al. 2023,
"Privacy Auditing with One (1) Training Run", arXiv:2305.08846, need it.

Everything is a function of the seed, so that a resumed run has the canaries
that it began with.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from research.privacy import audit

# Keep the draws apart from each other and from all others of the same seed.
_COIN_STREAM, _TURN_STREAM = 0x636F69, 0x747572
_GROUP_STREAM, _DIRECTION_STREAM = 0x636772, 0x646972


@dataclasses.dataclass(frozen=True)
class Canaries:
  """Clients that are in the training, each with probability 1/2.

  Attributes:
    number: All of them, in and out.
    probability: Of an included canary to take part in a round of its turn; that
      of any other client.
    shapes: Of the model's trainable weights.
    norm: L2 norm of what a canary sends, far above the clipping norm.
    min_separation: Of `cyclic_poisson` sampling, in rounds; 1 is Poisson.
    seed: Decides everything.
    statistics: Shapes of what clients send beside the update
      (`algorithms.statistics`); a canary's own do not move. None without.
  """

  number: int
  probability: float
  shapes: Sequence[Sequence[int]]
  norm: float
  min_separation: int = 1
  seed: int = 0
  statistics: Sequence[Sequence[int]] | None = None

  @functools.cached_property
  def is_included(self) -> np.ndarray:
    """bool [number], the coins."""
    return self._rng(_COIN_STREAM).random(self.number) < 0.5

  @functools.cached_property
  def group(self) -> np.ndarray:
    """int [number]: group g is in rounds g + 1, g + 1 + min_separation, ..."""
    order = self._rng(_GROUP_STREAM).permutation(self.number)
    return order % self.min_separation

  def taking_part(self, round_num: int) -> list[int]:
    """The included canaries of a round, counted from 1."""
    drawn = self._rng(_TURN_STREAM, round_num).random(self.number)
    in_turn = self.group == (round_num - 1) % self.min_separation
    chosen = self.is_included & in_turn & (drawn < self.probability)
    return np.flatnonzero(chosen).tolist()

  def guesses(self, rounds: int) -> audit.Guesses:
    """How many guesses are made after so many rounds."""
    idle = (1 - self.probability) ** (rounds // self.min_separation)
    return audit.plan_guesses(self.number, idle)

  @property
  def dimensions(self) -> int:
    """Trainable weights of the model."""
    return sum(math.prod(shape) for shape in self.shapes)

  def direction(self, canary: int) -> np.ndarray:
    """A canary's unit vector, uniform on the sphere; float32 [dimensions]."""
    rng = self._rng(_DIRECTION_STREAM, canary)
    vector = rng.standard_normal(self.dimensions, np.float32)
    return vector / np.linalg.norm(vector)

  def update(self, canary: int) -> list[np.ndarray]:
    """What a canary sends, in the shapes of the trainable weights."""
    vector = np.float32(self.norm) * self.direction(canary)
    sizes = [math.prod(shape) for shape in self.shapes]
    parts = np.split(vector, np.cumsum(sizes)[:-1])
    return [p.reshape(s) for p, s in zip(parts, self.shapes, strict=True)]

  def instruction(self, canary: int) -> Any:
    """Tells a canary what to send; see `attacks.REPLACE`."""
    update = self._sent(self.update(canary))
    return collections.OrderedDict(is_replaced=True, update=update)

  @functools.cached_property
  def no_instruction(self) -> Any:
    """Tells any other client to send what it has learned."""
    zeros = [np.zeros(shape, np.float32) for shape in self.shapes]
    return collections.OrderedDict(is_replaced=False, update=self._sent(zeros))

  def _sent(self, update: list[np.ndarray]) -> Any:
    if self.statistics is None:
      return update
    still = [np.zeros(shape, np.float32) for shape in self.statistics]
    return collections.OrderedDict(trainable=update, statistics=still)

  def scores(self, released: Sequence[np.ndarray]) -> np.ndarray:
    """How far what was released points in each canary's direction.

    Andrew et al. 2023, Algorithm 2, without the division by its norm.

    Args:
      released: The model's trainable weights before minus after training, or
        any other sum of the means of rounds, in the shapes of the weights.

    Returns:
      float64 [number]: inner products.
    """
    flat = [np.ravel(part) for part in released]
    vector = np.concatenate(flat).astype(np.float64)
    return np.array([vector @ self.direction(i) for i in range(self.number)])

  def _rng(self, stream: int, *numbers: int) -> np.random.Generator:
    return np.random.default_rng([stream, self.seed, *numbers])
