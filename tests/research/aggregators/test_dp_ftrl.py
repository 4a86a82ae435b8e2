import collections
import functools

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
import tensorflow_federated as tff

from research.aggregators import dp, dp_ftrl
from research.algorithms import fed_avg, optimizers
from research.privacy import matrix_factorization as mf
from research.privacy import noise
from tests.research.privacy import dense
from tests.research.runtime import equality, small_tasks

ROUNDS = 12
# Of a statistical test, per test.
FALSE_ALARMS = 1e-6
SPECS = [tf.TensorSpec([80, 250]), tf.TensorSpec([7])]
STRATEGIES = {
  'bands': mf.banded(ROUNDS, 4),
  'one_band': mf.banded(ROUNDS, 1),
  'buffers': mf.blt(ROUNDS, 4, 3, 2),
  'tree': mf.tree(ROUNDS),
  'restarted_tree': mf.tree(ROUNDS, 5),
}
# Clipping aims a ten thousandth below the norm.
KEPT = 1 - 1e-4
ADAPTIVE = dp.AdaptiveClipping(clipped_count_stddev=1.5)
by_strategy = pytest.mark.parametrize('name', STRATEGIES)


def _keys(rounds: int = ROUNDS) -> list[np.ndarray]:
  return [noise.insecure_key(7, number) for number in range(rounds)]


def _query(strategy, specs=SPECS, **changes) -> dp_ftrl.CorrelatedNoiseQuery:
  arguments = {'clip_norm': 2.0, 'noise_multiplier': 0.5}
  arguments |= {'clients_per_round': 4.0, **changes}
  return dp_ftrl.CorrelatedNoiseQuery(strategy, specs, **arguments)


def _zeros(specs=SPECS):
  return tf.nest.map_structure(lambda spec: tf.zeros(spec.shape), specs)


def _flat(tensors) -> np.ndarray:
  return np.concatenate([np.ravel(x) for x in tf.nest.flatten(tensors)])


def _released(query, sample_state, keys):
  """The results and states of rounds with one sample and these keys."""
  step = tf.function(lambda state: query.get_noised_result(sample_state, state))
  state, results, states = query.initial_global_state(), [], []
  for key in keys:
    result, state, _ = step(state._replace(noise_key=tf.constant(key)))
    results.append(_flat(result))
    states.append(state)
  return np.array(results, np.float64), states


@functools.cache
def _noise(name: str) -> tuple[np.ndarray, list[dp_ftrl.State]]:
  """The noise in the sum over its standard deviation, [ROUNDS, weights]."""
  results, states = _released(_query(STRATEGIES[name]), _zeros(), _keys())
  return results * 4.0 / (2.0 * 0.5), states


def _normals() -> np.ndarray:
  return np.array(
    [
      _flat(noise.standard_normals(key, 0, SPECS))
      for key in map(tf.constant, _keys())
    ],
    np.float64,
  )


@by_strategy
def test_noise_has_the_covariance_of_the_strategy(name):
  noises, _ = _noise(name)
  covariance = dense.noise_covariance(STRATEGIES[name])
  assert dense.covariance_p_value(noises, covariance) > FALSE_ALARMS


def test_the_covariance_test_rejects_what_is_nearly_right():
  noises, _ = _noise('bands')
  covariance = dense.noise_covariance(STRATEGIES['bands'])
  assert dense.covariance_p_value(noises * 1.02, covariance) < FALSE_ALARMS
  c = STRATEGIES['bands'].coefficients.copy()
  c[3] *= 0.9
  other = dense.noise_covariance(mf.Toeplitz('any', c))
  assert dense.covariance_p_value(noises, other) < FALSE_ALARMS
  # Two rounds with one key.
  white = np.array(_normals())
  white[5] = white[4]
  assert dense.covariance_p_value(white, np.eye(ROUNDS)) < FALSE_ALARMS


@by_strategy
def test_noise_is_normal(name):
  noises, _ = _noise(name)
  deviation = np.sqrt(np.diag(dense.noise_covariance(STRATEGIES[name])))
  for row, scale in zip(noises, deviation, strict=True):
    p_value = scipy.stats.kstest(row / scale, 'norm').pvalue
    assert p_value > FALSE_ALARMS / ROUNDS


