"""Clients that fail, lag or lie, for experiments on robustness.

Everything is drawn from the seed, the round and the client alone: a resumed run
meets the same faults, and so do all algorithms and runtimes.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from datasets import federated_data

NONE, LABEL_FLIP, SIGN_FLIP, SCALE, NOT_FINITE = (
  'none',
  'label_flip',
  'sign_flip',
  'scale',
  'not_finite',
)
POISONS = (NONE, LABEL_FLIP, SIGN_FLIP, SCALE, NOT_FINITE)

DROPPED, STRAGGLERS, POISONED = (
  'dropped_clients',
  'straggling_clients',
  'poisoned_clients',
)
COLUMNS = (DROPPED, STRAGGLERS, POISONED)

# Keep the draws apart from each other and from all others of the same seed.
_DROP_STREAM, _LAG_STREAM, _POISON_STREAM = 0x64726F, 0x6C6167, 0x706F69


@dataclasses.dataclass(frozen=True)
class Faults:
  """What goes wrong; clients are given by their position in the split.

  Attributes:
    client_dropout_rate: Probability that a client of a round, drawn and asked,
      never answers.
    straggler_rate: Probability that a client of a round has time for a part of
      its local steps only.
    poison: One of `POISONS`: what the poisoned clients do, in every round.
    poisoned_fraction: Probability of a client to be poisoned, once for all
      rounds.
    poison_scale: The factor of `scale`.
    seed: Decides who.
  """

  client_dropout_rate: float = 0.0
  straggler_rate: float = 0.0
  poison: str = NONE
  poisoned_fraction: float = 0.0
  poison_scale: float = 10.0
  seed: int = 0

  @property
  def any(self) -> bool:
    """Whether anything can go wrong."""
    poisons = self.poison != NONE and self.poisoned_fraction > 0
    return bool(self.client_dropout_rate or self.straggler_rate or poisons)

  def drops_out(self, round_num: int, client: int) -> bool:
    """Whether a client does not answer in a round."""
    drawn = self._uniform(_DROP_STREAM, round_num, client)
    return drawn < self.client_dropout_rate

  def steps(self, round_num: int, client: int, all_steps: int) -> int:
    """The local steps that a client has time for.

    A straggler makes a part of them that is uniform in (0, 1), as in the
    experiments of FedProx (Li et al. 2020, arXiv:1812.06127, Section 5.2), and
    at least one.

    Args:
      round_num: The round.
      client: The client.
      all_steps: What it is asked for.

    Returns:
      At most `all_steps`.
    """
    if self._uniform(_LAG_STREAM, round_num, client) >= self.straggler_rate:
      return all_steps
    part = self._uniform(_LAG_STREAM + 1, round_num, client)
    return max(1, math.ceil(part * all_steps))

  def is_poisoned(self, client: int) -> bool:
    """Whether a client is poisoned, in every round."""
    if self.poison == NONE:
      return False
    return self._uniform(_POISON_STREAM, 0, client) < self.poisoned_fraction

  def factor(self, client: int) -> float:
    """What a client multiplies its model update by; 1 if it is sound.

    A sign flip is -1; a NaN stands for an update that is not finite.
    """
    factors = {
      SIGN_FLIP: -1.0,
      SCALE: self.poison_scale,
      NOT_FINITE: math.nan,
    }
    return factors.get(self.poison, 1.0) if self.is_poisoned(client) else 1.0

  def _uniform(self, stream: int, round_num: int, client: int) -> float:
    rng = np.random.default_rng([stream, self.seed, round_num, client])
    return float(rng.random())

  def poisoned_split(
    self, split: federated_data.Split, num_classes: int
  ) -> federated_data.Split:
    """The clients' data as the poisoned ones train on it.

    Args:
      split: The training clients.
      num_classes: C; a flipped label y is C - 1 - y (Fang et al. 2020,
        arXiv:1911.11815, Section 5.1).

    Returns:
      The split; the same one unless labels are flipped.
    """
    if self.poison != LABEL_FLIP:
      return split

    def load(client: str) -> Mapping[str, np.ndarray]:
      arrays = split.client(client)
      if self.is_poisoned(split.position(client)):
        arrays['y'] = (num_classes - 1 - arrays['y']).astype(arrays['y'].dtype)
      return arrays

    return federated_data.Split(split.num_examples, load)
