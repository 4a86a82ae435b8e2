"""Integer noise: its probabilities, its bits and its numbers."""

import decimal
import math

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from research.privacy import integer_noise, noise
from tests.research.privacy import integer_distributions

_KEY = noise.insecure_key(0, 1)
# Each statistical test rejects a true hypothesis with this probability; keys
# are fixed, so that a test which passes once passes always.
_FALSE_ALARM_RATE = 1e-3
DISTRIBUTIONS = {
  integer_noise.DISCRETE_GAUSSIAN: integer_distributions.discrete_gaussian,
  integer_noise.SKELLAM: integer_distributions.skellam,
}


def _sample(distribution, variance, size=200_000, key=_KEY, stream=0):
  thresholds = integer_noise.table(distribution, variance)
  return integer_noise.sample(key, stream, thresholds, size).numpy()


@pytest.mark.parametrize('variance', [0.05, 1.0, 37.7, 2500.0])
@pytest.mark.parametrize('distribution', DISTRIBUTIONS)
def test_probabilities_are_those_of_an_independent_computation(
  distribution, variance
):
  found = integer_noise.probabilities(distribution, variance)
  most = len(found) - 1
  expected = DISTRIBUTIONS[distribution](variance, most)[most:]
  np.testing.assert_allclose(
    np.array(found, np.float64), expected, rtol=1e-10, atol=1e-16
  )
  # What is left out does not matter to 126 bits.
  assert found[-1] < decimal.Decimal(2) ** -140
  total = found[0] + 2 * sum(found[1:])
  assert abs(total - 1) < decimal.Decimal(10) ** -24


def test_a_table_has_126_bits_of_each_probability():
  # Of variance 1: I_0(1) / e and I_1(1) / e, by their series.
  with decimal.localcontext() as context:
    context.prec = 60
    e = sum(decimal.Decimal(1) / math.factorial(k) for k in range(60))
    exact = [
      sum(
        decimal.Decimal(1)
        / (2 ** (2 * k + x) * math.factorial(k) * math.factorial(k + x))
        for k in range(40)
      )
      / e
      for x in (0, 1)
    ]
  assert float(exact[0]) == pytest.approx(0.46575960759364)
  upper, lower = integer_noise.table(integer_noise.SKELLAM, 1.0)
  cumulative = [
    int(a) * 2**63 + int(b) for a, b in zip(upper, lower, strict=True)
  ]
  assert cumulative == sorted(set(cumulative))
  assert cumulative[-1] < 2**126
  with decimal.localcontext() as context:
    context.prec = 60
    first = exact[0] * 2**126
    assert abs(first - cumulative[0]) <= decimal.Decimal('0.5')
    both = (exact[0] + 2 * exact[1]) * 2**126
    assert abs(both - cumulative[1]) <= decimal.Decimal('0.5')


def test_a_number_is_how_many_thresholds_its_bits_reach(monkeypatch):
  thresholds = np.array([[3, 3, 5], [7, 2**62, 0]], np.int64)
  # Sign, upper half, lower half, and how many thresholds are at most that.
  cases = [
    (0, 0, 0, 0),
    (1, 3, 6, 0),
    (0, 3, 7, 1),
    (1, 3, 2**62 - 1, 1),
    (1, 3, 2**62, 2),
    (0, 4, 2**63 - 1, 2),
    (0, 5, 0, 3),
    (1, 2**63 - 1, 5, 3),
  ]
  words = [
    [(upper >> 32 << 1) | sign, upper % 2**32, lower >> 32 << 1, lower % 2**32]
    for sign, upper, lower, _ in cases
  ]

  def chacha20(key, nonce, num_blocks):
    assert num_blocks == 2
    return tf.constant(np.array(words, np.uint32).T.reshape([16, 2]))

  monkeypatch.setattr(noise, 'chacha20', chacha20)
  found = integer_noise.sample(_KEY, 0, thresholds, len(cases))
  expected = [-n if sign else n for sign, _, _, n in cases]
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('variance', [0.3, 12.0, 4000.0])
@pytest.mark.parametrize('distribution', DISTRIBUTIONS)
def test_numbers_have_the_distribution(distribution, variance):
  found = _sample(distribution, variance)
  assert found.dtype == np.int64
  most = int(12 * variance**0.5) + 20
  expected = DISTRIBUTIONS[distribution](variance, most)
  pvalue = integer_distributions.chi_square(found, expected)
  assert pvalue > _FALSE_ALARM_RATE
  # Neighbours, and numbers of other streams and keys, are independent.
  others = [
    np.roll(found, 1),
    _sample(distribution, variance, stream=1),
    _sample(distribution, variance, key=noise.insecure_key(0, 2)),
  ]
  for other in others:
    assert stats.pearsonr(found, other).pvalue > _FALSE_ALARM_RATE


def test_a_wrong_variance_or_family_is_found():
  found = _sample(integer_noise.SKELLAM, 12.0)
  wrong = integer_distributions.skellam(12.5, 60)
  assert integer_distributions.chi_square(found, wrong) < _FALSE_ALARM_RATE
  wrong = integer_distributions.discrete_gaussian(12.0, 60)
  assert integer_distributions.chi_square(found, wrong) < _FALSE_ALARM_RATE


def test_numbers_are_a_function_of_their_key():
  thresholds = integer_noise.table(integer_noise.SKELLAM, 30.0)
  args = tf.constant(_KEY), 3, thresholds, 1003
  eager = integer_noise.sample(*args)
  compiled = tf.function(
    lambda key: integer_noise.sample(key, *args[1:]), jit_compile=True
  )
  np.testing.assert_array_equal(eager, compiled(args[0]))
  # As TFF builds its graphs.
  with tf.Graph().as_default() as graph:
    numbers = integer_noise.sample(tf.constant(_KEY), *args[1:])
    with tf.compat.v1.Session(graph=graph) as session:
      np.testing.assert_array_equal(eager, session.run(numbers))
  # The first numbers do not depend on how many there are.
  fewer = integer_noise.sample(*args[:3], 1002)
  assert fewer.shape == [1002]


def test_next_to_no_variance_is_no_noise_and_none_is_refused():
  found = _sample(integer_noise.DISCRETE_GAUSSIAN, 1e-3, size=100)
  assert not found.any()
  with pytest.raises(ValueError, match='variance above 0, given 0'):
    integer_noise.table(integer_noise.SKELLAM, 0.0)
