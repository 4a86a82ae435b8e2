"""Which clients take part in a round, as a pure function of (seed, round)."""

import dataclasses
from collections.abc import Sequence

import numpy as np

# Keeps the draws of clients apart from those of shuffling with the same seed,
# and from the division into groups.
_STREAM = 0x636C69
_GROUP_STREAM = 0x677270

FIXED_SIZE = 'fixed_size'
POISSON = 'poisson'
CYCLIC_POISSON = 'cyclic_poisson'
SCHEMES = (FIXED_SIZE, POISSON, CYCLIC_POISSON)


@dataclasses.dataclass(frozen=True)
class ClientSampler:
  """Draws the cohort of a round.

  Attributes:
    client_ids: The population.
    clients_per_round: Size of a cohort; its expectation under Poisson sampling.
    scheme: `fixed_size` draws that many clients uniformly without replacement,
      `poisson` includes each client independently with probability
      `clients_per_round / len(client_ids)`, so that a cohort can be empty.
      `cyclic_poisson` divides the population into `min_separation` groups and
      does so with the group of the round alone, with `min_separation` times
      that probability, so that a client is asked at most every
      `min_separation` rounds (Choquette-Choo et al. 2023, arXiv:2306.08153).
    seed: With the round's number, all that a draw depends on.
    min_separation: Of `cyclic_poisson`, in rounds.
  """

  client_ids: Sequence[str]
  clients_per_round: int
  scheme: str = FIXED_SIZE
  seed: int = 0
  min_separation: int | None = None

  def __post_init__(self):
    population = len(self.client_ids)
    if not 1 <= self.clients_per_round <= population:
      raise ValueError(
        f'--clients_per_round is {self.clients_per_round}, but the training '
        f'split has {population} clients: give a number from 1 to {population}.'
      )
    if self.scheme not in SCHEMES:
      raise ValueError(
        f'--client_sampling is {self.scheme!r}; it is one of '
        f'{", ".join(SCHEMES)}.'
      )
    if (self.scheme == CYCLIC_POISSON) != (self.min_separation is not None):
      raise ValueError(
        f'--client_sampling={self.scheme} with --min_separation='
        f'{self.min_separation}: {CYCLIC_POISSON} needs it, and nothing else '
        'uses it.'
      )
    if self._groups * self.clients_per_round > population:
      raise ValueError(
        f'--min_separation={self.min_separation} divides {population} clients '
        f'into groups of {population // self._groups}, fewer than '
        f'--clients_per_round={self.clients_per_round}: lower one of the two.'
      )

  @property
  def _groups(self) -> int:
    return self.min_separation or 1

  def sample(self, round_num: int) -> list[str]:
    """Returns the cohort of round `round_num`, counted from 1."""
    generator = np.random.default_rng([_STREAM, self.seed, round_num])
    population = len(self.client_ids)
    if self.scheme == FIXED_SIZE:
      chosen = generator.choice(
        population, self.clients_per_round, replace=False
      )
    else:
      probability = self._groups * self.clients_per_round / population
      drawn = generator.random(population) < probability
      chosen = np.flatnonzero(drawn & self._is_in_turn(round_num))
    return [self.client_ids[index] for index in chosen]

  def _is_in_turn(self, round_num: int) -> np.ndarray:
    """bool [population], the group of a round."""
    population = len(self.client_ids)
    generator = np.random.default_rng([_GROUP_STREAM, self.seed])
    group = generator.permutation(population) % self._groups
    return group == (round_num - 1) % self._groups
