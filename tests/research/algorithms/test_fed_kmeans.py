"""Federated k-means: by hand, NumPy, scikit-learn's Lloyd, and TFF's own."""

import collections

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff
from sklearn import cluster

from datasets import federated_data, load
from research.algorithms import fed_kmeans, local_training
from research.runtime import in_process
from research.tasks import emnist
from research.training import evaluation
from tests import toy

# One centroid to the right of the mean of all examples, one to the left.
RIGHT_AND_LEFT = [[1, 0], [-1, 0]]
CLIENTS = {
  'a': [[0, 0], [2, 0]],
  'b': [[8, 4], [10, 4]],
  'c': [[4, 0]] * 3,
}


@pytest.fixture(scope='module')
def runtime():
  with in_process.InProcessRuntime(device='cpu') as started:
    yield started


class Rounds:
  """Runs rounds of a task and keeps what came out."""

  def __init__(self, runtime, task, **kwargs):
    self._runtime, self._split = runtime, task.data.train
    self.process = runtime.prepare(
      fed_kmeans.build(
        task.model_fn,
        loop_implementation=runtime.loop_implementation,
        **kwargs,
      ),
      task,
    )
    self.state = self.process.initialize()

  def next(self, clients=None, batch_size=0):
    """Runs a round of all or some clients; returns centroids and counts."""
    arguments = [
      self._runtime.client_data(
        self._split,
        client,
        federated_data.client_batches(
          self._split.num_examples[client], batch_size=batch_size, seed=None
        ),
      )
      for client in clients or self._split.client_ids
    ]
    output = self.process.next(self.state, arguments)
    self.state, self.metrics = output.state, output.metrics
    return self.centroids, np.asarray(self.state.finalizer['counts'])

  @property
  def centroids(self):
    weights = self.process.get_model_weights(self.state)
    return np.asarray(weights.trainable[0])


def test_three_rounds_by_hand(runtime):
  task = toy.clustering_task(CLIENTS, RIGHT_AND_LEFT)
  rounds = Rounds(runtime, task, participation=0.5)
  # The mean of a's and b's examples is (5, 2).
  centroids, counts = rounds.next('ab')
  np.testing.assert_array_equal(centroids, [[6, 2], [4, 2]])
  np.testing.assert_array_equal(counts, [0, 0])
  # b's are on the right, a's on the left; what came before has no weight.
  centroids, counts = rounds.next('ab')
  np.testing.assert_array_equal(centroids, [[9, 4], [1, 0]])
  np.testing.assert_array_equal(counts, [2, 2])
  # c's three are nearer to (1, 0), which still weighs 2 / 2 = 1:
  # (1 * 1 + 3 * 4) / 4. The other cluster gets nothing and stays.
  centroids, counts = rounds.next('c')
  np.testing.assert_array_equal(centroids, [[9, 4], [3.25, 0]])
  np.testing.assert_array_equal(counts, [1, 4])
  train = rounds.metrics['client_work']['train']
  assert train['num_examples'] == 3
  assert train['loss'] == (4 - 1) ** 2


def reference(rounds, start, decay):
  """Three rounds in float64, example by example.

  Args:
    rounds: The examples [n, d] of each round's clients.
    start: The model's directions [k, d].
    decay: a, by which earlier counts are multiplied.

  Returns:
    The centroids after each round.
  """
  first, *others = ([x.astype(np.float64) for x in cohort] for cohort in rounds)
  centroids = np.concatenate(first).mean(axis=0) + start
  counts, found = np.zeros(len(start)), [centroids]
  for cohort in others:
    chosen = collections.defaultdict(list)
    for example in np.concatenate(cohort):
      distances = [np.sum((example - c) ** 2) for c in centroids]
      chosen[int(np.argmin(distances))].append(example)
    counts, centroids = counts * decay, centroids.copy()
    for index, members in chosen.items():
      total = counts[index] + len(members)
      step = len(members) / total
      centroids[index] += step * (np.mean(members, axis=0) - centroids[index])
      counts[index] = total
    found.append(centroids)
  return found


@pytest.mark.parametrize(
  'participation, batch_size', [(1.0, 0), (0.6, 3), (0.0, 3)]
)
def test_rounds_are_those_of_numpy(runtime, participation, batch_size):
  rng = np.random.default_rng(2)
  clients = {
    name: rng.normal(size=(size, 3)).astype(np.float32)
    for name, size in (('a', 7), ('b', 4), ('c', 12))
  }
  start = rng.normal(size=(4, 3))
  start /= np.linalg.norm(start, axis=1, keepdims=True)
  cohorts = ['ab', 'bc', 'ac', 'abc']
  expected = reference(
    [[clients[c] for c in cohort] for cohort in cohorts],
    start,
    1 - participation,
  )
  task = toy.clustering_task(clients, start)
  rounds = Rounds(runtime, task, participation=participation)
  for cohort, centroids in zip(cohorts, expected, strict=True):
    found, _ = rounds.next(cohort, batch_size)
    np.testing.assert_allclose(found, centroids, atol=1e-6)


DIVISIONS = {
  'one client': load.LoadConfig('digits', 'iid', num_clients=1),
  'writers': load.LoadConfig('digits'),
  'few labels each': load.LoadConfig(
    'digits', 'classes', num_clients=10, classes_per_client=1
  ),
}


