"""TFLite files: int8 is off by what can be worked out by hand, no more."""

import numpy as np
import pytest
import tensorflow as tf

from research.export import tflite

# Of the linear function y = x W + b of x in [-1, 1].
W = np.array([[0.5, -1.0], [2.0, 0.25], [-1.5, 0.75]], np.float32)
B = np.array([0.125, -0.375], np.float32)


def examples(count=300):
  """Numbers in [-1, 1] of which some are at both ends."""
  x = np.random.default_rng(0).uniform(-1, 1, [count, 3]).astype(np.float32)
  x[0], x[1] = 1, -1
  return x


def linear_function(rounds=None):
  kernel, bias = tf.Variable(W), tf.Variable(B)

  @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, 'x')])
  def serve(x):
    weights = kernel
    if rounds:
      x = tf.quantization.fake_quant_with_min_max_args(x, -1, 1)
      weights = tf.quantization.fake_quant_with_min_max_args(
        kernel, -2, 2, narrow_range=True
      )
    y = tf.matmul(x, weights) + bias
    if rounds:
      y = tf.quantization.fake_quant_with_min_max_args(y, -5, 5)
    return {'prediction': tf.identity(y)}

  return serve.get_concrete_function(), [kernel, bias]


def run(content, x):
  interpreter = tf.lite.Interpreter(model_content=content)
  return interpreter.get_signature_runner()(x=x)


def bound(x, step_y):
  """The largest error of y where x, W and y are rounded to steps.

  |x W - x' W'| <= |x| |W - W'| + |x - x'| |W| + |x - x'| |W - W'|. W is off by
  half a step; x and y by up to another half at the ends of their ranges, which
  move a little so that 0 is a step. The bias is in steps of both, and the
  multiplier of y is rounded, too.
  """
  step_x, step_w = 2 / 255, np.abs(W).max() / 127
  products = (
    np.abs(x).sum(axis=1, keepdims=True) * step_w / 2
    + np.abs(W).sum(axis=0) * step_x
    + len(W) * step_x * step_w / 2
  )
  return products + step_x * step_w / 2 + 1.5 * step_y


def test_float_is_the_function():
  function, variables = linear_function()
  x = examples()
  found = run(tflite.convert(function, variables, tflite.FLOAT), x)
  np.testing.assert_allclose(found['prediction'], x @ W + B, atol=1e-6)


def test_int8_is_off_by_no_more_than_its_steps():
  function, variables = linear_function()
  x = examples()
  content = tflite.convert(function, variables, tflite.INT8, x)
  exact = x.astype(np.float64) @ W + B
  error = np.abs(run(content, x)['prediction'] - exact)
  step_y = (exact.max() - exact.min()) / 255
  assert (error <= bound(x, step_y)).all()
  # It is int8, and not float: no model of 8 bits is as near as a tenth step.
  assert error.max() > step_y / 10
  counts = tflite.operations(content)
  assert counts['FULLY_CONNECTED'] == {'int8': 1}


def test_ranges_that_examples_lack_are_cut_off():
  """Calibrated on [-0.1, 0.1], y can't be what larger x would give."""
  function, variables = linear_function()
  x = examples()
  content = tflite.convert(function, variables, tflite.INT8, x / 10)
  found = run(content, x)['prediction']
  assert np.abs(found).max() < np.abs(x @ W + B).max() / 2


def test_learned_ranges_need_no_examples():
  function, variables = linear_function(rounds=True)
  assert tflite.has_fake_quantization(function)
  content = tflite.convert(function, variables, tflite.INT8)
  assert tflite.operations(content)['FULLY_CONNECTED'] == {'int8': 1}
  x = examples()
  error = np.abs(run(content, x)['prediction'] - (x @ W + B))
  assert (error <= bound(x, 10 / 255)).all()


def test_int8_without_any_ranges_is_refused():
  function, variables = linear_function()
  assert not tflite.has_fake_quantization(function)
  with pytest.raises(tflite.ConversionError, match='representative examples'):
    tflite.convert(function, variables, tflite.INT8)


def network(size):
  """Two matrix products with what is to stay float between and behind them."""
  rng = np.random.default_rng(1)
  first, second = (
    tf.Variable(rng.normal(size=shape).astype(np.float32) / 8)
    for shape in ([3, size], [size, size])
  )

  @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, 'x')])
  def serve(x):
    hidden = tf.matmul(x, first)
    mean, variance = tf.nn.moments(hidden, [-1], keepdims=True)
    hidden = (hidden - mean) * tf.math.rsqrt(variance + 1e-6)
    return {'probabilities': tf.nn.softmax(tf.matmul(hidden, second))}

  return serve.get_concrete_function(), [first, second]


def test_normalisation_and_softmax_stay_float():
  function, variables = network(64)
  content = tflite.convert(function, variables, tflite.INT8, examples())
  counts = tflite.operations(content)
  assert counts['FULLY_CONNECTED'] == {'int8': 2}
  assert counts['SOFTMAX'] == {'float32': 1}
  for name in ('MEAN', 'SQUARED_DIFFERENCE', 'RSQRT', 'MUL'):
    assert set(counts[name]) == {'float32'}, name


def test_rounded_weights_take_less_room():
  function, variables = network(512)
  sizes, counts = {}, {}
  for precision in (tflite.FLOAT, tflite.FLOAT16, tflite.DYNAMIC_RANGE):
    content = tflite.convert(function, variables, precision)
    sizes[precision] = len(content)
    counts[precision] = tflite.operations(content)
  weights = 4 * 512 * (512 + 3)
  assert weights < sizes[tflite.FLOAT] < 1.01 * weights
  assert sizes[tflite.FLOAT16] < 0.51 * weights
  assert sizes[tflite.DYNAMIC_RANGE] < 0.27 * weights
  assert counts[tflite.FLOAT]['FULLY_CONNECTED'] == {'float32': 2}
  # The converter leaves weights of less than 1,024 numbers as they are; the
  # first matrix has 1,536.
  found = counts[tflite.DYNAMIC_RANGE]['FULLY_CONNECTED']
  assert found == {'float32 by int8': 2}
