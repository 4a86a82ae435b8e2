"""Means with distributed noise: grid, bound, noise, key and refusals."""

import functools
import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff
from scipy import stats

from research.aggregators import (
  bits,
  compose,
  dp,
  dp_distributed,
  rotation,
  settings,
)
from research.privacy import distributed, noise
from research.runtime import in_process
from tests.research.privacy import integer_distributions

WEIGHT = tff.TensorType(np.float32)
MECHANISMS = distributed.MECHANISMS
# Of each statistical test; the noise is seeded, so that none of them flakes.
_FALSE_ALARM_RATE = 1e-3


@pytest.fixture(scope='module', autouse=True)
def _runtime():
  with in_process.InProcessRuntime():
    yield


def _settings(**chosen):
  chosen = {
    'dp_mechanism': distributed.SKELLAM,
    'clipping': 'fixed',
    'clip_norm': 1.0,
    'clients_per_round': 5,
    'has_uniform_weights': True,
    'secure_sum_bits': 9,
    **chosen,
  }
  return settings.Settings(**chosen)


@functools.cache
def _process(size, **chosen):
  value_type = tff.TensorType(np.float32, [size])
  return compose.build(_settings(**chosen)).create(value_type, WEIGHT)


def _next(process, state, updates, key=None):
  if key is not None:
    state = dp.with_noise_key(state, key)
  return process.next(state, list(updates), [np.float32(1)] * len(updates))


def _query(size, **chosen):
  chosen = _settings(**chosen)
  encoding = dp_distributed.encoding(chosen, size)
  query = dp_distributed.DistributedQuery(chosen.dp_mechanism, encoding, 0)
  return query, encoding


def _rotated(vector, query, state):
  seed = tf.stack([query.derive_sample_params(state), 0])
  return rotation.Hadamard().rotate(tf.constant(vector), seed).numpy()


@pytest.mark.parametrize('size', [3, 1000])
def test_without_noise_only_the_rounding_to_the_grid_is_lost(size):
  query, encoding = _query(size, noise_multiplier=0.0)
  rng = np.random.default_rng(0)
  updates = rng.normal(size=[5, size]).astype(np.float32)
  updates /= np.linalg.norm(updates, axis=1, keepdims=True) * 1.01
  state = query.initial_global_state()
  codes = [
    query.preprocess_record(query.derive_sample_params(state), tf.constant(u))
    for u in updates
  ]
  step = encoding.granularity
  for code, update in zip(codes, updates, strict=True):
    assert code.dtype == tf.int64
    error = code.numpy() - _rotated(update, query, state) / step
    # Rounding, and what a rotation in float32 is off.
    assert np.abs(error).max() < 1 + 1e-2
  # Nor is it rounded to the nearest.
  assert size < 1000 or np.abs(error).max() > 0.6
  mean, _, _ = query.get_noised_result(tf.add_n(codes), state)
  error = _rotated(mean.numpy() - updates.sum(axis=0) / 5, query, state)
  assert np.abs(error).max() < step


def test_the_whole_round_is_the_mean_on_average():
  process = _process(8, noise_multiplier=0.0)
  rng = np.random.default_rng(1)
  updates = rng.normal(size=[5, 8]).astype(np.float32) / 10
  state, found = process.initialize(), []
  for _ in range(150):
    output = _next(process, state, updates)
    state = output.state
    found.append(output.result)
  error = np.mean(found, axis=0) - updates.mean(axis=0)
  spread = np.std(found, axis=0)
  # Each round has another rotation, and rounds anew.
  assert spread.min() > 0
  # 8 normal numbers beyond 4.2 have a probability of 2e-4; what rounding is
  # biased by its condition is small beside that.
  assert np.abs(error / spread).max() * math.sqrt(150) < 4.2


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
@pytest.mark.parametrize('size', [1, 10, 500])
def test_what_is_summed_never_exceeds_the_inflated_bound(size, numbers):
  update = np.resize(np.array(numbers, np.float32), size)
  for secure_sum_bits in (5, 16, 20):
    query, encoding = _query(
      size, noise_multiplier=0.0, secure_sum_bits=secure_sum_bits
    )
    code = query.preprocess_record(tf.constant(7), tf.constant(update)).numpy()
    assert code.shape == (encoding.dimension,)
    assert int(code @ code) <= encoding.squared_norm
    if not np.isfinite(update).all():
      assert not code.any()


def test_random_updates_stay_below_the_inflated_bound_and_come_close():
  rng = np.random.default_rng(2)
  query, encoding = _query(64, noise_multiplier=0.0, secure_sum_bits=6)
  norms = []
  for number in range(60):
    update = rng.normal(size=64).astype(np.float32)
    code = query.preprocess_record(tf.constant(number), tf.constant(update))
    norms.append(int(tf.reduce_sum(code * code)))
  assert max(norms) <= encoding.squared_norm
  assert max(norms) > 0.8 * encoding.squared_norm


_round_once = tf.function(dp_distributed.round_conditionally)


