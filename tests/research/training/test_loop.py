"""The training loop on three weights, in TFF's own runtime."""

import dataclasses
import io
import threading

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from datasets import federated_data
from research.algorithms import fed_avg, fed_sgd, optimizers
from research.runtime import in_process
from research.training import (
  checkpoint,
  cohorts,
  columns,
  loop,
  metrics,
  progress,
  run_directory,
  sampling,
  schedules,
)
from tests import toy

CONFIG = loop.LoopConfig(
  total_rounds=4,
  clients_per_round=2,
  client_epochs_per_round=2,
  client_batch_size=3,
  rounds_per_evaluation=2,
  seed=5,
)
NAN = (np.full([4, 3], np.nan), np.zeros(4))
EMPTY = (np.zeros([0, 3]), np.zeros(0))


def make_loop(
  runtime,
  directory,
  clients,
  *,
  config=CONFIG,
  server=('momentum', 1.0),
  algorithm='fed_avg',
  schedule=None,
  weighting=tff.learning.ClientWeighting.NUM_EXAMPLES,
  sampling_scheme=sampling.FIXED_SIZE,
):
  task = toy.linear_task(clients)
  server_optimizer = optimizers.build(*server, {})
  if algorithm == 'fed_avg':
    process = fed_avg.build(
      task.model_fn,
      client_optimizer=optimizers.build('sgd', 0.05, {}),
      server_optimizer=server_optimizer,
      client_weighting=weighting,
      loop_implementation=runtime.loop_implementation,
    )
  else:
    process = fed_sgd.build(
      task.model_fn,
      server_optimizer=server_optimizer,
      loop_implementation=runtime.loop_implementation,
    )
  return loop.TrainingLoop(
    config,
    task,
    runtime.prepare(process, task),
    schedule
    or loop.Schedules(schedules.Schedule(0.05), schedules.Schedule(server[1])),
    sampling.ClientSampler(
      task.data.train.client_ids,
      config.clients_per_round,
      sampling_scheme,
      config.seed,
    ),
    runtime,
    checkpoint.CheckpointManager(directory / 'checkpoints', 2),
  )


def run(training_loop, directory):
  files = [
    metrics.MetricsCsv(
      directory / 'metrics.csv', columns.columns(training_loop.task)
    ),
    metrics.MetricsCsv(directory / 'timing.csv', loop.TIMING_COLUMNS),
  ]
  shown = progress.Progress(training_loop.config.total_rounds, 0, io.StringIO())
  return training_loop.run(training_loop.restore(), *files, [], shown)


def bits(state):
  return [np.asarray(leaf).tobytes() for leaf in tf.nest.flatten(state)]


def test_each_client_and_round_has_its_own_order_of_examples():
  split = toy.regression_data(toy.random_clients((20, 20))).train
  config = dataclasses.replace(CONFIG, client_epochs_per_round=1)
  orders = {
    (client, round_num, seed): tuple(
      np.concatenate(
        cohorts.client_batches(
          dataclasses.replace(config, seed=seed), split, client, round_num
        )
      )
    )
    for client in split.client_ids
    for round_num in (1, 2)
    for seed in (0, 1)
  }
  assert len(set(orders.values())) == len(orders)


def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(
  stock_runtime, tmp_path
):
  clients = toy.random_clients()
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  for directory in (whole, parts):
    directory.mkdir()
  expected = run(make_loop(stock_runtime, whole, clients), whole)
  # Rounds 3 and on are cut off after an evaluation, as a kill would.
  first = dataclasses.replace(CONFIG, total_rounds=2)
  run(make_loop(stock_runtime, parts, clients, config=first), parts)
  resumed = run(make_loop(stock_runtime, parts, clients), parts)
  assert bits(resumed) == bits(expected)
  read = [(d / 'metrics.csv').read_bytes() for d in (whole, parts)]
  assert read[0] == read[1]


class _Watched:
  """A process whose rounds another function trains."""

  def __init__(self, process, train):
    self._process, self.next = process, train

  def __getattr__(self, name):
    return getattr(self._process, name)


