"""TFF's own runtime and this one give the same states and metrics."""

import itertools
import logging
import multiprocessing

import numpy as np
import pytest
import tensorflow as tf

from research.runtime import loop, reductions, scan, stock, vmap
from tests.research.runtime import equality, processes

# The optimizers work at the server: they change with the algorithms.
PROJECT = {
  key: case
  for number, (key, case) in enumerate(
    processes.project(processes.FROM_TFF).items()
  )
  if number % 3 == 0
}
CASES = {
  **PROJECT,
  **processes.local(),
  **processes.tff_algorithms(),
  **processes.others(),
  **processes.aggregators(),
}
MODELS = ('linear', 'mlp', 'dropout', 'group_norm')


def _pairs():
  """Each case once, and the plans in turn."""
  # vmap without XLA is traced the longest.
  turn = itertools.cycle(['scan', 'vmap_xla', 'loop', 'scan', 'vmap', 'loop'])
  for name, case in CASES.items():
    plan = next(plan for plan in turn if plan in case.plans)
    yield pytest.param(case, plan, id=f'{name}-{plan}')


@pytest.mark.parametrize('case, plan', _pairs())
def test_states_and_metrics_are_equal(stock_runtime, case, plan):
  equality.check(case, equality.expected(case, rounds=2), plan)


@pytest.fixture(scope='module')
def of_models(stock_runtime):
  """What TFF's own runtime does with each model, once for all plans."""
  build = processes.of_algorithm('fed_avg')
  found = {}

  def get(name, is_functional):
    if (name, is_functional) not in found:
      case = processes.of_model(name, is_functional, build)
      found[name, is_functional] = case, equality.expected(case, rounds=2)
    return found[name, is_functional]

  return get


@pytest.mark.parametrize(
  'name, is_functional, plan',
  [
    ('linear', False, 'vmap'),
    ('linear', True, 'loop'),
    ('mlp', False, 'vmap_xla'),
    ('dropout', False, 'scan'),
    ('dropout', True, 'vmap_xla'),
    ('group_norm', False, 'loop'),
    ('group_norm', True, 'scan'),
    ('batch_norm', False, 'loop'),
    ('batch_norm', False, 'vmap_xla'),
    ('bert', False, 'loop'),
    ('bert', False, 'scan'),
    ('bert', False, 'vmap'),
    pytest.param('bert', False, 'vmap_xla', marks=pytest.mark.slow),
  ],
)
def test_models_with_and_without_variables(
  of_models, name, is_functional, plan
):
  equality.check(*of_models(name, is_functional), plan)


def _double_first_in_loop(monkeypatch):
  original, clients = loop.Loop._add, []

  def add(self, accumulators, contributions):
    clients.append(None)
    factor = 2 if len(clients) == 1 else 1
    doubled = [[value * factor for value in c] for c in contributions]
    return original(self, accumulators, doubled)

  monkeypatch.setattr(loop.Loop, '_add', add)


def _double_first_in_scan(monkeypatch):
  original_at, original_add, current = scan.at, reductions.add_client, []

  def at(arrays, layout, client):
    current[:] = [client]
    return original_at(arrays, layout, client)

  def add(reduced, accumulators, contributions):
    doubled = [
      [v * (1 + tf.cast(current[0] == 0, v.dtype)) for v in c]
      for c in contributions
    ]
    return original_add(reduced, accumulators, doubled)

  monkeypatch.setattr(scan, 'at', at)
  monkeypatch.setattr(reductions, 'add_client', add)


def _double_first_in_vmap(monkeypatch):
  original = vmap.Vmap.chunks

  def chunks(self, inputs, clients):
    found = list(original(self, inputs, clients))
    members, segments = found[0]
    yield from found
    yield members[:1], [part.take(np.array([0])) for part in segments]

  monkeypatch.setattr(vmap.Vmap, 'chunks', chunks)


@pytest.mark.parametrize(
  'plan, double_first',
  [
    ('loop', _double_first_in_loop),
    ('scan', _double_first_in_scan),
    ('vmap', _double_first_in_vmap),
    ('vmap_xla', _double_first_in_vmap),
  ],
)
def test_a_client_that_weighs_twice_is_found(
  of_models, plan, double_first, monkeypatch
):
  case, reference = of_models('linear', True)
  double_first(monkeypatch)
  with pytest.raises(AssertionError, match='state differs'):
    equality.check(case, reference, plan)


def _product():
  """Every algorithm with every model, and every aggregator; each by its name.

  Server optimizers work where no plan has a part: with one model, they are.
  """
  kinds = {'keras': False, 'functional': True}
  found = {
    **processes.project(processes.FROM_TFF),
    **processes.project(processes.FROM_TFF, MODELS, kinds.values(), ('adam',)),
    **processes.local(MODELS),
    **processes.others(),
  }
  for kind, is_functional in kinds.items():
    for name in MODELS:
      cases = processes.tff_algorithms(name, is_functional)
      found |= {f'{key}-{name}-{kind}': case for key, case in cases.items()}
    cases = processes.aggregators('mlp', is_functional)
    found |= {f'{key}-{kind}': case for key, case in cases.items()}
  return found.items()


def _check_all_plans(name: str) -> dict[str, float]:
  """The largest difference of each plan from TFF's own runtime."""
  case = dict(_product())[name]
  with stock.StockRuntime():
    reference = equality.expected(case, processes.ROUNDS)
    return {plan: equality.check(case, reference, plan) for plan in case.plans}


@pytest.fixture(scope='module')
def replaced_process():
  """Runs cases in another process, which a new one follows after some.

  TensorFlow keeps what XLA has compiled until its process ends: about 400 MB
  a case.
  """
  spawn = multiprocessing.get_context('spawn')
  with spawn.Pool(1, maxtasksperchild=10) as pool:
    yield pool


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize('name', [name for name, _ in _product()])
def test_the_full_product(replaced_process, name):
  for plan, largest in replaced_process.apply(
    _check_all_plans, (name,)
  ).items():
    logging.info('%s, %s: largest difference %.1e', name, plan, largest)
