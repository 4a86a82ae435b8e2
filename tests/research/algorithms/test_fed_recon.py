"""FedRecon: NumPy, TFF's own, FedAvg as a special case, the paper's claim."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from research.aggregators import bits, compose
from research.aggregators import settings as aggregator_settings
from research.algorithms import (
  local_training,
  optimizers,
  partly_local,
  registry,
)
from research.tasks import task as task_lib
from tests import toy
from tests.research.algorithms import (
  numpy_reference,
  reconstruction_reference,
)
from tests.research.algorithms.test_fed_avg import WEIGHTINGS

RATE, RECONSTRUCTION_RATE = 0.05, 0.04
SHARED, SCALE = (0.5, -1.0), 2.0
ALGORITHM = registry.ALGORITHMS['fed_recon']


@pytest.fixture(name='runtime')
def _runtime(stock_runtime):
  """Runs leaves as they are, with their variables: what is kept would show."""
  return stock_runtime


@pytest.fixture(scope='module')
def task():
  """Three weights, one of them local; the last client has a single batch."""
  clients = toy.random_clients((7, 4, 12, 2), features=2)
  return toy.linear_task(clients, SHARED, scale=SCALE)


def settings(runtime, weighting='examples', server=1.0, **hparams):
  own = {'reconstruction_learning_rate': RECONSTRUCTION_RATE, **hparams}
  return registry.Settings(
    client_optimizer=optimizers.build('sgd', RATE),
    server_optimizer=optimizers.build('sgd', server),
    client_weighting=WEIGHTINGS[weighting],
    loop_implementation=runtime.loop_implementation,
    hparams={**ALGORITHM.hparams, **own},
  )


def build(task, runtime, *args, **kwargs):
  chosen = settings(runtime, *args, **kwargs)
  return runtime.prepare(ALGORITHM.build_for(task, chosen), task)


def some_rounds(task, rounds=3, batch_size=3):
  """All clients, in one epoch whose order differs by round."""
  rng = np.random.default_rng(0)
  return [
    {
      name: np.split(rng.permutation(size), range(batch_size, size, batch_size))
      for name, size in task.data.train.num_examples.items()
    }
    for _ in range(rounds)
  ]


def data(runtime, task, cohort):
  return [
    runtime.client_data(task.data.train, name, batches)
    for name, batches in cohort.items()
  ]


def train(runtime, task, process, rounds):
  """The trainable weights after the rounds, and the last output."""
  state = process.initialize()
  for cohort in rounds:
    output = process.next(state, data(runtime, task, cohort))
    state = output.state
  weights = process.get_model_weights(state).trainable
  return [np.asarray(weight) for weight in weights], output


def reference(task, rounds, **kwargs):
  shared, own = [np.reshape(SHARED, [-1, 1])], [np.array([[SCALE]])]
  for cohort in rounds:
    shared = reconstruction_reference.fed_recon_round(
      shared,
      own,
      [
        numpy_reference.Client(*task.data.train.client(name).values(), batches)
        for name, batches in cohort.items()
      ],
      reconstruction_reference.scaled_gradient,
      RATE,
      RECONSTRUCTION_RATE,
      **kwargs,
    )
  return shared[0]


def test_the_references_gradient_is_that_of_finite_differences():
  rng = np.random.default_rng(1)
  x, y = rng.normal(size=[5, 2]), rng.normal(size=5)
  weights = [rng.normal(size=[2, 1]), rng.normal(size=[1, 1])]

  def loss(w, s):
    return np.mean((x @ w @ s - y[:, None]) ** 2)

  found = reconstruction_reference.scaled_gradient(weights, x, y)
  for part, slope in enumerate(found):
    for index in np.ndindex(slope.shape):
      values = []
      for sign in (1, -1):
        moved = [w.copy() for w in weights]
        moved[part][index] += sign * 1e-5
        values.append(loss(*moved))
      assert slope[index] == pytest.approx(
        (values[0] - values[1]) / 2e-5, abs=1e-8
      )


@pytest.mark.parametrize(
  'weighting, epochs, support_is_query',
  [('examples', 1, False), ('uniform', 3, False), ('examples', 2, True)],
)
def test_rounds_equal_the_reference(
  runtime, task, weighting, epochs, support_is_query
):
  rounds = some_rounds(task)
  process = build(
    task,
    runtime,
    weighting,
    reconstruction_epochs=epochs,
    support_is_query=support_is_query,
  )
  (shared, own), output = train(runtime, task, process, rounds)
  expected = reference(
    task,
    rounds,
    epochs=epochs,
    support_is_query=support_is_query,
    weighting=weighting,
  )
  np.testing.assert_allclose(shared, expected, atol=1e-6)
  np.testing.assert_array_equal(own, [[SCALE]])
  # Of batches of 3, 3, 1 | 3, 1 | 3, 3, 3, 3 | 2 the second, fourth, ...
  examples = 25 if support_is_query else 3 + 1 + 6 + 2
  assert output.metrics['client_work']['train']['num_examples'] == examples


def test_rounds_equal_those_of_tff(runtime):
  """Of clients with several batches, since a single one is support for TFF."""
  clients = toy.random_clients((7, 4, 12), features=2)
  task = toy.linear_task(clients, SHARED, scale=SCALE)

  def model_fn():
    model = task.build_keras_model()
    return tff.learning.models.ReconstructionModel.from_keras_model_and_layers(
      keras_model=model,
      global_layers=model.layers[:1],
      local_layers=model.layers[1:],
      input_spec=task.input_spec,
    )

  model = tff.learning.models.ReconstructionModel
  theirs = tff.learning.algorithms.build_fed_recon(
    model_fn,
    loss_fn=task.build_loss,
    server_optimizer_fn=optimizers.build('momentum', 0.7),
    client_optimizer_fn=optimizers.build('sgd', RATE),
    reconstruction_optimizer_fn=optimizers.build('sgd', RECONSTRUCTION_RATE),
    dataset_split_fn=model.build_dataset_split_fn(
      recon_epochs=2, split_dataset=True
    ),
  )
  chosen = dataclasses.replace(
    settings(runtime, reconstruction_epochs=2),
    server_optimizer=optimizers.build('momentum', 0.7),
  )
  ours = ALGORITHM.build_for(task, chosen)
  found, expected = (
    train(
      runtime,
      task,
      runtime.prepare(process, task),
      some_rounds(task),
    )[0]
    for process in (ours, theirs)
  )
  np.testing.assert_allclose(found[0], expected[0], atol=1e-6)


def test_without_reconstruction_it_is_fed_avg_of_the_global_layers(
  runtime, task
):
  """Bit for bit, where the local layer is not trainable for FedAvg."""

  def build_frozen():
    model = task.build_keras_model()
    model.get_layer('own').trainable = False
    return model

  frozen = dataclasses.replace(task, build_keras_model=build_frozen)
  rounds = some_rounds(task)
  process = build(
    task, runtime, reconstruction_learning_rate=0.0, support_is_query=True
  )
  average = registry.ALGORITHMS['fed_avg'].build_for(
    frozen, dataclasses.replace(settings(runtime), hparams={})
  )
  (shared, _), _ = train(runtime, task, process, rounds)
  (expected,), _ = train(
    runtime, frozen, runtime.prepare(average, frozen), rounds
  )
  np.testing.assert_array_equal(shared, expected)


def test_nothing_of_a_client_is_left_for_the_next_round(runtime, task):
  """With a server that stands still a round repeats itself, in any company."""
  process = build(task, runtime, server=0.0)
  cohort = some_rounds(task)[0]
  (shared, own), once = train(runtime, task, process, [cohort])
  (_, _), twice = train(runtime, task, process, [cohort] * 2)
  np.testing.assert_array_equal(shared[:, 0], np.float32(SHARED))
  np.testing.assert_array_equal(own, [[SCALE]])
  assert flat(once.metrics) == flat(twice.metrics)
  assert flat(once.state) == flat(process.initialize())
  name, batches = list(cohort.items())[1]
  _, alone = train(runtime, task, process, [{name: batches}])
  _, after_all = train(runtime, task, process, [cohort, {name: batches}])
  assert flat(alone.metrics) == flat(after_all.metrics)


def flat(structure):
  return [np.asarray(leaf).tolist() for leaf in tf.nest.flatten(structure)]


def test_clients_share_a_slope_and_have_offsets_of_their_own(runtime):
  """What the paper is for: no single model fits all, a part of one does."""
  rng = np.random.default_rng(3)
  slope, offsets = np.array([1.5, -0.7]), (-3.0, 0.0, 1.0, 4.0)
  clients = {}
  for name, offset in zip('abcd', offsets, strict=True):
    x = rng.normal(size=[12, 2]).astype(np.float32)
    clients[name] = x, x @ slope + offset
  task = toy.linear_task(clients, (0.3, 0.3), offset=0.0)
  process = build(
    task,
    runtime,
    reconstruction_learning_rate=0.25,
    reconstruction_epochs=8,
  )
  (shared, own), output = train(
    runtime, task, process, some_rounds(task, rounds=25)
  )
  # The least loss of any single model: of least squares on all examples.
  pooled = task.data.train.pooled()
  design = np.column_stack([pooled['x'], np.ones(48)])
  _, (residual,), *_ = np.linalg.lstsq(design, pooled['y'], rcond=None)
  assert residual / 48 > 5
  assert output.metrics['client_work']['train']['loss'] < 1e-5
  np.testing.assert_allclose(shared[:, 0], slope, atol=5e-3)
  assert own == 0


@pytest.mark.parametrize(
  'chosen, upload, download',
  [
    ({}, 64, 64 + 32),
    # A scale, and the key of the random numbers, as of any model update.
    ({'compression': 'qsgd'}, 2 * 8 + 32, 64 + 32 + 32),
  ],
)
def test_bits_count_the_global_part_alone(
  runtime, task, chosen, upload, download
):
  """Two of three weights; a learning rate comes with them."""
  aggregator = compose.build(aggregator_settings.Settings(**chosen))
  chosen = dataclasses.replace(settings(runtime), model_aggregator=aggregator)
  process = ALGORITHM.build_for(task, chosen)
  assert bits.download(process.next) == download
  (shared, _), output = train(
    runtime, task, runtime.prepare(process, task), some_rounds(task)[:1]
  )
  assert output.metrics['aggregator'][bits.UPLOAD] == upload
  assert np.isfinite(shared).all()
  assert not np.array_equal(shared[:, 0], np.float32(SHARED))


def test_a_broken_client_is_left_out_and_counted(runtime):
  sound = toy.random_clients((7, 4, 12), features=2)
  x, y = next(iter(sound.values()))
  ends = {}
  for kind, clients in (
    ('sound', sound),
    ('broken', {**sound, 'broken': (x, np.full_like(y, np.nan))}),
  ):
    task = toy.linear_task(clients, SHARED, scale=SCALE)
    cohort = {
      name: np.split(np.arange(size), range(3, size, 3))
      for name, size in task.data.train.num_examples.items()
    }
    process = build(task, runtime)
    (ends[kind], _), output = train(runtime, task, process, [cohort] * 2)
    rejected = output.metrics['aggregator']['rejected_clients']
    assert rejected == (kind == 'broken')
    assert output.metrics['client_work']['train']['num_examples'] == 10
  np.testing.assert_allclose(ends['broken'], ends['sound'], atol=1e-7)


def test_a_schedule_sets_the_clients_learning_rate(runtime, task):
  """A learning rate of 0 leaves the weights, whatever it was before."""
  process = build(task, runtime)
  state = process.initialize()
  rates = process.get_hparams(state)
  rates['client_work']['learning_rate'] = 0.0
  state = process.set_hparams(state, rates)
  output = process.next(state, data(runtime, task, some_rounds(task)[0]))
  shared = process.get_model_weights(output.state).trainable[0]
  np.testing.assert_array_equal(shared[:, 0], np.float32(SHARED))


def test_clients_may_compute_in_16_bit(runtime, task):
  mixed = task_lib.in_mixed_precision(task, 'bfloat16')
  rounds = some_rounds(task)
  (shared, own), _ = train(runtime, mixed, build(mixed, runtime), rounds)
  expected = reference(task, rounds)
  np.testing.assert_allclose(shared, expected, atol=0.02)
  assert np.abs(shared - expected).max() > 1e-6
  np.testing.assert_array_equal(own, [[SCALE]])


LAYERS = {'first': (0, 1), 'middle': (2,), 'last': (3, 4)}


@pytest.mark.parametrize(
  'names, local',
  [((), (3, 4)), (('first',), (0, 1)), (('last', 'middle'), (2, 3, 4))],
)
def test_variables_are_local_by_their_layers(names, local):
  partition = partly_local.Partition.of_layers(LAYERS, names)
  assert partition.local == local
  shared, own = partition.split('abcde')
  assert own == ['abcde'[i] for i in local]
  assert ''.join(partition.join(shared, own)) == 'abcde'


def test_a_tasks_layers_are_those_with_weights(task):
  assert task.layers() == {'shared': (0,), 'own': (1,)}


@pytest.mark.parametrize(
  'hparams, message',
  [
    ({'local_layers': ['own', 'head']}, 'has head; .* are shared, own'),
    ({'local_layers': ['own', 'shared']}, 'the server would have nothing'),
    ({'reconstruction_epochs': 0}, 'it must be at least 1'),
  ],
)
def test_what_does_not_fit_is_refused(runtime, task, hparams, message):
  with pytest.raises(local_training.UnsuitableError, match=message):
    build(task, runtime, **hparams)


def test_a_model_of_one_layer_is_refused(runtime):
  task = toy.linear_task(toy.random_clients())
  with pytest.raises(local_training.UnsuitableError, match=r'\(shared\) would'):
    build(task, runtime)
