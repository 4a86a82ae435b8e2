"""A BERT encoder whose matrix products train as int8 (see `quantization`).

TF-MOT leaves a transformer float. Here each dense layer and both products of
the attention take and make quantized activations; normalisation, softmax and
GELU stay float between them, as in Q8BERT (Zafrir et al. 2019,
arXiv:1910.06188, Section 2.2), and so do the tables of embeddings.
"""

import math
from collections.abc import Iterator

import tensorflow as tf

from models import lora, quantization


class Range(tf.keras.layers.Layer):
  """Quantizes an activation to a range that training measures."""

  def __init__(self, settings: quantization.Settings, name: str):
    """Makes the two variables of the range.

    Args:
      settings: How it begins.
      name: Of the activation.
    """
    super().__init__(name=name)
    self._quantizer = quantization.ActivationQuantizer(settings.initial_range)
    self._ends = self._quantizer.build(None, name, self)

  def call(self, inputs: tf.Tensor, training=None) -> tf.Tensor:
    return self._quantizer(inputs, bool(training), self._ends)


class QuantizedDense(tf.keras.layers.Layer):
  """A dense layer with int8 inputs, weights and outputs.

  The weights are those of the layer inside with what LoRA or BitFit change of
  them: what is quantized in training is what an export has after merging. An
  activation is float, and the layer that takes its values quantizes them.

  A few channels of a transformer's outputs are a hundred times as large as the
  others (Bondarenko et al. 2021, arXiv:2109.12948, Section 3), so that one grid
  for all of them leaves most with a step or two. Where float operations follow,
  each channel is computed in units of its largest weight, as weights are
  equalized by Nagel et al. 2019 (arXiv:1906.04721, Section 4.1), and multiplied
  by it afterwards: weights and outputs have a step per channel, and the product
  of matrices one scale.

  Attributes:
    base: Dense, EinsumDense over the last axes, or a part beside one of them.
  """

  def __init__(
    self,
    base: tf.keras.layers.Layer,
    settings: quantization.Settings,
    one_scale: bool = False,
  ):
    """Wraps a layer.

    Args:
      base: It must be built.
      settings: How to quantize it.
      one_scale: Whether all channels must have one scale, as where another
        product of matrices takes the outputs, or where they are compared.
    """
    super().__init__(name=f'{base.name}_quantized')
    self.base = base
    self._has_units = settings.per_channel_weights and not one_scale
    self._weight = quantization.WeightQuantizer(
      settings.weight_bits, False, settings.symmetric_weights
    )
    self._input = Range(settings, 'input')
    self._output = Range(settings, 'output')

  def call(self, inputs: tf.Tensor, training=None) -> tf.Tensor:
    kernel, bias = self.kernel_and_bias()
    outputs = bias.shape
    # One product of matrices, whatever axes the layer sums over.
    summed = kernel.shape.rank - outputs.rank
    width, size = math.prod(kernel.shape[:summed]), math.prod(outputs)
    kernel = tf.reshape(kernel, [width, size])
    units = self._units(kernel)
    flat = tf.reshape(self._input(inputs, training=training), [-1, width])
    weight = self._weight(kernel / units, bool(training))
    product = tf.nn.bias_add(flat @ weight, tf.reshape(bias, [size]) / units)
    product = self._output(product, training=training) * units
    leading = inputs.shape.rank - summed
    hidden = tf.reshape(
      product, tf.concat([tf.shape(inputs)[:leading], outputs], 0)
    )
    hidden.set_shape([*inputs.shape[:leading], *outputs])
    return self.base.activation(hidden)

  def _units(self, kernel: tf.Tensor) -> tf.Tensor:
    """What each channel is measured in, [channels]."""
    if not self._has_units:
      return tf.ones([kernel.shape[-1]])
    largest = tf.reduce_max(tf.abs(tf.stop_gradient(kernel)), axis=0)
    return tf.where(tf.equal(largest, 0.0), 1.0, largest)

  def kernel_and_bias(self) -> tuple[tf.Tensor, tf.Tensor]:
    """The weights [inputs..., outputs...] and [outputs...]."""
    if isinstance(self.base, lora.MergeablePart):
      return self.base.merged()
    return self.base.kernel.read_value(), self.base.bias.read_value()


