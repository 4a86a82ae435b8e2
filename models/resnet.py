"""Residual networks with group normalisation, which federated learning needs.

Batch normalisation shares statistics between clients and breaks when their data
differ (Hsieh et al. 2020, arXiv:1910.00189); Reddi et al. 2021
(arXiv:2003.00295) put group normalisation in its place, with two groups.
"""

from collections.abc import Sequence

import tensorflow as tf

from models import layers

_GROUPS = 2


def build_resnet8(
  input_shape: tuple[int, ...], num_classes: int, seed: int
) -> tf.keras.Model:
  """One residual block in each of three stages of 16, 32 and 64 filters.

  The smallest network of the CIFAR family of He et al. 2016
  (arXiv:1512.03385, section 4.2), with projections where the shape changes.
  """
  return _build('resnet_gn', input_shape, num_classes, seed, (16, 32, 64), 1)


def build_resnet18(
  input_shape: tuple[int, ...], num_classes: int, seed: int
) -> tf.keras.Model:
  """ResNet-18 with a 3x3 stem: two blocks in stages of 64, 128, 256, 512."""
  stages = (64, 128, 256, 512)
  return _build('resnet18_gn', input_shape, num_classes, seed, stages, 2)


def _build(
  name: str,
  input_shape: tuple[int, ...],
  num_classes: int,
  seed: int,
  stages: Sequence[int],
  blocks: int,
) -> tf.keras.Model:
  """Stacks a stem, the stages of residual blocks and a linear classifier."""
  inputs = tf.keras.Input(input_shape, name='image')
  hidden = _conv(inputs, seed, 'stem', stages[0], 3, 1)
  hidden = _norm(hidden, 'stem')
  hidden = tf.keras.layers.ReLU(name='stem_relu')(hidden)
  for stage, filters in enumerate(stages, 1):
    for block in range(1, blocks + 1):
      stride = 2 if stage > 1 and block == 1 else 1
      hidden = _block(hidden, seed, f'block_{stage}_{block}', filters, stride)
  hidden = tf.keras.layers.GlobalAveragePooling2D(name='pool')(hidden)
  logits = tf.keras.layers.Dense(
    num_classes,
    kernel_initializer=tf.keras.initializers.GlorotUniform(
      layers.derive_seed(seed, 'logits')
    ),
    name='logits',
  )(hidden)
  return tf.keras.Model(inputs, logits, name=name)


def _block(
  inputs: tf.Tensor, seed: int, name: str, filters: int, stride: int
) -> tf.Tensor:
  """A basic residual block: two 3x3 convolutions beside a shortcut."""
  hidden = _conv(inputs, seed, f'{name}_1', filters, 3, stride)
  hidden = _norm(hidden, f'{name}_1')
  hidden = tf.keras.layers.ReLU(name=f'{name}_1_relu')(hidden)
  # Layer by layer over both branches: so the variables are created in the order
  # in which Keras lists them, and a functional model's weights fit this model.
  hidden = _conv(hidden, seed, f'{name}_2', filters, 3, 1)
  if stride == 1 and inputs.shape[-1] == filters:
    shortcut = inputs
    hidden = _norm(hidden, f'{name}_2')
  else:
    shortcut = _conv(inputs, seed, f'{name}_shortcut', filters, 1, stride)
    hidden = _norm(hidden, f'{name}_2')
    shortcut = _norm(shortcut, f'{name}_shortcut')
  hidden = tf.keras.layers.Add(name=f'{name}_add')([hidden, shortcut])
  return tf.keras.layers.ReLU(name=f'{name}_relu')(hidden)


def _conv(
  inputs: tf.Tensor, seed: int, name: str, filters: int, size: int, stride: int
) -> tf.Tensor:
  """A convolution without bias, since a normalisation follows it."""
  return tf.keras.layers.Conv2D(
    filters,
    size,
    strides=stride,
    padding='same',
    use_bias=False,
    kernel_initializer=tf.keras.initializers.HeNormal(
      layers.derive_seed(seed, name)
    ),
    name=name,
  )(inputs)


def _norm(inputs: tf.Tensor, name: str) -> tf.Tensor:
  return tf.keras.layers.GroupNormalization(_GROUPS, name=f'{name}_norm')(
    inputs
  )
