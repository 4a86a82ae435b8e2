"""Integer noise from a cryptographic generator, by tables of probabilities.

A table has the cumulative probabilities of a symmetric distribution's absolute
value as integers of 126 bits, which are compared with 126 bits of ChaCha20. A
number's distribution is thereby within 2^-100 of the true one in total
variation (each of at most 2^24 entries is off by 2^-125 at most), and no
floating point is left in it: unlike noise in floating point it has no gaps.
Each number costs the same time, whatever it is.
"""

import decimal
import functools
import math

import numpy as np
import tensorflow as tf

from research.privacy import noise

GENERATOR = (
  'ChaCha20 (RFC 8439) and tables of cumulative probabilities of 126 bits'
)

DISCRETE_GAUSSIAN, SKELLAM = 'discrete_gaussian', 'skellam'

_HALF_BITS = 63
_BITS = 2 * _HALF_BITS
# Of the probabilities, far more than 126 bits have.
_DIGITS = 60
# Beyond this a number's probability is far below 2^-126; the constant is for
# Skellam's tails, which are heavier if the variance is small.
_MOST_DEVIATIONS, _MORE = 14, 64
_WORDS_PER_NUMBER = 4
_NUMBERS_PER_BLOCK = 16 // _WORDS_PER_NUMBER


def probabilities(distribution: str, variance: float) -> list[decimal.Decimal]:
  """Probabilities of 0, 1, 2, ... of a symmetric distribution on the integers.

  Args:
    distribution: `DISCRETE_GAUSSIAN` has probabilities proportional to
      exp(-x^2 / (2 variance)) (Canonne, Kamath and Steinke 2020,
      arXiv:2004.00010, Definition 1), so that its true variance is slightly
      smaller; `SKELLAM` is the difference of two independent Poisson numbers of
      mean variance / 2 each (Agarwal et al. 2021, arXiv:2110.04995, Section 2).
    variance: Above 0.

  Returns:
    To where they are negligible: far below 2^-126.
  """
  if not 0 < variance < math.inf:
    raise ValueError(
      f'integer noise needs a variance above 0, given {variance}'
    )
  last = math.ceil(_MOST_DEVIATIONS * math.sqrt(variance)) + _MORE
  with decimal.localcontext() as context:
    context.prec = _DIGITS
    context.Emin = decimal.MIN_EMIN
    exact = decimal.Decimal(variance)
    shape = _gaussian if distribution == DISCRETE_GAUSSIAN else _skellam
    weights = shape(exact, last)
    total = weights[0] + 2 * sum(weights[1:])
    return [weight / total for weight in weights]


def _gaussian(variance: decimal.Decimal, last: int) -> list[decimal.Decimal]:
  """exp(-x^2 / (2 variance)) for x from 0 to `last`."""
  ratio, weight = (-1 / (2 * variance)).exp(), decimal.Decimal(1)
  step, weights = ratio * ratio, []
  for _ in range(last + 1):
    weights.append(weight)
    weight, ratio = weight * ratio, ratio * step
  return weights


def _skellam(variance: decimal.Decimal, last: int) -> list[decimal.Decimal]:
  """Bessel functions I_x(variance) for x from 0 to `last`, but for a factor.

  By the recurrence I_(x-1) = I_(x+1) + (2 x / variance) I_x from far out, where
  what it starts from does not matter (Miller's algorithm).
  """
  weights = [decimal.Decimal(0), decimal.Decimal(1)]
  for x in range(last, 0, -1):
    weights.append(weights[-2] + 2 * x / variance * weights[-1])
  return weights[:0:-1]


@functools.lru_cache(8)
def table(distribution: str, variance: float) -> np.ndarray:
  """Cumulative probabilities of the absolute value, for `sample`.

  Args:
    distribution: See `probabilities`.
    variance: See `probabilities`.

  Returns:
    int64 [2, n], ascending: the upper and lower 63 bits of P(|X| <= x) * 2^126
    for x = 0, ..., n - 1, without those that are 1.
  """
  rows, total = [], decimal.Decimal(0)
  with decimal.localcontext() as context:
    context.prec = _DIGITS
    for x, probability in enumerate(probabilities(distribution, variance)):
      total += probability if x == 0 else 2 * probability
      threshold = int((total * 2**_BITS).to_integral_value())
      if threshold >= 2**_BITS:
        break
      rows.append(divmod(threshold, 2**_HALF_BITS))
  return np.array(rows, np.int64).reshape([-1, 2]).T


def sample(
  key: tf.Tensor, stream: int, thresholds: np.ndarray, size: int
) -> tf.Tensor:
  """Independent numbers of a symmetric distribution on the integers.

  Args:
    key: uint32 [8], never used twice with the same stream.
    stream: At least 0; streams of one key are independent.
    thresholds: What `table` returns.
    size: How many.

  Returns:
    int64 [size].
  """
  blocks = max(1, math.ceil(size / _NUMBERS_PER_BLOCK))
  nonce = tf.constant([stream, 0, 0], tf.uint32)
  words = tf.reshape(
    noise.chacha20(key, nonce, blocks), [_WORDS_PER_NUMBER, -1]
  )
  words = tf.cast(words[:, :size], tf.int64)
  # In TFF's graphs == would compare objects.
  is_negative = tf.equal(words[0] % 2, 1)
  magnitude = _count_at_most(
    thresholds, _join(words[0], words[1]), _join(words[2], words[3])
  )
  return tf.where(is_negative, -magnitude, magnitude)


def _join(high: tf.Tensor, low: tf.Tensor) -> tf.Tensor:
  """63 bits: of two words all but the lowest bit of the first."""
  return (high // 2) * 2**32 + low


def _count_at_most(
  thresholds: np.ndarray, upper: tf.Tensor, lower: tf.Tensor
) -> tf.Tensor:
  """How many thresholds are at most a number, int64 like `upper`."""
  count = thresholds.shape[1]
  uppers, lowers = (tf.constant(row, tf.int64) for row in thresholds)
  found = tf.zeros_like(upper)
  # Binary search: `found` thresholds are known to be at most the number.
  step = 1 << max(count.bit_length() - 1, 0)
  while step and count:
    last = found + (step - 1)
    index = tf.minimum(last, count - 1)
    high, low = tf.gather(uppers, index), tf.gather(lowers, index)
    is_at_most = (high < upper) | (tf.equal(high, upper) & (low <= lower))
    found = tf.where((last < count) & is_at_most, found + step, found)
    step //= 2
  return found
