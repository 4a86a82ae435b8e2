"""Scaffold and FedDyn: NumPy, algebra, and what their papers claim."""

import dataclasses

import numpy as np
import pytest
import tensorflow_federated as tff

from research.algorithms import local_training, optimizers, registry, stateful
from research.runtime import in_process
from tests import toy
from tests.research.algorithms import (
  control_variates_reference,
  numpy_reference,
)

RATE = 0.05
START = np.reshape([0.5, -1.0, 2.0], [3, 1])
HPARAMS = {'scaffold': {}, 'fed_dyn': {'dynamic_regularization': 0.4}}


@pytest.fixture(scope='module')
def runtime():
  with in_process.InProcessRuntime(device='cpu') as started:
    yield started


@pytest.fixture(scope='module')
def task():
  return toy.linear_task(toy.random_clients((7, 4, 12, 5)))


def build(name, task, runtime, client=('sgd', RATE, {}), server=1.0, **hparams):
  settings = registry.Settings(
    client_optimizer=optimizers.build(*client),
    server_optimizer=optimizers.build('sgd', server),
    client_weighting=tff.learning.ClientWeighting.NUM_EXAMPLES,
    loop_implementation=runtime.loop_implementation,
    hparams=HPARAMS[name] | hparams,
    num_clients=len(task.data.train.client_ids),
  )
  return registry.ALGORITHMS[name].build(task.model_fn, settings)


@dataclasses.dataclass
class Run:
  """What a process has come to, its clients' states by their names."""

  process: stateful.StatefulProcess
  state: object
  own: dict
  metrics: dict = None

  @classmethod
  def start(cls, process, names):
    own = dict.fromkeys(names, process.initial_client_state())
    return cls(process, process.initialize(), own)

  def next(self, runtime, task, cohort):
    data = [
      runtime.client_data(task.data.train, name, batches)
      for name, batches in cohort.items()
    ]
    before = [self.own[name] for name in cohort]
    output = self.process.next(self.state, data, before)
    self.state, self.metrics = output.state, output.metrics
    self.own |= zip(cohort, output.client_states, strict=True)

  @property
  def weights(self):
    return np.asarray(self.process.get_model_weights(self.state).trainable[0])

  @property
  def control(self):
    return np.asarray(self.state.client_work[1][0])


def start(name, task, runtime, *args, **kwargs):
  process = build(name, task, runtime, *args, **kwargs)
  return Run.start(runtime.prepare(process, task), task.data.train.client_ids)


