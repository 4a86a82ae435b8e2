"""Ranges and moments at the server, by hand on a model of three weights."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from models import quantization
from research.aggregators import compose, dp, settings
from research.algorithms import (
  attacks,
  local_training,
  optimizers,
  registry,
  statistics,
)
from research.privacy import noise
from research.runtime import in_process
from tests import toy
from tests.research.algorithms import test_attacks

START = (0.5, -1.0, 2.0)
# One batch each: outputs are 2 and -1, or 0.5 and 8; inputs as they stand.
CLIENTS = {
  'a': ([[0, 0, 1], [0, 1, 0]], [2, 1]),
  'b': ([[1, 0, 0], [0, 0, 4], [1, 0, 0]], [0, 1, 3]),
}
# Lowest and highest of the inputs, then of the outputs.
RANGES = {'a': (0, 1, -1, 2), 'b': (0, 4, 0, 8)}
BY_EXAMPLES = tff.learning.ClientWeighting.NUM_EXAMPLES


runtime = test_attacks.runtime


def quantized_task(clients=CLIENTS, **changes):
  task = toy.linear_task(clients, START)
  return task.quantized(quantization.Settings(**changes))


def build(runtime, task, name='fed_avg', rate=0.0, **changes):
  given = registry.Settings(
    client_optimizer=optimizers.build('sgd', rate),
    server_optimizer=optimizers.build('sgd', 1.0),
    client_weighting=BY_EXAMPLES,
    loop_implementation=runtime.loop_implementation,
    hparams=registry.ALGORITHMS[name].hparams,
  )
  process = registry.ALGORITHMS[name].build_for(
    task, dataclasses.replace(given, **changes)
  )
  return runtime.prepare(process, task)


def arguments(runtime, task):
  return [
    runtime.client_data(task.data.train, client, [np.arange(count)])
    for client, count in task.data.train.num_examples.items()
  ]


def ranges(process, state):
  """Float variables that are not trained: input and output, low and high."""
  weights = process.get_model_weights(state)
  return [
    float(value) for value in weights.non_trainable if value.dtype == np.float32
  ]


def one_round(runtime, task, process, state=None, *extra):
  state = process.initialize() if state is None else state
  return process.next(state, arguments(runtime, task), *extra)


@pytest.mark.parametrize('name', ['fed_avg', 'fed_prox'])
def test_the_mean_of_ranges_weighs_examples(runtime, name):
  task = quantized_task()
  process = build(runtime, task, name)
  output = one_round(runtime, task, process)
  expected = np.average(list(RANGES.values()), axis=0, weights=[2, 3])
  np.testing.assert_allclose(ranges(process, output.state), expected, rtol=0.02)
  assert output.metrics['aggregator']['rejected_clients'] == 0


def test_ranges_that_were_measured_move_slowly(runtime):
  """The batches are the same: 0.9 of the mean, 0.1 of one's own.

  TF-MOT's quantizer of inputs has no average: 2.8 at the server is widened to 4
  by client b, and (2 * 2.8 + 3 * 4) / 5 is 3.52.
  """
  task = quantized_task()
  process = build(runtime, task)
  state = one_round(runtime, task, process).state
  first = np.array(ranges(process, state))
  second = ranges(process, one_round(runtime, task, process, state).state)
  np.testing.assert_allclose(second[:2], [0, 3.52], atol=1e-6)
  np.testing.assert_allclose(second[2:], first[2:], rtol=0.05)


def test_the_widest_range_of_all(runtime):
  task = quantized_task()
  process = build(runtime, task, statistics=statistics.Settings('min_max'))
  found = ranges(process, one_round(runtime, task, process).state)
  np.testing.assert_allclose(found, [0, 4, -1, 8], rtol=0.02, atol=1e-6)


def test_a_range_can_also_shrink(runtime):
  task = quantized_task(initial_range=100.0)
  process = build(runtime, task, statistics=statistics.Settings('min_max'))
  found = ranges(process, one_round(runtime, task, process).state)
  # The output's: 0.9 * -100 + 0.1 * -1, 0.9 * 100 + 0.1 * 8.
  np.testing.assert_allclose(found[2:], [-90.1, 90.8], rtol=0.005)


@pytest.mark.parametrize('rule', statistics.RULES)
def test_a_client_that_is_not_finite_has_no_part(runtime, rule):
  broken = {**CLIENTS, 'b': ([[1, 0, 0], [0, 0, np.inf]], [0, 1])}
  task = quantized_task(broken)
  process = build(runtime, task, statistics=statistics.Settings(rule))
  output = one_round(runtime, task, process)
  np.testing.assert_allclose(
    ranges(process, output.state), RANGES['a'], rtol=0.02
  )
  assert output.metrics['aggregator']['rejected_clients'] == 1


def test_a_rejected_client_does_not_keep_a_range_wide(runtime):
  broken = {**CLIENTS, 'b': ([[1, 0, 0], [0, 0, np.inf]], [0, 1])}
  task = quantized_task(broken, initial_range=100.0)
  process = build(runtime, task, statistics=statistics.Settings('min_max'))
  found = ranges(process, one_round(runtime, task, process).state)
  np.testing.assert_allclose(found[2:], [-90.1, 90.2], rtol=0.005)


@pytest.mark.parametrize('rule', statistics.RULES)
def test_nothing_moves_if_all_are_rejected(runtime, rule):
  broken = {name: ([[np.nan, 0, 0]], [0]) for name in 'ab'}
  task = quantized_task(broken, initial_range=3.0)
  process = build(runtime, task, statistics=statistics.Settings(rule))
  state = process.initialize()
  before = ranges(process, state)
  assert ranges(process, one_round(runtime, task, process, state).state) == (
    before
  )


def test_without_statistics_the_server_is_left_behind(runtime):
  task = quantized_task()
  process = build(runtime, task, statistics=None)
  assert not any(ranges(process, one_round(runtime, task, process).state))


def test_trainable_weights_learn_as_without_statistics(runtime):
  """Only what is quantized differs: none of it here."""
  task = quantized_task()
  process = build(runtime, task, rate=0.05)
  plain = build(runtime, task, rate=0.05, statistics=None)
  with_them, without = (
    p.get_model_weights(one_round(runtime, task, p).state).trainable[0]
    for p in (process, plain)
  )
  np.testing.assert_allclose(with_them, without, rtol=1e-6)
  assert np.abs(with_them[:, 0] - START).max() > 0.01


def test_algorithms_that_would_lose_them_are_refused(runtime):
  with pytest.raises(
    local_training.UnsuitableError, match='fed_avg and fed_prox aggregate them'
  ):
    build(runtime, quantized_task(), 'scaffold')


def test_frozen_layers_beside_statistics_are_refused(runtime):
  """Their weights are sent as well: they would be averaged, or noised."""
  task = quantized_task()
  measured = task.build_keras_model

  def frozen():
    model = measured()
    hidden = tf.keras.layers.Dense(3, name='old', trainable=False)
    inputs = tf.keras.Input((3,))
    return tf.keras.Model(inputs, model(hidden(inputs)))

  changed = dataclasses.replace(task, build_keras_model=frozen)
  with pytest.raises(local_training.UnsuitableError, match='old/kernel'):
    build(runtime, changed)


def test_attacked_clients_change_their_statistics_too(runtime):
  task = quantized_task()
  process = build(runtime, task, attack=attacks.SCALE)
  state = one_round(
    runtime, task, process, None, [np.float32(1), np.float32(np.nan)]
  ).state
  np.testing.assert_allclose(ranges(process, state), RANGES['a'], rtol=0.02)


def private(scale, clip_norm=1.0, noise_multiplier=1e-6):
  return {
    'model_aggregator': compose.build(
      settings.Settings(
        dp_mechanism=settings.GAUSSIAN,
        clipping='fixed',
        clip_norm=clip_norm,
        noise_multiplier=noise_multiplier,
        clients_per_round=2,
        has_uniform_weights=True,
      )
    ),
    'client_weighting': tff.learning.ClientWeighting.UNIFORM,
    'statistics': statistics.Settings(is_part_of_update=True, scale=scale),
  }


def prepared(state):
  return dp.with_noise_key(state, noise.secure_key())


def test_one_clipped_vector_holds_update_and_statistics():
  """Its norm is what accounting takes for the sensitivity."""
  with in_process.InProcessRuntime(device='cpu') as runtime:
    task, scale = quantized_task(initial_range=6.0), 0.5
    process = build(runtime, task, rate=0.05, **private(scale, clip_norm=0.25))
    state = prepared(process.initialize())
    before = ranges(process, state)
    only_a = arguments(runtime, task)[:1]
    after = process.next(state, only_a).state
    moved = np.subtract(ranges(process, after), before)
    trained = process.get_model_weights(after).trainable[0][:, 0] - START
    vector = np.concatenate([trained, scale * moved])
    # One client of two that are expected, clipped to 0.25.
    assert np.linalg.norm(vector) == pytest.approx(0.25 / 2, rel=1e-3)
    assert np.abs(moved).max() > 0


@pytest.mark.parametrize('scale', [0.1, 2.0])
def test_the_scale_is_taken_away_again(scale):
  """Without clipping: 0.9 of 6 and 0.1 of the clients' mean ends."""
  with in_process.InProcessRuntime(device='cpu') as runtime:
    task = quantized_task(initial_range=6.0)
    free = private(scale, clip_norm=1e4, noise_multiplier=1e-10)
    process = build(runtime, task, **free)
    state = prepared(process.initialize())
    after = process.next(state, arguments(runtime, task)).state
    found = ranges(process, after)[2:]
  np.testing.assert_allclose(found, [-5.45, 5.9], rtol=0.005)


def test_private_statistics_are_noised():
  """The spread of 80 ends over runs, where no end is near zero.

  z C / (n scale) = 0.01 / (2 * 0.001) = 5. A sample's deviation is normal with
  5 / sqrt(160): five of these, so one false alarm in a million.
  """
  with in_process.InProcessRuntime(device='cpu') as runtime:
    task = quantized_task(initial_range=1000.0)
    process = build(runtime, task, **private(1e-3, 1e-2, noise_multiplier=1.0))
    ends = []
    for _ in range(40):
      state = prepared(process.initialize())
      after = process.next(state, arguments(runtime, task)).state
      ends.append(ranges(process, after)[2:])
    spread = np.std(np.asarray(ends) - np.mean(ends, axis=0))
    assert spread == pytest.approx(5, abs=5 * 5 / np.sqrt(160))


def test_settings_that_contradict_themselves():
  with pytest.raises(ValueError, match='need the rule mean'):
    statistics.Settings('min_max', is_part_of_update=True)
  with pytest.raises(ValueError, match='must be positive'):
    statistics.Settings(scale=0.0)
  with pytest.raises(ValueError, match="'largest' is none of mean, min_max"):
    statistics.Settings('largest')
