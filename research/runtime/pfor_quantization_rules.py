"""Vectorisation rules for fake quantization with ranges that clients measure.

The arithmetic is that of TensorFlow's kernels (core/kernels/
fake_quant_ops_functor.h), in their order, so that it rounds as they do.
"""

import importlib

import tensorflow as tf

pfor = importlib.import_module('tensorflow.python.ops.parallel_for.pfor')


def _quantize(pfor_input):
  inputs, low, high = _operands(pfor_input, 0)
  low, high, scale = _nudge(pfor_input, low, high)
  shifted = tf.clip_by_value(inputs, low, high) - low
  steps = tf.floor(shifted * (1.0 / scale) + 0.5)
  empty = tf.equal(low, high)
  return pfor.wrap(
    tf.where(empty, tf.zeros_like(inputs), steps * scale + low), True
  )


def _gradient(pfor_input):
  inputs, low, high = _operands(pfor_input, 1)
  gradients = pfor_input.stacked_input(0)
  low, high, _ = _nudge(pfor_input, low, high)
  # An empty range lets all gradients through, and moves neither end.
  empty = tf.equal(low, high)
  below = tf.logical_and(inputs < low, ~empty)
  above = tf.logical_and(inputs > high, ~empty)
  first = 1
  last = inputs.shape.rank - (1 if _is_per_channel(pfor_input) else 0)
  zeros = tf.zeros_like(gradients)

  def total(mask):
    return tf.reduce_sum(tf.where(mask, gradients, zeros), range(first, last))

  inside = tf.where(tf.logical_or(below, above), zeros, gradients)
  return [pfor.wrap(t, True) for t in (inside, total(below), total(above))]


def _is_per_channel(pfor_input) -> bool:
  return 'PerChannel' in pfor_input.op.type


def _operands(pfor_input, start: int) -> tuple[tf.Tensor, ...]:
  """Inputs [clients, ...], and their ranges, to be broadcast against them."""
  pfor_input.stack_inputs()
  inputs, *ends = (pfor_input.stacked_input(start + i) for i in range(3))
  if _is_per_channel(pfor_input):
    inner = [1] * (inputs.shape.rank - 2)
    shape = [tf.shape(inputs)[0], *inner, inputs.shape[-1]]
  else:
    shape = [tf.shape(inputs)[0], *[1] * (inputs.shape.rank - 1)]
  return inputs, *(tf.reshape(end, shape) for end in ends)


def _nudge(
  pfor_input, low: tf.Tensor, high: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
  """Moves a range so that zero is on the grid; an empty one stays empty."""
  least = 1.0 if pfor_input.get_attr('narrow_range') else 0.0
  most = float(2 ** pfor_input.get_attr('num_bits') - 1)
  empty = tf.logical_and(tf.equal(low, 0.0), tf.equal(high, 0.0))
  scale = tf.where(empty, tf.ones_like(low), (high - low) / (most - least))
  zero = least - low / scale
  # The kernels round halves away from zero, and zero points are positive.
  zero = tf.clip_by_value(tf.floor(zero + 0.5), least, most)
  nudged = ((least - zero) * scale, (most - zero) * scale)
  low, high = (tf.where(empty, tf.zeros_like(end), end) for end in nudged)
  return low, high, scale


RULES = {
  'FakeQuantWithMinMaxVars': _quantize,
  'FakeQuantWithMinMaxVarsPerChannel': _quantize,
  'FakeQuantWithMinMaxVarsGradient': _gradient,
  'FakeQuantWithMinMaxVarsPerChannelGradient': _gradient,
}
