"""Fine-tuning on three weights: by hand, and what it leaves behind."""

import dataclasses

import numpy as np
import pytest

from research.training import client_states, evaluation, personalization
from tests import toy
from tests.research.algorithms import numpy_reference

START = np.array([[0.5], [-1.0], [2.0]])


@pytest.fixture(scope='module')
def task():
  clients = toy.random_clients((7, 4, 12))
  tests = toy.random_clients((5, 6, 3), seed=1)
  made, other = toy.linear_task(clients), toy.linear_task(tests)
  data = dataclasses.replace(made.data, test=other.data.train)
  return dataclasses.replace(made, data=data)


def outcomes(task, **changes):
  evaluator = evaluation.Evaluator(task)
  evaluator.set_leaves([START.astype(np.float32)])
  settings = personalization.Settings(2, 0.05, 3, seed=4)
  settings = dataclasses.replace(settings, **changes)
  tuner = personalization.FineTuner(task, evaluator, settings)
  names = personalization.candidates(task.data)
  found = list(personalization.compare(task, evaluator, names, tuner))
  np.testing.assert_array_equal(evaluator.model.variables[0], START)
  return found


def loss(task, client, weights):
  x, y = task.data.test.client(client).values()
  return np.mean((x @ weights - y.reshape(-1, 1)) ** 2)


def test_full_batch_steps_are_those_of_numpy(task):
  found = outcomes(task, epochs=3, batch_size=0)
  assert [o.client_id for o in found] == list(task.data.test.client_ids)
  for outcome in found:
    x, y = task.data.train.client(outcome.client_id).values()
    (weights,) = numpy_reference.client_update(
      [START],
      numpy_reference.Client(x, y, [np.arange(len(y))] * 3),
      numpy_reference.linear_gradient,
      0.05,
    )
    for metrics, w in ((outcome.before, START), (outcome.after, weights)):
      expected = loss(task, outcome.client_id, w)
      np.testing.assert_allclose(metrics['loss'], expected, rtol=1e-5)


def test_batches_are_seeded(task):
  first, again = outcomes(task), outcomes(task)
  assert first == again
  assert first != outcomes(task, seed=5)


def test_a_rate_of_zero_changes_nothing(task):
  for outcome in outcomes(task, learning_rate=0.0):
    assert outcome.after == outcome.before


def test_clients_without_training_or_test_examples_are_left_out(task):
  empty = toy.linear_task(
    {'client_9': (np.zeros([0, 3]), []), 'client_1': (np.ones([2, 3]), [1, 2])}
  )
  names = personalization.candidates(
    dataclasses.replace(task.data, test=empty.data.train)
  )
  known = task.data.train.client_ids
  assert names == [name for name in ['client_1'] if name in known]


def test_own_models_are_those_of_the_newest_round(task, tmp_path):
  evaluator = evaluation.Evaluator(task)
  evaluator.set_leaves([START.astype(np.float32)])
  own = np.ones([3, 1], np.float32)
  states = client_states.ClientStates(tmp_path, [own])
  states.write(3, {1: [own]}, [])
  models = personalization.OwnModels(task, evaluator, tmp_path)
  names = task.data.train.client_ids
  assert [models.has(name) for name in names] == [False, True, False]
  (outcome,) = personalization.compare(task, evaluator, names[1:2], models)
  for metrics, weights in ((outcome.before, START), (outcome.after, own)):
    expected = loss(task, names[1], weights)
    np.testing.assert_allclose(metrics['loss'], expected, rtol=1e-5)


def test_the_summary_counts_whom_it_helps():
  made = [
    personalization.Outcome('a', 1, 1, {'loss': 2.0}, {'loss': 1.0}),
    personalization.Outcome('b', 1, 1, {'loss': 1.0}, {'loss': 4.0}),
    personalization.Outcome('c', 1, 1, {'loss': 3.0}, {'loss': 3.0}),
    personalization.Outcome('d', 1, 1, {'loss': 2.0}, {'loss': 0.0}),
  ]
  assert personalization.summary(made) == {
    'loss': {'before': 2.0, 'after': 2.0, 'helped': 0.5, 'harmed': 0.25}
  }
