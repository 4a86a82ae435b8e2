"""Dropout that follows from its seed and the batch."""

import numpy as np
import pytest
import tensorflow as tf

from models import layers

ONES = tf.ones([20, 500])


def examples(seed, rows=20):
  rng = np.random.default_rng(seed)
  return tf.constant(rng.integers(0, 256, [rows, 28, 28, 1]) / 255, tf.float32)


def drop(batch, seed=1, rate=0.25, training=True):
  layer = layers.BatchSeededDropout(rate, seed)
  return layer([ONES, batch], training=training).numpy()


def test_same_batch_same_mask_in_eager_and_graph_and_xla():
  batch = examples(0)
  first = drop(batch)
  layer = layers.BatchSeededDropout(0.25, 1)
  for xla in (False, True):
    traced = tf.function(
      lambda b: layer([ONES, b], training=True), jit_compile=xla
    )
    np.testing.assert_array_equal(traced(batch), first)
    np.testing.assert_array_equal(traced(batch), first)


def test_mask_is_different_for_another_batch_order_or_seed():
  batch = examples(0)
  first = drop(batch) > 0
  for other in (
    drop(examples(1)),
    drop(tf.reverse(batch, [0])),
    drop(tf.roll(batch, 1, 0)),
    drop(batch, seed=2),
  ):
    # Independent masks agree where both keep or both drop.
    agreement = np.mean((other > 0) == first)
    assert abs(agreement - (0.75**2 + 0.25**2)) < 0.02


def test_vectorized_over_clients_it_is_the_same():
  batches = tf.stack([examples(0), examples(1)])
  layer = layers.BatchSeededDropout(0.25, 1)
  outputs = tf.vectorized_map(
    lambda b: layer([ONES, b], training=True),
    batches,
    fallback_to_while_loop=False,
  )
  for output, batch in zip(outputs, batches, strict=True):
    np.testing.assert_array_equal(output, drop(batch))


def test_rounding_of_the_device_does_not_matter():
  levels = np.arange(256, dtype=np.float32).reshape(1, 16, 16, 1)
  batch = levels / np.float32(255)
  first = layers._checksum(batch)
  for other in (
    levels * np.float32(1 / 255),
    np.nextafter(batch, np.float32(2)),
    np.nextafter(batch, np.float32(-1)),
  ):
    assert layers._checksum(other) == first


def test_bits_of_the_hash_are_fair_and_independent():
  bits = layers.random_bits(examples(0), 1, tf.zeros([2**16])).numpy()
  assert bits.min() >= 0 and bits.max() < 2**32
  binary = (bits[:, None] >> np.arange(32)) & 1
  # Five standard deviations of 65,536 fair coins.
  assert np.abs(binary.mean(axis=0) - 0.5).max() < 5 * 0.5 / 2**8
  correlation = np.corrcoef(np.concatenate([binary[1:], binary[:-1]], 1).T)
  assert np.abs(correlation - np.eye(64)).max() < 5 / 2**8
  quarters = np.histogram(bits / 2**32, 64, (0, 1))[0]
  assert np.sum((quarters - 1024) ** 2 / 1024) < 63 + 5 * (2 * 63) ** 0.5


def test_one_pixel_changes_the_mask():
  batch = examples(0).numpy()
  changed = batch.copy()
  changed[7, 3, 4, 0] += 1 / 255
  assert np.mean((drop(batch) > 0) != (drop(changed) > 0)) > 0.3


@pytest.mark.parametrize('rate', [0.0, 0.25, 0.5])
def test_rate_and_scale(rate):
  output = drop(examples(0), rate=rate)
  np.testing.assert_allclose(output[output > 0], 1 / (1 - rate), rtol=1e-6)
  # Four standard deviations of a mean of 10,000 Bernoulli trials.
  assert (
    abs(np.mean(output == 0) - rate) <= 4 * (rate * (1 - rate) / 1e4) ** 0.5
  )


def test_rows_of_a_batch_have_their_own_masks():
  output = drop(tf.zeros([20, 28, 28, 1])) > 0
  assert len({row.tobytes() for row in output}) == 20


def test_inference_is_the_identity():
  np.testing.assert_array_equal(drop(examples(0), training=False), ONES)


def test_config_round_trip():
  layer = layers.BatchSeededDropout(0.5, 12, name='here')
  copy = layers.BatchSeededDropout.from_config(layer.get_config())
  assert (copy.rate, copy.seed, copy.name) == (0.5, 12, 'here')


def test_rate_is_checked():
  with pytest.raises(ValueError, match='rate=1'):
    layers.BatchSeededDropout(1, 0)


def test_derived_seeds_are_fixed_for_ever():
  # sha256 of '0/dense' begins so; another value would change published runs.
  assert layers.derive_seed(0, 'dense') == 0x04463A32
  assert layers.derive_seed(0, 'dense') != layers.derive_seed(1, 'dense')
