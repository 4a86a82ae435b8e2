"""What is trained beside frozen layers, where it starts and how it merges."""

import numpy as np
import pytest
import tensorflow as tf

from models import bert, lora
from tests.models import tiny_bert

IDS = tiny_bert.IDS
CLASSES = 3
# Of the encoder: hidden 8, inside 12, two layers.
H, INNER, L = 8, 12, 2
HEAD = H * CLASSES + CLASSES


def model_of(directory, kind, head=True, **values):
  tuning = bert.FineTuning(kind, **values)
  builder = tiny_bert.builder(directory, fine_tuning=tuning, dropout=0.0)
  return (
    builder.classifier(CLASSES) if head else builder.masked_language_model()
  )


def count(variables):
  return sum(int(np.prod(v.shape)) for v in variables)


def _block(model, number):
  return model.get_layer('encoder').transformer_layers[number]


@pytest.mark.parametrize(
  'kind, values, trained, variables',
  [
    ('head', {}, 0, 0),
    ('lora', {}, L * 2 * 4 * (H + H), L * 2 * 2),
    (
      'lora',
      {'lora_rank': 3, 'lora_targets': bert.LORA_TARGETS},
      L * 3 * (4 * (H + H) + 2 * (H + INNER)),
      L * 6 * 2,
    ),
    # Two bottlenecks with biases, and two normalisations, in each layer.
    (
      'adapters',
      {'adapter_size': 5},
      L * (2 * (H * 5 + 5 + 5 * H + H) + 4 * H),
      L * (2 * 4 + 4),
    ),
    (
      'last_layers',
      {'last_layers': 1},
      4 * (H * H + H) + (H * INNER + INNER) + (INNER * H + H) + 4 * H,
      16,
    ),
    # Of the embeddings' normalisation, and of each layer's 6 + 2 parts.
    ('bias', {}, H + L * (4 * H + INNER + H + 2 * H), 1 + L * 8),
  ],
)
def test_so_many_numbers_are_trained(
  tmp_path, kind, values, trained, variables
):
  model = model_of(tmp_path, kind, **values)
  assert count(model.trainable_variables) == trained + HEAD
  assert len(model.trainable_variables) == variables + 2
  # The base stays, whole.
  full = model_of(tmp_path, 'full')
  parts = [v for part in lora.parts(model) for v in part.trainable_variables]
  assert model.count_params() == full.count_params() + count(parts)


def test_full_trains_all_but_the_pooler(tmp_path):
  model = model_of(tmp_path, 'full')
  pooler = H * H + H
  assert count(model.non_trainable_variables) == pooler
  assert count(model.trainable_variables) == model.count_params() - pooler


@pytest.mark.parametrize('number', [1, 2])
def test_the_last_layers_are_the_last(tmp_path, number):
  model = model_of(tmp_path, 'last_layers', last_layers=number)
  expected = [v for i in range(L - number, L) for v in _block(model, i).weights]
  found = {id(v) for v in model.trainable_variables[:-2]}
  assert found == {id(v) for v in expected}


@pytest.mark.parametrize('number', [0, 3])
def test_more_last_layers_than_there_are_is_an_error(tmp_path, number):
  message = f'--last_layers={number}: the encoder has 2 transformer layers'
  with pytest.raises(ValueError, match=message):
    model_of(tmp_path, 'last_layers', last_layers=number)


def test_a_frozen_container_hides_what_is_trained_below_it(tmp_path):
  """The trap: so only layers without layers below them are frozen."""
  model = model_of(tmp_path, 'lora')
  encoder = model.get_layer('encoder')
  assert len(encoder.trainable_variables) == L * 2 * 2
  encoder.trainable = False
  for part in lora.parts(encoder):
    part.trainable = True
  assert all(part.trainable_variables for part in lora.parts(encoder))
  assert encoder.trainable_variables == []
  encoder.trainable = True
  lora.freeze(encoder)
  for part in lora.parts(encoder):
    part.trainable = True
  assert {v.name for v in encoder.trainable_variables} >= {'lora_a:0'}


@pytest.mark.parametrize(
  'target, name',
  [
    ('query', '_self_attention_layer/_query_dense'),
    ('key', '_self_attention_layer/_key_dense'),
    ('value', '_self_attention_layer/_value_dense'),
    ('attention_output', '_self_attention_layer/_output_dense'),
    ('intermediate', '_feedforward_intermediate_dense'),
    ('output', '_feedforward_output_dense'),
  ],
)
def test_each_target_is_the_layer_of_its_name(tmp_path, target, name):
  model = model_of(tmp_path, 'lora', lora_targets=(target,))
  for number in range(L):
    layer = _block(model, number)
    for attribute in name.split('/'):
      layer = getattr(layer, attribute)
    assert isinstance(layer, lora.Lora)
  assert len(list(lora.parts(model))) == L


@pytest.mark.parametrize('kind', [k for k in bert.FINE_TUNINGS if k != 'full'])
def test_training_starts_at_the_base(tmp_path, kind):
  base = model_of(tmp_path, 'full', head=False)
  tuned = model_of(tmp_path, kind, False, lora_targets=bert.LORA_TARGETS)
  np.testing.assert_array_equal(tuned(IDS), base(IDS))


