"""What the plans do with chunks, equal clients and ragged rounds."""

import dataclasses
import re

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from research.algorithms import fed_avg, optimizers
from research.runtime import planner, program, tree, vmap
from tests.research.runtime import equality, processes, small_tasks

_REDUCE = tff.learning.LoopImplementation.DATASET_REDUCE
_ITERATOR = tff.learning.LoopImplementation.DATASET_ITERATOR


def build(task, loop_implementation=_REDUCE):
  return fed_avg.build(
    task.model_fn,
    client_optimizer=optimizers.build('sgd', 0.1),
    loop_implementation=loop_implementation,
  )


@pytest.fixture(scope='module')
def linear(stock_runtime):
  """Linear regression: the case and what TFF's own runtime makes of it."""
  case = processes.of_model('linear', True, processes.of_algorithm('fed_avg'))
  return case, equality.expected(case, rounds=1 + 1)


@pytest.mark.parametrize('clients_per_chunk', [1, 2, 3, 100])
@pytest.mark.parametrize('plan', ['vmap', 'vmap_xla'])
def test_chunks_change_nothing(linear, plan, clients_per_chunk):
  equality.check(*linear, plan, clients_per_chunk=clients_per_chunk)


@pytest.mark.parametrize(
  'sizes, empty', [((12,) * 35, False), ((3, 12, 21) * 12, True)]
)
def test_lanes_of_a_chunk_change_nothing(stock_runtime, sizes, empty):
  """Clients in blocks, and ragged ones of which one has no batch at all."""
  task = small_tasks.build('linear', sizes=sizes)
  case = equality.Case(
    lambda: build(task),
    lambda number: small_tasks.batches(
      task, number, batch_size=9 if empty else 4, epochs=1, empty=empty
    ),
  )
  reference = equality.expected(case, rounds=2)
  for lanes in (1, 3, 4):
    equality.check(case, reference, 'vmap', max_concurrent_clients=lanes)


def test_lanes_keep_the_order_of_what_clients_get_and_accumulate():
  values = [np.float32(number) for number in range(35)]

  @tff.tensorflow.computation
  def double(value):
    return value * 2

  @tff.tensorflow.computation(np.float32, np.float32)
  def shift_and_add(total, value):
    return total / 2 + value

  @tff.tensorflow.computation(np.float32, np.float32)
  def add(one, other):
    return one + other

  @tff.tensorflow.computation(np.float32)
  def report(total):
    return total

  @tff.federated_computation(tff.FederatedType(np.float32, tff.CLIENTS))
  def compute(clients):
    doubled = tff.federated_map(double, clients)
    zero = tff.tensorflow.computation(lambda: np.float32(0))()
    return doubled, tff.federated_aggregate(
      doubled, zero, shift_and_add, add, report
    )

  expected = 0.0
  for value in values:
    expected = expected / 2 + 2 * value
  with equality.in_process_runtime('vmap', max_concurrent_clients=4) as runtime:
    kept, total = compute(values)
    (plan,) = (
      part._plan
      for part in runtime._context.executable(compute)._passes
      if part
    )
  assert kept == [2 * value for value in values]
  assert total == pytest.approx(expected, rel=1e-6)
  assert [key[3] for key in plan._functions] == [4]


@pytest.mark.parametrize(
  'cores, clients, lanes',
  [(2, 15, 1), (2, 16, 2), (3, 40, 3), (16, 127, 8), (16, 128, 16), (4, 0, 1)],
)
def test_a_lane_has_enough_clients(cores, clients, lanes):
  client_pass = program.ClientPass([], [], [], [], [])
  plan = vmap.Vmap(client_pass, 1024, xla=False, lanes=cores)
  assert plan._lanes_of(clients) == lanes


def _functions(process, clients):
  """All functions of the graph that the first pass of a round was traced to."""
  with equality.in_process_runtime('scan') as runtime:
    process.next(process.initialize(), clients)
    (plan,) = (
      part._plan
      for part in runtime._context.executable(process.next)._passes
      if part
    )
  (traced,) = plan._functions.values()
  return traced.graph.as_graph_def().library.function


def test_a_local_step_is_a_function_of_its_own():
  task = small_tasks.build('convnet')
  steps = [
    function
    for function in _functions(build(task), small_tasks.batches(task))
    if function.attr['_noinline'].b
  ]
  # Else TensorFlow sees a step and its loop as one cycle, and by chance finds
  # no oneDNN kernel for a gradient.
  (step,) = steps
  ops = {node.op for node in step.node_def}
  assert {'Conv2D', 'Conv2DBackpropFilter'} <= ops


@pytest.mark.parametrize('concurrent', [1, 3])
def test_how_many_clients_run_at_once_changes_no_bit(linear, concurrent):
  case, reference = linear
  start = tf.nest.pack_sequence_as(reference.structure, reference.states[0])
  found = []
  for number in (2, concurrent):
    with equality.in_process_runtime('scan', max_concurrent_clients=number):
      trace = equality.run(reference.process, start, [case.clients(0)])
    found.append([leaf.tobytes() for leaf in trace.states[1]])
  assert found[0] == found[1]


@pytest.mark.parametrize('epochs', [1, 2])
@pytest.mark.parametrize('plan', ['vmap', 'vmap_xla'])
def test_clients_of_one_size(stock_runtime, plan, epochs):
  task = small_tasks.build('linear', sizes=(12, 12, 12))
  case = equality.Case(
    lambda: build(task),
    lambda number: small_tasks.batches(
      task, number, batch_size=4, epochs=epochs, empty=False
    ),
  )
  equality.check(case, equality.expected(case, rounds=2), plan)


