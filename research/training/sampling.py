"""Which clients take part in a round, as a pure function of (seed, round)."""

import dataclasses
from collections.abc import Sequence

import numpy as np

# Keeps the draws of clients apart from those of shuffling with the same seed.
_STREAM = 0x636C69

FIXED_SIZE = 'fixed_size'
POISSON = 'poisson'


@dataclasses.dataclass(frozen=True)
class ClientSampler:
  """Draws the cohort of a round.

  Attributes:
    client_ids: The population.
    clients_per_round: Size of a cohort; its expectation under Poisson sampling.
    scheme: `fixed_size` draws that many clients uniformly without replacement,
      `poisson` includes each client independently with probability
      `clients_per_round / len(client_ids)`, so that a cohort can be empty.
    seed: With the round's number, all that a draw depends on.
  """

  client_ids: Sequence[str]
  clients_per_round: int
  scheme: str = FIXED_SIZE
  seed: int = 0

  def __post_init__(self):
    population = len(self.client_ids)
    if not 1 <= self.clients_per_round <= population:
      raise ValueError(
        f'--clients_per_round is {self.clients_per_round}, but the training '
        f'split has {population} clients: give a number from 1 to {population}.'
      )
    if self.scheme not in (FIXED_SIZE, POISSON):
      raise ValueError(
        f'--client_sampling is {self.scheme!r}; it is {FIXED_SIZE!r} or '
        f'{POISSON!r}.'
      )

  def sample(self, round_num: int) -> list[str]:
    """Returns the cohort of round `round_num`, counted from 1."""
    generator = np.random.default_rng([_STREAM, self.seed, round_num])
    population = len(self.client_ids)
    if self.scheme == FIXED_SIZE:
      chosen = generator.choice(
        population, self.clients_per_round, replace=False
      )
    else:
      probability = self.clients_per_round / population
      chosen = np.flatnonzero(generator.random(population) < probability)
    return [self.client_ids[index] for index in chosen]