def test_cohorts_are_prepared_while_the_round_before_is_trained(
  stock_runtime, tmp_path, monkeypatch
):
  training_loop = make_loop(stock_runtime, tmp_path, toy.random_clients())
  prepare, train = training_loop._prepare, training_loop.process.next
  last = CONFIG.total_rounds
  begun = {n: threading.Event() for n in range(last + 1)}
  drawing = {n: threading.Event() for n in range(1, last + 1)}
  begun[0].set()
  drawn, rounds = [], iter(range(1, last + 1))

  def prepare_once_the_round_before_has_begun(round_num):
    drawing[round_num].set()
    assert begun[round_num - 1].wait(timeout=60)
    drawn.append(round_num)
    return prepare(round_num)

  def train_once_the_next_is_being_drawn(state, clients):
    round_num = next(rounds)
    begun[round_num].set()
    assert round_num == last or drawing[round_num + 1].wait(timeout=60)
    return train(state, clients)

  monkeypatch.setattr(
    training_loop, '_prepare', prepare_once_the_round_before_has_begun
  )
  training_loop.process = _Watched(
    training_loop.process, train_once_the_next_is_being_drawn
  )
  run(training_loop, tmp_path)
  assert drawn == list(range(1, last + 1))


def test_a_client_that_can_not_be_read_stops_the_run_at_its_round(
  stock_runtime, tmp_path, monkeypatch
):
  training_loop = make_loop(stock_runtime, tmp_path, toy.random_clients())
  prepare = training_loop._prepare

  def fail_in_round_3(round_num):
    if round_num == 3:
      raise federated_data.DataError('this client is gone')
    return prepare(round_num)

  monkeypatch.setattr(training_loop, '_prepare', fail_in_round_3)
  with pytest.raises(federated_data.DataError, match='is gone'):
    run(training_loop, tmp_path)
  rows = metrics.read(tmp_path / 'metrics.csv')
  assert [row['round'] for row in rows] == [1, 2]


def test_the_timing_counts_programs(tmp_path):
  with in_process.InProcessRuntime(device='cpu') as runtime:
    run(make_loop(runtime, tmp_path, toy.random_clients()), tmp_path)
    programs = runtime.programs
  rows = metrics.read(tmp_path / 'timing.csv')
  counts = [row['client_programs'] for row in rows]
  assert counts == sorted(counts)
  assert 1 <= counts[0] <= counts[-1] == programs


def test_a_resume_without_the_rows_before_it_is_refused(
  stock_runtime, tmp_path
):
  clients = toy.random_clients()
  run(make_loop(stock_runtime, tmp_path, clients), tmp_path)
  (tmp_path / 'metrics.csv').unlink()
  more = dataclasses.replace(CONFIG, total_rounds=6)
  with pytest.raises(run_directory.ResumeError, match='rows are missing'):
    run(make_loop(stock_runtime, tmp_path, clients, config=more), tmp_path)


def test_empty_clients_are_not_asked_and_change_nothing(
  stock_runtime, tmp_path
):
  clients = toy.random_clients((5,))
  config = dataclasses.replace(CONFIG, clients_per_round=1)
  alone = make_loop(stock_runtime, tmp_path, clients, config=config)
  expected, _ = alone.train_round(alone.process.initialize(), 1)
  config = dataclasses.replace(CONFIG, clients_per_round=3)
  mixed = make_loop(
    stock_runtime,
    tmp_path,
    {**clients, 'empty': EMPTY, 'empty too': EMPTY},
    config=config,
    weighting=tff.learning.ClientWeighting.UNIFORM,
  )
  state, row = mixed.train_round(mixed.process.initialize(), 1)
  assert bits(state) == bits(expected)
  assert (row['clients'], row['empty_clients'], row['examples']) == (3, 2, 10)


