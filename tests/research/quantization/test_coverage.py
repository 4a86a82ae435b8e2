"""What the coverage says of models whose layers are known."""

import pytest
import tensorflow as tf

from models import bert, emnist, quantization
from research.quantization import coverage
from tests.models import tiny_bert

SETTINGS = quantization.Settings()


def of(model):
  return coverage.of(quantization.recipe(model, SETTINGS)())


def test_a_cnn_is_quantized_but_for_its_dropout():
  model = emnist.build(
    'reddi_cnn', input_shape=(28, 28, 1), num_classes=10, seed=0
  )
  found = of(model)
  found.check()
  kernels = {
    layer.name: layer.quantized_weights
    for layer in found.layers
    if layer.weights
  }
  assert kernels == dict.fromkeys(
    ['conv_1', 'conv_2', 'dense', 'logits'], ('kernel',)
  )
  ranges = [layer.num_ranges for layer in found.layers if layer.num_ranges]
  assert ranges == [1] * 5


def with_separate_relu():
  inputs = tf.keras.Input((8, 8, 1))
  hidden = tf.keras.layers.Conv2D(2, 3, name='conv')(inputs)
  hidden = tf.keras.layers.ReLU(name='relu')(hidden)
  return tf.keras.Model(inputs, hidden)


def test_a_convolution_before_a_relu_of_its_own_is_refused():
  found = of(with_separate_relu())
  with pytest.raises(ValueError, match=r'conv \(Conv2D\) would train with'):
    found.check()
  found.check(['conv'])


def test_a_layer_that_tf_mot_does_not_know_is_refused():
  inputs = tf.keras.Input((8, 4))
  hidden = tf.keras.layers.Conv1D(2, 3, name='conv')(inputs)
  hidden = tf.keras.layers.Flatten()(hidden)
  model = tf.keras.Model(inputs, tf.keras.layers.Dense(2)(hidden))
  with pytest.raises(ValueError, match=r'conv \(Conv1D\)'):
    of(model).check()


def test_names_of_layers_that_there_are_not():
  with pytest.raises(ValueError, match='--float_layers=konv: the model has'):
    of(with_separate_relu()).check(['konv'])


def encoder_builder(directory, fine_tuning):
  tuning = bert.FineTuning(fine_tuning=fine_tuning)
  builder = tiny_bert.builder(directory, fine_tuning=tuning)
  return builder.quantized(SETTINGS)


@pytest.mark.parametrize('fine_tuning', bert.FINE_TUNINGS)
def test_every_dense_layer_of_every_block_of_an_encoder(fine_tuning, tmp_path):
  builder = encoder_builder(tmp_path, fine_tuning)
  model = builder.classifier(3)
  found = coverage.of(model)
  found.check()
  for number in range(builder.checkpoint.config.num_layers):
    block = f'encoder/transformer_layer_{number}/'
    names = [
      layer.name
      for layer in found.layers
      if layer.name.startswith(block) and layer.quantized_weights
    ]
    # Query, key, value, output; two of the feed-forward part; and adapters.
    assert len(names) == 6 + 4 * (fine_tuning == 'adapters')
  assert 'logits' in [n.name for n in found.layers if n.quantized_weights]
  floats = {layer.kind for layer in found.layers if layer.float_weights}
  assert floats == {'ReversibleEmbedding', 'PositionEmbedding', 'Embedding'}


def test_a_dense_layer_that_stays_float_is_found(tmp_path):
  model = encoder_builder(tmp_path, 'full').classifier(3)
  block = model.get_layer('encoder').transformer_layers[1]
  block._feedforward_output_dense = block._feedforward_output_dense.base
  with pytest.raises(ValueError, match='transformer_layer_1/feedforward_out'):
    coverage.of(model).check()


def test_the_table_has_a_row_for_each_layer():
  lines = of(with_separate_relu()).text().splitlines()
  rows = {line.split()[0]: line.split()[1:] for line in lines}
  assert rows['conv'] == ['Conv2D', '-', 'kernel', '0']
  assert rows['relu'] == ['ReLU', '-', '-', '1']