@pytest.mark.parametrize('kind', bert.FINE_TUNINGS)
def test_gradients_reach_what_is_trained_and_nothing_else(tmp_path, kind):
  model = model_of(tmp_path, kind, lora_targets=bert.LORA_TARGETS)
  parts = [v for part in lora.parts(model) for v in part.trainable_variables]
  tiny_bert.shake(parts)
  frozen = [v.numpy() for v in model.non_trainable_variables]
  with tf.GradientTape() as tape:
    loss = tf.reduce_sum(model(IDS, training=True)[:, 0] ** 2)
  gradients = tape.gradient(loss, model.trainable_variables)
  keys = {
    id(key)
    for block in model.get_layer('encoder').transformer_layers
    for key in block._self_attention_layer._key_dense.trainable_variables
  }
  for variable, gradient in zip(
    model.trainable_variables, gradients, strict=True
  ):
    gradient = np.abs(tf.convert_to_tensor(gradient)).max()
    if id(variable) in keys and variable.shape == (2, 4):
      # A key's bias adds the same to all scores of a query: softmax drops it.
      assert gradient < 1e-6
    else:
      assert gradient > 1e-6, variable.name
  tf.keras.optimizers.SGD(0.1).apply_gradients(
    zip(gradients, model.trainable_variables, strict=True)
  )
  for before, variable in zip(
    frozen, model.non_trainable_variables, strict=True
  ):
    np.testing.assert_array_equal(variable, before)


def test_lora_is_equation_3():
  rng = np.random.default_rng(0)
  base = tf.keras.layers.Dense(5, bias_initializer='ones')
  x = rng.normal(size=[4, 3]).astype(np.float32)
  base(x)
  layer = lora.Lora(base, rank=2, alpha=6.0, seed=1)
  assert layer.lora_a.shape == (3, 2) and layer.lora_b.shape == (2, 5)
  a = layer.lora_a.numpy()
  assert 0 < np.abs(a).max() <= 3**-0.5 and not layer.lora_b.numpy().any()
  tiny_bert.shake([layer.lora_b])
  kernel, bias = base.get_weights()
  expected = x @ kernel + bias + 3.0 * (x @ a @ layer.lora_b.numpy())
  np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-5)
  assert len(layer.trainable_variables) == 2
  layer.merge()
  np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(base(x), expected, rtol=1e-5, atol=1e-5)


def test_an_adapter_is_a_bottleneck_around_its_base():
  rng = np.random.default_rng(0)
  base = tf.keras.layers.Dense(5)
  x = rng.normal(size=[4, 3]).astype(np.float32)
  h = base(x).numpy()
  layer = lora.Adapter(base, 2, seed=1)
  np.testing.assert_array_equal(layer(x), h)
  tiny_bert.shake(layer.trainable_variables)
  down, d, up, u = (v.numpy() for v in layer.trainable_variables)
  inner = tf.nn.gelu(h @ down + d).numpy()
  expected = h + inner @ up + u
  np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('activation', [None, 'tanh'])
def test_a_bias_offset_is_inside_the_activation(activation):
  rng = np.random.default_rng(0)
  base = tf.keras.layers.Dense(5, activation)
  x = rng.normal(size=[4, 3]).astype(np.float32)
  base(x)
  layer = lora.BiasOffset(base)
  tiny_bert.shake([layer.offset])
  kernel, bias = base.get_weights()
  inner = x @ kernel + bias + layer.offset.numpy()
  expected = np.tanh(inner) if activation else inner
  np.testing.assert_allclose(layer(x), expected, atol=1e-6)
  layer.merge()
  np.testing.assert_allclose(layer(x), expected, atol=1e-6)
  np.testing.assert_allclose(base.bias, bias + layer.offset, atol=1e-6)


@pytest.mark.parametrize('kind', ['lora', 'bias'])
@pytest.mark.parametrize('head', [True, False])
def test_merging_changes_no_output(tmp_path, kind, head):
  model = model_of(tmp_path, kind, head, lora_targets=bert.LORA_TARGETS)
  start = model(IDS).numpy()
  parts = [v for part in lora.parts(model) for v in part.trainable_variables]
  tiny_bert.shake(parts)
  for variable in parts:
    variable.assign(0.3 * variable)
  before = model(IDS).numpy()
  assert np.abs(before - start).max() > 0.05 * np.abs(start).max()
  assert lora.merge(model) is model
  after = model(IDS).numpy()
  scale = max(1.0, np.abs(before).max())
  assert np.abs(after - before).max() < 1e-6 * scale
  # All is in the base: what was beside it counts for nothing now.
  for variable in parts:
    variable.assign(tf.zeros_like(variable))
  np.testing.assert_array_equal(model(IDS), after)


def test_adapters_stay_when_the_rest_merges(tmp_path):
  model = model_of(tmp_path, 'adapters')
  tiny_bert.shake(model.trainable_variables)
  before = model(IDS).numpy()
  np.testing.assert_array_equal(lora.merge(model)(IDS), before)