@pytest.mark.parametrize('algorithm', ['fed_avg', 'fed_sgd'])
def test_non_finite_clients_are_rejected_and_counted(
  stock_runtime, tmp_path, algorithm
):
  clients = toy.random_clients((5,))
  kwargs = {'algorithm': algorithm}
  config = dataclasses.replace(CONFIG, clients_per_round=1)
  alone = make_loop(stock_runtime, tmp_path, clients, config=config, **kwargs)
  expected, expected_row = alone.train_round(alone.process.initialize(), 1)
  config = dataclasses.replace(CONFIG, clients_per_round=2)
  clients = {**clients, 'broken': NAN}
  mixed = make_loop(stock_runtime, tmp_path, clients, config=config, **kwargs)
  state, row = mixed.train_round(mixed.process.initialize(), 1)
  assert bits(state) == bits(expected)
  assert row['rejected_clients'] == 1
  assert expected_row['rejected_clients'] == 0
  assert row['train_loss'] == expected_row['train_loss']
  assert row['examples'] == expected_row['examples']


@pytest.mark.parametrize(
  'clients', [{'a': NAN, 'b': NAN}, {'a': EMPTY, 'b': EMPTY}]
)
def test_a_round_without_any_good_client_leaves_the_state(
  stock_runtime, tmp_path, clients
):
  training_loop = make_loop(stock_runtime, tmp_path, clients)
  good = make_loop(stock_runtime, tmp_path, toy.random_clients())
  # A state whose server momentum is not zero would move on a zero update.
  state, _ = good.train_round(good.process.initialize(), 1)
  after, row = training_loop.train_round(state, 2)
  assert bits(after) == bits(state)
  assert row['examples'] == 0
  assert 'train_loss' not in row


def test_an_empty_poisson_cohort_leaves_the_state(stock_runtime, tmp_path):
  training_loop = make_loop(
    stock_runtime,
    tmp_path,
    toy.random_clients((3,) * 4),
    config=dataclasses.replace(CONFIG, clients_per_round=1),
    sampling_scheme=sampling.POISSON,
  )
  sampler = sampling.ClientSampler(
    training_loop.task.data.train.client_ids, 1, sampling.POISSON, CONFIG.seed
  )
  empty = next(r for r in range(1, 100) if not sampler.sample(r))
  state = training_loop.process.initialize()
  after, row = training_loop.train_round(state, empty)
  assert bits(after) == bits(state)
  assert (row['clients'], row['examples']) == (0, 0)


def test_learning_rate_schedules_reach_clients_and_server(
  stock_runtime, tmp_path
):
  clients = toy.random_clients((6,))
  config = dataclasses.replace(CONFIG, clients_per_round=1, client_batch_size=0)
  config = dataclasses.replace(config, client_epochs_per_round=1)
  schedule = loop.Schedules(
    schedules.Schedule(0.1, 'exponential', decay_rounds=1, decay_rate=0.5),
    schedules.Schedule(1.0, 'inverse_sqrt', decay_rounds=1),
  )
  training_loop = make_loop(
    stock_runtime,
    tmp_path,
    clients,
    config=config,
    schedule=schedule,
    server=('sgd', 1.0),
  )
  state = training_loop.process.initialize()
  (x, y) = clients['client_0']
  weights = np.array([0.5, -1.0, 2.0])
  for round_num in (1, 2, 3):
    state, row = training_loop.train_round(state, round_num)
    client_rate = 0.1 * 0.5 ** (round_num - 1)
    server_rate = 1 / np.sqrt(round_num)
    assert row['client_learning_rate'] == pytest.approx(client_rate)
    assert row['server_learning_rate'] == pytest.approx(server_rate)
    gradient = 2 * x.T @ (x @ weights - y) / len(y)
    weights = weights - server_rate * client_rate * gradient
  trained = state.global_model_weights.trainable[0][:, 0]
  np.testing.assert_allclose(trained, weights, atol=1e-6)


