"""The clients of a round: who is drawn, who answers, and on what they train."""

import dataclasses
from typing import Any, Protocol

import numpy as np

from datasets import federated_data
from research.privacy import canaries as canaries_lib
from research.runtime import registry as runtimes
from research.training import faults as faults_lib
from research.training import sampling

# Keeps the draws of shuffling apart from those of clients with the same seed.
_SHUFFLE_STREAM = 0x736875


class Config(Protocol):
  """What `loop.LoopConfig` says of a client's local work."""

  client_epochs_per_round: int
  client_batch_size: int
  max_examples_per_client: int | None
  seed: int


@dataclasses.dataclass(frozen=True)
class Cohort:
  """The clients of a round.

  Attributes:
    clients: How many were drawn, canaries apart.
    empty: How many of them have no examples and are not asked.
    faults: Columns of metrics.csv about faults; empty without any.
    asked: Positions of those that answer among the training clients; canaries
      have none.
    instructions: On what they send, canaries included; see `attacks.Attack`.
    argument: What the process takes for them; None if there are none.
  """

  clients: int
  empty: int
  faults: dict[str, int]
  asked: list[int]
  instructions: list[Any]
  argument: Any


def client_batches(
  config: Config,
  split: federated_data.Split,
  client_id: str,
  round_num: int,
) -> list:
  """Index batches of a client in a round: a pure function of its arguments."""
  return federated_data.client_batches(
    split.num_examples[client_id],
    batch_size=config.client_batch_size,
    epochs=config.client_epochs_per_round,
    seed=[
      _SHUFFLE_STREAM,
      config.seed,
      round_num,
      split.position(client_id),
    ],
    max_examples=config.max_examples_per_client,
  )


def prepare(
  config: Config,
  split: federated_data.Split,
  sampler: sampling.ClientSampler,
  runtime: runtimes.Runtime,
  faults: faults_lib.Faults,
  round_num: int,
  canaries: canaries_lib.Canaries | None = None,
) -> Cohort:
  """Draws and packs a round's clients: a pure function of its arguments.

  Args:
    config: The clients' local work.
    split: The training clients.
    sampler: Draws them.
    runtime: Packs what they train on.
    faults: Which of them don't answer, or do less.
    round_num: The round.
    canaries: Further clients that audit the training.
  """
  drawn = sampler.sample(round_num)
  filled = [client for client in drawn if split.num_examples[client] > 0]
  answering, arguments, stragglers = [], [], 0
  for client in filled:
    position = split.position(client)
    if faults.drops_out(round_num, position):
      continue
    batches = client_batches(config, split, client, round_num)
    steps = faults.steps(round_num, position, len(batches))
    stragglers += steps < len(batches)
    answering.append(position)
    arguments.append(runtime.client_data(split, client, batches[:steps]))
  found = {}
  if faults.any:
    found = {
      faults_lib.DROPPED: len(filled) - len(answering),
      faults_lib.STRAGGLERS: stragglers,
      faults_lib.POISONED: sum(map(faults.is_poisoned, answering)),
    }
  instructions = [np.float32(faults.factor(c)) for c in answering]
  step = _any_step(config, split, runtime, round_num) if canaries else None
  if step is not None:
    instructions = [canaries.no_instruction] * len(answering)
    taking_part = canaries.taking_part(round_num)
    instructions += map(canaries.instruction, taking_part)
    arguments += [step] * len(taking_part)
  return Cohort(
    clients=len(drawn),
    empty=len(drawn) - len(filled),
    faults=found,
    asked=answering,
    instructions=instructions,
    argument=runtime.cohort(arguments) if arguments else None,
  )


def _any_step(
  config: Config,
  split: federated_data.Split,
  runtime: runtimes.Runtime,
  round_num: int,
):
  """What a canary computes: its own update replaces what comes of it.

  Returns:
    The first batch of a client with the fewest examples, as
    `runtime.client_data` packs it; None if no client has any.
  """
  lenders = [c for c in split.client_ids if split.num_examples[c] > 0]
  if not lenders:
    return None
  lender = min(lenders, key=split.num_examples.get)
  batches = client_batches(config, split, lender, round_num)
  return runtime.client_data(split, lender, batches[:1])
