"""16 bit arithmetic with float32 weights and true gradients."""

import collections

import numpy as np
import pytest
import tensorflow as tf

from models import emnist, functional, mixed_precision

LOSS = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
SHAPE = (16, 16, 1)
# Relative rounding errors: 8 and 11 significant bits.
EPSILON = {'bfloat16': 2.0**-8, 'float16': 2.0**-11}


def input_spec(shape=SHAPE):
  return collections.OrderedDict(
    x=tf.TensorSpec([None, *shape], tf.float32),
    y=tf.TensorSpec([None], tf.int32),
  )


def evaluate(model, x, y):
  """Output, loss and gradients of a batch, by the functional model."""
  with tf.Graph().as_default():
    weights = tf.nest.map_structure(tf.constant, model.initial_weights)
    with tf.GradientTape() as tape:
      tape.watch(weights)
      output = model.predict_on_batch(weights, tf.constant(x), training=True)
      loss = model.loss(output, tf.constant(y))
    gradients = tape.gradient(loss, weights)[0]
    with tf.compat.v1.Session() as session:
      return session.run([output, loss, gradients])


def batch(shape=SHAPE, count=8):
  rng = np.random.default_rng(3)
  return (
    rng.random([count, *shape], np.float32),
    rng.integers(0, 5, count).astype(np.int32),
  )


def relative_error(actual, expected):
  return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


# LeNet-5 is smooth: rounding errors of a dozen operations. In the others some
# units cross zero or change place in a maximum; a wrong mask, factor or weight
# would be an error of about one.
@pytest.mark.parametrize(
  'name, compute_format, tolerance',
  [
    ('lenet5', 'bfloat16', 30 * EPSILON['bfloat16']),
    ('lenet5', 'float16', 30 * EPSILON['float16']),
    ('reddi_cnn', 'bfloat16', 0.25),
    ('reddi_cnn', 'float16', 0.25),
    ('resnet_gn', 'bfloat16', 0.25),
  ],
)
def test_gradients_are_those_of_float32_up_to_rounding(
  name, compute_format, tolerance
):
  """Also with seeded dropout, whose masks agree, and group normalisation."""

  def build():
    return emnist.build(name, input_shape=SHAPE, num_classes=5, seed=1)

  kwargs = {'loss_fn': LOSS, 'input_spec': input_spec()}
  expected = evaluate(functional.from_keras(build, **kwargs), *batch())
  model = mixed_precision.from_keras(build, compute_format, **kwargs)
  actual = evaluate(model, *batch())
  leaves = [*model.initial_weights[0], *actual[2], actual[0], actual[1]]
  assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}
  errors = list(map(relative_error, actual[2], expected[2]))
  assert max(errors) < tolerance
  # It did compute in 16 bit.
  assert max(errors) > EPSILON[compute_format] / 10


def two_layers():
  """y = b (a . x) with a second weight so small that gradients underflow."""
  return tf.keras.Sequential(
    [
      tf.keras.Input((2,)),
      tf.keras.layers.Dense(
        1, kernel_initializer=tf.keras.initializers.Constant(0.5)
      ),
      tf.keras.layers.Dense(
        1, kernel_initializer=tf.keras.initializers.Constant(2.0**-14)
      ),
    ]
  )


def test_float16_keeps_gradients_that_would_underflow(monkeypatch):
  spec = collections.OrderedDict(
    x=tf.TensorSpec([None, 2], tf.float32), y=tf.TensorSpec([None, 1])
  )
  x = np.array([[1.0, 2.0]], np.float32)
  output = 1.5 * 2.0**-14
  # The loss (output - y)^2 has the derivative 2^-12 at the output.
  y = np.array([[output - 2.0**-13]], np.float32)
  kwargs = {
    'loss_fn': tf.keras.losses.MeanSquaredError(),
    'input_spec': spec,
  }
  expected = [[2.0**-26, 2.0**-25], [2.0**-26], [1.5 * 2.0**-12], [2.0**-12]]
  model = mixed_precision.from_keras(two_layers, 'float16', **kwargs)
  gradients = evaluate(model, x, y)[2]
  for actual, value in zip(gradients, expected, strict=True):
    np.testing.assert_allclose(np.ravel(actual), value, rtol=2.0**-10)
  # Without the factor the first layer's gradients are gone.
  monkeypatch.setitem(mixed_precision.FORMATS, 'float16', 1.0)
  model = mixed_precision.from_keras(two_layers, 'float16', **kwargs)
  gradients = evaluate(model, x, y)[2]
  assert not np.any(gradients[0]) and not np.any(gradients[1])


@tf.keras.saving.register_keras_serializable(package='test_mixed_precision')
class Stubborn(tf.keras.layers.Layer):
  """Computes with a float32 constant whatever it is given."""

  def call(self, inputs):
    return tf.add(inputs, tf.ones([2], tf.float32))


def with_layer(layer):
  def build():
    inputs = tf.keras.Input((2,))
    hidden = layer()(
      tf.keras.layers.Dense(2, kernel_initializer='ones')(inputs)
    )
    return tf.keras.Model(
      inputs, tf.keras.layers.Dense(5, kernel_initializer='ones')(hidden)
    )

  return build


@pytest.mark.parametrize(
  'layer, message',
  [
    (
      lambda: tf.keras.layers.Dense(
        2, dtype='float64', kernel_initializer='ones', name='wide'
      ),
      'wide of .* computes in float64',
    ),
    (lambda: Stubborn(name='stubborn'), 'can not be trained in bfloat16'),
  ],
)
def test_a_model_that_can_not_is_refused(layer, message):
  with pytest.raises(mixed_precision.MixedPrecisionError, match=message):
    mixed_precision.from_keras(
      with_layer(layer),
      'bfloat16',
      loss_fn=LOSS,
      input_spec=input_spec((2,)),
    )


def test_a_model_with_a_state_is_refused():
  with pytest.raises(functional.StatefulModelError, match='not trained'):
    mixed_precision.from_keras(
      with_layer(tf.keras.layers.BatchNormalization),
      'bfloat16',
      loss_fn=LOSS,
      input_spec=input_spec((2,)),
    )
