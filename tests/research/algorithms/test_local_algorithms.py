"""FedProx, FedNova, Mime and MimeLite: NumPy, algebra, the papers' claims."""

import dataclasses

import numpy as np
import pytest
import tensorflow_federated as tff

from research.algorithms import (
  fed_nova,
  local_training,
  optimizers,
  registry,
  stateful,
)
from research.runtime import in_process
from tests import toy
from tests.research.algorithms import numpy_reference
from tests.research.algorithms.test_fed_avg import START, cohorts, train

RATE = 0.05
EXAMPLES = tff.learning.ClientWeighting.NUM_EXAMPLES


@pytest.fixture(scope='module')
def runtime():
  with in_process.InProcessRuntime(device='cpu') as started:
    yield started


@pytest.fixture(scope='module')
def task():
  return toy.linear_task(toy.random_clients())


def settings(runtime, client=('sgd', RATE, {}), **hparams):
  return registry.Settings(
    client_optimizer=optimizers.build(*client),
    server_optimizer=optimizers.build('sgd', 1.0),
    client_weighting=EXAMPLES,
    loop_implementation=runtime.loop_implementation,
    hparams=hparams,
  )


def build(name, task, *args, **kwargs):
  return registry.ALGORITHMS[name].build(
    task.model_fn, settings(*args, **kwargs)
  )


def clients(task, cohort):
  return [
    numpy_reference.Client(*task.data.train.client(name).values(), batches)
    for name, batches in cohort.items()
  ]


def start():
  return [np.reshape(START, [3, 1]).astype(np.float64)]


def full_batch(task, steps):
  """All examples of a client at once, `steps` times over."""
  return {
    name: [np.arange(size)] * steps
    for name, size in task.data.train.num_examples.items()
  }


def pooled_optimum(task):
  pooled = task.data.train.pooled()
  return np.linalg.lstsq(pooled['x'], pooled['y'], rcond=None)[0]


def fixed_point(one_round):
  """Solves w = A w + b, where A and b are read off an affine round."""
  offset = one_round([np.zeros([3, 1])])[0][:, 0]
  columns = [one_round([unit[:, None]])[0][:, 0] for unit in np.eye(3)]
  matrix = np.stack(columns, axis=1) - offset[:, None]
  return np.linalg.solve(np.eye(3) - matrix, offset)


def test_fed_prox_equals_the_reference(runtime, task):
  rounds = cohorts(task.data.train, 3, epochs=2, batch_size=3)
  process = build('fed_prox', task, runtime, proximal_strength=0.7)
  expected = start()
  for cohort in rounds:
    expected = numpy_reference.fed_prox_round(
      expected,
      clients(task, cohort),
      numpy_reference.linear_gradient,
      RATE,
      0.7,
    )
  found = train(runtime, task, process, rounds)
  np.testing.assert_allclose(found, expected[0][:, 0], atol=1e-6)


def test_fed_prox_without_the_term_is_fed_avg_bit_for_bit(runtime, task):
  rounds = cohorts(task.data.train, 5, epochs=2, batch_size=3)
  with_term = build('fed_prox', task, runtime, proximal_strength=0.0)
  without = build('fed_avg', task, runtime)
  found = train(runtime, task, with_term, rounds)
  np.testing.assert_array_equal(found, train(runtime, task, without, rounds))


@pytest.mark.parametrize('strength', [0.0, 0.5, 4.0])
def test_fed_prox_ends_at_the_point_that_algebra_predicts(
  runtime, task, strength
):
  """Six full-batch steps of each client make a round affine in the weights."""
  cohort = full_batch(task, 6)
  expected = fixed_point(
    lambda weights: numpy_reference.fed_prox_round(
      weights,
      clients(task, cohort),
      numpy_reference.linear_gradient,
      RATE,
      strength,
    )
  )
  process = build('fed_prox', task, runtime, proximal_strength=strength)
  found = train(runtime, task, process, [cohort] * 150)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  # The clients' drift is there to be seen.
  assert np.abs(expected - pooled_optimum(task)).max() > 0.01


