"""Linear regression by FedSGD and FedAvg ends where algebra says."""

import numpy as np
import pytest

from datasets import federated_data, synthetic_regression
from models import linear
from research.algorithms import drift, fed_avg, fed_sgd, optimizers
from research.runtime import in_process
from research.tasks import linear_regression as tasks

RATE = 0.2
CONFIG = synthetic_regression.Config(
  clients=5, alpha=1.0, beta=0.3, features=3, targets=1, examples=40
)


@pytest.fixture(scope='module')
def runtime():
  with in_process.InProcessRuntime() as started:
    yield started


@pytest.fixture(scope='module')
def task(runtime):
  data = synthetic_regression.load(CONFIG)
  features, targets = tasks.standardise(data, 'linear')
  return tasks.build(data, 'linear', linear.Features(features), targets)


def clients(task):
  batches = [
    task.preprocess(task.data.train.client(c))
    for c in task.data.train.client_ids
  ]
  return [(batch['x'].numpy(), batch['y'].numpy()) for batch in batches]


def pooled(task):
  x, y = (np.concatenate(parts) for parts in zip(*clients(task), strict=True))
  z = np.c_[x, np.ones(len(x))].astype(np.float64)
  return np.linalg.lstsq(z, y, rcond=None)[0]


def train(runtime, task, process, rounds, steps=1, batch_size=None):
  process = runtime.prepare(process, task)
  state = process.initialize()
  split = task.data.train
  cohort = [
    runtime.client_data(
      split,
      client,
      federated_data.client_batches(
        count, batch_size=batch_size, epochs=steps, seed=None
      ),
    )
    for client, count in split.num_examples.items()
  ]
  for _ in range(rounds):
    state = process.next(state, cohort).state
  kernel, bias = process.get_model_weights(state).trainable
  return np.vstack([kernel, bias])


def build_fed_avg(runtime, task):
  return fed_avg.build(
    task.model_fn,
    client_optimizer=optimizers.build('sgd', RATE),
    loop_implementation=runtime.loop_implementation,
  )


def test_fed_sgd_converges_to_the_pooled_solution(runtime, task):
  process = fed_sgd.build(
    task.model_fn,
    server_optimizer=optimizers.build('sgd', RATE),
    loop_implementation=runtime.loop_implementation,
  )
  found = train(runtime, task, process, 150, batch_size=16)
  assert np.abs(found - pooled(task)).max() < 1e-5


def test_fed_avg_with_one_full_step_converges_to_the_pooled_solution(
  runtime, task
):
  found = train(runtime, task, build_fed_avg(runtime, task), 150)
  assert np.abs(found - pooled(task)).max() < 1e-5


@pytest.mark.parametrize('steps', [2, 10])
def test_fed_avg_with_local_steps_converges_to_the_biased_fixed_point(
  runtime, task, steps
):
  expected = drift.fixed_point(*drift.quadratics(clients(task)), RATE, steps)
  # What the test is for: the bias is far above the error allowed.
  assert np.abs(expected - pooled(task)).max() > 1e-3
  found = train(runtime, task, build_fed_avg(runtime, task), 100, steps)
  assert np.abs(found - expected).max() < 1e-5


def test_the_fixed_point_stays_under_plain_gradient_descent(task):
  """Independent of the formula: a round by hand moves it nowhere."""
  curvatures, moments, weights = drift.quadratics(clients(task), 0.1)
  point = drift.fixed_point(curvatures, moments, weights, RATE, 7)
  ends = []
  for curvature, moment in zip(curvatures, moments, strict=True):
    w = point
    for _ in range(7):
      w = w - RATE * 2 * (curvature @ w - moment)
    ends.append(w)
  np.testing.assert_allclose(
    np.average(ends, axis=0, weights=weights), point, atol=1e-12
  )


def test_one_step_or_equal_clients_do_not_drift(task):
  quadratics = drift.quadratics(clients(task))
  np.testing.assert_allclose(
    drift.fixed_point(*quadratics, RATE, 1), pooled(task), atol=1e-6
  )
  same = drift.quadratics([clients(task)[0]] * 3)
  one = drift.fixed_point(*same, RATE, 1)
  np.testing.assert_allclose(
    drift.fixed_point(*same, RATE, 50), one, atol=1e-10
  )
