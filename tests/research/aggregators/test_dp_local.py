"""Means of reports with noise of their own: bound, noise, key, refusals."""

import functools
import math

import attr
import dp_accounting
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff
from scipy import stats

from research.aggregators import bits, compose, dp, dp_local, settings
from research.privacy import local, noise, priv_unit
from research.runtime import in_process

TYPE = tff.to_type([(np.float32, (4,)), (np.float32, (2, 3))])
WEIGHT = tff.TensorType(np.float32)
CLIPPINGS = {
  local.GAUSSIAN: 'fixed',
  local.LAPLACE: 'l1',
  local.PRIV_UNIT: 'fixed',
}
# Whose noise is added where the sum is.
ADDITIVE = (local.GAUSSIAN, local.LAPLACE)
# Of each statistical test; the noise is seeded, so that none of them flakes.
_FALSE_ALARM_RATE = 1e-3


@pytest.fixture(scope='module', autouse=True)
def _runtime():
  with in_process.InProcessRuntime():
    yield


@functools.cache
def _composed(mechanism, types=TYPE, **chosen):
  chosen = {
    'dp_mechanism': mechanism,
    'clipping': CLIPPINGS[mechanism],
    'clip_norm': 1.0,
    'clients_per_round': 4,
    'has_uniform_weights': True,
    **chosen,
  }
  return compose.build(settings.Settings(**chosen)).create(types, WEIGHT)


def _next(process, state, updates, key=None):
  if key is not None:
    state = dp.with_noise_key(state, key)
  return process.next(state, updates, [np.float32(1)] * len(updates))


def _update(*numbers: float) -> list[np.ndarray]:
  flat = np.resize(np.array(numbers, np.float32), 10)
  return [flat[:4], flat[4:].reshape(2, 3)]


def test_means_by_hand():
  updates = [_update(3, *[0] * 9), _update(10)]
  # The second has an L1 norm of 100 and an L2 norm of 10 sqrt(10).
  for mechanism, clipped in (
    (local.LAPLACE, 0.5),
    (local.GAUSSIAN, 5 / math.sqrt(10)),
    (local.PRIV_UNIT, 5 / math.sqrt(10)),
  ):
    process = _composed(mechanism, clip_norm=5.0, noise_multiplier=0.0)
    mean = _next(process, process.initialize(), updates).result
    # Clipping aims a ten thousandth lower.
    clipped *= 1 - 1e-4
    expected = _update(3 + clipped, *[clipped] * 9)
    for found, wanted in zip(mean, expected, strict=True):
      np.testing.assert_allclose(found, wanted / 4, rtol=2e-6)


_WILD = (
  [0.0],
  [1e-37],
  [1e-20, -3.0],
  [0.3],
  [1e30, 1.0],
  [3e38],
  [math.nan, 1.0],
  [math.inf],
)


@pytest.mark.parametrize('numbers', _WILD, ids=str)
@pytest.mark.parametrize('clip_norm', [1e-3, 1.0, 77.0])
@pytest.mark.parametrize('mechanism', ADDITIVE)
def test_no_report_exceeds_the_bound(mechanism, clip_norm, numbers):
  update = [tf.constant(tensor) for tensor in _update(*numbers)]
  query = dp_local._QUERIES[mechanism](clip_norm, 1.0, 1.0)
  found, count = query.preprocess_record(tf.constant(clip_norm), update)
  flat = np.concatenate([np.ravel(t).astype(np.float64) for t in found])
  order = 1 if mechanism == local.LAPLACE else 2
  assert np.linalg.norm(flat, order) <= np.float32(clip_norm)
  assert count == 1
  if not np.isfinite(numbers).all():
    assert not flat.any()


@functools.cache
def _noise(mechanism, clients: int) -> np.ndarray:
  """What is added for clients that send zeros, in their clipping norms."""
  types = tff.to_type([(np.float32, (5000,)), (np.float32, (30, 100))])
  process = _composed(mechanism, types, clip_norm=2.0, noise_multiplier=3.0)
  zeros = [np.zeros(5000, np.float32), np.zeros((30, 100), np.float32)]
  state, found = process.initialize(), []
  for number in range(2):
    key = noise.insecure_key(0, number)
    output = _next(process, state, [zeros] * clients, key)
    state = output.state
    found.append(np.concatenate([np.ravel(t) for t in output.result]))
  return np.array(found, np.float64) * 4 / 2.0


@pytest.mark.parametrize('clients', [1, 6])
def test_gaussian_reports_add_up(clients):
  found = _noise(local.GAUSSIAN, clients)
  expected = stats.norm(scale=3 * math.sqrt(clients))
  assert stats.kstest(found.ravel(), expected.cdf).pvalue > _FALSE_ALARM_RATE
  assert stats.pearsonr(*found).pvalue > _FALSE_ALARM_RATE


