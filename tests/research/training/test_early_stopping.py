"""Which round ends a run, by hand and in the loop, interrupted or not."""

import dataclasses
import math

import numpy as np
import pytest

from datasets import federated_data
from research.training import early_stopping, metrics
from tests import toy
from tests.research.training import test_loop as loops


def rows(*losses):
  """Rows of rounds 1, 2, ...; None is a round without evaluation."""
  return [
    {'round': number, 'validation_loss': loss}
    for number, loss in enumerate(losses, 1)
  ]


@pytest.mark.parametrize(
  'losses, patience, expected',
  [
    ([], 1, None),
    ([3.0], 1, None),
    ([3.0, 2.0, 1.0], 1, None),
    ([3.0, 2.0, 2.5], 1, 3),
    # No new minimum is none, even if it is as low.
    ([3.0, 2.0, 2.0], 1, 3),
    ([3.0, 2.0, 2.5], 2, None),
    ([3.0, 2.0, 2.5, 2.1], 2, 4),
    # A minimum in between starts the count again.
    ([3.0, 3.1, 2.9, 3.0, 2.8, 2.9, 2.85], 2, 7),
    # Better than the one before is not better than the best.
    ([1.0, 3.0, 2.0], 2, 3),
    # Rounds without evaluation don't count.
    ([3.0, None, None, 3.5, None, 3.2], 2, 6),
    # A run that diverges gets no minimum any more.
    ([3.0, math.nan, math.nan], 2, 3),
    ([math.nan, math.nan], 2, 2),
    # It ended there, whatever follows.
    ([1.0, 2.0, 0.5, 0.6], 1, 2),
    ([3.0, 4.0, 5.0], None, None),
  ],
)
def test_by_hand(losses, patience, expected):
  assert early_stopping.last_round(rows(*losses), patience) == expected


def test_rows_before_there_was_a_column():
  assert early_stopping.last_round([{'round': 1}, {'round': 2}], 1) is None


CONFIG = dataclasses.replace(
  loops.CONFIG, total_rounds=9, rounds_per_evaluation=1, checkpoints_kept=9
)


class Killed(Exception):
  """What stands for the end of the process."""


def make_loop(runtime, directory, **changes):
  """A loop whose validation loss falls at first and then rises."""
  clients = toy.random_clients()
  training_loop = loops.make_loop(
    runtime,
    directory,
    clients,
    config=dataclasses.replace(CONFIG, **changes),
    server=('sgd', 1.0),
  )
  # Between the first weights and where the clients lead.
  x = np.eye(3, dtype=np.float32)
  held_out = {'x': x, 'y': x @ np.array([0.3, -0.8, 1.4], np.float32)}
  split = federated_data.Split.from_client_arrays({'a': held_out})
  data = dataclasses.replace(training_loop.task.data, validation=split)
  training_loop.task = dataclasses.replace(training_loop.task, data=data)
  return training_loop


def run_until(training_loop, directory, last, monkeypatch):
  """Runs until a round that never comes to its end."""
  train_round = training_loop.train_round

  def train(state, round_num):
    if round_num > last:
      raise Killed
    return train_round(state, round_num)

  monkeypatch.setattr(training_loop, 'train_round', train)
  with pytest.raises(Killed):
    loops.run(training_loop, directory)


@pytest.mark.parametrize('rounds_per_checkpoint', [1, 2])
def test_a_resumed_run_ends_where_a_whole_one_does(
  stock_runtime, tmp_path, monkeypatch, rounds_per_checkpoint
):
  directories = [tmp_path / name for name in ('never', 'whole', 'parts')]
  for directory in directories:
    directory.mkdir()
  never, whole, parts = directories
  loops.run(make_loop(stock_runtime, never), never)
  every = metrics.read(never / 'metrics.csv')
  losses = [row['validation_loss'] for row in every]
  best = int(np.argmin(losses))
  # Early enough that no run ends before it.
  assert 0 < best <= 2
  changes = {
    'early_stopping_evaluations': 2,
    'rounds_per_checkpoint': rounds_per_checkpoint,
  }
  expected = loops.run(make_loop(stock_runtime, whole, **changes), whole)
  stopped = metrics.read(whole / 'metrics.csv')
  # The best round counts from 1, and two more follow.
  assert [row['round'] for row in stopped] == list(range(1, best + 4))
  assert stopped == every[: best + 3]
  for last in (1, best + 2):
    training_loop = make_loop(stock_runtime, parts, **changes)
    run_until(training_loop, parts, last, monkeypatch)
  for _ in range(2):
    # The second time all is done already.
    training_loop = make_loop(stock_runtime, parts, **changes)
    resumed = loops.run(training_loop, parts)
    assert loops.bits(resumed) == loops.bits(expected)
    assert training_loop.last_round == best + 3
  read = [(d / 'metrics.csv').read_bytes() for d in (whole, parts)]
  assert read[0] == read[1]
  name = f'checkpoints/round_{best + 3:06d}/state.npz'
  assert (whole / name).read_bytes() == (parts / name).read_bytes()
