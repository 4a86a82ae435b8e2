import dataclasses
import threading

import numpy as np
import pytest
from absl import flags
from sklearn.metrics import cluster

from research import finished_run
from research.training import evaluation
from tests import toy
from tests.research.runtime import small_tasks

START = np.array([0.5, -1.0, 2.0])
# Token t is taken for tag t - 1. Client `b` has a token without a label, and
# `c` no other ones; sentences as long as the longest.
TAGGED = (
  {
    'a': ([[1, 2, 3, 1], [2, 1, 0, 0]], [[0, 1, 2, 0], [3, 0, -1, -1]]),
    'b': ([[2, 4, 1, 0]], [[1, -1, 2, -1]]),
    'c': ([[1, 1, 1, 1]], [[-1, -1, -1, -1]]),
  },
  ('O', 'B-PER', 'I-PER', 'B-LOC'),
)


@pytest.fixture(scope='module')
def clients():
  # More examples than a batch holds, and a client without any.
  sizes = (507, 0, 3, 500)
  return toy.random_clients(sizes)


def squared_errors(clients):
  return [(x @ START - y) ** 2 for x, y in clients.values()]


def test_means_are_over_examples_and_over_each_client(clients):
  evaluator = evaluation.Evaluator(toy.linear_task(clients))
  split = toy.regression_data(clients).test
  errors = squared_errors(clients)
  np.testing.assert_allclose(
    evaluator.per_example(split)['loss'],
    np.concatenate(errors),
    rtol=1e-5,
    atol=1e-5,
  )
  assert evaluator.evaluate(split)['loss'] == pytest.approx(
    np.concatenate(errors).mean(), rel=1e-6
  )
  by_client = evaluator.evaluate_clients(split)
  assert list(by_client) == ['client_0', 'client_2', 'client_3']
  assert by_client['client_2']['loss'] == pytest.approx(
    errors[2].mean(), rel=1e-5
  )


def test_purity_counts_the_commonest_label_of_each_cluster():
  task = small_tasks.build('k_means')
  evaluator = evaluation.Evaluator(task)
  split = task.data.test
  pooled = split.pooled()
  (centroids,) = evaluator.model.get_weights()
  # The task halves the images.
  x = pooled['x'].reshape(len(pooled['y']), 1, -1) / 2
  distances = np.square(x - centroids).sum(axis=2)
  table = cluster.contingency_matrix(pooled['y'], distances.argmin(axis=1))
  assert table.shape == (3, 3)
  expected = table.max(axis=0).sum() / table.sum()
  assert 0.35 < expected < 0.9
  found = evaluator.evaluate(split)
  assert found['purity'] == pytest.approx(expected, abs=1e-7)
  assert found['loss'] == pytest.approx(distances.min(axis=1).mean(), rel=1e-6)
  # Of all clients' clusters, whichever client is asked.
  clients = evaluator.evaluate_clients(split)
  sizes = split.num_examples
  mean = sum(clients[c]['purity'] * n for c, n in sizes.items())
  assert mean / sum(sizes.values()) == pytest.approx(expected, abs=1e-7)


LN2, LN6 = np.log(2), np.log(6)


def test_tagging_weighs_tokens_and_counts_spans():
  task = toy.token_task('tagging', *TAGGED)
  evaluator, split = evaluation.Evaluator(task), task.data.test
  # Of the sentences' 4, 2 and 2 tokens 4, 1 and 1 are right; of three spans
  # one is found, by three guesses.
  assert evaluator.evaluate(split) == {
    'loss': pytest.approx((6 * LN2 + 2 * LN6) / 8),
    'accuracy': pytest.approx(6 / 8),
    'f1': pytest.approx(1 / 3),
  }
  assert evaluator.evaluate_clients(split) == {
    'a': {
      'loss': pytest.approx((5 * LN2 + LN6) / 6),
      'accuracy': pytest.approx(5 / 6),
      'f1': pytest.approx(1 / 2),
    },
    'b': {
      'loss': pytest.approx((LN2 + LN6) / 2),
      'accuracy': pytest.approx(1 / 2),
      'f1': 0,
    },
  }
  rows = evaluator.per_example(split)
  assert rows.keys() == {'loss', 'accuracy'}
  np.testing.assert_allclose(rows['accuracy'], [1, 0.5, 0.5, 0])
  means = [LN2, (LN2 + LN6) / 2, (LN2 + LN6) / 2, 0]
  np.testing.assert_allclose(rows['loss'], means, rtol=1e-6)
  counts = evaluator.counts(split)
  assert counts['tokens'].tolist() == [4, 2, 2, 0]
  assert counts['true/PER'].tolist() == [1, 0, 1, 0]
  with pytest.raises(ValueError, match='no labelled token'):
    evaluator.evaluate(split.subset(['c']))