def _programs(plan, sizes_by_round) -> int:
  """How many functions the rounds of ragged clients need."""
  process = None
  with equality.in_process_runtime(plan) as runtime:
    for number, sizes in enumerate(sizes_by_round):
      task = small_tasks.build('linear', sizes=sizes)
      process = process or build(task)
      if number == 0:
        preprocess, state = task.preprocess, process.initialize()
      clients = [
        dataclasses.replace(client, preprocess=preprocess)
        for client in small_tasks.batches(task, number, batch_size=10)
      ]
      state = process.next(state, clients).state
    return runtime.programs


@pytest.mark.parametrize('plan, most', [('vmap', 4), ('scan', 1)])
def test_ragged_rounds_need_few_programs(plan, most):
  rng = np.random.default_rng(0)
  rounds = [rng.integers(1, 60, size=6).tolist() for _ in range(25)]
  assert 1 <= _programs(plan, rounds) <= most


def test_a_later_round_that_is_not_vectorised_is_scanned(linear, monkeypatch):
  original, calls = vmap.Vmap.run, []

  def run(self, *args):
    calls.append(None)
    if len(calls) > 1:
      raise planner.VectorizationError('Not this round.')
    return original(self, *args)

  monkeypatch.setattr(vmap.Vmap, 'run', run)
  equality.check(*linear, 'vmap', client_plan='auto')
  # From then on it is not tried again.
  assert len(calls) == 2
  with pytest.raises(planner.VectorizationError, match='Not this round'):
    equality.check(*linear, 'vmap')


def decide(process, client_plan='auto', xla='auto', device='cpu', **kwargs):
  (client_pass,) = (
    stage.clients for stage in tree.build(process.next).stages if stage.clients
  )
  options = planner.Options(device, xla, client_plan, **kwargs)
  return planner.decide(client_pass, options)


@pytest.fixture(scope='module')
def made():
  return {
    'linear': build(small_tasks.build('linear')),
    'convnet': build(small_tasks.build('convnet')),
    'iterator': build(small_tasks.build('linear'), _ITERATOR),
  }


@pytest.mark.parametrize(
  'name, options, plan, xla, reason',
  [
    ('linear', {}, 'vmap', False, 'one op for many clients'),
    ('linear', {'xla': 'on'}, 'vmap', True, '--xla=on'),
    ('linear', {'device': 'gpu'}, 'vmap', True, 'fills a gpu'),
    ('linear', {'device': 'tpu', 'xla': 'off'}, 'vmap', False, 'fills a tpu'),
    ('linear', {'client_plan': 'scan'}, 'scan', False, '--client_plan=scan'),
    ('linear', {'client_plan': 'loop'}, 'loop', False, '--client_plan=loop'),
    ('convnet', {}, 'scan', False, 'oneDNN'),
    ('convnet', {'device': 'gpu'}, 'vmap', True, 'fills a gpu'),
    ('convnet', {'client_plan': 'vmap'}, 'vmap', False, '--client_plan=vmap'),
    ('convnet', {'xla': 'on'}, 'vmap', True, 'slow'),
    ('iterator', {}, 'loop', False, 'IteratorGetNext'),
    ('iterator', {'device': 'gpu'}, 'loop', False, 'IteratorGetNext'),
  ],
)
def test_decisions(made, name, options, plan, xla, reason):
  decision = decide(made[name], **options)
  assert (decision.plan, decision.xla) == (plan, xla)
  assert reason in decision.reason
  assert decision.describe()['plan'] == plan
  assert (decision.clients_per_chunk is not None) == (plan == 'vmap')


@pytest.mark.parametrize(
  'name, options, message',
  [
    ('iterator', {'client_plan': 'scan'}, 'one by one.*DATASET_REDUCE'),
    ('iterator', {'client_plan': 'vmap'}, 'one by one.*DATASET_REDUCE'),
    ('iterator', {'xla': 'on'}, 'one by one.*DATASET_REDUCE'),
    ('linear', {'client_plan': 'scan', 'xla': 'on'}, 'not scan'),
    ('linear', {'client_plan': 'loop', 'xla': 'on'}, 'not loop'),
  ],
)
def test_what_the_flags_can_not_have_is_an_error(made, name, options, message):
  with pytest.raises(planner.PlanError) as error:
    decide(made[name], **options)
  assert re.search(message, str(error.value).replace('\n', ' '))


def test_an_operation_without_a_vectorised_form(made, monkeypatch):
  monkeypatch.setattr(planner, '_without_rule', lambda *_: ['Where'])
  assert decide(made['linear']).plan == 'scan'
  assert 'Where' in decide(made['linear']).reason
  for options in ({'client_plan': 'vmap'}, {'xla': 'on'}):
    with pytest.raises(planner.PlanError, match='Where'):
      decide(made['linear'], **options)


def test_a_large_model_is_not_vectorised_on_a_cpu(made, monkeypatch):
  monkeypatch.setattr(planner, 'SMALL_MODEL', 2)
  assert decide(made['linear']).plan == 'scan'
  assert decide(made['linear'], device='gpu').plan == 'vmap'


def test_chunks_fit_into_their_memory(made, monkeypatch):
  assert decide(made['linear'], clients_per_chunk=7).clients_per_chunk == 7
  few = decide(made['linear']).clients_per_chunk
  monkeypatch.setattr(planner, 'parameters', lambda _: 10_000_000)
  monkeypatch.setattr(planner, 'SMALL_MODEL', 10**9)
  chunk = decide(made['linear']).clients_per_chunk
  assert 1 <= chunk < few
  assert chunk * 10_000_000 * 4 <= planner._CHUNK_BYTES['cpu']