def some_rounds(task, rounds=6, clients=2, batch_size=3):
  """Cohorts of two of four clients, whose batches differ by round."""
  rng = np.random.default_rng(0)
  sizes = task.data.train.num_examples
  for _ in range(rounds):
    names = rng.choice(sorted(sizes), clients, replace=False)
    yield {
      str(name): np.array_split(
        rng.permutation(sizes[name]), -(-sizes[name] // batch_size)
      )
      for name in names
    }


def full_batch(task, steps):
  sizes = task.data.train.num_examples
  return {name: [np.arange(n)] * steps for name, n in sizes.items()}


def clients(task, cohort):
  return {
    name: numpy_reference.Client(
      *task.data.train.client(name).values(), batches
    )
    for name, batches in cohort.items()
  }


def optimum(task):
  """Of the uniform mean of the clients' mean losses."""
  matrix, vector = 0, 0
  for name in task.data.train.client_ids:
    x, y = task.data.train.client(name).values()
    x = x.astype(np.float64)
    matrix, vector = matrix + x.T @ x / len(x), vector + x.T @ y / len(x)
  return np.linalg.solve(matrix, vector.reshape(3, 1))


def loss_gradient(task, name, weights):
  x, y = task.data.train.client(name).values()
  (gradient,) = numpy_reference.linear_gradient([weights], x, y)
  return gradient


@pytest.mark.parametrize('name', HPARAMS)
def test_rounds_equal_the_reference(runtime, task, name):
  run = start(name, task, runtime, server=0.7 if name == 'scaffold' else 1.0)
  weights, control = START, np.zeros([3, 1])
  own = dict.fromkeys(task.data.train.client_ids, np.zeros([3, 1]))
  for cohort in some_rounds(task):
    run.next(runtime, task, cohort)
    last = (0.7,) if name == 'scaffold' else (0.4,)
    if name == 'scaffold':
      one_round = control_variates_reference.scaffold_round
    else:
      one_round = control_variates_reference.fed_dyn_round
    weights, control = one_round(
      weights,
      control,
      own,
      clients(task, cohort),
      numpy_reference.linear_gradient,
      RATE,
      *last,
    )
    np.testing.assert_allclose(run.weights, weights, atol=2e-6)
    np.testing.assert_allclose(run.control, control, atol=2e-6)
    for client, expected in own.items():
      np.testing.assert_allclose(run.own[client][0], expected, atol=4e-6)


@pytest.mark.parametrize('name', HPARAMS)
def test_the_servers_variate_is_the_mean_of_all_clients(runtime, task, name):
  run = start(name, task, runtime)
  for cohort in some_rounds(task, rounds=9):
    run.next(runtime, task, cohort)
  mean = np.mean([np.asarray(own[0]) for own in run.own.values()], axis=0)
  np.testing.assert_allclose(run.control, mean, atol=1e-6)
  assert np.abs(run.control).max() > 1e-3


@pytest.mark.parametrize('name', HPARAMS)
def test_drift_is_gone_where_fed_avg_has_it(runtime, task, name):
  """With several local steps; clients then hold their own loss's gradient."""
  run = start(name, task, runtime)
  cohort = full_batch(task, 6)
  for _ in range(300):
    run.next(runtime, task, cohort)
  expected = optimum(task)
  np.testing.assert_allclose(run.weights, expected, atol=1e-5)
  for client in cohort:
    np.testing.assert_allclose(
      run.own[client][0], loss_gradient(task, client, expected), atol=1e-4
    )
  averaged = START
  for _ in range(300):
    (move,) = numpy_reference.mean_update(
      [averaged],
      list(clients(task, cohort).values()),
      numpy_reference.linear_gradient,
      RATE,
      'uniform',
    )
    averaged = averaged + move
  assert np.abs(averaged - expected).max() > 0.01


@pytest.mark.parametrize('name', HPARAMS)
def test_the_optimum_is_stationary(runtime, task, name):
  """A client that holds its gradient at the optimum does not move from it."""
  expected = optimum(task)
  stays = toy.linear_task(
    toy.random_clients((7, 4, 12, 5)), initial_weights=expected[:, 0]
  )
  run = start(name, stays, runtime)
  for client in run.own:
    gradient = loss_gradient(task, client, expected)
    run.own[client] = [gradient.astype(np.float32)]
  for _ in range(3):
    run.next(runtime, stays, full_batch(stays, 5))
  np.testing.assert_allclose(run.weights, expected, atol=1e-6)
  np.testing.assert_allclose(run.control, 0, atol=1e-6)


@pytest.mark.parametrize('name', HPARAMS)
def test_a_broken_client_is_left_out_and_keeps_its_state(runtime, name):
  sound = toy.random_clients((7, 4, 12))
  x, y = next(iter(sound.values()))
  task = toy.linear_task({**sound, 'broken': (x, np.full_like(y, np.nan))})
  run, without = start(name, task, runtime), start(name, task, runtime)
  cohort = full_batch(task, 2)
  for _ in range(2):
    run.next(runtime, task, cohort)
    without.next(
      runtime, task, {k: v for k, v in cohort.items() if k != 'broken'}
    )
  np.testing.assert_allclose(run.weights, without.weights, atol=1e-7)
  np.testing.assert_allclose(run.control, without.control, atol=1e-7)
  np.testing.assert_array_equal(run.own['broken'][0], 0)
  assert run.metrics['aggregator']['rejected_clients'] == 1


@pytest.mark.parametrize('name, copies', [('scaffold', 2), ('fed_dyn', 1)])
def test_bits_count_what_is_sent(runtime, task, name, copies):
  run = start(name, task, runtime)
  run.next(runtime, task, full_batch(task, 1))
  bits = run.metrics['aggregator']['upload_bits_per_client']
  assert bits == copies * 3 * 32


@pytest.mark.parametrize('name', HPARAMS)
def test_a_schedule_sets_the_learning_rate(runtime, task, name):
  """A learning rate of 0 leaves the weights, whatever it was before."""
  run = start(name, task, runtime)
  rates = run.process.get_hparams(run.state)
  rates['client_work']['learning_rate'] = 0.0
  run.state = run.process.set_hparams(run.state, rates)
  run.next(runtime, task, full_batch(task, 2))
  np.testing.assert_array_equal(run.weights, START.astype(np.float32))
  np.testing.assert_array_equal(run.control, 0)


def test_what_does_not_fit_is_refused(runtime, task):
  with pytest.raises(local_training.UnsuitableError, match='optimizer sgd'):
    build('scaffold', task, runtime, ('momentum', RATE, {}))
  with pytest.raises(local_training.UnsuitableError, match='above 0'):
    build('fed_dyn', task, runtime, dynamic_regularization=0.0)


def ditto(task, runtime, strength):
  settings = registry.Settings(
    client_optimizer=optimizers.build('sgd', RATE),
    server_optimizer=optimizers.build('sgd', 1.0),
    client_weighting=tff.learning.ClientWeighting.NUM_EXAMPLES,
    loop_implementation=runtime.loop_implementation,
    hparams={'ditto_regularization': strength},
  )
  process = registry.ALGORITHMS['ditto'].build(task.model_fn, settings)
  plain = registry.ALGORITHMS['fed_avg'].build(
    task.model_fn, dataclasses.replace(settings, hparams={})
  )
  prepared = runtime.prepare(process, task)
  return Run.start(prepared, task.data.train.client_ids), plain


@pytest.mark.parametrize('strength', [0.0, 0.8])
def test_ditto_equals_the_reference(runtime, task, strength):
  run, plain = ditto(task, runtime, strength)
  state = plain.initialize()
  own = dict.fromkeys(task.data.train.client_ids, START)
  for cohort in some_rounds(task):
    server = np.asarray(plain.get_model_weights(state).trainable[0])
    for name, client in clients(task, cohort).items():
      for batch in client.batches:
        (g,) = numpy_reference.linear_gradient(
          [own[name]], client.x[batch], client.y[batch]
        )
        own[name] = own[name] - RATE * (g + strength * (own[name] - server))
    run.next(runtime, task, cohort)
    data = [
      runtime.client_data(task.data.train, name, batches)
      for name, batches in cohort.items()
    ]
    state = plain.next(state, data).state
    # The global model is that of FedAvg.
    expected = plain.get_model_weights(state).trainable[0]
    np.testing.assert_array_equal(run.weights, expected)
    for name, expected in own.items():
      np.testing.assert_allclose(run.own[name][0], expected, atol=3e-6)


def test_dittos_own_models_end_where_algebra_says(runtime, task):
  """v_k minimises F_k(v) + lambda / 2 ||v - w||^2 at the last w."""
  run, _ = ditto(task, runtime, 0.8)
  for _ in range(150):
    run.next(runtime, task, full_batch(task, 6))
  for name in run.own:
    x, y = task.data.train.client(name).values()
    x, y = x.astype(np.float64), y.reshape(-1, 1)
    matrix = 2 * x.T @ x / len(x) + 0.8 * np.eye(3)
    vector = 2 * x.T @ y / len(x) + 0.8 * run.weights
    expected = np.linalg.solve(matrix, vector)
    np.testing.assert_allclose(run.own[name][0], expected, atol=1e-5)
  personal = run.metrics['client_work']['personal']['loss']
  assert personal < run.metrics['client_work']['train']['loss']
