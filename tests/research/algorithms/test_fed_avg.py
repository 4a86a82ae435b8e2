"""FedAvg, FedSGD and FedOpt against hand computation and a NumPy reference."""

import numpy as np
import pytest
import tensorflow_federated as tff

from datasets import federated_data
from research.algorithms import fed_avg, fed_sgd, optimizers
from tests import toy
from tests.research.algorithms import numpy_reference

START = (0.5, -1.0, 2.0)
WEIGHTINGS = {
  'examples': tff.learning.ClientWeighting.NUM_EXAMPLES,
  'uniform': tff.learning.ClientWeighting.UNIFORM,
}
SERVERS = {
  'sgd': (0.7, {}, lambda: numpy_reference.Sgd(0.7)),
  'momentum': (0.7, {'momentum': 0.5}, lambda: numpy_reference.Sgd(0.7, 0.5)),
  'adagrad': (
    0.1,
    {'initial_accumulator': 0.01, 'epsilon': 0.1},
    lambda: numpy_reference.Adagrad(0.1, 0.01, 0.1, inside=False),
  ),
  'adam': (
    0.1,
    {'beta_2': 0.9, 'epsilon': 0.01},
    lambda: numpy_reference.Adam(0.1, 0.9, 0.9, 0.01),
  ),
  'yogi': (
    0.1,
    {'initial_accumulator': 0.02, 'epsilon': 0.01, 'beta_2': 0.9},
    lambda: numpy_reference.Yogi(0.1, 0.9, 0.9, 0.01, 0.02),
  ),
}


def train(runtime, task, process, rounds):
  """Trains on index batches by client; returns the three weights."""
  process = runtime.prepare(process, task)
  state = process.initialize()
  for cohort in rounds:
    arguments = [
      runtime.client_data(task.data.train, client, batches)
      for client, batches in cohort.items()
    ]
    state = process.next(state, arguments).state
  return process.get_model_weights(state).trainable[0][:, 0]


def build(
  runtime, task, client_rate=1.0, server=('sgd', 1.0, {}), weighting='examples'
):
  return fed_avg.build(
    task.model_fn,
    client_optimizer=optimizers.build('sgd', client_rate, {}),
    server_optimizer=optimizers.build(*server),
    client_weighting=WEIGHTINGS[weighting],
    loop_implementation=runtime.loop_implementation,
  )


@pytest.mark.parametrize(
  'weighting, expected',
  [
    # Client a has one example x=(1,0,0), y=2: its gradient at w=0 is
    # 2(0-2)x = (-4,0,0), and a step of 1/4 gives (1,0,0). Client b has three
    # examples x=(0,1,0), y=4 in one batch: (0,-8,0), a step gives (0,2,0).
    ('examples', [1 / 4, 2 * 3 / 4, 0]),
    ('uniform', [1 / 2, 2 / 2, 0]),
  ],
)
def test_one_round_by_hand(stock_runtime, weighting, expected):
  task = toy.linear_task(
    {
      'a': ([[1, 0, 0]], [2]),
      'b': ([[0, 1, 0]] * 3, [4] * 3),
    },
    initial_weights=(0, 0, 0),
  )
  process = build(stock_runtime, task, 0.25, weighting=weighting)
  one_step = {'a': [np.arange(1)], 'b': [np.arange(3)]}
  found = train(stock_runtime, task, process, [one_step])
  np.testing.assert_allclose(found, expected, atol=1e-7)


def cohorts(split, rounds, epochs, batch_size):
  """Index batches by client and round, with a remainder batch per epoch."""
  return [
    {
      client: federated_data.client_batches(
        split.num_examples[client],
        batch_size=batch_size,
        epochs=epochs,
        seed=[round_num, index],
      )
      for index, client in enumerate(split.client_ids)
    }
    for round_num in range(rounds)
  ]


def reference(task, rounds, server, client_rate, weighting):
  clients = [
    [
      numpy_reference.Client(*task.data.train.client(name).values(), batches)
      for name, batches in cohort.items()
    ]
    for cohort in rounds
  ]
  (weights,) = numpy_reference.train(
    (np.reshape(START, [3, 1]),),
    clients,
    numpy_reference.linear_gradient,
    client_rate,
    server,
    weighting,
  )
  return weights[:, 0]


@pytest.mark.parametrize('weighting', WEIGHTINGS)
@pytest.mark.parametrize('name', SERVERS)
def test_three_rounds_equal_the_reference(stock_runtime, name, weighting):
  task = toy.linear_task(toy.random_clients())
  rounds = cohorts(task.data.train, 3, epochs=2, batch_size=3)
  rate, hparams, make_reference = SERVERS[name]
  process = build(stock_runtime, task, 0.05, (name, rate, hparams), weighting)
  found = train(stock_runtime, task, process, rounds)
  expected = reference(task, rounds, make_reference(), 0.05, weighting)
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_fed_sgd_steps_along_the_pooled_gradient_whatever_the_batches(
  stock_runtime,
):
  task = toy.linear_task(toy.random_clients())
  process = fed_sgd.build(
    task.model_fn,
    server_optimizer=optimizers.build('sgd', 0.1, {}),
    loop_implementation=stock_runtime.loop_implementation,
  )
  rounds = cohorts(task.data.train, 4, epochs=1, batch_size=3)
  found = train(stock_runtime, task, process, rounds)
  pooled = task.data.train.pooled()
  weights = np.array(START)
  for _ in range(4):
    error = pooled['x'].astype(np.float64) @ weights - pooled['y']
    weights -= 0.1 * 2 * pooled['x'].T @ error / len(error)
  np.testing.assert_allclose(found, weights, atol=1e-6)
