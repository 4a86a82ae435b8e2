"""Clients that are told to change what they send, and nothing else changes."""

import collections

import numpy as np
import pytest
import tensorflow_federated as tff

from research.algorithms import attacks, optimizers, registry
from research.runtime import in_process, stock
from tests import toy
from tests.research.algorithms.test_fed_avg import cohorts

RATE = 0.05


@pytest.fixture(scope='module')
def task():
  return toy.linear_task(toy.random_clients())


def build(name, task, runtime, attack):
  settings = registry.Settings(
    client_optimizer=optimizers.build('sgd', RATE),
    server_optimizer=optimizers.build('sgd', 1.0),
    client_weighting=tff.learning.ClientWeighting.NUM_EXAMPLES,
    loop_implementation=runtime.loop_implementation,
    hparams=registry.ALGORITHMS[name].hparams,
    attack=attack,
  )
  process = registry.ALGORITHMS[name].build(task.model_fn, settings)
  return runtime.prepare(process, task)


def arguments(runtime, task, rounds):
  """The clients' data of each round."""
  return [
    [
      runtime.client_data(task.data.train, client, batches)
      for client, batches in cohort.items()
    ]
    for cohort in cohorts(task.data.train, rounds, epochs=2, batch_size=3)
  ]


def run(runtime, task, process, factors=None):
  """The weights after three rounds."""
  state = process.initialize()
  for data in arguments(runtime, task, 3):
    extra = [] if factors is None else [list(map(np.float32, factors))]
    state = process.next(state, data, *extra).state
  return np.asarray(process.get_model_weights(state).trainable[0])


@pytest.fixture(scope='module', params=['in_process', 'stock'])
def runtime(request):
  kind = {
    'in_process': lambda: in_process.InProcessRuntime(device='cpu'),
    'stock': stock.StockRuntime,
  }[request.param]
  with kind() as started:
    yield started


@pytest.mark.parametrize('name', ['fed_avg', 'fed_prox'])
def test_sound_clients_train_as_without_attacks(runtime, task, name):
  plain = run(runtime, task, build(name, task, runtime, None))
  process = build(name, task, runtime, attacks.SCALE)
  assert isinstance(process, attacks.AttackedProcess)
  attacked = run(runtime, task, process, [1, 1, 1])
  np.testing.assert_allclose(attacked, plain, rtol=0, atol=1e-7)


def test_all_that_flip_the_sign_send_the_model_the_other_way(runtime, task):
  """The first round's step, turned round."""
  process = build('fed_avg', task, runtime, attacks.SCALE)
  (data,) = arguments(runtime, task, 1)
  start = process.initialize()
  first = np.asarray(process.get_model_weights(start).trainable[0])
  steps = {}
  for factor in (1, -1, 3):
    state = process.next(start, data, [np.float32(factor)] * len(data)).state
    steps[factor] = process.get_model_weights(state).trainable[0] - first
  np.testing.assert_allclose(steps[-1], -steps[1], atol=1e-6)
  np.testing.assert_allclose(steps[3], 3 * steps[1], atol=2e-6)
  assert np.abs(steps[1]).max() > 0.01


def test_what_is_not_finite_is_dropped_and_counted(runtime, task):
  """The clients weigh 14, 8 and 24 examples; the second one is dropped."""
  process = build('fed_avg', task, runtime, attacks.SCALE)
  (data,) = arguments(runtime, task, 1)
  start = process.initialize()
  factors = [np.float32(1), np.float32(np.nan), np.float32(1)]
  broken = process.next(start, data, factors)
  without = process.next(start, data[::2], factors[::2])
  np.testing.assert_allclose(
    process.get_model_weights(broken.state).trainable[0],
    process.get_model_weights(without.state).trainable[0],
    atol=1e-6,
  )
  assert broken.metrics['aggregator']['rejected_clients'] == 1


def replaced(*numbers):
  update = [np.array(numbers, np.float32).reshape(3, 1)]
  return collections.OrderedDict(is_replaced=True, update=update)


@pytest.mark.parametrize('name', ['fed_avg', 'fed_prox'])
def test_who_replaces_nothing_trains_as_without_attacks(runtime, task, name):
  plain = run(runtime, task, build(name, task, runtime, None))
  process = build(name, task, runtime, attacks.REPLACE)
  state = process.initialize()
  for data in arguments(runtime, task, 3):
    state = process.next(state, data, [process.no_instruction] * 3).state
  found = process.get_model_weights(state).trainable[0]
  np.testing.assert_allclose(found, plain, rtol=0, atol=1e-7)


def test_what_is_sent_instead_is_averaged_as_any_update(runtime, task):
  """The clients weigh 14, 8 and 24 examples; one sends what is not finite."""
  process = build('fed_avg', task, runtime, attacks.REPLACE)
  (data,) = arguments(runtime, task, 1)
  start = process.initialize()
  first = process.get_model_weights(start).trainable[0].ravel()
  sent = [replaced(1, 0, 0), replaced(0, 2, 0), replaced(0, 0, -3)]
  output = process.next(start, data, sent)
  np.testing.assert_allclose(
    first - process.get_model_weights(output.state).trainable[0].ravel(),
    np.array([14, 16, -72]) / 46,
    atol=1e-6,
  )
  sent[1] = replaced(0, np.inf, 0)
  output = process.next(start, data, sent)
  np.testing.assert_allclose(
    first - process.get_model_weights(output.state).trainable[0].ravel(),
    np.array([14, 0, -72]) / 38,
    atol=1e-6,
  )
  assert output.metrics['aggregator']['rejected_clients'] == 1