def _round(vector, bound, seed=0):
  vector = tf.constant(vector, tf.float32)
  return _round_once(vector, bound, tf.constant([seed, 1])).numpy()


def test_rounding_is_repeated_until_the_norm_is_bounded():
  # Of four coordinates of 1/2 at most two may be rounded up: given that, two
  # of them are in 6 of 11 cases, one in 4 and none in 1.
  counts = np.bincount(
    [_round([0.5] * 4, 2, seed).sum() for seed in range(2000)], minlength=5
  )
  assert counts[3:].sum() == 0
  expected = np.array([1, 4, 6]) / 11 * 2000
  statistic = ((counts[:3] - expected) ** 2 / expected).sum()
  assert statistic < 13.8  # Chi-square of 2 degrees: 1e-3.


def test_rounding_is_right_on_average_if_nothing_is_bounded():
  found = [_round([0.25, -0.25, 7.0], 10**6, seed) for seed in range(2000)]
  mean = np.mean(found, axis=0)
  # Four standard deviations of a mean of 2000 coins of 1/4.
  np.testing.assert_allclose(mean, [0.25, -0.25, 7.0], atol=0.039)
  assert mean[2] == 7.0


def test_what_can_not_be_rounded_within_the_bound_becomes_shorter():
  np.testing.assert_array_equal(_round([3.99999, -4.99999], 25), [3, -4])
  np.testing.assert_array_equal(_round([3.99999, -4.99999], 24), [0, 0])


def test_sums_wrap_modulo_a_power_of_two():
  numbers = tf.constant([-9, -8, -1, 0, 7, 8, 15, 16, 23, 24], tf.int64)
  wrapped = dp_distributed.wrap(numbers, 4).numpy()
  np.testing.assert_array_equal(wrapped, [7, -8, -1, 0, 7, -8, -1, 0, 7, -8])
  # A remainder of the sum is the one of the sum of remainders.
  parts = np.random.default_rng(3).integers(-500, 500, size=[7, 40])
  each = sum(dp_distributed.wrap(tf.constant(part), 5) for part in parts)
  np.testing.assert_array_equal(
    dp_distributed.wrap(each, 5),
    dp_distributed.wrap(tf.constant(parts.sum(axis=0)), 5),
  )


def test_a_sum_beyond_the_modulus_comes_back_at_the_other_end():
  query, encoding = _query(8, noise_multiplier=0.0, secure_sum_bits=6)
  state = query.initial_global_state()
  total = np.zeros(8, np.int64)
  total[2] = 33
  mean, _, _ = query.get_noised_result(tf.constant(total), state)
  rotated = _rotated(mean.numpy(), query, state) / encoding.granularity * 5
  np.testing.assert_allclose(rotated[2], 33 - 64, rtol=1e-5)
  np.testing.assert_allclose(np.delete(rotated, 2), 0, atol=1e-4)


def _released_noise(mechanism: str, rounds: int = 3):
  """Integers added for two clients that send zeros, and their grid."""
  chosen = {'dp_mechanism': mechanism, 'noise_multiplier': 1.5}
  process = _process(4096, **chosen)
  query, encoding = _query(4096, **chosen)
  state, found = process.initialize(), []
  for number in range(rounds):
    key = noise.insecure_key(0, number)
    output = _next(process, state, [np.zeros(4096, np.float32)] * 2, key)
    rotated = _rotated(output.result, query, state.query_state)
    state = output.state
    steps = rotated / encoding.granularity * 5
    found.append(np.round(steps).astype(np.int64))
    np.testing.assert_allclose(steps, found[-1], atol=1e-2)
  return np.array(found), encoding


@pytest.mark.parametrize('mechanism', MECHANISMS)
def test_the_released_noise_has_the_stated_distribution(mechanism):
  found, encoding = _released_noise(mechanism)
  assert 50 < encoding.stddev < 65
  pmf = getattr(
    integer_distributions,
    'skellam' if mechanism == distributed.SKELLAM else 'discrete_gaussian',
  )(encoding.stddev**2, 500)
  # Taken modulo 2^9 as the sum is.
  wrapped = np.zeros(513)
  np.add.at(wrapped, (np.arange(-500, 501) + 256) % 512, pmf)
  pvalue = integer_distributions.chi_square(found.ravel(), wrapped)
  assert pvalue > _FALSE_ALARM_RATE
  # Rounds and coordinates are independent of each other.
  for first, second in ((found[:-1], found[1:]), (found[:, 1:], found[:, :-1])):
    correlation = stats.pearsonr(first.ravel(), second.ravel())
    assert correlation.pvalue > _FALSE_ALARM_RATE


