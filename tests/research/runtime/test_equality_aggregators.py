"""Aggregators alone, on equal values of the clients.

Those that round would make a large difference of a small one, so they can't be
compared after local training; those that draw random numbers are compared by
their distributions.
"""

import collections
import functools
import itertools

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
import tensorflow_federated as tff
from tensorflow_model_optimization.python.core.internal import (
  tensor_encoding as te,
)

from research.aggregators import compose, dp, settings
from research.privacy import noise
from tests.research.runtime import equality

CLIENTS = 5
SHAPE = (3, 16)
FALSE_ALARMS = 1e-6

Output = collections.namedtuple('Output', ['state', 'metrics'])

_mean = tff.aggregators.MeanFactory
_unweighted_mean = tff.aggregators.UnweightedMeanFactory
_sum = tff.aggregators.SumFactory
_private = tff.aggregators.DifferentiallyPrivateFactory


def _encoded(bits: int):
  def encoder(spec):
    stage = te.stages.UniformQuantizationEncodingStage(bits, stochastic=False)
    return te.encoders.as_gather_encoder(
      te.core.EncoderComposer(stage).make(), spec
    )

  return tff.aggregators.EncodedSumFactory(encoder)


def _composed(**chosen):
  chosen = {'clients_per_round': CLIENTS, **chosen}
  return lambda: compose.build(settings.Settings(**chosen))


_clipped = {'clipping': 'fixed', 'clip_norm': 4.0}
PROJECT = {
  **{
    f'compression_{name}': _composed(compression=name)
    for name in settings.CODECS
  },
  'median': _composed(aggregator='median'),
  'trimmed_mean': _composed(aggregator='trimmed_mean'),
  'geometric_median': _composed(aggregator='geometric_median'),
  'krum': _composed(aggregator='krum'),
  'multi_krum': _composed(aggregator='multi_krum', selected_clients=2),
  'adaptive_clipping': _composed(clipping='adaptive', clip_norm=6.0),
  'zeroing_clipping': _composed(zeroing=True, **_clipped),
  'hadamard_qsgd': _composed(compression='qsgd', rotation='hadamard'),
  'fourier_uniform': _composed(compression='uniform', rotation='fourier'),
  'private_mean': _composed(
    dp_mechanism='gaussian', has_uniform_weights=True, **_clipped
  ),
  'private_adaptive': _composed(
    dp_mechanism='gaussian',
    has_uniform_weights=True,
    clipping='adaptive',
    clip_norm=6.0,
  ),
  'distributed_mean': _composed(
    dp_mechanism='distributed_skellam', has_uniform_weights=True, **_clipped
  ),
  'local_mean': _composed(
    dp_mechanism='local_laplace',
    has_uniform_weights=True,
    clipping='l1',
    clip_norm=4.0,
  ),
  'private_mean_of_codes': _composed(
    dp_mechanism='gaussian',
    has_uniform_weights=True,
    compression='uniform',
    **_clipped,
  ),
  'median_of_codes': _composed(aggregator='median', compression='stochastic'),
}
JUMPING = {
  **PROJECT,
  'uniform_quantizer': lambda: _unweighted_mean(_encoded(3)),
  'discretization': lambda: _unweighted_mean(
    tff.aggregators.discretization.DiscretizationFactory(_sum(), 7.0)
  ),
  'compression': lambda: tff.learning.compression_aggregator(),
  'robust': lambda: tff.learning.robust_aggregator(),
  'private_sum': lambda: _private.gaussian_fixed(0.0, CLIENTS, 0.5),
}
SECURE = {
  'composed_secure_sum': _composed(
    secure_sum=True, has_uniform_weights=True, **_clipped
  ),
  'secure_aggregator': lambda: tff.learning.secure_aggregator(),
  'secure_unweighted': lambda: tff.learning.secure_aggregator(weighted=False),
  'secure_sum': lambda: tff.aggregators.SecureSumFactory(4.0, -4.0),
  'secure_mean': lambda: _mean(
    tff.aggregators.SecureSumFactory(100.0, -100.0),
    tff.aggregators.SecureSumFactory(50.0, 0.0),
  ),
}


def _values(number: int) -> list[np.ndarray]:
  rng = np.random.default_rng(number)
  return [rng.normal(size=SHAPE).astype(np.float32) for _ in range(CLIENTS)]


def _case(build) -> equality.Case:
  """A process that aggregates values, and weights if it takes some."""
  value_type = tff.TensorType(np.float32, SHAPE)
  factory = build()
  types = [value_type]
  if isinstance(factory, tff.aggregators.WeightedAggregationFactory):
    types.append(tff.TensorType(np.float32))
  process = factory.create(*types)

  @tff.federated_computation(
    process.initialize.type_signature.result,
    tff.FederatedType(tff.StructType(types), tff.CLIENTS),
  )
  def next_fn(state, clients):
    output = process.next(state, *(clients[i] for i in range(len(types))))
    return Output(
      output.state, tff.federated_zip((output.result, output.measurements))
    )

  def clients(number):
    weights = range(1, CLIENTS + 1)
    pairs = zip(_values(number), map(np.float32, weights), strict=True)
    return [pair[: len(types)] for pair in pairs]

  return equality.Case(
    lambda: tff.templates.IterativeProcess(process.initialize, next_fn), clients
  )


def _pairs():
  """Each aggregator with a plan, TFF's with two, in turn."""
  turn = itertools.cycle(equality.PLANS)
  for name in [*JUMPING, *SECURE]:
    for _ in range(1 if name in PROJECT else 2):
      yield name, next(turn)
  # Server and clients draw the same rotation only if XLA draws as kernels do.
  yield 'hadamard_qsgd', 'vmap_xla'
  yield 'fourier_uniform', 'vmap_xla'


