"""Keras models for images: handwriting (EMNIST, MNIST, digits) and CIFAR-10.

Each is a functional Keras model without federation. `build` makes a fresh one
whose every initialiser and dropout is seeded. The parameter counts below are
for 28x28x1 images and are tested.

  logistic_regression  7,850 with 10 classes; starts from zero.
  mcmahan_2nn          199,210 with 10 classes.
  mcmahan_cnn          1,663,370 with 10 classes.
  reddi_cnn            1,206,590 with 62 classes; dropout.
  ddp_cnn              1,018,174 with 62 classes; dropout.
  lenet5               61,706 with 10 classes, also on 32x32x1.
  niid_bench_cnn       44,426 with 10 classes.
  batch_norm_cnn       225,322 with 10 classes; batch normalisation.
  autoencoder          2,837,314; its output has the shape of its input.
  resnet_gn            78,042 with 10 classes on 32x32x3: ResNet-8, group norm.
  resnet18_gn          11,173,962 with 10 classes on 32x32x3.
  k_means              7,840 with 10 clusters: from images to squared distances.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf
import tensorflow_federated as tff

from models import functional, k_means, layers, resnet

Shape = tuple[int, ...]
# Of moving averages: a client has few batches.
_MOMENTUM = 0.9
_Metrics = Callable[[], Sequence[tf.keras.metrics.Metric]]


def build(
  name: str, *, input_shape: Sequence[int], num_classes: int, seed: int
) -> tf.keras.Model:
  """Builds a fresh, uncompiled model.

  Building twice gives equal bits, in other processes too. A model that lived
  before TFF traced a computation may be unusable afterwards (Keras swaps the
  bases of its classes in graphs): build another one then.

  Args:
    name: A key of `MODELS`.
    input_shape: Shape of one float32 example: (height, width, channels), or
      any shape for the fully connected models.
    num_classes: The number of logits, or of k_means' clusters; the autoencoder
      does not use it.
    seed: Each layer's initialiser and dropout derive their own seed from it.

  Returns:
    A model from [batch, *input_shape] to logits [batch, num_classes]; for
    k_means to squared distances of that shape, and for the autoencoder to
    [batch, *input_shape].

  Raises:
    ValueError: If the name is unknown, or the model can't have such a shape,
      number of classes or seed.
  """
  if name not in MODELS:
    raise ValueError(f'unknown model {name!r}; there are {", ".join(MODELS)}')
  input_shape = tuple(int(size) for size in input_shape)
  _check_shape(name, input_shape)
  if num_classes < 2 and name != 'autoencoder':
    raise ValueError(
      f'num_classes={num_classes}: {name} needs at least 2 classes'
    )
  if seed < 0:
    raise ValueError(f'seed={seed} must not be negative')
  return MODELS[name](input_shape, num_classes, seed)


def build_functional(
  name: str,
  *,
  input_shape: Sequence[int],
  num_classes: int,
  seed: int,
  loss_fn: tf.keras.losses.Loss,
  metrics: _Metrics | None,
  input_spec: Mapping[str, tf.TensorSpec],
) -> tff.learning.models.FunctionalModel:
  """Builds a model as a TFF functional model; see `functional.from_keras`.

  Args:
    name: A key of `MODELS`.
    input_shape: Shape of one float32 example.
    num_classes: The number of logits.
    seed: The seed of the initial weights and of dropout.
    loss_fn: The loss of a batch.
    metrics: Makes the metrics beside loss, num_examples and num_batches.
    input_spec: Specs of a batch with keys x and y.

  Returns:
    The functional model. Call it only in a graph, as in a TFF computation.

  Raises:
    ValueError: As `build`, or if the model is not stateless.
  """
  return functional.from_keras(
    functools.partial(
      build, name, input_shape=input_shape, num_classes=num_classes, seed=seed
    ),
    loss_fn=loss_fn,
    metrics=metrics,
    input_spec=input_spec,
  )


def _logistic_regression(
  input_shape: Shape, num_classes: int, seed: int
) -> tf.keras.Model:
  """Multinomial logistic regression.

  It starts from zero whatever the seed: the problem is convex, and TFF's image
  classification tutorial starts there too.
  """
  del seed
  inputs = tf.keras.Input(input_shape, name='image')
  hidden = tf.keras.layers.Flatten(name='flatten')(inputs)
  logits = tf.keras.layers.Dense(
    num_classes, kernel_initializer='zeros', name='logits'
  )(hidden)
  return tf.keras.Model(inputs, logits, name='logistic_regression')


def _mcmahan_2nn(
  input_shape: Shape, num_classes: int, seed: int
) -> tf.keras.Model:
  """The 2NN of McMahan et al. 2017 (arXiv:1602.05629): two layers of 200."""
  inputs = tf.keras.Input(input_shape, name='image')
  hidden = tf.keras.layers.Flatten(name='flatten')(inputs)
  hidden = _dense(seed, 'dense_1', 200, 'relu')(hidden)
  hidden = _dense(seed, 'dense_2', 200, 'relu')(hidden)
  logits = _dense(seed, 'logits', num_classes)(hidden)
  return tf.keras.Model(inputs, logits, name='mcmahan_2nn')


def _mcmahan_cnn(
  input_shape: Shape, num_classes: int, seed: int
) -> tf.keras.Model:
  """The CNN of McMahan et al. 2017 (arXiv:1602.05629)."""
  inputs = tf.keras.Input(input_shape, name='image')
  hidden = inputs
  for number, filters in enumerate((32, 64), 1):
    hidden = _conv(seed, f'conv_{number}', filters, 5, padding='same')(hidden)
    hidden = tf.keras.layers.MaxPooling2D(
      padding='same', name=f'pool_{number}'
    )(hidden)
  hidden = tf.keras.layers.Flatten(name='flatten')(hidden)
  hidden = _dense(seed, 'dense', 512, 'relu')(hidden)
  logits = _dense(seed, 'logits', num_classes)(hidden)
  return tf.keras.Model(inputs, logits, name='mcmahan_cnn')


def _reddi_cnn(
  input_shape: Shape, num_classes: int, seed: int
) -> tf.keras.Model:
  """The EMNIST CNN of Reddi et al. 2021 (arXiv:2003.00295, appendix)."""
  inputs = tf.keras.Input(input_shape, name='image')
  hidden = _conv(seed, 'conv_1', 32, 3)(inputs)
  hidden = _conv(seed, 'conv_2', 64, 3)(hidden)
  hidden = tf.keras.layers.MaxPooling2D(name='pool')(hidden)
  logits = _dropout_head(hidden, inputs, num_classes, seed)
  return tf.keras.Model(inputs, logits, name='reddi_cnn')


def _ddp_cnn(input_shape: Shape, num_classes: int, seed: int) -> tf.keras.Model:
  """The EMNIST CNN of the distributed DP papers (arXiv:2102.06387).

  `reddi_cnn` with the pooling between the convolutions: slightly fewer than
  2**20 parameters, so that a Hadamard transform pads little.
  """
  inputs = tf.keras.Input(input_shape, name='image')
  hidden = _conv(seed, 'conv_1', 32, 3)(inputs)
  hidden = tf.keras.layers.MaxPooling2D(name='pool')(hidden)
  hidden = _conv(seed, 'conv_2', 64, 3)(hidden)
  logits = _dropout_head(hidden, inputs, num_classes, seed)
  return tf.keras.Model(inputs, logits, name='ddp_cnn')


def _lenet5(input_shape: Shape, num_classes: int, seed: int) -> tf.keras.Model:
  """LeNet-5 (LeCun et al. 1998) with a linear output and full connections.

  Images of less than 32x32 are padded by the first convolution, as the paper
  pads MNIST to 32x32.
  """
  padding = 'same' if min(input_shape[:2]) < 32 else 'valid'
  inputs = tf.keras.Input(input_shape, name='image')
  hidden = _conv(seed, 'conv_1', 6, 5, 'tanh', padding)(inputs)
  hidden = tf.keras.layers.AveragePooling2D(name='pool_1')(hidden)
  hidden = _conv(seed, 'conv_2', 16, 5, 'tanh')(hidden)
  hidden = tf.keras.layers.AveragePooling2D(name='pool_2')(hidden)
  hidden = tf.keras.layers.Flatten(name='flatten')(hidden)
  hidden = _dense(seed, 'dense_1', 120, 'tanh')(hidden)
  hidden = _dense(seed, 'dense_2', 84, 'tanh')(hidden)
  logits = _dense(seed, 'logits', num_classes)(hidden)
  return tf.keras.Model(inputs, logits, name='lenet5')


def _niid_bench_cnn(
  input_shape: Shape, num_classes: int, seed: int
) -> tf.keras.Model:
  """The CNN of NIID-Bench (Li et al. 2021, arXiv:2102.02079, section 5).

  Its sizes are LeNet-5's, with ReLU, max pooling and no padding.
  """
  inputs = tf.keras.Input(input_shape, name='image')
  hidden = inputs
  for number, filters in enumerate((6, 16), 1):
    hidden = _conv(seed, f'conv_{number}', filters, 5)(hidden)
    hidden = tf.keras.layers.MaxPooling2D(name=f'pool_{number}')(hidden)
  hidden = tf.keras.layers.Flatten(name='flatten')(hidden)
  hidden = _dense(seed, 'dense_1', 120, 'relu')(hidden)
  hidden = _dense(seed, 'dense_2', 84, 'relu')(hidden)
  logits = _dense(seed, 'logits', num_classes)(hidden)
  return tf.keras.Model(inputs, logits, name='niid_bench_cnn')


def _batch_norm_cnn(
  input_shape: Shape, num_classes: int, seed: int
) -> tf.keras.Model:
  """Two convolutions with batch normalisation; no paper's.

  Its moments are measured by the clients: see `research.algorithms.statistics`.
  """
  inputs = tf.keras.Input(input_shape, name='image')
  hidden = inputs
  for number, filters in enumerate((32, 64), 1):
    # The bias would be undone by what follows.
    hidden = _conv(seed, f'conv_{number}', filters, 3, None, use_bias=False)(
      hidden
    )
    hidden = tf.keras.layers.BatchNormalization(
      momentum=_MOMENTUM, name=f'norm_{number}'
    )(hidden)
    hidden = tf.keras.layers.ReLU(name=f'relu_{number}')(hidden)
    hidden = tf.keras.layers.MaxPooling2D(name=f'pool_{number}')(hidden)
  hidden = tf.keras.layers.Flatten(name='flatten')(hidden)
  hidden = _dense(seed, 'dense', 128, 'relu')(hidden)
  logits = _dense(seed, 'logits', num_classes)(hidden)
  return tf.keras.Model(inputs, logits, name='batch_norm_cnn')


def _autoencoder(
  input_shape: Shape, num_classes: int, seed: int
) -> tf.keras.Model:
  """The EMNIST autoencoder of Reddi et al. 2021 (arXiv:2003.00295, appendix).

  After Hinton and Salakhutdinov 2006: sigmoids around a linear code of 30.
  """
  del num_classes
  inputs = tf.keras.Input(input_shape, name='image')
  hidden = tf.keras.layers.Flatten(name='flatten')(inputs)
  for number, units in enumerate((1000, 500, 250), 1):
    hidden = _dense(seed, f'encoder_{number}', units, 'sigmoid')(hidden)
  hidden = _dense(seed, 'code', 30)(hidden)
  for number, units in enumerate((250, 500, 1000), 1):
    hidden = _dense(seed, f'decoder_{number}', units, 'sigmoid')(hidden)
  size = math.prod(input_shape)
  hidden = _dense(seed, 'reconstruction', size, 'sigmoid')(hidden)
  outputs = tf.keras.layers.Reshape(input_shape, name='reshape')(hidden)
  return tf.keras.Model(inputs, outputs, name='autoencoder')


MODELS: Mapping[str, Callable[[Shape, int, int], tf.keras.Model]] = {
  'logistic_regression': _logistic_regression,
  'mcmahan_2nn': _mcmahan_2nn,
  'mcmahan_cnn': _mcmahan_cnn,
  'reddi_cnn': _reddi_cnn,
  'ddp_cnn': _ddp_cnn,
  'lenet5': _lenet5,
  'niid_bench_cnn': _niid_bench_cnn,
  'batch_norm_cnn': _batch_norm_cnn,
  'autoencoder': _autoencoder,
  'resnet_gn': resnet.build_resnet8,
  'resnet18_gn': resnet.build_resnet18,
  'k_means': k_means.build,
}

# The smallest height and width with which each convolution still has an output.
_SMALLEST_SIDE = {
  'mcmahan_cnn': 1,
  'reddi_cnn': 6,
  'ddp_cnn': 8,
  'lenet5': 12,
  'niid_bench_cnn': 16,
  'batch_norm_cnn': 10,
  'resnet_gn': 4,
  'resnet18_gn': 8,
}


def _check_shape(name: str, input_shape: Shape) -> None:
  """Refuses a shape that the model can't have."""
  if not input_shape or min(input_shape) < 1:
    raise ValueError(f'input_shape={input_shape} must have sizes of at least 1')
  if name not in _SMALLEST_SIDE:
    return
  if len(input_shape) != 3:
    raise ValueError(
      f'input_shape={input_shape}: {name} is convolutional and needs '
      '(height, width, channels); fully connected models take any shape'
    )
  side = _SMALLEST_SIDE[name]
  if min(input_shape[:2]) < side:
    fitting = [n for n, s in _SMALLEST_SIDE.items() if s <= min(input_shape)]
    raise ValueError(
      f'input_shape={input_shape} is too small: {name} needs images of at '
      f'least {side}x{side}; for yours there are the fully connected models'
      + ''.join(f', {n}' for n in fitting)
    )


