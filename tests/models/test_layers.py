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


def test_one_pixel_changes_the_mask():
  batch = examples(0).numpy()
  changed = batch.copy()
  changed[7, 3, 4, 0] = np.nextafter(changed[7, 3, 4, 0], np.float32(1))
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
