"""Which weights and activations of a model are quantized in training."""

import dataclasses
from collections.abc import Iterator, Sequence

import tensorflow as tf
import tensorflow_model_optimization as tfmot

from models import kernels, quantization, quantized_encoder

# Layers that hold others and say nothing.
_INSIDE = frozenset(['backbone', 'self_attention_layer'])


@dataclasses.dataclass(frozen=True)
class Layer:
  """What is quantized of one layer.

  Attributes:
    name: Its name in the model; layers inside others have the names of both.
    kind: Its class.
    weights: Float weights by name, without vectors: kernels and tables.
    quantized_weights: Those of `weights` that are quantized.
    num_ranges: Activations that are quantized.
  """

  name: str
  kind: str
  weights: tuple[str, ...]
  quantized_weights: tuple[str, ...]
  num_ranges: int

  @property
  def float_weights(self) -> tuple[str, ...]:
    """Weights that stay float."""
    return tuple(w for w in self.weights if w not in self.quantized_weights)


@dataclasses.dataclass(frozen=True)
class Coverage:
  """What is quantized of a model, layer by layer in its order."""

  layers: tuple[Layer, ...]

  def check(self, allowed: Sequence[str] = ()) -> None:
    """Raises if a layer with a kernel stays float.

    TF-MOT leaves, for one, a convolution float that a ReLU layer follows, and
    TFLite quantizes it at export all the same.

    Args:
      allowed: Names of layers that may.

    Raises:
      ValueError: It names the layers, or the allowed ones that there are not.
    """
    names = {layer.name for layer in self.layers}
    if unknown := sorted(set(allowed) - names):
      raise ValueError(
        f'--float_layers={",".join(unknown)}: the model has '
        f'{", ".join(sorted(names))}.'
      )
    wrong = [
      layer
      for layer in self.layers
      if layer.float_weights
      and layer.kind not in _EXPECTED_FLOAT
      and layer.name not in allowed
    ]
    if wrong:
      found = ', '.join(f'{layer.name} ({layer.kind})' for layer in wrong)
      raise ValueError(
        f'--quantize=qat: {found} would train with float weights, and be '
        'quantized only at export. A convolution needs its ReLU as '
        "activation='relu', or a batch normalisation between the two. If float "
        'is what you want, say --float_layers='
        f'{",".join(layer.name for layer in wrong)}.'
      )

  def text(self) -> str:
    """A table of the layers that have weights or quantized activations."""
    rows = [('layer', 'kind', 'int weights', 'float weights', 'ranges')]
    rows += [
      (
        layer.name,
        layer.kind,
        ', '.join(layer.quantized_weights) or '-',
        ', '.join(layer.float_weights) or '-',
        str(layer.num_ranges),
      )
      for layer in self.layers
      if layer.weights or layer.num_ranges
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return '\n'.join(
      '  '.join(
        cell.ljust(width) for cell, width in zip(row, widths, strict=True)
      ).rstrip()
      for row in rows
    )


# Tables that are looked up in; their rows have no product with an activation.
_EXPECTED_FLOAT = frozenset(
  ['Embedding', 'ReversibleEmbedding', 'PositionEmbedding']
)


def of(model: tf.keras.Model) -> Coverage:
  """Reads what is quantized off a model.

  Args:
    model: Of `quantization.recipe`, or of a builder that is `quantized`.

  Returns:
    Its coverage.
  """
  return Coverage(
    tuple(found for layer in model.layers for found in _describe(layer, ()))
  )


def _describe(
  layer: tf.keras.layers.Layer, above: tuple[str, ...]
) -> Iterator[Layer]:
  """The layer, or those below it if it has layers of its own."""
  path = above
  if layer.name not in _INSIDE:
    path = (*above, layer.name.removesuffix('_quantized'))
  inner, quantized = layer, ()
  if isinstance(layer, tfmot.quantization.keras.QuantizeWrapper):
    inner, quantized = layer.layer, quantization.quantized_weights(layer)
  elif isinstance(layer, quantized_encoder.QuantizedDense):
    inner, quantized = layer.base, ('kernel',)
  else:
    below = list(layer._flatten_layers(recursive=False, include_self=False))
    for each in below:
      yield from _describe(each, path)
    if below:
      return
  yield Layer(
    name='/'.join(path),
    kind=type(inner).__name__,
    weights=_kernels(layer),
    quantized_weights=quantized,
    num_ranges=len(quantization.ranges(layer)) // 2,
  )


def _kernels(layer: tf.keras.layers.Layer) -> tuple[str, ...]:
  """Names of the layer's matrices; LoRA's are a part of the one they change."""
  found = dict.fromkeys(
    kernels.name(v) for v in layer.weights if kernels.is_kernel(v)
  )
  return tuple(found)
