"""Evaluation of models with a local part, by NumPy on three weights."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from research.algorithms import local_training, optimizers, registry
from research.training import loop, personalization, reconstruction
from tests import toy
from tests.research.algorithms import (
  numpy_reference,
  reconstruction_reference,
)

SHARED, SCALE, RATE = np.array([[0.5], [-1.0]]), np.array([[2.0]]), 0.05
CONFIG = loop.LoopConfig(1, 1, client_batch_size=0, seed=3)


@pytest.fixture(scope='module')
def task():
  """Clients of 7, 4 and 12 training and of 5, 6 and 3 test examples."""
  clients = toy.random_clients((7, 4, 12), features=2)
  tests = toy.random_clients((5, 6, 3), seed=1, features=2)
  made = toy.linear_task(clients, SHARED, scale=SCALE)
  data = dataclasses.replace(made.data, test=toy.regression_data(tests).train)
  return dataclasses.replace(made, data=data)


def evaluator(task, config=CONFIG):
  algorithm = registry.ALGORITHMS['fed_recon']
  own = {'reconstruction_learning_rate': RATE, 'reconstruction_epochs': 2}
  settings = registry.Settings(
    optimizers.build('sgd', 0.1),
    optimizers.build('sgd', 1.0),
    tff.learning.ClientWeighting.UNIFORM,
    tff.learning.LoopImplementation.DATASET_REDUCE,
    hparams={**algorithm.hparams, **own},
  )
  return reconstruction.Evaluator(
    task, reconstruction.settings(task, settings, config)
  )


def squared_errors(task, client_id):
  """Of a client's test examples, after two full-batch steps of the scale."""
  x, y = task.data.train.client(client_id).values()
  everything = np.arange(len(y))
  (scale,) = reconstruction_reference.reconstruct(
    [SHARED],
    [SCALE],
    numpy_reference.Client(x, y, [everything]),
    [everything],
    reconstruction_reference.scaled_gradient,
    RATE,
    epochs=2,
  )
  x, y = task.data.test.client(client_id).values()
  return ((x @ SHARED @ scale)[:, 0] - y) ** 2


def test_each_client_is_evaluated_with_its_own_local_part(task):
  """The mean is over examples, not over clients."""
  made = evaluator(task)
  before = [weight.numpy() for weight in made.model.variables]
  errors = [squared_errors(task, c) for c in task.data.test.client_ids]
  assert [len(e) for e in errors] == [5, 6, 3]
  found = made.evaluate(task.data.test)
  np.testing.assert_allclose(
    found['loss'], np.mean(np.concatenate(errors)), rtol=1e-5
  )
  for variable, value in zip(made.model.variables, before, strict=True):
    np.testing.assert_array_equal(variable, value)
  plain = super(reconstruction.Evaluator, made).evaluate(task.data.test)
  assert abs(found['loss'] - plain['loss']) > 0.1


def test_batches_are_seeded(task):
  batches = dataclasses.replace(CONFIG, client_batch_size=2)
  first, again = (evaluator(task, batches) for _ in range(2))
  found = first.evaluate(task.data.test)
  assert found == first.evaluate(task.data.test)
  assert found == again.evaluate(task.data.test)
  other = evaluator(task, dataclasses.replace(batches, seed=4))
  assert found != other.evaluate(task.data.test)


def test_of_many_clients_a_seeded_sample_is_evaluated(task, monkeypatch):
  monkeypatch.setattr(reconstruction, 'MOST_CLIENTS', 2)
  means = {}
  for left_out in task.data.test.client_ids:
    errors = [
      squared_errors(task, client)
      for client in task.data.test.client_ids
      if client != left_out
    ]
    means[left_out] = np.mean(np.concatenate(errors))
  chosen = []
  for seed in range(8):
    made = evaluator(task, dataclasses.replace(CONFIG, seed=seed))
    loss = made.evaluate(task.data.test)['loss']
    assert loss == made.evaluate(task.data.test)['loss']
    (left_out,) = [c for c in means if np.isclose(means[c], loss, rtol=1e-5)]
    chosen.append(left_out)
  assert len(set(chosen)) > 1


def test_data_without_test_examples_of_training_clients_is_refused(task):
  reconstruction.check(task.data)
  others = toy.regression_data({'somebody': (np.ones([2, 2]), [1, 2])}).train
  for name in ('test', 'validation'):
    data = dataclasses.replace(task.data, **{name: others})
    with pytest.raises(
      local_training.UnsuitableError, match=f'training and {name} examples'
    ):
      reconstruction.check(data)


def test_only_the_chosen_variables_are_fine_tuned(task):
  made = evaluator(task)
  settings = personalization.Settings(1, RATE, 0, variables=(1,))
  personalization.FineTuner(task, made, settings)('client_0')
  shared, scale = made.model.variables
  np.testing.assert_array_equal(shared, SHARED.astype(np.float32))
  assert tf.abs(scale - SCALE) > 1e-3