@pytest.mark.parametrize('division', DIVISIONS)
def test_with_all_clients_it_is_pooled_lloyd(runtime, division):
  """However the examples are divided, iteration by iteration."""
  data = load.load(DIVISIONS[division])
  task = emnist.build('clustering', data)
  x = data.train.pooled()['x'].reshape(-1, 64) / 255
  rounds = Rounds(runtime, task)
  centroids, _ = rounds.next()
  inertia = None
  for _ in range(8):
    lloyd = cluster.KMeans(
      10, init=centroids, n_init=1, max_iter=1, algorithm='lloyd'
    ).fit(x)
    centroids, counts = rounds.next()
    np.testing.assert_allclose(centroids, lloyd.cluster_centers_, atol=1e-5)
    assert counts.all() and counts.sum() == len(x)
    # What clients measure is the inertia of the centroids that they got.
    loss = rounds.metrics['client_work']['train']['loss']
    assert inertia is None or loss == pytest.approx(inertia, abs=1e-5)
    inertia = lloyd.inertia_ / len(x)


def test_without_forgetting_it_is_tffs(stock_runtime):
  """Sculley's rule, from where there are centroids with counts."""
  rng = np.random.default_rng(4)
  clients = {c: rng.normal(size=(9, 2)).astype(np.float32) for c in 'abc'}
  task = toy.clustering_task(clients, RIGHT_AND_LEFT)
  rounds = Rounds(stock_runtime, task, participation=0.0)
  rounds.next()
  centroids, counts = rounds.next()
  theirs = tff.learning.algorithms.build_fed_kmeans(2, (2,))
  state = theirs.initialize()._replace(
    global_model_weights=centroids, finalizer=counts
  )
  for cohort in ('ab', 'c'):
    data = [tf.data.Dataset.from_tensor_slices(clients[c]) for c in cohort]
    state = theirs.next(state, data).state
    found, counts = rounds.next(cohort)
    np.testing.assert_allclose(found, state.global_model_weights, atol=1e-6)
    np.testing.assert_array_equal(counts, state.finalizer)


def test_a_broken_client_is_left_out_and_counted(runtime):
  sound = {name: CLIENTS[name] for name in 'ab'}
  broken = {**sound, 'broken': [[3, 3], [np.nan, 0]]}
  ends = {}
  for kind, clients in (('sound', sound), ('broken', broken)):
    rounds = Rounds(runtime, toy.clustering_task(clients, RIGHT_AND_LEFT))
    for _ in range(2):
      ends[kind] = rounds.next()
      rejected = rounds.metrics['aggregator']['rejected_clients']
      assert rejected == (kind == 'broken')
      assert rounds.metrics['client_work']['train']['num_examples'] == 4
  np.testing.assert_array_equal(ends['broken'][0], ends['sound'][0])
  np.testing.assert_array_equal(ends['broken'][1], ends['sound'][1])


def test_a_round_of_broken_clients_changes_nothing(runtime):
  clients = {**CLIENTS, 'broken': [[np.inf, 0]]}
  task = toy.clustering_task(clients, RIGHT_AND_LEFT)
  rounds = Rounds(runtime, task, participation=0.5)
  np.testing.assert_array_equal(rounds.next(['broken'])[0], RIGHT_AND_LEFT)
  # The next one is still the first.
  np.testing.assert_array_equal(rounds.next('ab')[0], [[6, 2], [4, 2]])
  before = rounds.next('ab')
  after = rounds.next(['broken'])
  np.testing.assert_array_equal(after[0], before[0])
  np.testing.assert_array_equal(after[1], before[1])


def test_what_does_not_fit_is_refused(runtime):
  linear = toy.linear_task(toy.random_clients())
  with pytest.raises(local_training.UnsuitableError, match=r'\[\(3, 1\)\]'):
    Rounds(runtime, linear)
  task = toy.clustering_task(CLIENTS, RIGHT_AND_LEFT)
  with pytest.raises(local_training.UnsuitableError, match='from 0 to 1'):
    Rounds(runtime, task, participation=1.5)


def test_digits_are_clustered_as_well_as_by_pooled_k_means(runtime):
  """Within 2 % of the mean inertia of four runs of k-means++ and Lloyd."""
  data = load.load(load.LoadConfig('digits'))
  x = data.train.pooled()['x'].reshape(-1, 64) / 255
  pooled = [
    cluster.KMeans(10, n_init=1, max_iter=14, random_state=seed).fit(x).inertia_
    for seed in range(4)
  ]
  rounds = Rounds(runtime, emnist.build('clustering', data))
  beginning, found = rounds.state, []
  for seed in range(4):
    task = emnist.build('clustering', data, seed=seed)
    evaluator = evaluation.Evaluator(task)
    rounds.state = rounds.process.set_model_weights(
      beginning,
      tff.learning.models.ModelWeights(evaluator.model.get_weights(), []),
    )
    for _ in range(15):
      rounds.next()
    evaluator.set_weights(rounds.process.get_model_weights(rounds.state))
    metrics = evaluator.evaluate(data.train)
    found.append(metrics['loss'] * len(x))
    assert metrics['purity'] > 0.7
  assert np.mean(found) == pytest.approx(np.mean(pooled), rel=0.02)
