"""Vectorised fake quantization against TensorFlow's kernels."""

import numpy as np
import pytest
import tensorflow as tf

from research.runtime import pfor_rules

CLIENTS = 5
# The third's range is empty, zero is outside of the fourth's and the fifth's.
LOW = np.array([-1.0, -0.3, 0.0, 0.2, -2.0], np.float32)
HIGH = np.array([2.0, 0.75, 0.0, 0.9, -0.5], np.float32)
KINDS = [(8, False), (8, True), (4, False), (4, True)]


def inputs(shape):
  rng = np.random.default_rng(0)
  return rng.normal(size=[CLIENTS, *shape]).astype(np.float32)


def quantize(x, low, high, kind, per_channel):
  function = (
    tf.quantization.fake_quant_with_min_max_vars_per_channel
    if per_channel
    else tf.quantization.fake_quant_with_min_max_vars
  )
  return function(x, low, high, kind[0], narrow_range=kind[1])


def ranges(per_channel):
  if not per_channel:
    return LOW, HIGH
  factors = np.array([1.0, 0.1, 3.0], np.float32)
  return LOW[:, None] * factors, HIGH[:, None] * factors


@pytest.mark.parametrize('jit', [False, True])
@pytest.mark.parametrize('per_channel', [False, True])
@pytest.mark.parametrize('kind', KINDS)
def test_values_and_gradients(kind, per_channel, jit):
  x, factors = inputs([4, 2, 3]), inputs([4, 2, 3])[::-1].copy()

  def one(element):
    x, low, high, factors = element
    with tf.GradientTape() as tape:
      tape.watch([x, low, high])
      found = quantize(x, low, high, kind, per_channel)
      loss = tf.reduce_sum(found * factors)
    return found, tape.gradient(loss, [x, low, high])

  elements = (x, *ranges(per_channel), factors)
  expected = [
    one([tf.constant(value[i]) for value in elements]) for i in range(CLIENTS)
  ]
  pfor_rules.register()

  @tf.function(jit_compile=jit)
  def together(elements):
    return pfor_rules.map_clients(one, elements)

  found, gradients = together(tuple(map(tf.constant, elements)))
  step = np.max(HIGH - LOW) * 3 / (2 ** kind[0] - 1)
  for i, (value, wanted) in enumerate(expected):
    close = np.isclose(found[i], value, rtol=0, atol=1e-6)
    if jit:
      # Divisions are not rounded alike: a value between two steps may fall.
      assert close.mean() > 0.9
      np.testing.assert_allclose(found[i], value, atol=1.01 * step)
    else:
      assert close.all()
    for one_gradient, one_wanted in zip(gradients, wanted, strict=True):
      np.testing.assert_allclose(one_gradient[i], one_wanted, atol=1e-5)


def test_a_range_that_all_clients_share():
  x = inputs([6])
  pfor_rules.register()

  @tf.function
  def together(elements):
    return pfor_rules.map_clients(
      lambda x: quantize(x, -1.0, 2.0, (8, False), False), elements
    )

  np.testing.assert_allclose(
    together(tf.constant(x)),
    quantize(x, -1.0, 2.0, (8, False), False),
    rtol=0,
    atol=1e-6,
  )