def _dropout_head(
  hidden: tf.Tensor, inputs: tf.Tensor, num_classes: int, seed: int
) -> tf.Tensor:
  """The end of both CNNs with dropout: 0.25, 128 units, 0.5, logits."""
  hidden = _dropout(seed, 'dropout_1', 0.25)([hidden, inputs])
  hidden = tf.keras.layers.Flatten(name='flatten')(hidden)
  hidden = _dense(seed, 'dense', 128, 'relu')(hidden)
  hidden = _dropout(seed, 'dropout_2', 0.5)([hidden, inputs])
  return _dense(seed, 'logits', num_classes)(hidden)


def _dropout(seed: int, name: str, rate: float) -> layers.BatchSeededDropout:
  return layers.BatchSeededDropout(
    rate, layers.derive_seed(seed, name), name=name
  )


def _dense(
  seed: int, name: str, units: int, activation: str | None = None
) -> tf.keras.layers.Dense:
  return tf.keras.layers.Dense(
    units,
    activation=activation,
    kernel_initializer=_glorot(seed, name),
    name=name,
  )


def _conv(
  seed: int,
  name: str,
  filters: int,
  size: int,
  activation: str | None = 'relu',
  padding: str = 'valid',
  use_bias: bool = True,
) -> tf.keras.layers.Conv2D:
  # Quantization-aware training sees the weights of a convolution only when its
  # activation is part of it.
  return tf.keras.layers.Conv2D(
    filters,
    size,
    padding=padding,
    activation=activation,
    use_bias=use_bias,
    kernel_initializer=_glorot(seed, name),
    name=name,
  )


def _glorot(seed: int, name: str) -> tf.keras.initializers.Initializer:
  return tf.keras.initializers.GlorotUniform(layers.derive_seed(seed, name))