def test_a_stronger_term_leaves_less_drift(task):
  cohort = clients(task, full_batch(task, 6))
  drift = [
    np.abs(
      fixed_point(
        lambda weights, mu=mu: numpy_reference.fed_prox_round(
          weights, cohort, numpy_reference.linear_gradient, RATE, mu
        )
      )
      - pooled_optimum(task)
    ).max()
    for mu in (0.0, 1.0, 8.0)
  ]
  assert drift[0] > drift[1] > drift[2]


@pytest.mark.parametrize(
  'steps, momentum, expected',
  [
    (4, 0.0, 4.0),
    # (1 - 1/8) 2 + (1 - 1/4) 2 + (1 - 1/2) 2.
    (3, 0.5, 4.25),
    (1, 0.9, 1.0),
  ],
)
def test_accumulation_norm_by_hand(steps, momentum, expected):
  norm = fed_nova.accumulation_norm(steps, momentum)
  np.testing.assert_allclose(norm, expected, rtol=1e-6)


@pytest.mark.parametrize('momentum', [0.0, 0.6])
def test_fed_nova_equals_the_reference(runtime, task, momentum):
  """Clients of 7, 4 and 12 examples make 6, 4 and 8 steps."""
  rounds = cohorts(task.data.train, 3, epochs=2, batch_size=3)
  client = ('momentum', RATE, {'momentum': momentum})
  process = build('fed_nova', task, runtime, client)
  expected = start()
  for cohort in rounds:
    expected = numpy_reference.fed_nova_round(
      expected,
      clients(task, cohort),
      numpy_reference.linear_gradient,
      RATE,
      momentum,
    )
  found = train(runtime, task, process, rounds)
  np.testing.assert_allclose(found, expected[0][:, 0], atol=2e-6)


def test_fed_nova_with_equal_steps_is_fed_avg(runtime, task):
  rounds = [full_batch(task, 5)] * 3
  nova = train(runtime, task, build('fed_nova', task, runtime), rounds)
  average = train(runtime, task, build('fed_avg', task, runtime), rounds)
  np.testing.assert_allclose(nova, average, atol=1e-6)


def test_fed_nova_removes_the_bias_of_unequal_steps(runtime):
  """Two clients with the same features, whose optima are all 0 and all 1.

  Section 3 of the paper: with 1 and 20 steps of a small learning rate FedAvg
  ends near 20/21, FedNova near the mean 1/2 of the true objective.
  """
  x = np.concatenate([np.eye(3), np.eye(3)])
  task = toy.linear_task(
    {'slow': (x, x @ [0, 0, 0]), 'fast': (x, x @ [1, 1, 1])}
  )
  cohort = {'slow': [np.arange(6)], 'fast': [np.arange(6)] * 20}
  client = ('sgd', 0.003, {})
  chosen = dataclasses.replace(
    settings(runtime, client),
    client_weighting=tff.learning.ClientWeighting.UNIFORM,
  )
  ends = {}
  for name in ('fed_avg', 'fed_nova'):
    process = registry.ALGORITHMS[name].build(task.model_fn, chosen)
    ends[name] = train(runtime, task, process, [cohort] * 500)
  # A step leaves 1 - 2 * 0.003 / 3 of the distance to a client's optimum.
  slow, fast = 1 - 0.998, 1 - 0.998**20
  np.testing.assert_allclose(ends['fed_avg'], fast / (slow + fast), atol=1e-4)
  nova = (fast / 20) / (slow + fast / 20)
  np.testing.assert_allclose(ends['fed_nova'], nova, atol=1e-4)
  assert abs(nova - 0.5) < 0.01


@pytest.mark.parametrize('name', ['mime', 'mime_lite'])
def test_mime_equals_the_reference(runtime, task, name):
  rounds = cohorts(task.data.train, 3, epochs=2, batch_size=3)
  client = ('momentum', RATE, {'momentum': 0.6})
  process = build(name, task, runtime, client)
  expected, velocity = start(), [np.zeros([3, 1])]
  for cohort in rounds:
    expected, velocity = numpy_reference.mime_round(
      expected,
      velocity,
      clients(task, cohort),
      numpy_reference.linear_gradient,
      RATE,
      0.6,
      lite=name == 'mime_lite',
    )
  found = train(runtime, task, process, rounds)
  np.testing.assert_allclose(found, expected[0][:, 0], atol=2e-6)