def _cdf_of_laplace_sum(clients: int, x: np.ndarray) -> np.ndarray:
  """Of independent Laplace numbers of variance 1, by their characteristic."""
  t = np.linspace(1e-6, 60, 60_001)
  # The characteristic function of one is 1 / (1 + t^2 / 2).
  weights = (1 + t**2 / 2) ** -float(clients) / t
  return np.array(
    [0.5 + np.trapz(np.sin(t * y) * weights, t) / np.pi for y in x]
  )


@pytest.mark.parametrize('clients', [1, 6])
def test_laplace_reports_add_up(clients):
  found = np.sort(_noise(local.LAPLACE, clients).ravel()) / 3
  if clients == 1:
    expected = stats.laplace(scale=1 / math.sqrt(2)).cdf(found)
  else:
    grid = np.linspace(found[0] - 0.01, found[-1] + 0.01, 600)
    expected = np.interp(found, grid, _cdf_of_laplace_sum(clients, grid))
  assert stats.kstest(expected, 'uniform').pvalue > _FALSE_ALARM_RATE
  # Its tails, of which the Kolmogorov-Smirnov test says little.
  deviation = np.abs((found**2).mean() / clients - 1)
  kurtosis = 3 + 3 / clients
  assert deviation < 3.3 * math.sqrt((kurtosis - 1) / found.size)
  signs, rounds = np.sign(found), _noise(local.LAPLACE, clients)
  assert abs(signs.mean()) * math.sqrt(found.size) < 3.3
  assert stats.pearsonr(*rounds).pvalue > _FALSE_ALARM_RATE


# Reports of one update in each of many rounds, by PrivUnit.
_DIRECTION = np.array([0.6, 0.0, -0.8, 0.0, 0.0], np.float32)


@functools.cache
def _reports(z: float, norm: float, rounds: int = 4000) -> np.ndarray:
  """float64 [rounds, 5], with a clipping norm of 2."""
  query = dp_local.LocalPrivUnitQuery(2.0, z, 1.0)

  @tf.function
  def report(key):
    params = dp.State(tf.constant(2.0), key)
    return query.preprocess_record(params, [tf.constant(norm * _DIRECTION)])

  keys = [noise.insecure_key(5, number) for number in range(rounds)]
  return np.array([report(key)[0].numpy() for key in keys], np.float64)


def _density_below(x, z: float):
  """The share of reports of norm 2 z with <x, v> up to x."""
  gamma, above = 1 / z, priv_unit.probability_above(z)
  up = (
    above * (stats.norm.cdf(x) - stats.norm.cdf(gamma)) / stats.norm.sf(gamma)
  )
  down = (1 - above) * stats.norm.cdf(x) / stats.norm.cdf(gamma)
  return np.where(x < gamma, down, 1 - above + up)


@pytest.mark.parametrize('z', [0.4, 1.0, 6.0])
def test_reports_of_a_direction_have_the_density_that_is_accounted(z):
  # Far above the clipping norm, so that nothing is left to chance but PrivUnit.
  reports = _reports(z, 1e5) / (2 * z)
  along = reports @ _DIRECTION.astype(np.float64)
  cdf = functools.partial(_density_below, z=z)
  assert stats.kstest(along, cdf).pvalue > _FALSE_ALARM_RATE
  across = reports - np.outer(along, _DIRECTION)
  for vector in np.eye(5)[[1, 3, 4]], [[0.8, 0, 0.6, 0, 0]]:
    normals = across @ np.transpose(vector)
    for column in normals.T:
      assert stats.kstest(column, 'norm').pvalue > _FALSE_ALARM_RATE
      for statistic in (column, column**2):
        assert stats.pearsonr(statistic, along).pvalue > _FALSE_ALARM_RATE


@pytest.mark.parametrize('norm', [0.0, 0.5, 1.9])
def test_reports_are_of_the_update_in_expectation(norm):
  reports = _reports(1.0, norm)
  errors = reports.mean(axis=0) - norm * _DIRECTION
  z_scores = errors / reports.std(axis=0) * math.sqrt(len(reports))
  # The largest of five is above 3.7 in one case of a thousand.
  assert np.abs(z_scores).max() < 3.7
  # A coordinate's standard deviation is that of the noise, 2 z, at least.
  assert np.abs(reports.std(axis=0)[1] / 2 - 1) < 3.3 / math.sqrt(2 * 4000)


