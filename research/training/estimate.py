"""What a run will take, measured before its first round."""

import dataclasses
import time

import numpy as np
import psutil
import tensorflow as tf

from research.algorithms import attacks, stateful
from research.training import cohorts
from research.training import loop as loop_lib

_SHORT, _LONG = 4, 24
# Trained together, since a runtime may train several at once.
_CLIENTS = 4


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A rough forecast of a run.

  Attributes:
    clients: Training clients.
    examples: Training examples of all clients.
    parameters: Trainable parameters of the model.
    steps_per_round: Local steps of a mean round, over all clients.
    seconds_per_round: Training time of a mean round, without evaluation.
    seconds: Training time of all rounds that are left.
    memory_bytes: Memory of this process and its worker after a few clients'
      work.
    data_bytes: Mean bytes of the examples of a cohort.
  """

  clients: int
  examples: int
  parameters: int
  steps_per_round: float
  seconds_per_round: float
  seconds: float
  memory_bytes: int
  data_bytes: int

  def lines(self) -> list[str]:
    """One line of text per figure."""
    return [
      f'data         {self.clients} clients, {self.examples} examples, '
      f'{self.data_bytes / 1e6:.1f} MB per round',
      f'model        {self.parameters} parameters',
      f'local steps  {self.steps_per_round:.0f} per round',
      f'time         {self.seconds_per_round:.1f} s per round, '
      f'{self.seconds / 60:.1f} min in all, evaluation apart',
      f'memory       {self.memory_bytes / 1e9:.2f} GB',
    ]


def estimate(loop: loop_lib.TrainingLoop, rounds: int) -> Estimate:
  """Times a few local steps of a few clients and scales them up.

  Args:
    loop: The loop, within a started runtime; its state is not touched.
    rounds: Rounds that are left to train.

  Returns:
    The forecast. Time per step comes from the difference between two lengths
    of local work, so that compilation and messages count once per client.
  """
  split = loop.task.data.train
  config = loop.config
  state = loop.process.initialize()
  client = max(split.client_ids, key=split.num_examples.get)
  batch = np.arange(
    min(split.num_examples[client], config.client_batch_size or 10**9)
  )

  clients = min(config.clients_per_round, _CLIENTS)

  def seconds(steps: int) -> float:
    data = loop.runtime.client_data(split, client, [batch] * steps)
    begin = time.monotonic()
    arguments = [state, [data] * clients]
    if isinstance(loop.process, stateful.StatefulProcess):
      arguments.append([loop.process.initial_client_state()] * clients)
    elif isinstance(loop.process, attacks.AttackedProcess):
      arguments.append([loop.process.no_instruction] * clients)
    loop.process.next(*arguments)
    return (time.monotonic() - begin) / clients

  seconds(1)
  short, long = (min(seconds(n) for _ in range(2)) for n in (_SHORT, _LONG))
  per_step = max(long - short, 0.0) / (_LONG - _SHORT)
  per_client = max(short - _SHORT * per_step, 0.0)
  counts = np.array(
    [
      len(cohorts.client_batches(config, split, client_id, 1))
      for client_id in split.client_ids
    ]
  )
  steps = config.clients_per_round * float(counts.mean())
  per_round = steps * per_step + config.clients_per_round * per_client
  model = loop.evaluator.model
  example_bytes = sum(
    np.prod(spec.shape, dtype=int) * spec.dtype.size
    for spec in split.element_spec.values()
  )
  mean_examples = split.total_examples / len(split.client_ids)
  process = psutil.Process()
  memory = sum(
    p.memory_info().rss for p in [process, *process.children(recursive=True)]
  )
  return Estimate(
    clients=len(split.client_ids),
    examples=split.total_examples,
    parameters=sum(int(tf.size(v)) for v in model.trainable_variables),
    steps_per_round=steps,
    seconds_per_round=per_round,
    seconds=per_round * rounds,
    memory_bytes=memory,
    data_bytes=int(config.clients_per_round * mean_examples * example_bytes),
  )
