"""Private means: bound, noise, key, and the queries of tensorflow-privacy."""

import math

import dp_accounting
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff
import tensorflow_privacy as tfp
from scipy import stats

from research.aggregators import bits, compose, dp, settings
from research.privacy import noise
from research.runtime import in_process

TYPE = tff.to_type([(np.float32, (4,)), (np.float32, (2, 3))])
WEIGHT = tff.TensorType(np.float32)
# Of each statistical test; the noise is seeded, so that none of them flakes.
_FALSE_ALARM_RATE = 1e-3


@pytest.fixture(scope='module', autouse=True)
def _runtime():
  with in_process.InProcessRuntime():
    yield


def _update(*numbers: float) -> list[np.ndarray]:
  flat = np.resize(np.array(numbers, np.float32), 10)
  return [flat[:4], flat[4:].reshape(2, 3)]


def _norm(update) -> float:
  flat = np.concatenate([np.ravel(t).astype(np.float64) for t in update])
  return float(np.linalg.norm(flat))


def _next(process, state, updates, key=None):
  if key is not None:
    state = dp.with_noise_key(state, key)
  weights = [np.float32(1)] * len(updates)
  return process.next(state, updates, weights)


def _process(query):
  return dp.factory(query).create(TYPE, WEIGHT)


def _composed(**chosen):
  chosen = {
    'dp_mechanism': 'gaussian',
    'clipping': 'fixed',
    'clip_norm': 1.0,
    'clients_per_round': 4,
    'has_uniform_weights': True,
    **chosen,
  }
  return compose.build(settings.Settings(**chosen)).create(TYPE, WEIGHT)


def test_a_mean_by_hand():
  process = _process(dp.FixedClipQuery(5.0, 0.0, 4.0))
  updates = [_update(*[3, 0, 0, 0, 0, 0, 0, 0, 0, 0]), _update(10)]
  mean = _next(process, process.initialize(), updates).result
  # The second, of norm 10 sqrt(10), becomes 5 / sqrt(10) in each coordinate,
  # less a ten thousandth; the sum of two is divided by the expected four.
  each = 5 * (1 - 1e-4) / math.sqrt(10)
  expected = _update(*[3 + each] + [each] * 9)
  for found, wanted in zip(mean, expected, strict=True):
    np.testing.assert_allclose(found, wanted / 4, rtol=2e-6)


_WILD = (
  [0.0],
  [1e-37],
  [1e-20, -3.0],
  [0.3],
  [1.0, -1.0],
  [1e30, 1.0],
  [3e38],
  [math.nan, 1.0],
  [math.inf],
  [-math.inf, math.nan, 2.0],
)


@pytest.mark.parametrize('numbers', _WILD, ids=str)
@pytest.mark.parametrize('clip_norm', [1e-3, 1.0, 77.0])
@pytest.mark.parametrize('query', [dp.FixedClipQuery, dp.PerLayerClipQuery])
def test_what_is_summed_never_exceeds_the_bound(query, clip_norm, numbers):
  update = _update(*numbers)
  found = query(clip_norm, 0.0, 1.0).preprocess_record(
    tf.constant(clip_norm), [tf.constant(t) for t in update]
  )
  assert _norm(found) <= np.float32(clip_norm)
  if not np.isfinite(_norm(update)):
    assert _norm(found) == 0
  elif _norm(update) < clip_norm / 2:
    for tensor, given in zip(found, update, strict=True):
      np.testing.assert_array_equal(tensor, given)


def test_random_updates_stay_below_the_bound_and_close_to_it():
  rng = np.random.default_rng(0)
  for size in (3, 1000, 300_000):
    for scale in (1e-3, 1.0, 1e4):
      vector = rng.normal(scale=scale, size=size).astype(np.float32)
      bound = np.float32(_norm([vector]) * rng.uniform(0.1, 0.99))
      found = dp.clip([tf.constant(vector)], tf.constant(bound))[0]
      assert bound * (1 - 2e-4) <= _norm(found) <= bound


