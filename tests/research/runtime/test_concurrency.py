"""Bits do not depend on how many clients the worker trains at once."""

import dataclasses

import pytest

from research.runtime import stock
from tests import toy
from tests.research.training import test_loop as loops


@pytest.mark.parametrize('concurrent', [1, 4])
def test_how_many_clients_train_at_once_changes_no_bit(concurrent, tmp_path):
  clients = toy.random_clients((7, 5, 9, 4))
  config = dataclasses.replace(loops.CONFIG, clients_per_round=4)
  states = []
  for number in (2, concurrent):
    directory = tmp_path / str(number)
    directory.mkdir()
    with stock.StockRuntime(number) as runtime:
      training_loop = loops.make_loop(
        runtime, directory, clients, config=config
      )
      states.append(loops.run(training_loop, directory))
  assert loops.bits(states[0]) == loops.bits(states[1])