def test_plateaus_are_remembered_across_a_resume(stock_runtime, tmp_path):
  schedule = loop.Schedules(
    schedules.Schedule(0.05, 'plateau', decay_rounds=1, decay_rate=0.5),
    schedules.Schedule(1.0),
  )
  found = {}
  for name, ends in (('whole', [8]), ('resumed', [3, 8])):
    directory = tmp_path / name
    directory.mkdir()
    for total_rounds in ends:
      config = dataclasses.replace(
        CONFIG, total_rounds=total_rounds, clients_per_round=1
      )
      training_loop = make_loop(
        stock_runtime,
        directory,
        toy.random_clients((7, 4, 12, 5)),
        config=config,
        schedule=schedule,
      )
      run(training_loop, directory)
    rows = metrics.read(directory / 'metrics.csv')
    found[name] = [(r['train_loss'], r['client_learning_rate']) for r in rows]
  assert found['resumed'] == found['whole']
  losses, rates = zip(*found['whole'], strict=True)
  plateaus = sum(b >= min(losses[:i]) for i, b in enumerate(losses[:-1]) if i)
  assert 1 <= plateaus <= 5
  assert rates[-1] == pytest.approx(0.05 * 0.5**plateaus)


def test_a_checkpoint_of_another_model_is_refused(stock_runtime, tmp_path):
  manager = checkpoint.CheckpointManager(tmp_path / 'checkpoints')
  manager.save(1, [np.zeros([2, 1], np.float32)])
  training_loop = make_loop(stock_runtime, tmp_path, toy.random_clients())
  with pytest.raises(run_directory.ResumeError, match='leaves of shapes'):
    training_loop.restore()


class TensorProcess:
  """A learning process whose states and metrics are tensors."""

  def __init__(self, process):
    self._process = process

  def __getattr__(self, name):
    return getattr(self._process, name)

  def _as_tensors(self, structure):
    return tf.nest.map_structure(tf.constant, structure)

  def _as_arrays(self, structure):
    leaves = loop.host_leaves(structure)
    return tf.nest.pack_sequence_as(structure, leaves)

  def initialize(self):
    return self._as_tensors(self._process.initialize())

  def next(self, state, clients):
    output = self._process.next(self._as_arrays(state), clients)
    return output.__class__(
      self._as_tensors(output.state), self._as_tensors(output.metrics)
    )

  def get_hparams(self, state):
    return self._as_tensors(self._process.get_hparams(self._as_arrays(state)))

  def set_hparams(self, state, hparams):
    arrays = self._as_arrays(state), self._as_arrays(hparams)
    return self._as_tensors(self._process.set_hparams(*arrays))

  def get_model_weights(self, state):
    weights = self._process.get_model_weights(self._as_arrays(state))
    return self._as_tensors(weights)


def test_states_and_metrics_may_be_tensors(stock_runtime, tmp_path):
  """As of a runtime that keeps its state on a device, also across a resume."""
  clients = toy.random_clients((7, 4, 12, 5))
  clients['broken'] = NAN
  schedule = loop.Schedules(
    schedules.Schedule(0.05, 'exponential', decay_rounds=1, decay_rate=0.5),
    schedules.Schedule(1.0),
  )
  results = {}
  for name, total_rounds in (('arrays', 4), ('tensors', 2), ('tensors', 4)):
    directory = tmp_path / name
    directory.mkdir(exist_ok=True)
    config = dataclasses.replace(
      CONFIG, total_rounds=total_rounds, clients_per_round=5
    )
    training_loop = make_loop(
      stock_runtime, directory, clients, config=config, schedule=schedule
    )
    if name == 'tensors':
      training_loop.process = TensorProcess(training_loop.process)
    run(training_loop, directory)
    results[name] = [
      (directory / file).read_bytes()
      for file in (
        'metrics.csv',
        'checkpoints/round_000004/state.npz',
        'checkpoints/round_000004/manifest.json',
      )
      if total_rounds == 4
    ]
  assert results['tensors'] == results['arrays']
  assert metrics.read(directory / 'metrics.csv')[-1]['rejected_clients'] == 1