def test_clients_who_share_discrete_gaussian_noise_add_up_to_it():
  # Ten clients of 1 / 10 of the variance each, as in a deployment.
  variance = 40.0
  one = integer_distributions.discrete_gaussian(variance / 10, 100)
  total = integer_distributions.sum_of(one, 10)
  rng = np.random.default_rng(4)
  shares = rng.choice(np.arange(-100, 101), size=[10, 200_000], p=one)
  ideal = integer_distributions.discrete_gaussian(variance, 100)
  for pmf in (total, ideal):
    pvalue = integer_distributions.chi_square(shares.sum(axis=0), pmf)
    assert pvalue > _FALSE_ALARM_RATE
  # With two clients fewer there is a fifth less noise.
  remaining = shares[:8].sum(axis=0)
  assert remaining.var() == pytest.approx(0.8 * variance, rel=0.015)
  pvalue = integer_distributions.chi_square(remaining, ideal)
  assert pvalue < _FALSE_ALARM_RATE


@pytest.mark.parametrize('mechanism', MECHANISMS)
def test_the_noise_does_not_tell_how_many_took_part(mechanism):
  process = _process(6, dp_mechanism=mechanism, noise_multiplier=1.5)
  state, key = process.initialize(), noise.insecure_key(0, 1)
  results = [
    _next(process, state, [np.zeros(6, np.float32)] * clients, key).result
    for clients in (0, 1, 7)
  ]
  assert np.std(results[0]) > 0
  np.testing.assert_array_equal(results[0], results[1])
  np.testing.assert_array_equal(results[0], results[2])


def test_a_weight_changes_nothing():
  process = _process(8, noise_multiplier=0.0)
  state = process.initialize()
  updates = [np.full(8, 0.1, np.float32), np.full(8, -0.3, np.float32)]
  light = process.next(state, updates, [np.float32(1)] * 2)
  heavy = process.next(state, updates, [np.float32(1000), np.float32(1)])
  np.testing.assert_array_equal(light.result, heavy.result)


def test_a_key_is_used_once_and_is_not_sent():
  process = _process(6, dp_mechanism=distributed.SKELLAM, noise_multiplier=1.5)
  state = dp.with_noise_key(process.initialize(), noise.insecure_key(0, 1))
  first = _next(process, state, [np.zeros(6, np.float32)])
  assert not np.any(first.state.query_state.noise_key)
  assert first.state.query_state.round_num == 1
  again = _next(process, state, [np.zeros(6, np.float32)])
  np.testing.assert_array_equal(first.result, again.result)
  # Clients get the key of the rotation alone.
  assert bits.download(process.next) == 32
  forgotten = _next(process, first.state, [np.zeros(6, np.float32)])
  assert np.isnan(forgotten.result).all()


@pytest.mark.parametrize('mechanism', MECHANISMS)
def test_the_event_is_that_of_the_grid_and_its_noise(mechanism):
  process = _process(6, dp_mechanism=mechanism, noise_multiplier=1.5)
  key = noise.insecure_key(0, 1)
  update = [np.zeros(6, np.float32)]
  output = _next(process, process.initialize(), update, key)
  _, encoding = _query(6, noise_multiplier=1.5)
  found = dp.event(output.state)
  assert found.stddev == np.float32(encoding.stddev)
  assert found.sensitivity == np.float32(math.sqrt(encoding.squared_norm))
  assert found.dimension == 8
  kinds = {
    distributed.SKELLAM: distributed.SkellamDpEvent,
    distributed.DISCRETE_GAUSSIAN: distributed.DiscreteGaussianDpEvent,
  }
  assert isinstance(found, kinds[mechanism])
  # Eight coordinates of nine bits are sent.
  assert output.measurements[bits.UPLOAD] == 72


def test_structures_are_one_vector():
  types = tff.to_type([(np.float32, (4,)), (np.float32, (2, 3))])
  process = compose.build(_settings(noise_multiplier=0.0)).create(types, WEIGHT)
  update = [np.zeros(4, np.float32), np.full((2, 3), 0.25, np.float32)]
  mean = _next(process, process.initialize(), [update] * 5).result
  for found, expected in zip(mean, update, strict=True):
    np.testing.assert_allclose(found, expected, atol=0.05)


@pytest.mark.parametrize(
  ('chosen', 'message'),
  [
    ({'clipping': 'none'}, 'needs --clipping'),
    ({'clipping': 'adaptive'}, 'needs --clipping=fixed, given adaptive'),
    ({'clipping': 'per_layer'}, 'needs --clipping=fixed, given per_layer'),
    ({'clipping': 'l1'}, 'needs --clipping=fixed, given l1'),
    ({'compression': 'uniform'}, 'an encoding of its own'),
    ({'rotation': 'hadamard'}, 'without --compression'),
    ({'secure_sum': True}, 'a secure sum of its own'),
    ({'aggregator': 'median'}, 'no bound'),
    ({'zeroing': True}, 'without noise'),
    ({'has_uniform_weights': False}, '--client_weighting=uniform'),
    ({'secure_sum_bits': 21}, 'from 2 to 20'),
    ({'secure_sum_bits': 3}, 'give at least 4 bits'),
  ],
  ids=str,
)
@pytest.mark.parametrize('mechanism', MECHANISMS)
def test_unsound_combinations_are_refused(mechanism, chosen, message):
  with pytest.raises(ValueError, match=message):
    _process(6, dp_mechanism=mechanism, **chosen)
