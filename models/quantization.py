"""Quantization-aware training of Keras models: TF-MOT with ranges to federate.

TF-MOT's quantize_model wraps each layer that it knows. Its quantizers keep the
range of a weight as a variable, which the server of federated averaging would
have to guess after its own step, and let the range of an activation begin at
-6 to 6 and move by a thousandth per batch, which short local training never
leaves. Here the range of a weight follows from the weight, in training, at the
server and in the exported model alike; that of an activation begins with the
first batch.

Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", arXiv:1712.05877, Sections 2.1 and 3.1.
"""

import copy
import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
import tensorflow_model_optimization as tfmot

from models import layers as own_layers

_quantization = tfmot.quantization.keras
# The form in which TF-MOT keeps what it quantizes.
_serialize = tf.keras.utils.legacy.serialize_keras_object
_deserialize = tf.keras.utils.legacy.deserialize_keras_object
_ACTIVATION_BITS = 8
# Of a range's moving average, per batch.
_DECAY = 0.9
WEIGHT_BITS = (8, 6, 4)
_END = re.compile(r'_(min|max)(_\d+)?$')


class UnsupportedModelError(ValueError):
  """A model can't be trained with quantization."""


@dataclasses.dataclass(frozen=True)
class Settings:
  """How a model is quantized; the attributes are flags.

  Attributes:
    weight_bits: Bits of a weight in training: 8, 6 or 4.
    per_channel_weights: Whether each output channel of a convolution has a
      scale of its own, and of a dense layer of BERT; TF-MOT's dense layers have
      one scale.
    symmetric_weights: Whether zero is the middle of a weight's range, as int8
      models of TFLite need it.
    initial_range: Activations are at first quantized from minus to plus this; 0
      takes the range of the first batch.
  """

  weight_bits: int = 8
  per_channel_weights: bool = True
  symmetric_weights: bool = True
  initial_range: float = 0.0

  def __post_init__(self):
    if self.weight_bits not in WEIGHT_BITS:
      raise ValueError(
        f'weight_bits={self.weight_bits} must be one of {WEIGHT_BITS}'
      )


class WeightQuantizer(_quantization.quantizers.Quantizer):
  """Quantizes a weight to the grid of its own range; nothing is kept.

  Symmetric: 2^bits - 1 values from -r to r, where r is the largest magnitude.
  Asymmetric: 2^bits values from min(w, 0) to max(w, 0). The gradient passes
  through unchanged (arXiv:1712.05877, Section 3.1).
  """

  def __init__(self, num_bits: int, per_channel: bool, symmetric: bool):
    """Makes a quantizer.

    Args:
      num_bits: Bits of a quantized weight.
      per_channel: Whether there is a range per slice of the last axis.
      symmetric: Whether zero is in the middle of the range.
    """
    self._num_bits = num_bits
    self._per_channel = per_channel
    self._symmetric = symmetric

  def build(self, tensor_shape, name, layer) -> dict[str, tf.Variable]:
    return {}

  def __call__(self, inputs, training=False, weights=None, **kwargs):
    """Returns `inputs` [..., channels] on the grid."""
    if training:
      # TensorFlow's own gradient is zero for the largest weight of a range
      # that is not symmetric, which rounding moves.
      return tf.grad_pass_through(self._on_grid)(inputs)
    return self._on_grid(inputs)

  def _on_grid(self, weights: tf.Tensor) -> tf.Tensor:
    axes = list(range(weights.shape.rank - 1)) if self._per_channel else None
    if self._symmetric:
      magnitude = tf.reduce_max(tf.abs(weights), axes)
      low, high = -magnitude, magnitude
    else:
      low = tf.minimum(tf.reduce_min(weights, axes), 0.0)
      high = tf.maximum(tf.reduce_max(weights, axes), 0.0)
    # Pruning can leave a channel nothing but zeros, and OpenVINO divides by the
    # width of its range.
    is_empty = tf.equal(low, high)
    low, high = tf.where(is_empty, -1.0, low), tf.where(is_empty, 1.0, high)
    quantize = (
      tf.quantization.fake_quant_with_min_max_vars_per_channel
      if self._per_channel
      else tf.quantization.fake_quant_with_min_max_vars
    )
    return quantize(
      weights, low, high, self._num_bits, narrow_range=self._symmetric
    )

  def get_config(self) -> dict[str, Any]:
    return {
      'num_bits': self._num_bits,
      'per_channel': self._per_channel,
      'symmetric': self._symmetric,
    }


