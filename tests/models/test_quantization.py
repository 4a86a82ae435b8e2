"""Quantizers against arithmetic by hand; quantized models against NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from models import emnist, quantization

GREY = (28, 28, 1)
# Without the large ResNet and what has no matrix.
QUICK = [n for n in emnist.MODELS if n not in ('resnet18_gn', 'k_means')]


def built(name, **settings):
  model = emnist.build(name, input_shape=GREY, num_classes=10, seed=3)
  recipe = quantization.recipe(model, quantization.Settings(**settings))
  return model, recipe


def on_grid(values, low, high, steps):
  """Fake quantization of Jacob et al. 2018, Equation 12, in NumPy."""
  scale = (high - low) / steps
  zero = np.round(-low / scale)
  level = np.clip(np.round(values / scale + zero), 0, steps)
  return (level - zero) * scale


def quantizer(bits, per_channel=False, symmetric=True):
  return quantization.WeightQuantizer(bits, per_channel, symmetric)


@pytest.mark.parametrize(('bits', 'step'), [(8, 127), (6, 31), (4, 7)])
def test_symmetric_weights_by_hand(bits, step):
  """The largest magnitude is 1, so that the grid is k / step."""
  weights = np.array([[-1.0, 0.3], [0.52, 0.07]], np.float32)
  found = quantizer(bits)(tf.constant(weights))
  np.testing.assert_allclose(found, np.round(weights * step) / step, atol=1e-7)


def test_each_channel_has_a_scale_of_its_own():
  weights = np.array([[1.0, 0.01], [0.4, 0.004]], np.float32)
  found = quantizer(4, per_channel=True)(tf.constant(weights)).numpy()
  expected = np.round(weights / [1, 0.01] * 7) / 7 * [1, 0.01]
  np.testing.assert_allclose(found, expected, atol=1e-7)
  assert not quantizer(4)(tf.constant(weights)).numpy()[:, 1].any()


def test_channels_of_a_convolution_are_its_last_axis():
  weights = np.random.default_rng(0).normal(size=[3, 3, 2, 4]).astype('f')
  found = quantizer(4, per_channel=True)(tf.constant(weights)).numpy()
  for channel in range(4):
    one = weights[..., channel]
    scale = np.abs(one).max() / 7
    np.testing.assert_allclose(
      found[..., channel], np.round(one / scale) * scale, atol=1e-6
    )


def test_asymmetric_weights_use_all_levels():
  """From 0 to 1.5 in 15 steps of 0.1: a symmetric grid has steps of 1.5 / 7."""
  weights = np.array([0.0, 0.12, 0.98, 1.5], np.float32)
  found = quantizer(4, symmetric=False)(tf.constant(weights))
  np.testing.assert_allclose(found, [0, 0.1, 1.0, 1.5], atol=1e-6)


@pytest.mark.parametrize('symmetric', [True, False])
def test_a_channel_of_zeros_has_a_range(symmetric):
  """Other runtimes divide by its width; see test_parity for OpenVINO."""
  weights = np.array([[0.5, 0.0], [-0.25, 0.0]], np.float32)

  @tf.function
  def quantize(weights):
    return quantizer(8, per_channel=True, symmetric=symmetric)(weights)

  np.testing.assert_allclose(quantize(weights), weights, atol=3e-3)
  graph = quantize.get_concrete_function(tf.TensorSpec([2, 2])).graph
  (op,) = (o for o in graph.get_operations() if o.type.startswith('FakeQuant'))
  prune = tf.compat.v1.wrap_function(
    lambda x: tf.graph_util.import_graph_def(
      graph.as_graph_def(),
      {graph.inputs[0].op.name: x},
      [tensor.name for tensor in op.inputs[1:]],
    ),
    [tf.TensorSpec([2, 2])],
  )
  low, high = prune(tf.constant(weights))
  assert np.all(low < high)


def test_gradients_pass_through():
  # Of the asymmetric grid's steps none is above 0.507, and two weights are.
  weights = tf.constant([[-1.0, 0.515], [0.52, 0.07]])
  factors = tf.constant([[1.0, 2.0], [3.0, 4.0]])
  for symmetric in (True, False):
    with tf.GradientTape() as tape:
      tape.watch(weights)
      found = quantizer(4, symmetric=symmetric)(weights, training=True)
      out = tf.reduce_sum(found * factors)
    np.testing.assert_array_equal(tape.gradient(out, weights), factors)


class Holder(tf.keras.layers.Layer):
  """Has the variables of one range."""

  def __init__(self, initial_range=0.0):
    super().__init__()
    self.quantizer = quantization.ActivationQuantizer(initial_range)
    self.ends = self.quantizer.build(None, 'x', self)

  def see(self, *values, training=True):
    found = self.quantizer(tf.constant(values), training, self.ends)
    return found, [float(self.ends['min']), float(self.ends['max'])]


def test_a_range_begins_with_the_first_batch_and_then_averages():
  holder = Holder()
  assert holder.see(-1.0, 3.0)[1] == [-1, 3]
  found, ends = holder.see(-2.0, 1.0)
  np.testing.assert_allclose(ends, [-1.1, 2.8], rtol=1e-6)
  # Quantized with the range that has moved; -2 is below it.
  np.testing.assert_allclose(
    found, on_grid(np.array([-2.0, 1.0]), -1.1, 2.8, 255), atol=1e-6
  )
  assert holder.see(50.0, training=False)[1] == ends


def test_zero_is_always_in_a_range():
  assert Holder().see(2.0, 3.0)[1] == [0, 3]
  assert Holder().see(-2.0, -3.0)[1] == [-3, 0]


def test_a_range_may_begin_where_it_is_told_to():
  ends = Holder(initial_range=6.0).see(-1.0, 1.0)[1]
  np.testing.assert_allclose(ends, [-5.5, 5.5], rtol=1e-6)


def test_evaluation_before_training_lets_nothing_through():
  """Why a server must learn ranges."""
  assert not Holder().see(-1.0, 2.0, training=False)[0].numpy().any()


@pytest.mark.parametrize('name', QUICK)
def test_same_trainable_variables_and_initial_weights(name):
  model, recipe = built(name)
  quantized = recipe()
  assert len(quantized.trainable_variables) == len(model.trainable_variables)
  for one, other in zip(
    model.trainable_variables, quantized.trainable_variables, strict=True
  ):
    np.testing.assert_array_equal(one, other)
  assert quantized.input_shape == model.input_shape
  assert quantized.output_shape == model.output_shape


def test_ranges_are_two_for_the_input_and_each_activation():
  names = [v.name for v in quantization.ranges(built('reddi_cnn')[1]())]
  ends = [
    f'{layer}/post_activation_{end}:0'
    for layer in ('conv_1', 'conv_2', 'dense', 'logits')
    for end in ('min', 'max')
  ]
  inputs = [f'quantize_layer/quantize_layer_{end}:0' for end in ('min', 'max')]
  # Keras numbers layers of one name.
  assert [n.replace(n.split('/')[0], 'quantize_layer') for n in names[:2]] == [
    name.replace('_layer/', '_layer/', 1) for name in inputs
  ] or names[:2] == inputs
  assert names[2:] == ends


def test_a_dense_model_in_numpy():
  """Input, weights and output are quantized, the bias is not."""
  model, recipe = built('logistic_regression', weight_bits=6)
  quantized, rng = recipe(), np.random.default_rng(1)
  kernel = rng.normal(size=[784, 10]).astype('f')
  bias = rng.normal(size=10).astype('f')
  for variable, value in zip(
    quantized.trainable_variables, (kernel, bias), strict=True
  ):
    variable.assign(value)
  x = rng.random([5, *GREY], np.float32)
  quantized(x, training=True)
  inputs = on_grid(x.reshape(5, -1), 0, x.max(), 255)
  largest = np.abs(kernel).max()
  weights = np.round(kernel / largest * 31) / 31 * largest
  logits = inputs @ weights + bias
  low, high = min(0, logits.min()), max(0, logits.max())
  # Half a step, where a float that is almost between two goes the other way.
  np.testing.assert_allclose(
    quantized(x), on_grid(logits, low, high, 255), atol=(high - low) / 255
  )
  model.set_weights([kernel, bias])
  error = np.abs(quantized(x) - model(x)).max()
  assert 1e-3 < error < 0.1 * (high - low)


def test_a_recipe_in_a_graph_makes_nothing_besides():
  _, recipe = built('reddi_cnn')
  eager = recipe()
  with tf.Graph().as_default() as graph:
    recipe()
    made = graph.get_collection(tf.compat.v1.GraphKeys.GLOBAL_VARIABLES)
  assert len(made) == len(eager.variables)


def test_moments_of_batch_normalisation_are_still_measured():
  quantized = built('batch_norm_cnn')[1]()
  before = {v.name: v.numpy() for v in quantized.non_trainable_variables}
  quantized(np.random.default_rng(0).random([8, *GREY], np.float32), True)
  moved = {
    v.name
    for v in quantized.non_trainable_variables
    if not np.array_equal(before[v.name], v)
  }
  assert {'norm_1/moving_mean:0', 'norm_2/moving_variance:0'} <= moved
  assert 'relu_1/output_max:0' in moved


def test_errors_say_what_is_wrong():
  with pytest.raises(ValueError, match='weight_bits=5 must be one of'):
    quantization.Settings(weight_bits=5)
  inner = emnist.build('lenet5', input_shape=GREY, num_classes=3, seed=0)
  inputs = tf.keras.Input(GREY)
  nested = tf.keras.Model(inputs, inner(inputs), name='nested')
  with pytest.raises(
    quantization.UnsupportedModelError, match="nested can't be quantized"
  ):
    quantization.recipe(nested, quantization.Settings())


def test_ranges_and_counters_are_no_parameters():
  inputs = tf.keras.Input([3])
  outputs = tf.keras.layers.Dense(2, name='logits')(inputs)
  plain = tf.keras.Model(inputs, outputs)
  model = quantization.recipe(plain, quantization.Settings())()
  assert model.count_params() > 8
  assert quantization.count_parameters(model) == 8
  assert quantization.count_parameters(plain) == 8
