"""Quantized layers of an encoder against NumPy and their merged form."""

import numpy as np
import pytest
import tensorflow as tf

from models import bert, lora, quantization, quantized_encoder
from tests.models import tiny_bert
from tests.models.test_quantization import on_grid

SETTINGS = quantization.Settings()


def builder(directory, fine_tuning='full'):
  tuning = bert.FineTuning(fine_tuning=fine_tuning)
  return tiny_bert.builder(directory, fine_tuning=tuning, dropout=0.0)


def measured(values):
  low, high = min(0, values.min()), max(0, values.max())
  return on_grid(values, low, high, 255)


def weights_on_grid(kernel, steps=127):
  scale = np.abs(kernel).max() / steps
  return np.round(kernel / scale) * scale


def gelu(x):
  return tf.keras.activations.gelu(tf.constant(x)).numpy()


@pytest.mark.parametrize('activation', [None, gelu])
@pytest.mark.parametrize('per_channel', [False, True])
@pytest.mark.parametrize('one_scale', [False, True])
def test_a_dense_layer_in_numpy(activation, per_channel, one_scale):
  rng = np.random.default_rng(0)
  dense = tf.keras.layers.Dense(
    5, 'gelu' if activation else None, bias_initializer='ones'
  )
  dense.build([None, None, 7])
  kernel = dense.kernel.numpy() * np.float32([1, 0.1, 30, 0, 2])
  dense.kernel.assign(kernel)
  settings = quantization.Settings(per_channel_weights=per_channel)
  layer = quantized_encoder.QuantizedDense(dense, settings, one_scale)
  x = rng.normal(size=[2, 3, 7]).astype('f')
  found = layer(x, training=True).numpy()
  units = np.ones(5, 'f')
  if per_channel and not one_scale:
    units = np.abs(kernel).max(axis=0)
    units[3] = 1
  summed = measured(x) @ weights_on_grid(kernel / units) + 1 / units
  step = (max(0, summed.max()) - min(0, summed.min())) / 255
  expected = (measured(summed) * units).astype('f')
  if activation:
    expected = activation(expected)
  error = np.abs(found - expected) / units
  assert error.max() < 1.2 * step
  assert error.mean() < 0.1 * step
  np.testing.assert_array_equal(found, layer(x, training=False))


def test_a_large_channel_leaves_the_others_their_steps():
  """One channel is a hundred times as large; the others are as without it."""
  x = np.random.default_rng(0).normal(size=[64, 16]).astype('f')
  errors = {}
  for factor in (1, 100):
    dense = tf.keras.layers.Dense(
      8, kernel_initializer=tf.keras.initializers.GlorotUniform(seed=1)
    )
    dense.build([None, 16])
    dense.kernel[:, 0].assign(dense.kernel[:, 0] * factor)
    expected = dense(x).numpy()
    layer = quantized_encoder.QuantizedDense(dense, SETTINGS)
    errors[factor] = (layer(x, training=True).numpy() - expected)[:, 1:]
  np.testing.assert_allclose(errors[100], errors[1], atol=1e-5)
  assert 0 < np.abs(errors[1]).max() < 0.1


def test_units_have_no_gradient_of_their_own():
  """The gradient of the kernel is that of a float layer on rounded inputs."""
  x = tf.random.stateless_normal([64, 7], [0, 0])
  weights = tf.random.stateless_normal([64, 5], [0, 1])
  dense = tf.keras.layers.Dense(
    5, kernel_initializer=tf.keras.initializers.GlorotUniform(seed=1)
  )
  dense.build([None, 7])
  # So wide that nothing is outside of it.
  settings = quantization.Settings(initial_range=30.0)
  layer = quantized_encoder.QuantizedDense(dense, settings)
  with tf.GradientTape() as tape:
    loss = tf.reduce_sum(layer(x, training=True) * weights)
  expected = tf.transpose(layer._input(x)) @ weights
  np.testing.assert_allclose(
    tape.gradient(loss, dense.kernel), expected, rtol=1e-4, atol=1e-4
  )


