"""Does memory stay flat over many rounds?

Trains a tiny model for 1,000 rounds in this process and its worker (the
in-process runtime has none), with checkpoints and TensorBoard as in a run, and
prints how much their resident memory grew after a warm-up. Fails if that is
more than --limit_megabytes:

  python -m experiments.benchmark.memory --runtime=in_process
"""

import gc
import io
import json
import pathlib
import sys
import tempfile
from collections.abc import Sequence

import numpy as np
import psutil
import tensorflow_federated as tff
from absl import flags

from datasets import load
from research import cli, flag_values
from research.algorithms import fed_avg, optimizers
from research.runtime import registry
from research.tasks import emnist
from research.training import (
  checkpoint,
  metrics,
  progress,
  sampling,
  schedules,
  trackers,
)
from research.training import columns as columns_lib
from research.training import loop as loop_lib

_ROUNDS = flags.DEFINE_integer('rounds', 1000, 'Rounds after the warm-up.')
_WARM_UP = flags.DEFINE_integer('warm_up', 100, 'Rounds before the first look.')
_EVERY = flags.DEFINE_integer('every', 50, 'Rounds between looks.')
_RUNTIME = flags.DEFINE_enum(
  'runtime',
  registry.DEFAULT,
  list(registry.RUNTIMES),
  'Where computations run.',
)
_LIMIT = flags.DEFINE_float('limit_megabytes', 20, 'Growth that is allowed.')


def resident_bytes() -> dict[str, int]:
  """Resident memory of this process and of TFF's worker."""
  process = psutil.Process()
  children = process.children(recursive=True)
  return {
    'python': process.memory_info().rss,
    'worker': sum(child.memory_info().rss for child in children),
  }


def make_loop(runtime, directory: str) -> loop_lib.TrainingLoop:
  """A loop whose rounds take milliseconds."""
  data = load.load(load.LoadConfig(dataset='synthetic_digits'))
  task = emnist.build('digit_recognition', data, 'logistic_regression')
  process = fed_avg.build(
    task.model_fn,
    client_optimizer=optimizers.build('sgd', 0.1, {}),
    server_optimizer=optimizers.build('sgd', 1.0, {}),
    client_weighting=tff.learning.ClientWeighting.NUM_EXAMPLES,
    loop_implementation=runtime.loop_implementation,
  )
  config = loop_lib.LoopConfig(
    total_rounds=_WARM_UP.value + _ROUNDS.value,
    clients_per_round=3,
    rounds_per_evaluation=10,
  )
  return loop_lib.TrainingLoop(
    config,
    task,
    runtime.prepare(process, task),
    loop_lib.Schedules(schedules.Schedule(0.1), schedules.Schedule(1.0)),
    sampling.ClientSampler(data.train.client_ids, 3),
    runtime,
    checkpoint.CheckpointManager(pathlib.Path(directory) / 'checkpoints'),
  )


class Recorder:
  """A tracker that looks at the memory now and then."""

  def __init__(self):
    self.rounds: list[int] = []
    self.seen: dict[str, list[int]] = {'python': [], 'worker': []}

  def write(self, round_num: int, unused_values) -> None:
    if round_num < _WARM_UP.value or round_num % _EVERY.value:
      return
    gc.collect()
    self.rounds.append(round_num)
    for name, value in resident_bytes().items():
      self.seen[name].append(value)
    row = {k: round(v[-1] / 1e6, 1) for k, v in self.seen.items()}
    print(f'round {round_num:>6}  ' + json.dumps(row), flush=True)

  def close(self) -> None:
    pass

  def growth(self) -> dict[str, float]:
    """Megabytes from the first look to the last, by process."""
    return {k: (v[-1] - v[0]) / 1e6 for k, v in self.seen.items()}

  def slope(self) -> float:
    """Megabytes per 1,000 rounds of both, by least squares."""
    total = np.sum(list(self.seen.values()), axis=0) / 1e6
    return float(np.polyfit(self.rounds, total, 1)[0] * 1000)


def main(argv: Sequence[str]) -> None:
  """Prints the memory by round and its growth after the warm-up."""
  flag_values.refuse_arguments(argv)
  if _ROUNDS.value < _EVERY.value:
    raise flags.IllegalFlagValueError('--rounds is less than --every.')
  recorder = Recorder()
  with (
    tempfile.TemporaryDirectory() as directory,
    registry.build(registry.RuntimeConfig(_RUNTIME.value)) as runtime,
  ):
    training_loop = make_loop(runtime, directory)
    path, config = pathlib.Path(directory), training_loop.config
    columns = columns_lib.columns(training_loop.task)
    training_loop.run(
      training_loop.restore(),
      metrics.MetricsCsv(path / 'metrics.csv', columns),
      metrics.MetricsCsv(path / 'timing.csv', loop_lib.TIMING_COLUMNS),
      [recorder, trackers.TensorBoard(path / 'tensorboard', -1)],
      progress.Progress(config.total_rounds, 0, io.StringIO()),
    )
  for name, megabytes in recorder.growth().items():
    print(f'{name} grew by {megabytes:.1f} MB')
  print(f'{recorder.slope():.1f} MB per 1,000 rounds (least squares)')
  if sum(recorder.growth().values()) > _LIMIT.value:
    print(f'more than {_LIMIT.value} MB', file=sys.stderr)
    sys.exit(1)


if __name__ == '__main__':
  cli.run(main)