@pytest.mark.parametrize('name', ['bands', 'one_band', 'buffers'])
def test_noise_solves_the_dense_system_for_the_normals_of_the_keys(name):
  noises, _ = _noise(name)
  strategy = dense.toeplitz(STRATEGIES[name].coefficients)
  expected = np.linalg.solve(strategy, _normals())
  np.testing.assert_allclose(noises, expected, atol=5e-6)


def test_bands_remember_the_last_noise():
  noises, states = _noise('bands')
  last = _noise_of(states[-1])
  np.testing.assert_allclose(last, noises[:-4:-1], atol=5e-6)


def test_buffers_remember_decaying_sums_of_the_noise():
  noises, states = _noise('buffers')
  ages = np.arange(ROUNDS)[::-1]
  decays = STRATEGIES['buffers'].decays[:, np.newaxis] ** ages
  np.testing.assert_allclose(_noise_of(states[-1]), decays @ noises, atol=1e-5)


def _noise_of(state: dp_ftrl.State) -> np.ndarray:
  memories = [np.asarray(m) for m in tf.nest.flatten(state.memory)]
  return np.concatenate([m.reshape([len(m), -1]) for m in memories], axis=1)


def test_a_tree_remembers_a_node_of_each_height():
  _, states = _noise('tree')
  # Rounds 8, 12 and so on complete nodes; height 3 is the last possible one.
  before, after = (_noise_of(states[index]) for index in (6, 7))
  changed = np.abs(after - before).max(axis=1) > 0
  np.testing.assert_array_equal(changed, [False, False, False, True])


@by_strategy
def test_equal_keys_give_equal_bits_and_other_keys_others(name):
  again, _ = _released(_query(STRATEGIES[name]), _zeros(), _keys())
  np.testing.assert_array_equal(again * 4.0 / (2.0 * 0.5), _noise(name)[0])
  keys = _keys()
  keys[3] = noise.insecure_key(8, 3)
  other, _ = _released(_query(STRATEGIES[name]), _zeros(), keys)
  same = other == again
  assert same[:3].all()
  assert not same[3].any()


@by_strategy
def test_a_state_after_a_round_has_no_key(name):
  for number, state in enumerate(_noise(name)[1]):
    np.testing.assert_array_equal(state.noise_key, noise.no_key())
    assert state.noise_key.dtype == tf.uint32
    assert state.round_num == number + 1


def test_a_forgotten_key_shows():
  results, _ = _released(_query(STRATEGIES['tree']), _zeros(), [noise.no_key()])
  assert np.isnan(results).all()


@pytest.mark.parametrize('name', ['bands', 'buffers', 'restarted_tree'])
def test_rounds_beyond_the_plan_are_refused(name):
  specs = [tf.TensorSpec([3])]
  query = _query(STRATEGIES[name], specs)
  results, _ = _released(query, _zeros(specs), _keys(ROUNDS + 1))
  assert np.isfinite(results[:-1]).all()
  assert np.isnan(results[-1]).all()


def _preprocess(query, record):
  params = query.derive_sample_params(query.initial_global_state())
  return query.preprocess_record(params, record)


@pytest.mark.parametrize('scale', [0, 1e-30, 1e-3, 0.1, 1, 1e3, 1e15, 1e30])
def test_no_record_is_longer_than_the_clipping_norm(scale):
  query = _query(STRATEGIES['bands'], clip_norm=0.7)
  rng = np.random.default_rng(0)
  for _ in range(20):
    record = [
      tf.constant(scale * rng.normal(size=spec.shape), tf.float32)
      for spec in SPECS
    ]
    clipped = _flat(_preprocess(query, record))
    assert np.linalg.norm(clipped.astype(np.float64)) <= np.float32(0.7)
    original = _flat(record).astype(np.float64)
    norm = np.linalg.norm(original)
    if norm <= 0.7:
      np.testing.assert_array_equal(clipped, original)
    elif norm < 1e18:
      wanted = original * 0.7 * KEPT / norm
      np.testing.assert_allclose(clipped, wanted, rtol=1e-5)


@pytest.mark.parametrize('broken', [np.nan, np.inf, -np.inf])
def test_a_record_that_is_not_finite_counts_as_zeros(broken):
  record = [np.ones(spec.shape, np.float32) for spec in SPECS]
  record[1][3] = broken
  clipped = _preprocess(_query(STRATEGIES['bands']), record)
  np.testing.assert_array_equal(_flat(clipped), 0)