class ActivationQuantizer(_quantization.quantizers.Quantizer):
  """Quantizes an activation to 256 values of a range that training measures.

  The range is the moving average over batches of the least and the largest
  activation, zero among them (arXiv:1712.05877, Section 3.1). Its two variables
  are not trained: the server learns them because the clients send them.
  """

  def __init__(self, initial_range: float = 0.0):
    """Makes a quantizer.

    Args:
      initial_range: See `Settings`.
    """
    self._initial_range = initial_range

  def build(self, tensor_shape, name, layer) -> dict[str, tf.Variable]:
    return {
      end: layer.add_weight(
        f'{name}_{end}',
        shape=(),
        initializer=tf.keras.initializers.Constant(value),
        trainable=False,
      )
      for end, value in (
        ('min', -self._initial_range),
        ('max', self._initial_range),
      )
    }

  def __call__(self, inputs, training, weights: Mapping[str, Any], **kwargs):
    """Returns `inputs` on the grid; in training the range moves first."""
    low, high = weights['min'], weights['max']
    if training:
      low, high = self._moved(inputs, low, high)
    return tf.quantization.fake_quant_with_min_max_vars(
      inputs, low, high, _ACTIVATION_BITS
    )

  def _moved(
    self, inputs: tf.Tensor, low: tf.Variable, high: tf.Variable
  ) -> tuple[tf.Tensor, tf.Tensor]:
    value = tf.stop_gradient(inputs)
    ends = [
      tf.minimum(tf.reduce_min(value), 0.0),
      tf.maximum(tf.reduce_max(value), 0.0),
    ]
    before = [low.read_value(), high.read_value()]
    is_first = tf.equal(before[0], before[1])
    moved = [
      tf.where(is_first, end, _DECAY * old + (1 - _DECAY) * end)
      for old, end in zip(before, ends, strict=True)
    ]
    low.assign(moved[0])
    high.assign(moved[1])
    return moved[0], moved[1]

  def get_config(self) -> dict[str, Any]:
    return {'initial_range': self._initial_range}


class QuantizeConfig(_quantization.QuantizeConfig):
  """What TF-MOT quantizes of a layer, by the quantizers of this module."""

  def __init__(self, inner: _quantization.QuantizeConfig, settings: Settings):
    self._inner = inner
    self._settings = settings

  def get_weights_and_quantizers(self, layer):
    settings = self._settings
    return [
      (
        weight,
        WeightQuantizer(
          settings.weight_bits,
          quantizer.per_axis and settings.per_channel_weights,
          settings.symmetric_weights,
        ),
      )
      for weight, quantizer in self._inner.get_weights_and_quantizers(layer)
    ]

  def get_activations_and_quantizers(self, layer):
    return [
      (activation, ActivationQuantizer(self._settings.initial_range))
      for activation, _ in self._inner.get_activations_and_quantizers(layer)
    ]

  def set_quantize_weights(self, layer, quantize_weights):
    self._inner.set_quantize_weights(layer, quantize_weights)

  def set_quantize_activations(self, layer, quantize_activations):
    self._inner.set_quantize_activations(layer, quantize_activations)

  def get_output_quantizers(self, layer):
    return [
      ActivationQuantizer(self._settings.initial_range)
      for _ in self._inner.get_output_quantizers(layer)
    ]

  def get_config(self):
    return {
      'inner': _serialize(self._inner),
      'settings': dataclasses.asdict(self._settings),
    }

  @classmethod
  def from_config(cls, config):
    return cls(_deserialize(config['inner']), Settings(**config['settings']))


_OWN = {
  found.__name__: found
  for found in (
    ActivationQuantizer,
    QuantizeConfig,
    WeightQuantizer,
    own_layers.BatchSeededDropout,
  )
}


class _Registry:
  """TF-MOT's registry of layers, with the quantizers of this module."""

  def __init__(self, inner: Any, settings: Settings):
    self._inner = inner
    self._settings = settings

  def supports(self, layer: tf.keras.layers.Layer) -> bool:
    return self._inner.supports(layer)

  def get_quantize_config(self, layer: tf.keras.layers.Layer) -> QuantizeConfig:
    return QuantizeConfig(
      self._inner.get_quantize_config(layer), self._settings
    )


