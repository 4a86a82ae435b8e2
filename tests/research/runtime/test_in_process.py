"""The in-process runtime as its users meet it."""

import collections

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from research.algorithms import fed_avg, optimizers
from research.runtime import in_process, planner
from tests.research.runtime import equality, small_tasks

_ITERATOR = tff.learning.LoopImplementation.DATASET_ITERATOR


@pytest.fixture(scope='module')
def task():
  return small_tasks.build('linear')


def build(task, **kwargs):
  arguments = {
    'client_optimizer': optimizers.build('sgd', 0.1),
    'server_optimizer': optimizers.build('adam', 0.1),
    'loop_implementation': tff.learning.LoopImplementation.DATASET_REDUCE,
  }
  return fed_avg.build(task.model_fn, **{**arguments, **kwargs})


def test_states_stay_tensors_and_metrics_are_arrays(task):
  process = build(task)
  with equality.in_process_runtime('scan'):
    state = process.initialize()
    output = process.next(state, small_tasks.batches(task))
  leaves = tf.nest.flatten(output.state)
  assert leaves and all(tf.is_tensor(leaf) for leaf in leaves)
  metrics = tf.nest.flatten(output.metrics)
  assert metrics and not any(tf.is_tensor(leaf) for leaf in metrics)
  assert output.metrics['client_work']['train']['num_examples'] == 2 * 106


def test_a_state_may_be_arrays_or_tensors(task):
  process = build(task)
  with equality.in_process_runtime('scan'):
    state = process.next(process.initialize(), small_tasks.batches(task)).state
    as_arrays = tf.nest.map_structure(lambda leaf: leaf.numpy(), state)
    results = [
      equality.flat(process.next(given, small_tasks.batches(task)).state)
      for given in (state, as_arrays)
    ]
  assert equality.difference(*results) == 0


@pytest.mark.parametrize('plan', equality.PLANS)
def test_datasets_and_lists_train_as_arrays_do(task, plan):
  process = build(task)
  clients = small_tasks.batches(task)
  datasets = [small_tasks.dataset(client) for client in clients]
  lists = [list(dataset.as_numpy_iterator()) for dataset in datasets]
  with equality.in_process_runtime(plan):
    state = process.initialize()
    results = [
      equality.flat(process.next(state, given))
      for given in (clients, datasets, lists)
    ]
  equality.assert_equal(results[1], results[0])
  equality.assert_equal(results[2], results[0])


def test_a_process_over_iterators_runs_client_by_client(stock_runtime, task):
  case = equality.Case(
    lambda: build(task, loop_implementation=_ITERATOR),
    lambda number: small_tasks.batches(task, number),
  )
  reference = equality.expected(case, rounds=2)
  with in_process.InProcessRuntime(device='cpu') as runtime:
    start = tf.nest.pack_sequence_as(reference.structure, reference.states[0])
    trace = equality.run(reference.process, start, [case.clients(0)])
    (decision,) = equality.decisions(runtime, reference.process.next)
  assert decision.plan == planner.LOOP
  equality.assert_equal(trace.states[1], reference.states[1])
  equality.assert_equal(trace.metrics[0], reference.metrics[0])


def test_results_of_clients_are_lists(task):
  @tff.tensorflow.computation(
    tff.SequenceType(collections.OrderedDict(x=(np.float32, [None, 3])))
  )
  def measure(batches):
    count = batches.reduce(0, lambda n, batch: n + tf.shape(batch['x'])[0])
    return collections.OrderedDict(count=count, twice=(count, 2 * count))

  @tff.federated_computation(
    tff.FederatedType(measure.type_signature.parameter, tff.CLIENTS)
  )
  def run(clients):
    return tff.federated_map(measure, clients)

  clients = [
    [{'x': np.zeros([size, 3], np.float32)} for size in sizes]
    for sizes in ([3, 1], [], [2])
  ]
  with equality.in_process_runtime('vmap'):
    found = run(clients)
  assert found == [
    {'count': count, 'twice': (count, 2 * count)} for count in (4, 0, 2)
  ]


def test_a_round_without_clients_changes_no_weights(task):
  process = build(task)
  for plan in equality.PLANS:
    with equality.in_process_runtime(plan):
      state = process.initialize()
      output = process.next(state, [])
      weights = process.get_model_weights(output.state).trainable
      before = process.get_model_weights(state).trainable
    assert (
      equality.difference(equality.flat(weights), equality.flat(before)) == 0
    )
    assert output.metrics['client_work']['train']['num_examples'] == 0


def test_hyperparameters_are_read_and_set(task):
  process = build(task)
  with equality.in_process_runtime('scan'):
    state = process.initialize()
    hparams = process.get_hparams(state)
    hparams['client_work']['learning_rate'] = 0.0
    still = process.set_hparams(state, hparams)
    output = process.next(still, small_tasks.batches(task))
    weights = process.get_model_weights(output.state).trainable
    before = process.get_model_weights(state).trainable
  equality.assert_equal(equality.flat(weights), equality.flat(before))


def test_leaving_the_runtime_brings_back_the_context_before():
  stack = tff.framework.get_context_stack()
  before = stack.current
  with equality.in_process_runtime('scan') as outer:
    assert stack.current is outer._context
    with equality.in_process_runtime('vmap') as inner:
      assert stack.current is inner._context
    assert stack.current is outer._context
  assert stack.current is before


def test_what_was_decided_is_described(task):
  with in_process.InProcessRuntime(device='cpu', client_plan='scan') as runtime:
    assert runtime.prepare(build(task), task) is not None
    described = runtime.describe()
  (decision,) = described['decisions']
  assert (described['name'], described['device']) == ('in_process', 'cpu')
  assert decision['plan'] == 'scan'
  assert '--client_plan=scan' in decision['reason']