class QuantizedLogits(tf.keras.layers.Layer):
  """A product with a table of embeddings, int8 as a dense layer is.

  What looks tokens up in the table takes its float values.
  """

  def __init__(self, settings: quantization.Settings):
    """Makes the ranges.

    Args:
      settings: How to quantize it.
    """
    super().__init__(name='logits')
    self._weight = quantization.WeightQuantizer(
      settings.weight_bits, False, settings.symmetric_weights
    )
    self._input = Range(settings, 'input')
    self._output = Range(settings, 'output')

  def call(
    self, hidden: tf.Tensor, table: tf.Tensor, bias: tf.Tensor, training=None
  ) -> tf.Tensor:
    """Returns logits [batch, length, tokens].

    Args:
      hidden: Float32 [batch, length, hidden size].
      table: Float32 [tokens, hidden size].
      bias: Float32 [tokens].
      training: Whether ranges move.
    """
    count, width = table.shape
    flat = tf.reshape(self._input(hidden, training=training), [-1, width])
    table = self._weight(table, bool(training))
    product = tf.nn.bias_add(tf.matmul(flat, table, transpose_b=True), bias)
    product = self._output(product, training=training)
    return tf.reshape(
      product, tf.concat([tf.shape(hidden)[:-1], [count]], axis=0)
    )


class QuantizedAttention(tf.keras.layers.Layer):
  """Keras' attention with int8 products.

  Attributes:
    attention: The attention, whose dense layers are quantized.
  """

  def __init__(
    self,
    attention: tf.keras.layers.MultiHeadAttention,
    settings: quantization.Settings,
  ):
    """Wraps a built attention.

    Args:
      attention: Query, key and value have one dense layer each.
      settings: How to quantize it.
    """
    super().__init__(name=f'{attention.name}_quantized')
    self.attention = attention
    self._query = Range(settings, 'query')
    self._scores = Range(settings, 'scores')
    self._probabilities = Range(settings, 'probabilities')

  def call(
    self,
    query: tf.Tensor,
    value: tf.Tensor,
    attention_mask: tf.Tensor | None = None,
    training=None,
  ) -> tf.Tensor:
    attention = self.attention
    scaled = attention._query_dense(query) / math.sqrt(attention._key_dim)
    scores = tf.einsum(
      attention._dot_product_equation,
      attention._key_dense(value),
      self._query(scaled, training=training),
    )
    probabilities = attention._masked_softmax(
      self._scores(scores, training=training), attention_mask
    )
    kept = attention._dropout_layer(
      self._probabilities(probabilities, training=training), training=training
    )
    mixed = tf.einsum(
      attention._combine_equation, kept, attention._value_dense(value)
    )
    return attention._output_dense(mixed)


def quantize(
  encoder: tf.keras.layers.Layer, settings: quantization.Settings
) -> None:
  """Quantizes an encoder's layers in place.

  Args:
    encoder: A `bert_encoder.Encoder` with all that is trained beside its
      layers, not yet called.
    settings: How.
  """
  for block in encoder.transformer_layers:
    attention = block._self_attention_layer
    for name in ('_query_dense', '_key_dense', '_value_dense'):
      _quantize_dense(attention, name, settings, one_scale=True)
    _quantize_dense(attention, '_output_dense', settings)
    for name in ('intermediate', 'output'):
      _quantize_dense(block, f'_feedforward_{name}_dense', settings)
    block._self_attention_layer = QuantizedAttention(attention, settings)
  _quantize_dense(encoder.backbone, 'pooled_dense', settings)


def _quantize_dense(
  owner: tf.keras.layers.Layer,
  name: str,
  settings: quantization.Settings,
  one_scale: bool = False,
) -> None:
  layer = getattr(owner, name)
  if isinstance(layer, lora.Adapter):
    for part in ('base', 'down', 'up'):
      _quantize_dense(layer, part, settings)
  else:
    setattr(owner, name, QuantizedDense(layer, settings, one_scale))


def remove(encoder: tf.keras.layers.Layer) -> None:
  """Takes quantization out of an encoder, whose weights stay as they are."""
  for owner in list(encoder._flatten_layers()):
    for attribute, value in list(vars(owner).items()):
      if isinstance(value, QuantizedDense):
        setattr(owner, attribute, value.base)
      elif isinstance(value, QuantizedAttention):
        setattr(owner, attribute, value.attention)


def dense_layers(model: tf.keras.Model) -> Iterator[QuantizedDense]:
  """Yields the quantized dense layers of a model."""
  for layer in model._flatten_layers():
    if isinstance(layer, QuantizedDense):
      yield layer
