"""Pruned and clustered rounds against NumPy, on a model of eight weights."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from models import pruning, quantization, weight_clustering
from research.aggregators import compose, dp, settings
from research.algorithms import (
  attacks,
  local_training,
  optimizers,
  weight_constraints,
)
from research.privacy import noise
from research.runtime import in_process
from tests import toy
from tests.models import test_weight_clustering as clustering_reference
from tests.research.algorithms import test_attacks, test_statistics

RATE, MOMENTUM = 0.05, 0.9
ROUNDS = 6
WEIGHTS = 8
PRUNING = pruning.Settings(0.5, begin_round=0, end_round=4)
CLUSTERING = weight_clustering.Settings(3, begin_round=1)
START = np.random.default_rng(1).normal(size=WEIGHTS).astype(np.float32)

runtime = test_attacks.runtime


def clients(seed=0):
  rng = np.random.default_rng(seed)
  return {
    name: (rng.normal(size=[size, WEIGHTS]), rng.normal(size=[size]))
    for name, size in (('a', 3), ('b', 5))
  }


def task_of(start=START, **changes):
  return toy.linear_task(clients(), start, **changes)


def build(runtime, task, name='fed_avg', **changes):
  optimizer = optimizers.build('momentum', 1.0, {'momentum': MOMENTUM})
  given = {'server_optimizer': optimizer, **changes}
  return test_statistics.build(runtime, task, name, RATE, **given)


def arguments(runtime, task):
  """Each client has two batches: its first example, then the others."""
  return [
    runtime.client_data(
      task.data.train, client, [np.arange(1), np.arange(1, count)]
    )
    for client, count in task.data.train.num_examples.items()
  ]


def run(runtime, task, process, rounds=ROUNDS):
  """Weights and metrics after each round."""
  state, found = process.initialize(), []
  for _ in range(rounds):
    output = process.next(state, arguments(runtime, task))
    state = output.state
    weights = process.get_model_weights(state)
    found.append((np.ravel(weights.trainable[0]), output.metrics))
  return found


def schedule(round_num):
  return PRUNING.final_sparsity * (1 - (1 - min(round_num / 4, 1)) ** 3)


def reference(pruned, clusters, proximal=0.0, rounds=ROUNDS):
  """The server's weights after each round."""
  weights, mask = START.astype(np.float64), np.ones(WEIGHTS, bool)
  velocity, residual, found = np.zeros(WEIGHTS), np.zeros(WEIGHTS), []
  for round_num in range(1, rounds + 1):
    total, update = 0, np.zeros(WEIGHTS)
    for x, y in clients().values():
      local = weights.copy()
      for batch in (slice(0, 1), slice(1, None)):
        error = x[batch] @ local - y[batch]
        gradient = 2 * x[batch].T @ error / len(error)
        gradient += proximal * (local - weights)
        local -= RATE * np.where(mask, gradient, 0)
      update += len(y) * (weights - local)
      total += len(y)
    velocity = MOMENTUM * velocity + update / total
    weights = weights + residual - velocity
    if pruned:
      if round_num <= 4:
        kept = max(round(WEIGHTS * (1 - schedule(round_num))), 1)
        order = np.argsort(-np.where(mask, np.abs(weights), -1), kind='stable')
        mask &= np.isin(np.arange(WEIGHTS), order[:kept])
      weights = np.where(mask, weights, 0)
    if clusters and round_num > 1:
      free = weights[mask]
      centroids = clustering_reference.lloyd(free, clusters - pruned, 20)
      residual = weights.copy()
      weights = np.zeros(WEIGHTS)
      weights[mask] = centroids
      residual -= weights
    found.append(weights)
  return found


@pytest.mark.parametrize(
  'name, pruned, clustered',
  [
    ('fed_avg', True, False),
    ('fed_avg', False, True),
    ('fed_avg', True, True),
    ('fed_prox', True, True),
  ],
)
def test_rounds_equal_numpy(runtime, name, pruned, clustered):
  task = task_of()
  process = build(
    runtime,
    task,
    name,
    pruning=PRUNING if pruned else None,
    clustering=CLUSTERING if clustered else None,
    **({'hparams': {'proximal_strength': 0.5}} if name == 'fed_prox' else {}),
  )
  found = run(runtime, task, process)
  expected = reference(
    pruned, CLUSTERING.num_clusters * clustered, 0.5 * (name == 'fed_prox')
  )
  for (weights, metrics), wanted in zip(found, expected, strict=True):
    np.testing.assert_allclose(weights, wanted, atol=2e-6)
    if pruned:
      assert metrics['finalizer']['sparsity'] == np.mean(weights == 0)
  last = found[-1][0]
  assert not pruned or np.mean(last == 0) == PRUNING.final_sparsity
  assert not clustered or len(np.unique(last)) == CLUSTERING.num_clusters