def test_without_noise_the_result_is_the_clipped_mean():
  query = _query(STRATEGIES['bands'], [tf.TensorSpec([2])], noise_multiplier=0)
  records = [[0.0, 1.0], [3.0, 4.0], [0.5, 0.25]]
  clipped = [_preprocess(query, [tf.constant(record)])[0] for record in records]
  results, states = _released(query, [tf.add_n(clipped)], [noise.no_key()] * 2)
  # [3, 4] has norm 5 and becomes [1.2, 1.6]; the expected cohort is 4.
  expected = np.array([0.5 + 1.2 * KEPT, 1.25 + 1.6 * KEPT]) / 4
  np.testing.assert_allclose(results, [expected, expected], rtol=2e-6)
  exact = sum(x.numpy() for x in clipped) / np.float32(4)
  np.testing.assert_array_equal(results, [exact, exact])
  assert tf.nest.flatten(states[-1].memory) == []


def test_the_clipping_norm_follows_a_noisy_count():
  specs = [tf.TensorSpec([2])]
  strategy = STRATEGIES['bands']
  query = _query(strategy, specs, adaptive_clipping=ADAPTIVE)
  records = [[0.0, 1.0], [3.0, 4.0], [0.5, 0.25]]
  processed = [_preprocess(query, [tf.constant(x)]) for x in records]
  counts = [float(count) for _, count in processed]
  assert counts == [0.5, -0.5, 0.5]
  total = tf.nest.map_structure(lambda *x: tf.add_n(x), *processed)
  results, states = _released(query, total, _keys())

  z = [
    _flat(noise.standard_normals(key, 0, [*specs, tf.TensorSpec([])]))
    for key in map(tf.constant, _keys())
  ]
  y = np.linalg.solve(dense.toeplitz(strategy.coefficients), z)
  multiplier = (0.5**-2 - (2 * 1.5) ** -2) ** -0.5
  norms = [2.0]
  for number in range(ROUNDS):
    clipped = np.array([0.5 + 1.2 * KEPT, 1.25 + 1.6 * KEPT])
    expected = clipped + norms[-1] * multiplier * y[number, :2]
    np.testing.assert_allclose(results[number], expected / 4, rtol=2e-5)
    unclipped = np.clip((0.5 + 1.5 * y[number, 2]) / 4 + 0.5, 0, 1)
    norms.append(norms[-1] * np.exp(-0.2 * (unclipped - 0.5)))
    assert float(states[number].clip_norm) == pytest.approx(norms[-1], rel=1e-5)
  metrics = query.derive_metrics(states[-1])
  assert metrics == {'clip_norm': states[-1].clip_norm}


def test_updates_and_counts_together_have_the_asked_for_noise():
  """The change in C (updates, counts) over the noise, both per coordinate."""
  query = _query(STRATEGIES['bands'], adaptive_clipping=ADAPTIVE)
  c_0 = STRATEGIES['bands'].coefficients[0]
  # A key whose count is not cut to the cohort.
  for key in _keys():
    *normals, z = noise.standard_normals(
      tf.constant(key), 0, [*SPECS, tf.TensorSpec([])]
    )
    if abs(float(z)) < c_0:
      break
  results, states = _released(query, query.initial_sample_state(SPECS), [key])
  updates = results[0] * 4 / (2.0 * _flat(normals) / c_0)
  np.testing.assert_allclose(updates, updates[0], rtol=1e-5)
  logs = np.log([float(state.clip_norm) for state in states[:1]])
  count = -(logs[0] - np.log(2)) / 0.2 * 4 / (float(z) / c_0)
  # A client changes an update by 1 and a count by 1/2.
  assert 1 / updates[0] ** 2 + (0.5 / count) ** 2 == pytest.approx(
    0.5**-2, rel=1e-4
  )


def test_counts_with_too_little_noise_are_refused():
  with pytest.raises(ValueError, match='clipped_count_stddev above 2'):
    _query(
      STRATEGIES['bands'], noise_multiplier=4.0, adaptive_clipping=ADAPTIVE
    )


@pytest.mark.parametrize(
  'name, value',
  [
    ('clip_norm', 0.0),
    ('clip_norm', np.inf),
    ('noise_multiplier', -1.0),
    ('noise_multiplier', np.nan),
    ('clients_per_round', 0.0),
  ],
)
def test_numbers_out_of_range_are_refused(name, value):
  with pytest.raises(ValueError, match=f'{name} must be finite and'):
    _query(STRATEGIES['bands'], **{name: value})