def test_mime_lite_is_that_of_tff(runtime, task):
  """With an adaptive base optimizer, which the reference has not."""
  rounds = cohorts(task.data.train, 3, epochs=1, batch_size=3)
  base = ('adam', RATE, {'epsilon': 0.1})
  ours = build('mime_lite', task, runtime, base)
  theirs = tff.learning.algorithms.build_weighted_mime_lite(
    task.model_fn, base_optimizer=optimizers.build(*base)
  )
  found = train(runtime, task, ours, rounds)
  expected = train(runtime, task, theirs, rounds)
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_mime_removes_the_drift_that_fed_avg_has(runtime, task):
  cohort = full_batch(task, 6)
  process = build('mime', task, runtime)
  found = train(runtime, task, process, [cohort] * 200)
  np.testing.assert_allclose(found, pooled_optimum(task), atol=1e-5)
  average = train(
    runtime, task, build('fed_avg', task, runtime), [cohort] * 200
  )
  assert np.abs(average - pooled_optimum(task)).max() > 0.01


@pytest.mark.parametrize('name', ['fed_prox', 'fed_nova', 'mime', 'mime_lite'])
def test_a_broken_client_is_left_out_and_counted(runtime, name):
  sound = toy.random_clients()
  x, y = next(iter(sound.values()))
  broken = {**sound, 'broken': (x, np.full_like(y, np.nan))}
  hparams = dict(registry.ALGORITHMS[name].hparams)
  client = ('momentum', RATE, {})
  ends = {}
  for kind, data in (('sound', sound), ('broken', broken)):
    task = toy.linear_task(data)
    process = runtime.prepare(
      build(name, task, runtime, client, **hparams), task
    )
    state = process.initialize()
    for _ in range(2):
      output = process.next(
        state,
        [
          runtime.client_data(task.data.train, client_id, batches)
          for client_id, batches in full_batch(task, 2).items()
        ],
      )
      state = output.state
    ends[kind] = process.get_model_weights(state).trainable[0]
    rejected = output.metrics['aggregator']['rejected_clients']
    assert rejected == (kind == 'broken')
    examples = output.metrics['client_work']['train']['num_examples']
    assert examples == 2 * sum(len(y) for _, y in sound.values())
  np.testing.assert_allclose(ends['broken'], ends['sound'], atol=1e-7)


@pytest.mark.parametrize('name', ['fed_prox', 'fed_nova', 'mime', 'mime_lite'])
def test_a_schedule_sets_the_learning_rate(runtime, task, name):
  """A learning rate of 0 leaves the weights, whatever it was before."""
  hparams = dict(registry.ALGORITHMS[name].hparams)
  process = runtime.prepare(build(name, task, runtime, **hparams), task)
  state = process.initialize()
  rates = process.get_hparams(state)
  rates['client_work']['learning_rate'] = 0.0
  state = process.set_hparams(state, rates)
  arguments = [
    runtime.client_data(task.data.train, client_id, batches)
    for client_id, batches in full_batch(task, 2).items()
  ]
  state = process.next(state, arguments).state
  found = process.get_model_weights(state).trainable[0][:, 0]
  np.testing.assert_array_equal(found, np.float32(START))


def test_what_does_not_fit_is_refused(runtime, task):
  with pytest.raises(local_training.UnsuitableError, match='sgd and momentum'):
    build('fed_nova', task, runtime, ('adam', RATE, {}))
  with pytest.raises(local_training.UnsuitableError, match='at least 0'):
    build('fed_prox', task, runtime, proximal_strength=-1.0)


def test_every_algorithm_names_hparams_that_it_has(runtime):
  for algorithm in registry.ALGORITHMS.values():
    task = toy.task_of(algorithm.kinds, algorithm.has_local_layers)
    chosen = dataclasses.replace(settings(runtime), hparams=algorithm.hparams)
    process = algorithm.build_for(task, chosen)
    assert isinstance(process, stateful.AnyProcess)