@pytest.mark.parametrize(
  ('equation', 'shape', 'inputs', 'outputs'),
  [
    ('abc,cde->abde', (None, 2, 5), [3, 4, 6], [3, 4, 2, 5]),
    ('abcd,cde->abe', (None, 6), [3, 4, 2, 5], [3, 4, 6]),
  ],
)
def test_projections_of_an_attention(equation, shape, inputs, outputs):
  """A grid so fine that only the equation counts."""
  axes = 'de' if len(shape) == 3 else 'e'
  dense = tf.keras.layers.EinsumDense(equation, shape, bias_axes=axes)
  x = np.random.default_rng(0).normal(size=inputs).astype('f')
  expected = dense(x)
  layer = quantized_encoder.QuantizedDense(dense, SETTINGS)
  found = layer(x, training=True)
  assert found.shape == outputs
  assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_logits_over_a_vocabulary_in_numpy():
  rng = np.random.default_rng(0)
  hidden = rng.normal(size=[2, 3, 7]).astype('f')
  table, bias = rng.normal(size=[11, 7]).astype('f'), np.arange(11, dtype='f')
  layer = quantized_encoder.QuantizedLogits(SETTINGS)
  found = layer(hidden, table, bias, training=True).numpy()
  summed = measured(hidden) @ weights_on_grid(table).T + bias
  step = (summed.max() - summed.min()) / 255
  error = np.abs(found - measured(summed))
  assert error.max() < 1.01 * step
  assert error.mean() < 0.1 * step
  np.testing.assert_array_equal(found, layer(hidden, table, bias))


def test_a_language_model_rounds_its_logits_and_trains_its_table(tmp_path):
  model = builder(tmp_path).quantized(SETTINGS).masked_language_model()
  with tf.GradientTape() as tape:
    logits = model(tiny_bert.IDS, training=True)
  table = model.get_layer('encoder').backbone.token_embedding.embeddings
  gradient = tf.convert_to_tensor(tape.gradient(logits, table)).numpy()
  # Tokens that no text has get theirs from the logits alone.
  unused = np.setdiff1d(np.arange(table.shape[0]), np.unique(tiny_bert.IDS))
  assert gradient[unused].any(axis=1).all()
  low, high = (float(end) for end in quantization.ranges(model)[-2:])
  steps = (logits.numpy() - logits.numpy().min()) / (high - low) * 255
  np.testing.assert_allclose(steps, np.round(steps), atol=1e-2)


def test_an_attention_in_numpy(tmp_path):
  encoder = builder(tmp_path).quantized(SETTINGS).classifier(2).layers[1]
  attention = encoder.transformer_layers[0]._self_attention_layer
  inner = attention.attention
  x = np.random.default_rng(0).normal(size=[2, 4, 32]).astype('f')
  x = x[..., : inner._query_dense.base.kernel.shape[0]]
  mask = np.ones([2, 4, 4], bool)
  mask[:, :, 3] = False
  found = attention(query=x, value=x, attention_mask=mask, training=True)
  query, key, value = (
    dense(x, training=False).numpy()
    for dense in (inner._query_dense, inner._key_dense, inner._value_dense)
  )
  query = measured(query / np.sqrt(query.shape[-1]))
  scores = measured(np.einsum('bshd,bthd->bhts', key, query))
  scores = np.where(mask[:, None], scores, -np.inf)
  exponents = np.exp(scores - scores.max(-1, keepdims=True))
  shares = measured(exponents / exponents.sum(-1, keepdims=True))
  mixed = np.einsum('bhts,bshd->bthd', shares, value).astype('f')
  expected = inner._output_dense(mixed, training=False).numpy()
  step = np.ptp(expected) / 255
  np.testing.assert_allclose(found, expected, atol=2.01 * step)
  assert np.abs(found - expected).mean() < 0.2 * step