def test_perplexity_is_the_exponential_of_the_loss_of_all_tokens():
  task = toy.token_task('masked_language_modelling', *TAGGED)
  evaluator, split = evaluation.Evaluator(task), task.data.test
  found = evaluator.evaluate(split)
  assert found == {
    'loss': pytest.approx((6 * LN2 + 2 * LN6) / 8),
    'accuracy': pytest.approx(6 / 8),
    'perplexity': pytest.approx(2 ** (6 / 8) * 6 ** (2 / 8)),
  }
  clients = evaluator.evaluate_clients(split)
  assert list(clients) == ['a', 'b']
  assert clients['b']['perplexity'] == pytest.approx(12**0.5)


def test_threads_yield_in_order_and_take_what_they_need(monkeypatch):
  """Later values are done first; a slow reader does not make them pile up."""
  monkeypatch.setattr('os.sched_getaffinity', lambda pid: range(3))
  done = {number: threading.Event() for number in range(12)}
  taken = []

  def values():
    for number in range(12):
      taken.append(number)
      yield number

  def function(number):
    if number % 3 == 0:
      assert done[number + 1].wait(30)
    done[number].set()
    return number * number

  results = []
  for result in evaluation._map_in_threads(function, values()):
    results.append(result)
    assert len(taken) <= len(results) + 3
  assert results == [number * number for number in range(12)]


def test_an_error_in_a_thread_is_raised():
  with pytest.raises(ZeroDivisionError):
    list(evaluation._map_in_threads(lambda value: 1 // value, [1, 0, 2]))


def test_threads_change_no_bit(clients, monkeypatch):
  evaluator = evaluation.Evaluator(toy.linear_task(clients))
  split = toy.regression_data(clients).test
  threaded = evaluator.per_example(split)
  monkeypatch.setattr(evaluation, '_map_in_threads', map)
  np.testing.assert_array_equal(
    threaded['loss'], evaluator.per_example(split)['loss']
  )


def test_weights_of_a_checkpoint_are_taken_by_order_and_shape(clients):
  evaluator = evaluation.Evaluator(toy.linear_task(clients))
  new = np.array([[1.0], [2.0], [3.0]], np.float32)
  evaluator.set_leaves([new, np.float32(0.1)])
  np.testing.assert_array_equal(evaluator.model.get_weights()[0], new)
  with pytest.raises(ValueError, match=r'shapes \[\(2, 1\)\], but the model'):
    evaluator.set_leaves([new[:2]])


def test_unseen_clients_are_test_clients_that_never_trained():
  task = toy.linear_task(toy.random_clients((2, 2, 2)))
  with pytest.raises(flags.Error, match='every test client'):
    finished_run.select_split(task, 'unseen')
  with pytest.raises(flags.Error, match='no such data'):
    finished_run.select_split(task, 'validation')
  trained = task.data.train.subset(['client_0', 'client_2'])
  data = dataclasses.replace(task.data, train=trained)
  task = dataclasses.replace(task, data=data)
  assert finished_run.select_split(task, 'unseen').client_ids == ('client_1',)
  data = dataclasses.replace(data, partition='iid')
  task = dataclasses.replace(task, data=data)
  with pytest.raises(flags.Error, match='may have trained'):
    finished_run.select_split(task, 'unseen')