@pytest.mark.parametrize(
  'chosen',
  [
    {},
    {'clipping': 'per_layer'},
    {'compression': 'uniform', 'compression_bits': 1},
    {'compression': 'eden'},
    {'compression': 'qsgd', 'compression_bits': 2, 'rotation': 'hadamard'},
  ],
  ids=str,
)
def test_no_client_moves_a_composed_mean_by_more_than_the_bound(chosen):
  process = _composed(noise_multiplier=0.0, **chosen)
  rng = np.random.default_rng(1)
  for numbers in (rng.normal(size=10), rng.normal(size=10) * 100, [1e30, 1.0]):
    output = _next(process, process.initialize(), [_update(*numbers)])
    assert _norm(output.result) * 4 <= 1.0 + 1e-6


def test_a_weight_changes_nothing():
  process = _process(dp.FixedClipQuery(1.0, 0.0, 2.0))
  state, updates = process.initialize(), [_update(1), _update(-3, 1)]
  light = process.next(state, updates, [np.float32(1)] * 2)
  heavy = process.next(state, updates, [np.float32(1000), np.float32(1)])
  np.testing.assert_array_equal(light.result[0], heavy.result[0])


def _tfp_process(query):
  query = tfp.NormalizedQuery(query, denominator=4.0)
  return dp.factory(query).create(TYPE, WEIGHT)


def test_without_noise_it_is_the_query_of_tensorflow_privacy():
  rng = np.random.default_rng(2)
  ours = _process(dp.AdaptiveClipQuery(0.5, 0.0, 4.0, 0.6, 0.3))
  theirs = _tfp_process(
    tfp.QuantileAdaptiveClipSumQuery(0.5, 0.0, 0.6, 0.3, 0.0, 4.0, True)
  )
  ours_state, theirs_state = ours.initialize(), theirs.initialize()
  for _ in range(6):
    updates = [_update(*rng.normal(size=10)) for _ in range(4)]
    ours_out = _next(ours, ours_state, updates)
    theirs_out = _next(theirs, theirs_state, updates)
    ours_state, theirs_state = ours_out.state, theirs_out.state
    # Ours clips a ten thousandth lower.
    for a, b in zip(ours_out.result, theirs_out.result, strict=True):
      np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * 0.5)
    np.testing.assert_allclose(
      ours_state.query_state.clip_norm,
      theirs_state.query_state.numerator_state.sum_state.l2_norm_clip,
      rtol=1e-6,
    )


def _released(query, rounds: int) -> np.ndarray:
  """What is added to the mean of a client that sends zeros; [rounds, 8000]."""
  types = tff.to_type([(np.float32, (2000,)), (np.float32, (60, 100))])
  process = dp.factory(query).create(types, WEIGHT)
  zeros = [np.zeros(2000, np.float32), np.zeros((60, 100), np.float32)]
  state, found = process.initialize(), []
  for round_num in range(rounds):
    key = noise.insecure_key(0, round_num)
    output = _next(process, state, [zeros], key)
    found.append(np.concatenate([np.ravel(t) for t in output.result]))
  return np.array(found)


@pytest.mark.parametrize(
  ('query', 'stddev'),
  [
    (dp.FixedClipQuery(2.0, 1.5, 10.0), 0.3),
    (dp.PerLayerClipQuery(2.0, 1.5, 10.0), 0.3),
    # (1.5^-2 - (2 * 2)^-2)^-1/2 = 1.61808; the norm is kept by a rate of 0.
    (dp.AdaptiveClipQuery(2.0, 1.5, 10.0, 0.5, 0.0, 2.0), 0.3236167),
  ],
)
def test_the_released_noise_has_the_stated_distribution(query, stddev):
  found = _released(query, 4).astype(np.float64) / stddev
  assert stats.kstest(found.ravel(), 'norm').pvalue > _FALSE_ALARM_RATE
  # With 32,000 numbers a standard deviation that is 3 % off is found.
  assert abs(found.std() - 1) < stats.norm.isf(5e-4) / np.sqrt(2 * found.size)
  # Rounds and coordinates are independent of each other.
  for first, second in ((found[:-1], found[1:]), (found[:, 1:], found[:, :-1])):
    correlation = stats.pearsonr(first.ravel(), second.ravel())
    assert correlation.pvalue > _FALSE_ALARM_RATE