def test_clients_with_other_updates_draw_other_noise():
  types = tff.to_type([(np.float32, (5000,))])
  process = _composed(local.PRIV_UNIT, types, noise_multiplier=3.0)
  updates = np.eye(3, 5000, dtype=np.float32)
  key = noise.insecure_key(0, 1)
  one, two, both = (
    _next(process, process.initialize(), chosen, key).result[0]
    for chosen in ([[updates[0]]], [[updates[1]]], [[u] for u in updates[:2]])
  )
  np.testing.assert_allclose(both, one + two, atol=1e-5)
  assert stats.pearsonr(one, two).pvalue > _FALSE_ALARM_RATE
  deviation = both.std() * 4 / (3 * math.sqrt(2))
  assert abs(deviation - 1) < 3.3 / math.sqrt(2 * 5000)


@pytest.mark.parametrize('numbers', _WILD, ids=str)
def test_wild_updates_are_reported_by_finite_numbers(numbers):
  query = dp_local.LocalPrivUnitQuery(1.0, 2.0, 1.0)
  params = dp.State(tf.constant(1.0), noise.insecure_key(0, 1))
  update = [tf.constant(tensor) for tensor in _update(*numbers)]
  found = query.preprocess_record(params, update)
  flat = np.concatenate([np.ravel(tensor) for tensor in found])
  assert np.isfinite(flat).all() and flat.any()


@pytest.mark.parametrize('mechanism', local.MECHANISMS)
def test_a_key_is_used_once_and_is_not_sent(mechanism):
  process = _composed(mechanism, noise_multiplier=1.0)
  state = dp.with_noise_key(process.initialize(), noise.insecure_key(0, 1))
  first = _next(process, state, [_update(0)])
  assert not np.any(first.state.query_state.noise_key)
  again = _next(process, state, [_update(0)])
  np.testing.assert_array_equal(first.result[0], again.result[0])
  # Clients get the norm alone, but for noise that is drawn there.
  has_key = mechanism == local.PRIV_UNIT
  assert bits.download(process.next) == 32 + 256 * has_key
  forgotten = _next(process, first.state, [_update(0)])
  assert np.isnan(forgotten.result[0]).all()


def test_the_event_is_that_of_one_report():
  events = {
    local.GAUSSIAN: dp_accounting.GaussianDpEvent(1.5),
    local.LAPLACE: dp_accounting.LaplaceDpEvent(np.float32(1.5 / math.sqrt(2))),
    local.PRIV_UNIT: dp_accounting.RandomizedResponseDpEvent(
      2 / (1 + math.exp(priv_unit.epsilon(3.0))), 2
    ),
  }
  for mechanism, expected in events.items():
    process = _composed(mechanism, noise_multiplier=3.0)
    key = noise.insecure_key(0, 1)
    state = _next(process, process.initialize(), [_update(0)], key).state
    found = dp.event(state)
    assert type(found) is type(expected)
    assert attr.astuple(found) == pytest.approx(attr.astuple(expected))


@pytest.mark.parametrize(
  ('chosen', 'message'),
  [
    ({'clipping': 'none'}, 'needs --clipping'),
    ({'clipping': 'adaptive'}, 'given adaptive'),
    ({'clipping': 'per_layer'}, 'given per_layer'),
    ({'compression': 'uniform'}, 'a codec would take a part away'),
    ({'secure_sum': True}, '--secure_sum'),
    ({'zeroing': True}, 'without noise'),
    ({'aggregator': 'median'}, 'no bound'),
    ({'has_uniform_weights': False}, '--client_weighting=uniform'),
    ({'clip_norm': None}, 'positive --clip_norm'),
  ],
  ids=str,
)
@pytest.mark.parametrize('mechanism', local.MECHANISMS)
def test_unsound_combinations_are_refused(mechanism, chosen, message):
  with pytest.raises(ValueError, match=message):
    _composed(mechanism, **chosen)


@pytest.mark.parametrize(
  ('mechanism', 'clipping', 'message'),
  [
    (local.GAUSSIAN, 'l1', 'needs --clipping=fixed, given l1'),
    (local.LAPLACE, 'fixed', 'needs --clipping=l1, given fixed'),
    (local.PRIV_UNIT, 'l1', 'needs --clipping=fixed, given l1'),
  ],
)
def test_a_norm_that_the_noise_is_not_made_for_is_refused(
  mechanism, clipping, message
):
  with pytest.raises(ValueError, match=message):
    _composed(mechanism, clipping=clipping)


@pytest.mark.parametrize('mechanism', ['none', 'gaussian'])
def test_an_l1_norm_is_refused_elsewhere(mechanism):
  with pytest.raises(ValueError, match='--clipping=l1'):
    _composed(local.LAPLACE, dp_mechanism=mechanism)
