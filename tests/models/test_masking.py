"""Which tokens are masked: shares, exceptions, and what decides."""

import math

import numpy as np
import pytest
import tensorflow as tf

from models import masking

PAD, UNKNOWN, CLS, SEP, MASK = range(5)
VOCABULARY = 5_000
ARGUMENTS = {
  'mask_id': MASK,
  'special_ids': (PAD, CLS, SEP),
  'vocabulary_size': VOCABULARY,
}


def texts(rows=400, length=128, seed=0):
  rng = np.random.default_rng(seed)
  tokens = rng.integers(5, VOCABULARY, [rows, length]).astype(np.int32)
  tokens[:, 0] = CLS
  ends = rng.integers(length // 2, length, rows)
  for row, end in enumerate(ends):
    tokens[row, end] = SEP
    tokens[row, end + 1 :] = PAD
  return tokens


def mask(tokens, seed=7):
  masked, labels = masking.mask(tf.constant(tokens), seed=seed, **ARGUMENTS)
  assert masked.dtype == labels.dtype == tf.int32
  return masked.numpy(), labels.numpy()


def assert_share(count, total, share):
  """Five standard deviations: a false alarm in 1.7 million (normal)."""
  deviation = math.sqrt(share * (1 - share) / total)
  assert abs(count / total - share) < 5 * deviation


@pytest.mark.parametrize('seed', [7, 8])
def test_15_percent_are_chosen_of_which_80_are_masked_and_10_random(seed):
  tokens = texts()
  masked, labels = mask(tokens, seed)
  words = tokens >= 5
  chosen = labels >= 0
  assert words.sum() > 35_000
  assert_share(chosen.sum(), words.sum(), 0.15)
  count = chosen.sum()
  assert_share((masked[chosen] == MASK).sum(), count, 0.8)
  # A random word is the old one once in 5,000.
  same = (masked == tokens)[chosen].sum()
  assert_share(same, count, 0.1 + 0.1 / VOCABULARY)
  random = masked[chosen & (masked != MASK) & (masked != tokens)]
  # From the whole vocabulary, each token as often.
  assert random.max() < VOCABULARY
  quarters = np.histogram(random, 4, (0, VOCABULARY))[0]
  for quarter in quarters:
    assert_share(quarter, len(random), 0.25)
  # Neither does the position in a text decide, nor the text.
  half = len(tokens) // 2
  assert_share(chosen[:half].sum(), words[:half].sum(), 0.15)
  assert_share(chosen[:, :30].sum(), words[:, :30].sum(), 0.15)


def test_labels_are_the_tokens_and_the_rest_stays():
  tokens = texts(50)
  masked, labels = mask(tokens)
  chosen = labels != -1
  np.testing.assert_array_equal(labels[chosen], tokens[chosen])
  np.testing.assert_array_equal(masked[~chosen], tokens[~chosen])
  # Of [CLS], [SEP] and padding there is none to guess; an unknown word is.
  assert not np.isin(labels[chosen], [PAD, CLS, SEP]).any()
  unknown = np.full([20, 100], UNKNOWN, np.int32)
  assert (mask(unknown)[1] == UNKNOWN).any()


def test_batch_and_seed_decide():
  tokens = texts(20)
  first = mask(tokens)
  traced = tf.function(lambda t: masking.mask(t, seed=7, **ARGUMENTS))
  for again in (mask(tokens), traced(tf.constant(tokens))):
    for one, other in zip(first, again, strict=True):
      np.testing.assert_array_equal(one, other)
  # Independent choices agree in 0.15 ** 2 + 0.85 ** 2 of the words.
  for other in (
    mask(tokens, seed=8),
    mask(np.roll(tokens, 1, axis=0)),
    tuple(part[:20] for part in mask(np.concatenate([tokens, tokens]))),
  ):
    words = (tokens >= 5) & (np.roll(tokens, 1, axis=0) >= 5)
    agree = ((other[1] >= 0) == (first[1] >= 0))[words]
    assert_share(agree.sum(), words.sum(), 0.15**2 + 0.85**2)