def _build(
  mechanism: str, adaptive_clipping=None, **shape
) -> dp_ftrl.CorrelatedNoiseFactory:
  return dp_ftrl.CorrelatedNoiseFactory(
    mf.build(mechanism, ROUNDS, min_separation=4, **shape),
    clip_norm=0.3,
    noise_multiplier=0.1,
    clients_per_round=6,
    adaptive_clipping=adaptive_clipping,
  )


def test_only_float32_is_taken():
  with pytest.raises(TypeError, match='must be of float32'):
    _build(mf.TREE).create(*map(tff.to_type, (np.float64, np.float32)))


def test_build_makes_the_strategy_that_accounting_needs():
  factory = _build(mf.BANDED, bands=3)
  assert factory.strategy.name == mf.BANDED
  assert factory.strategy.bands == 3
  assert factory.strategy.total_rounds == ROUNDS


class WithKeys:
  """A process that is given a key before each round."""

  def __init__(self, process, aggregator_of):
    self._process = process
    self._aggregator_of = aggregator_of
    self.computation = process.next
    self.initialize = process.initialize

  def next(self, state, clients):
    number = int(self._aggregator_of(state).query_state.round_num)
    key = noise.insecure_key(1, number)
    return self._process.next(dp.with_noise_key(state, key), clients)


def _aggregation_case(mechanism: str, **changes) -> equality.Case:
  """An aggregator alone, of two tensors."""
  value_type = tff.to_type([(np.float32, [3, 16]), (np.float32, [5])])
  weight_type = tff.TensorType(np.float32)
  process = _build(mechanism, **changes).create(value_type, weight_type)

  @tff.federated_computation(
    process.initialize.type_signature.result,
    tff.FederatedType([value_type, weight_type], tff.CLIENTS),
  )
  def next_fn(state, clients):
    output = process.next(state, clients[0], clients[1])
    return Output(
      output.state, tff.federated_zip((output.result, output.measurements))
    )

  def clients(number):
    rng = np.random.default_rng(number)
    return [
      [
        [rng.normal(size=shape).astype(np.float32) for shape in ([3, 16], [5])],
        np.float32(1),
      ]
      for _ in range(6)
    ]

  whole = tff.templates.IterativeProcess(process.initialize, next_fn)
  return equality.Case(lambda: WithKeys(whole, lambda state: state), clients)


Output = collections.namedtuple('Output', ['state', 'metrics'])
AGGREGATIONS = {
  'bands': functools.partial(_aggregation_case, mf.BANDED),
  'buffers': functools.partial(_aggregation_case, mf.BLT),
  'tree': functools.partial(_aggregation_case, mf.TREE, restart_period=2),
  'adaptive': functools.partial(
    _aggregation_case, mf.BANDED, adaptive_clipping=ADAPTIVE
  ),
}


@pytest.mark.parametrize(
  'name, plan', zip(AGGREGATIONS, equality.PLANS, strict=True)
)
def test_both_runtimes_release_the_same(stock_runtime, name, plan):
  case = AGGREGATIONS[name]()
  trace = equality.expected(case, rounds=5)
  equality.check(case, trace, plan)
  results = np.array([_flat(metrics[:2]) for metrics in trace.metrics])
  assert np.isfinite(results).all()
  assert len(np.unique(results)) == results.size


def test_both_runtimes_learn_the_same(stock_runtime):
  @functools.cache
  def task():
    return small_tasks.build('mlp')

  def build():
    process = fed_avg.build(
      small_tasks.model(task(), True),
      client_optimizer=optimizers.build('sgd', 0.1),
      server_optimizer=optimizers.build('momentum', 0.5),
      model_aggregator=_build(mf.BANDED),
    )
    return WithKeys(process, lambda state: state.aggregator)

  case = equality.Case(build, lambda n: small_tasks.batches(task(), n))
  trace = equality.expected(case, rounds=2)
  equality.check(case, trace, 'loop')
  weights = [_flat(state[:4]) for state in trace.states]
  assert np.isfinite(weights).all()
  assert np.abs(np.diff(weights, axis=0)).max(axis=1).min() > 1e-3