def test_what_products_take_has_one_grid(tmp_path):
  model = builder(tmp_path).quantized(SETTINGS).classifier(3)
  block = model.get_layer('encoder').transformer_layers[0]
  attention = block._self_attention_layer.attention
  inner = block._feedforward_output_dense
  for layer, has_one in (
    (attention._query_dense, True),
    (attention._key_dense, True),
    (attention._value_dense, True),
    (model.layers[-1], True),
    (inner, False),
  ):
    width = layer.base.kernel.shape[0]
    x = tf.random.stateless_normal([999, 8, width], [0, 0])
    values = np.unique(layer(x, training=True))
    assert (values.size <= 256) == has_one, layer.name


@pytest.mark.parametrize('fine_tuning', ['lora', 'bias'])
def test_training_quantizes_what_merging_gives(fine_tuning, tmp_path):
  model = builder(tmp_path, fine_tuning).quantized(SETTINGS).classifier(3)
  tiny_bert.shake(model.trainable_variables)
  model(tiny_bert.IDS, training=True)
  before = model(tiny_bert.IDS).numpy()
  kernels = [
    layer.kernel_and_bias() for layer in quantized_encoder.dense_layers(model)
  ]
  lora.merge(model)
  merged = list(quantized_encoder.dense_layers(model))
  for (kernel, bias), layer in zip(kernels, merged, strict=True):
    base = getattr(layer.base, 'base', layer.base)
    np.testing.assert_allclose(base.kernel, kernel, rtol=0, atol=1e-6)
    np.testing.assert_allclose(base.bias, bias, rtol=0, atol=1e-6)
  np.testing.assert_allclose(model(tiny_bert.IDS), before, atol=1e-6)


def test_gradients_reach_all_that_is_trained(tmp_path):
  for fine_tuning in bert.FINE_TUNINGS:
    model = builder(tmp_path, fine_tuning).quantized(SETTINGS).classifier(3)
    tiny_bert.shake(model.trainable_variables)
    with tf.GradientTape() as tape:
      loss = tf.reduce_sum(model(tiny_bert.IDS, training=True) ** 2)
    gradients = tape.gradient(loss, model.trainable_variables)
    for gradient, variable in zip(
      gradients, model.trainable_variables, strict=True
    ):
      values = tf.convert_to_tensor(gradient).numpy()
      # A key's bias moves all scores of a row alike.
      if 'key' not in variable.name:
        assert values.any(), (fine_tuning, variable.name)


def test_removed_quantization_leaves_the_float_encoder(tmp_path):
  made = builder(tmp_path)
  model, plain = made.quantized(SETTINGS).classifier(3), made.classifier(3)
  encoder = model.get_layer('encoder')
  assert np.abs(encoder(tiny_bert.IDS) - plain.layers[1](tiny_bert.IDS)).max()
  quantized_encoder.remove(encoder)
  np.testing.assert_array_equal(
    encoder(tiny_bert.IDS), plain.layers[1](tiny_bert.IDS)
  )


def test_the_builder_itself_stays_float(tmp_path):
  made = builder(tmp_path)
  made.quantized(SETTINGS)
  assert not quantization.ranges(made.classifier(3))


def test_quantized_outputs_are_near_the_float_ones(tmp_path):
  made = builder(tmp_path)
  model, plain = made.quantized(SETTINGS).classifier(3), made.classifier(3)
  plain_logits = plain(tiny_bert.IDS).numpy()
  for variable, value in zip(
    model.trainable_variables, model.trainable_variables, strict=True
  ):
    variable.assign(value)
  model(tiny_bert.IDS, training=True)
  error = np.abs(model(tiny_bert.IDS) - plain_logits).max()
  assert 0 < error < 0.25 * np.abs(plain_logits).max() + 0.01