def test_the_server_sends_what_the_model_does_not_have(runtime):
  task = task_of()
  process = build(runtime, task, pruning=PRUNING)
  state = process.initialize()
  (mask,) = state.global_model_weights.non_trainable
  assert mask.dtype == bool and mask.shape == (WEIGHTS, 1)
  weights = process.get_model_weights(state)
  assert len(weights.non_trainable) == 0
  assert weight_constraints.measures_sparsity(process)
  assert not weight_constraints.measures_sparsity(build(runtime, task))


def test_weights_that_begin_at_zero_are_trained(runtime):
  task = task_of(np.zeros(WEIGHTS))
  process = build(
    runtime, task, pruning=pruning.Settings(0.5, begin_round=2, end_round=3)
  )
  found = run(runtime, task, process, rounds=3)
  assert [np.mean(weights == 0) for weights, _ in found] == [0, 0, 0.5]


def test_zeros_of_the_beginning_are_kept(runtime):
  start = START * [0, 1, 1, 0, 1, 0, 1, 1]
  task = task_of(start)
  process = build(runtime, task, pruning=pruning.Settings(0.0))
  for weights, metrics in run(runtime, task, process):
    np.testing.assert_array_equal(weights == 0, start == 0)
    assert metrics['finalizer']['sparsity'] == 3 / 8


def test_rates_can_be_set(runtime):
  task = task_of()
  process = build(runtime, task, pruning=PRUNING, clustering=CLUSTERING)
  state = process.initialize()
  hparams = process.get_hparams(state)
  hparams['finalizer']['learning_rate'] = np.float32(0)
  state = process.set_hparams(state, hparams)
  before = process.get_model_weights(state).trainable[0]
  state = process.next(state, arguments(runtime, task)).state
  after = process.get_model_weights(state).trainable[0]
  assert process.get_hparams(state)['finalizer']['learning_rate'] == 0
  kept = np.ravel(after) != 0
  np.testing.assert_array_equal(np.ravel(after)[kept], np.ravel(before)[kept])


def test_noise_does_not_bring_back_what_was_pruned():
  aggregator = compose.build(
    settings.Settings(
      dp_mechanism=settings.GAUSSIAN,
      clipping='fixed',
      clip_norm=1.0,
      noise_multiplier=1.0,
      clients_per_round=2,
      has_uniform_weights=True,
    )
  )
  zeros = []
  with in_process.InProcessRuntime(device='cpu') as runtime:
    task = task_of()
    process = build(
      runtime,
      task,
      pruning=PRUNING,
      model_aggregator=aggregator,
      client_weighting=tff.learning.ClientWeighting.UNIFORM,
    )
    state = process.initialize()
    for _ in range(ROUNDS):
      state = dp.with_noise_key(state, noise.secure_key())
      state = process.next(state, arguments(runtime, task)).state
      zeros.append(process.get_model_weights(state).trainable[0] == 0)
  for before, after in zip(zeros, zeros[1:], strict=False):
    assert np.all(after[before])
  assert zeros[-1].mean() == PRUNING.final_sparsity


def test_a_quantized_model_learns_its_ranges_too(runtime):
  task = task_of().quantized(quantization.Settings())
  process = build(runtime, task, pruning=PRUNING, clustering=CLUSTERING)
  found = run(runtime, task, process)
  assert np.mean(found[-1][0] == 0) == PRUNING.final_sparsity
  state = process.initialize()
  state = process.next(state, arguments(runtime, task)).state
  ranges = process.get_model_weights(state).non_trainable
  assert any(np.abs(value) > 0 for value in ranges if value.dtype == np.float32)


def test_attacked_clients_do_not_unprune(runtime):
  task = task_of()
  process = build(runtime, task, pruning=PRUNING, attack=attacks.SCALE)
  state = process.initialize()
  factors = [np.float32(1), np.float32(-1)]
  for _ in range(ROUNDS):
    state = process.next(state, arguments(runtime, task), factors).state
  weights = process.get_model_weights(state)
  assert np.mean(weights.trainable[0] == 0) == PRUNING.final_sparsity
  assert len(weights.non_trainable) == 0


@pytest.mark.parametrize('name', ['scaffold', 'fed_sgd', 'mime', 'ditto'])
def test_algorithms_that_can_not_are_refused(name):
  unstarted = in_process.InProcessRuntime(device='cpu')
  with pytest.raises(
    local_training.UnsuitableError, match='fed_avg and fed_prox can'
  ):
    build(unstarted, task_of(), name, pruning=PRUNING)


def test_a_model_without_kernels_is_refused():
  model = tf.keras.Sequential(
    [tf.keras.layers.BatchNormalization(input_shape=(3,), scale=False)]
  )
  with pytest.raises(local_training.UnsuitableError, match='beta'):
    weight_constraints.of_model(model, PRUNING, None)