class _Layout:
  """TF-MOT's transformations, as folding a batch normalisation."""

  def __init__(self, inner: Any, settings: Settings):
    self._inner = inner
    self._settings = settings

  def apply(self, model, layer_quantize_map):
    model, found = self._inner.apply(model, layer_quantize_map)
    for entry in found.values():
      if entry.get('quantize_config') is not None:
        entry['quantize_config'] = QuantizeConfig(
          entry['quantize_config'], self._settings
        )
    return model, found


class _Scheme(_quantization.QuantizeScheme):
  """TF-MOT's scheme for 8 bits, with the quantizers of this module."""

  def __init__(self, settings: Settings):
    self._inner = _quantization.default_8bit.Default8BitQuantizeScheme()
    self._settings = settings

  def get_layout_transformer(self) -> _Layout:
    return _Layout(self._inner.get_layout_transformer(), self._settings)

  def get_quantize_registry(self) -> _Registry:
    return _Registry(self._inner.get_quantize_registry(), self._settings)


def recipe(
  model: tf.keras.Model, settings: Settings
) -> Callable[[], tf.keras.Model]:
  """Finds out how to make the model that clients train.

  TF-MOT clones a model five times, which is done once here and outside of the
  graph that TFF builds.

  Args:
    model: A functional model with seeded initialisers.
    settings: How to quantize it.

  Returns:
    A function that makes a fresh model with the inputs, outputs, trainable
    variables and initial weights of the given one. Layers that TF-MOT does not
    know stay float.

  Raises:
    UnsupportedModelError: If TF-MOT can't transform the model.
  """
  scheme = _Scheme(settings)
  registry = scheme.get_quantize_registry()

  def annotate(layer: tf.keras.layers.Layer) -> tf.keras.layers.Layer:
    if not registry.supports(layer) and not _is_folded(layer):
      return layer
    return _quantization.quantize_annotate_layer(layer)

  try:
    with _quantization.quantize_scope(_OWN):
      annotated = tf.keras.models.clone_model(model, clone_function=annotate)
      quantized = _quantization.quantize_apply(
        annotated, scheme, quantized_layer_name_prefix=''
      )
    kind = type(quantized)
    config = _without_build_configs(quantized.get_config())
  except (ValueError, RuntimeError, TypeError) as error:
    raise UnsupportedModelError(
      f"--quantize=qat: {model.name} can't be quantized: {error}"
    ) from error

  def build() -> tf.keras.Model:
    with _quantization.quantize_scope(_OWN):
      return kind.from_config(copy.deepcopy(config))

  return build


def _without_build_configs(config: Any) -> Any:
  """Has layers built when they are called, under their own names.

  Keras would build a layer of a saved form at once, and TF-MOT's build theirs
  once more when they are called.
  """
  if isinstance(config, dict):
    return {
      key: _without_build_configs(value)
      for key, value in config.items()
      if key != 'build_config'
    }
  if isinstance(config, list):
    return [_without_build_configs(value) for value in config]
  return config


def _is_folded(layer: tf.keras.layers.Layer) -> bool:
  """Whether a layer is quantized as a part of the one before it."""
  return isinstance(layer, tf.keras.layers.BatchNormalization)


def quantized_weights(
  wrapper: _quantization.QuantizeWrapper,
) -> tuple[str, ...]:
  """Names of the weights that a layer of TF-MOT's quantizes."""
  return tuple(
    variable.name.split(':')[0].split('/')[-1]
    for variable, *_ in wrapper._weight_vars
  )


def ranges(model: Any) -> list[tf.Variable]:
  """The variables of a model or layer that say what ranges activations have."""
  return [
    variable
    for variable in model.non_trainable_variables
    if variable.dtype.is_floating and end_of_range(variable.name)
  ]


def count_parameters(model: tf.keras.Model) -> int:
  """How many weights a model has, without ranges and counters."""
  return sum(
    variable.shape.num_elements()
    for variable in model.variables
    if variable.dtype.is_floating and not end_of_range(variable.name)
  )


def end_of_range(name: str) -> str:
  """Which end of an activation's range a variable is.

  Args:
    name: Of the variable; a graph numbers variables of one name.

  Returns:
    min, max, or nothing for other variables.
  """
  found = _END.search(name.split(':')[0])
  return found[1] if found else ''
