"""Parameter-efficient fine-tuning: small trained parts beside frozen layers.

  lora          Hu et al. 2021 (arXiv:2106.09685), section 4.1.
  adapters      Houlsby et al. 2019 (arXiv:1902.00751), section 2.1.
  bias          Ben Zaken et al. 2022 (arXiv:2106.10199), BitFit.

Each is a layer around the frozen layer that it changes, `base`. Only `base`
itself is frozen: Keras hides every variable below a container that is not
trainable, those of the small parts too.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import tensorflow as tf

from models import layers

# Of the names of its matrices.
PREFIX = 'lora_'


class Part(tf.keras.layers.Layer):
  """A frozen layer with something trained beside it.

  Attributes:
    base: The frozen layer: Dense, EinsumDense or LayerNormalization, built.
  """

  def __init__(self, base: tf.keras.layers.Layer, kind: str):
    """Freezes a layer.

    Args:
      base: It must be built.
      kind: What is added, for the name.
    """
    super().__init__(name=f'{base.name}_{kind}', dtype=base.dtype_policy)
    base.trainable = False
    self.base = base

  @property
  def output_shape_of_base(self) -> tuple[int, ...]:
    """Shape of one output of the frozen layer."""
    return tuple(_bias(self.base).shape)


class MergeablePart(Part):
  """A part whose change can be added to the weights of `base`.

  An activation of `base` moves here: it comes after the change.
  """

  def __init__(self, base: tf.keras.layers.Layer, kind: str):
    """Freezes a layer; see `Part`."""
    super().__init__(base, kind)
    self._is_merged = False
    self._activation = tf.keras.activations.linear
    if hasattr(base, 'activation'):
      self._activation, base.activation = base.activation, None

  def call(self, inputs: tf.Tensor) -> tf.Tensor:
    output = self.base(inputs)
    if not self._is_merged:
      output = output + self._change_of_output(inputs, output)
    return self._activation(output)

  @property
  def activation(self) -> Callable[[tf.Tensor], tf.Tensor]:
    """What is applied to the changed output."""
    return self._activation

  def merged(self) -> tuple[tf.Tensor | None, tf.Tensor]:
    """Kernel, if `base` has one, and bias as they are after merging."""
    bias, kernel = _bias(self.base).read_value(), None
    if hasattr(self.base, 'kernel'):
      kernel = self.base.kernel.read_value()
    return (kernel, bias) if self._is_merged else self._change(kernel, bias)

  def merge(self) -> None:
    """Adds the change to the base; the output stays the same."""
    if self._is_merged:
      return
    kernel, bias = self.merged()
    if kernel is not None:
      self.base.kernel.assign(kernel)
    _bias(self.base).assign(bias)
    self._is_merged = True


class Lora(MergeablePart):
  """y = base(x) + (alpha / rank) x A B (Hu et al. 2021, Equation 3).

  A is uniform and B zero at first, so that training starts at the base.
  """

  def __init__(
    self, base: tf.keras.layers.Layer, rank: int, alpha: float, seed: int
  ):
    """Adds A [inputs, rank] and B [rank, outputs].

    Args:
      base: A built Dense or EinsumDense with a bias.
      rank: The paper's r.
      alpha: The paper's alpha.
      seed: Of A.
    """
    super().__init__(base, 'lora')
    self._scale = alpha / rank
    outputs = self.output_shape_of_base
    kernel = base.kernel.shape
    self._inputs = math.prod(kernel[: len(kernel) - len(outputs)])
    bound = 1 / math.sqrt(self._inputs)
    self.lora_a = self.add_weight(
      f'{PREFIX}a',
      [self._inputs, rank],
      initializer=tf.keras.initializers.RandomUniform(-bound, bound, seed),
    )
    self.lora_b = self.add_weight(
      f'{PREFIX}b', [rank, math.prod(outputs)], initializer='zeros'
    )

  def _change_of_output(
    self, inputs: tf.Tensor, output: tf.Tensor
  ) -> tf.Tensor:
    flat = tf.reshape(inputs, [-1, self._inputs])
    change = (flat @ self.lora_a @ self.lora_b) * self._scale
    return tf.reshape(change, tf.shape(output))

  def _change(
    self, kernel: tf.Tensor, bias: tf.Tensor
  ) -> tuple[tf.Tensor, tf.Tensor]:
    change = (self.lora_a @ self.lora_b) * self._scale
    return kernel + tf.reshape(change, kernel.shape), bias


class Adapter(Part):
  """y = h + gelu(h D + d) U + u with h = base(x); U and u are zero at first."""

  def __init__(self, base: tf.keras.layers.Layer, size: int, seed: int):
    """Adds D [outputs, size] and U [size, outputs] with their biases.

    Args:
      base: A built layer.
      size: The bottleneck, the paper's m.
      seed: Of D.
    """
    super().__init__(base, 'adapter')
    (width,) = self.output_shape_of_base
    self.down = tf.keras.layers.Dense(
      size,
      'gelu',
      kernel_initializer=tf.keras.initializers.TruncatedNormal(0, 0.02, seed),
      dtype=base.dtype_policy,
      name='down',
    )
    self.up = tf.keras.layers.Dense(
      width, kernel_initializer='zeros', dtype=base.dtype_policy, name='up'
    )
    self.down.build([None, width])
    self.up.build([None, size])

  def call(self, inputs: tf.Tensor) -> tf.Tensor:
    hidden = self.base(inputs)
    return hidden + self.up(self.down(hidden))


class BiasOffset(MergeablePart):
  """y = base(x) + offset: what training the bias of `base` alone amounts to."""

  def __init__(self, base: tf.keras.layers.Layer):
    """Adds the offset, zero at first, of the shape of the bias of `base`."""
    super().__init__(base, 'bias')
    self.offset = self.add_weight(
      'offset', self.output_shape_of_base, initializer='zeros'
    )

  def _change_of_output(
    self, inputs: tf.Tensor, output: tf.Tensor
  ) -> tf.Tensor:
    return self.offset

  def _change(
    self, kernel: tf.Tensor | None, bias: tf.Tensor
  ) -> tuple[tf.Tensor | None, tf.Tensor]:
    return kernel, bias + self.offset


def merge(model: tf.keras.Model) -> tf.keras.Model:
  """Merges what can be merged into the frozen layers of a model, in place.

  The model must be traced anew afterwards.

  Returns:
    The model, whose outputs are the same up to rounding.
  """
  for part in parts(model):
    if isinstance(part, MergeablePart):
      part.merge()
  return model


def parts(layer: tf.keras.layers.Layer) -> Iterator[Part]:
  """Yields the parts in a layer or model."""
  for found in layer._flatten_layers():
    if isinstance(found, Part):
      yield found


def freeze(layer: tf.keras.layers.Layer) -> None:
  """Freezes the layers that have no layers below them."""
  for found in layer._flatten_layers():
    if not list(found._flatten_layers(include_self=False)):
      found.trainable = False


def add_lora(
  owners: Sequence[tuple[tf.keras.layers.Layer, str]],
  rank: int,
  alpha: float,
  seed: int,
) -> None:
  """Puts LoRA beside layers.

  Args:
    owners: Layers and the names of their attributes that are changed.
    rank: See `Lora`.
    alpha: See `Lora`.
    seed: Each A derives its own from it.
  """
  for number, (owner, attribute) in enumerate(owners):
    derived = layers.derive_seed(seed, f'lora_{number}')
    part = Lora(getattr(owner, attribute), rank, alpha, derived)
    setattr(owner, attribute, part)


def _bias(layer: tf.keras.layers.Layer) -> tf.Variable:
  if isinstance(layer, tf.keras.layers.LayerNormalization):
    return layer.beta
  return layer.bias