@pytest.fixture(scope='module')
def expected(stock_runtime):
  """What TFF's runtimes do with an aggregator, once for all plans."""

  @functools.cache
  def get(name):
    if name in JUMPING:
      case = _case(JUMPING[name])
      return case, equality.expected(case, rounds=2)
    case = _case(SECURE[name])
    # TFF's runtime for users refuses secure sums.
    context = tff.backends.test.create_sync_test_cpp_execution_context()
    with tff.framework.get_context_stack().install(context):
      return case, equality.expected(case, rounds=2)

  return get


@pytest.fixture(autouse=True)
def rounding(request, monkeypatch):
  """Two Fourier transforms of float32 leave more than other aggregators do."""
  callspec = getattr(request.node, 'callspec', None)
  if callspec and callspec.params.get('name') == 'fourier_uniform':
    monkeypatch.setattr(equality, 'TOLERANCE', 3 * equality.TOLERANCE)


@pytest.mark.parametrize('name, plan', _pairs())
def test_results_on_equal_inputs_are_equal(expected, name, plan):
  equality.check(*expected(name), plan)


@pytest.mark.slow
@pytest.mark.parametrize('plan', equality.PLANS)
@pytest.mark.parametrize('name', [*PROJECT, 'composed_secure_sum'])
def test_each_of_the_project_in_every_plan(expected, name, plan):
  equality.check(*expected(name), plan)


def test_a_quantiser_jumps_and_the_values_are_on_its_grid(expected):
  _, trace = expected('discretization')
  result = trace.metrics[0][0] * CLIENTS * 7
  np.testing.assert_allclose(result, np.round(result), atol=1e-4)
  assert np.abs(result / 7 - sum(_values(0))).max() > 0.05


NOISY = {
  'gaussian': lambda scale: _private.gaussian_fixed(scale, CLIENTS, 1.0),
  'tree': lambda scale: _private.tree_aggregation(
    scale, CLIENTS, 1.0, tf.TensorSpec([LARGE])
  ),
  'distributed': lambda scale: tff.learning.ddp_secure_aggregator(
    scale / 4, CLIENTS, zeroing=False
  ),
  'stochastic_quantizer': lambda scale: tff.aggregators.EncodedSumFactory(
    lambda spec: te.encoders.as_gather_encoder(
      te.encoders.uniform_quantization(2), spec
    )
  ),
}
LARGE = 20_000


def _noise(build, rounds: int = 1) -> list[np.ndarray]:
  """What rounds release for equal values, in the installed runtime."""
  value = np.linspace(-1, 1, LARGE, dtype=np.float32)[::-1].copy() / LARGE
  process = build().create(tff.TensorType(np.float32, [LARGE]))
  state, found = process.initialize(), []
  for _ in range(rounds):
    output = process.next(state, [value] * CLIENTS)
    state = output.state
    found.append(np.asarray(output.result))
  return found


def _is_alike(first: np.ndarray, second: np.ndarray) -> bool:
  """Two samples' Kolmogorov-Smirnov test at the level `FALSE_ALARMS`."""
  return scipy.stats.ks_2samp(first, second).pvalue > FALSE_ALARMS


@pytest.mark.parametrize('name', NOISY)
def test_noise_has_the_same_distribution(stock_runtime, name):
  build = functools.partial(NOISY[name], 1.0)
  context = tff.backends.test.create_sync_test_cpp_execution_context()
  with tff.framework.get_context_stack().install(context):
    (theirs,) = _noise(build)
  for plan in ('scan', 'loop'):
    with equality.in_process_runtime(plan):
      ours, later = _noise(build, rounds=2)
    assert _is_alike(ours, theirs)
    assert ours.std() > 0
    assert not np.array_equal(ours, later)


KEYED = {
  'adaptive': lambda: dp.factory(
    dp.AdaptiveClipQuery(1.0, 0.5, CLIENTS, 0.5, 1.0, 2.0)
  ),
  **{
    mechanism: _composed(
      dp_mechanism=mechanism,
      noise_multiplier=0.5,
      clipping='l1' if mechanism == 'local_laplace' else 'fixed',
      clip_norm=1.0,
      has_uniform_weights=True,
    )
    for mechanism in (
      'distributed_skellam',
      'local_laplace',
      'local_priv_unit',
    )
  },
}


@pytest.mark.parametrize('name', KEYED)
def test_a_key_gives_the_same_noise_in_both_runtimes(stock_runtime, name):
  process = KEYED[name]().create(
    tff.TensorType(np.float32, [LARGE]), tff.TensorType(np.float32)
  )

  def release():
    state = dp.with_noise_key(process.initialize(), noise.insecure_key(3, 4))
    values = [np.full([LARGE], 1e-3 * i, np.float32) for i in range(CLIENTS)]
    output = process.next(state, values, [np.float32(1)] * CLIENTS)
    return equality.flat((output.state.query_state, output.result))

  theirs = release()
  assert theirs[-1].std() > 0
  # Its noise alone is drawn at the clients.
  others = ('scan', 'vmap') if name == 'local_priv_unit' else ()
  for plan in ('loop', 'vmap_xla', *others):
    with equality.in_process_runtime(plan):
      equality.assert_equal(release(), theirs)


def test_a_fifth_more_noise_is_found(stock_runtime):
  (theirs,) = _noise(functools.partial(NOISY['gaussian'], 1.0))
  with equality.in_process_runtime('scan'):
    (ours,) = _noise(functools.partial(NOISY['gaussian'], 1.2))
  assert not _is_alike(ours, theirs)
