"""Convolutions of many clients at once, with their own filters."""

import functools

import pytest
import tensorflow as tf

from research.runtime import pfor_rules
from tests.research.runtime import looped

registered = looped.registered
EXPLICIT = [[0, 0], [1, 2], [0, 1], [0, 0]]


def convolve(stacked, *, convolution, shared):
  """A convolution and its two gradients."""
  images = stacked.get('images', shared.get('images'))
  filters = stacked.get('filters', shared.get('filters'))
  with tf.GradientTape() as tape:
    tape.watch([images, filters])
    outputs = convolution(images, filters)
    # The gradient of the output is the client's own, as with its own labels.
    loss = tf.reduce_sum(tf.sin(outputs) * stacked['scale'])
  return outputs, *tape.gradient(loss, [images, filters])


def convolution_case(convolution, filter_shape, own, image_shape=(2, 7, 6, 4)):
  """The function and its arguments; `own` differs between clients."""
  operands = {
    'images': looped.normal(looped.CLIENTS, *image_shape),
    'filters': looped.normal(looped.CLIENTS, *filter_shape),
  }
  stacked = {name: operands[name] for name in own}
  stacked['scale'] = looped.normal(looped.CLIENTS, 1)
  shared = {name: operand[0] for name, operand in operands.items()}
  function = functools.partial(convolve, convolution=convolution, shared=shared)
  return function, stacked


every_operand = pytest.mark.parametrize(
  'own',
  [('images', 'filters'), ('filters',), ('images',), ()],
  ids=['both', 'filters', 'images', 'none'],
)


@looped.both
@every_operand
@pytest.mark.parametrize(
  'strides, padding', [(1, 'SAME'), ([2, 1], 'VALID'), (2, EXPLICIT)]
)
def test_convolution(own, strides, padding, jit):
  function, stacked = convolution_case(
    functools.partial(tf.nn.conv2d, strides=strides, padding=padding),
    (3, 2, 4, 6),
    own,
  )
  looped.compare(function, stacked, jit=jit)


# TensorFlow's CPU kernels have none of these, or not their gradients.
@every_operand
@pytest.mark.parametrize(
  'options, channels',
  [
    ({'dilations': 2}, 4),
    ({}, 2),
    ({'data_format': 'NCHW'}, 4),
  ],
  ids=['dilated', 'grouped', 'channels_first'],
)
def test_convolution_that_only_xla_has(own, options, channels):
  first = 'data_format' in options
  function, stacked = convolution_case(
    functools.partial(tf.nn.conv2d, strides=1, padding='SAME', **options),
    (3, 2, channels, 6),
    own,
    image_shape=(2, 4, 7, 6) if first else (2, 7, 6, 4),
  )
  looped.compare(function, stacked, jit=True, reference_jit=True)


@looped.both
@every_operand
@pytest.mark.parametrize(
  'strides, padding', [(1, 'SAME'), (2, 'VALID'), (2, EXPLICIT)]
)
def test_depthwise_convolution(own, strides, padding, jit):
  def convolution(images, filters):
    return tf.nn.depthwise_conv2d(
      images, filters, [1, strides, strides, 1], padding
    )

  function, stacked = convolution_case(convolution, (3, 2, 4, 2), own)
  looped.compare(function, stacked, jit=jit)


@pytest.mark.parametrize(
  'grouped, jit, loops',
  [
    (None, False, True),
    (None, True, False),
    (True, False, False),
    (False, True, True),
  ],
)
def test_convolutions_are_grouped_where_they_can_be(grouped, jit, loops):
  pfor_rules.register(grouped_convolution=grouped)
  function, stacked = convolution_case(
    functools.partial(tf.nn.conv2d, strides=1, padding='SAME'),
    (3, 2, 4, 6),
    ('images', 'filters'),
  )
  types = looped.op_types(function, stacked, jit)
  assert ('While' in types or 'StatelessWhile' in types) == loops


def test_a_loop_around_convolutions_gives_equal_results_in_xla():
  pfor_rules.register(grouped_convolution=False)
  function, stacked = convolution_case(
    functools.partial(tf.nn.conv2d, strides=1, padding='SAME'),
    (3, 2, 4, 6),
    ('images', 'filters'),
  )
  looped.compare(function, stacked, jit=True)


@looped.both
def test_convolutions_inside_a_loop_that_clients_leave_alone(jit):
  def function(stacked):
    steps, images, filters = stacked

    def step(i, filters):
      with tf.GradientTape() as tape:
        tape.watch(filters)
        outputs = tf.nn.conv2d(images, filters, 1, 'SAME')
        loss = tf.nn.l2_loss(tf.sin(outputs))
      return i + 1, filters - 0.01 * tape.gradient(loss, filters)

    return tf.while_loop(lambda i, _: i < steps, step, (0, filters))

  stacked = (
    looped.STEPS,
    looped.normal(looped.CLIENTS, 2, 5, 5, 2),
    looped.normal(looped.CLIENTS, 3, 3, 2, 2),
  )
  looped.compare(function, stacked, jit=jit)