def test_the_noised_count_moves_the_norm_as_stated():
  query = dp.AdaptiveClipQuery(1.0, 0.5, 10.0, 0.5, 1.0, 2.0)
  process = _process(query)
  state, moves, released = process.initialize(), [], []
  for round_num in range(400):
    key = noise.insecure_key(1, round_num)
    output = _next(process, state, [_update(0), _update(1e3)], key)
    moves.append(math.log(output.state.query_state.clip_norm))
    released.append(output.result[0][0])
  # One of two is unclipped: the count is N(0, 2), cut to half of ten clients.
  found = -np.array(moves) * 10
  expected = stats.norm(scale=2.0)
  inside = np.abs(found) < 4.99
  assert stats.kstest(found[inside], expected.cdf).pvalue > _FALSE_ALARM_RATE
  # The count's noise says nothing about the update's.
  assert stats.pearsonr(found, released).pvalue > _FALSE_ALARM_RATE


def test_the_events_are_those_of_the_noise():
  fixed = _process(dp.FixedClipQuery(2.0, 1.5, 10.0))
  with pytest.raises(ValueError, match='initialize'):
    dp.event(fixed.initialize())
  key = noise.secure_key()
  state = _next(fixed, fixed.initialize(), [_update(0)], key).state
  assert dp.event(state) == dp_accounting.GaussianDpEvent(1.5)
  adaptive = _process(
    dp.AdaptiveClipQuery(2.0, 1.5, 10.0, clipped_count_stddev=2)
  )
  state = _next(adaptive, adaptive.initialize(), [_update(0)], key).state
  update, count = dp.event(state).events
  assert count.noise_multiplier == 4.0
  assert update.noise_multiplier == pytest.approx(1.61808, abs=1e-5)


def test_adaptive_clipping_of_a_small_cohort_is_refused_in_words():
  with pytest.raises(ValueError, match='--clipped_count_stddev above 0.5'):
    dp.AdaptiveClipQuery(1.0, 1.0, 10.0)


def test_a_key_is_used_once_and_is_not_sent():
  process = _process(dp.FixedClipQuery(1.0, 1.0, 1.0))
  state = dp.with_noise_key(process.initialize(), noise.insecure_key(0, 1))
  first = process.next(state, [_update(0)], [np.float32(1)])
  assert not np.any(first.state.query_state.noise_key)
  again = process.next(state, [_update(0)], [np.float32(1)])
  np.testing.assert_array_equal(first.result[0], again.result[0])
  # Clients get the norm alone.
  assert bits.download(process.next) == 32
  forgotten = process.next(first.state, [_update(0)], [np.float32(1)])
  assert np.isnan(forgotten.result[0]).all()


def test_a_key_finds_its_place_behind_other_aggregators():
  process = _composed(noise_multiplier=1.0, compression='eden')
  state = dp.with_noise_key(process.initialize(), noise.insecure_key(0, 1))
  output = _next(process, state, [_update(1)] * 4)
  assert np.isfinite(output.result[0]).all()
  assert dp.event(output.state) == dp_accounting.GaussianDpEvent(1.0)
  with pytest.raises(ValueError, match='0 places'):
    dp.with_noise_key((), noise.secure_key())


@pytest.mark.parametrize(
  ('chosen', 'message'),
  [
    ({'clipping': 'none'}, 'needs --clipping'),
    ({'aggregator': 'median'}, 'no bound'),
    ({'zeroing': True}, 'without noise'),
    ({'secure_sum': True}, 'noise is added by the server'),
    ({'has_uniform_weights': False}, '--client_weighting=uniform'),
    ({'clipping': 'per_layer', 'compression': 'eden'}, 'one vector'),
    ({'noise_multiplier': -1.0}, 'below 0'),
    ({'clip_norm': None}, 'positive --clip_norm'),
    (
      {'dp_mechanism': 'none', 'clipping': 'per_layer'},
      'without --dp_mechanism',
    ),
  ],
  ids=str,
)
def test_unsound_combinations_are_refused(chosen, message):
  with pytest.raises(ValueError, match=message):
    _composed(**chosen)
