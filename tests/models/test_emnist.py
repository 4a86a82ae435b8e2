"""Parameter counts, shapes, seeds and errors of the image models."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from models import emnist

GREY = (28, 28, 1)
COLOUR = (32, 32, 3)
# ResNet-18 is ResNet-8 with other numbers, and slow to build.
QUICK = [name for name in emnist.MODELS if name != 'resnet18_gn']
RANDOM = [name for name in QUICK if name != 'logistic_regression']


def build(name, seed=0, shape=None, num_classes=10):
  shape = shape or (COLOUR if name.startswith('resnet') else GREY)
  return emnist.build(
    name, input_shape=shape, num_classes=num_classes, seed=seed
  )


def weight_hash(model):
  digest = hashlib.sha256()
  for weight in model.get_weights():
    digest.update(weight.tobytes())
  return digest.hexdigest()


@pytest.mark.parametrize(
  ('name', 'shape', 'num_classes', 'count'),
  [
    ('logistic_regression', GREY, 10, 784 * 10 + 10),
    ('mcmahan_2nn', GREY, 10, 199_210),
    ('mcmahan_cnn', GREY, 10, 1_663_370),
    ('reddi_cnn', GREY, 62, 1_206_590),
    ('ddp_cnn', GREY, 62, 1_018_174),
    ('lenet5', GREY, 10, 61_706),
    ('lenet5', (32, 32, 1), 10, 61_706),
    ('niid_bench_cnn', GREY, 10, 44_426),
    ('niid_bench_cnn', (32, 32, 3), 10, 62_006),
    ('batch_norm_cnn', GREY, 10, 225_322),
    ('autoencoder', GREY, 10, 2_837_314),
    ('resnet_gn', COLOUR, 10, 78_042),
    ('resnet18_gn', COLOUR, 10, 11_173_962),
    ('k_means', GREY, 10, 10 * 784),
  ],
)
def test_parameter_count(name, shape, num_classes, count):
  model = build(name, shape=shape, num_classes=num_classes)
  assert model.count_params() == count
  has_moments = name == 'batch_norm_cnn'
  assert bool(model.non_trainable_variables) == has_moments


def test_resnet8_parameter_count_by_hand():
  def conv(size, before, after):
    return size * size * before * after + 2 * after  # two for the norm

  stem = conv(3, 3, 16)
  first = 2 * conv(3, 16, 16)
  second = conv(3, 16, 32) + conv(3, 32, 32) + conv(1, 16, 32)
  third = conv(3, 32, 64) + conv(3, 64, 64) + conv(1, 32, 64)
  logits = 64 * 10 + 10
  total = stem + first + second + third + logits
  assert build('resnet_gn').count_params() == total


@pytest.mark.parametrize('name', QUICK)
def test_output_shape_and_dtype(name):
  model = build(name, num_classes=7)
  output = model(np.zeros([2, *model.input_shape[1:]], np.float32))
  shape = GREY if name == 'autoencoder' else (7,)
  assert output.shape == (2, *shape)
  assert output.dtype == tf.float32


@pytest.mark.parametrize('name', RANDOM)
def test_seed_decides_every_weight(name):
  first, again, other = build(name, 3), build(name, 3), build(name, 4)
  assert weight_hash(first) == weight_hash(again)
  for mine, its in zip(
    first.trainable_variables, other.trainable_variables, strict=True
  ):
    if 'kernel' in mine.name:
      assert not np.array_equal(mine, its), mine.name


@pytest.mark.parametrize('name', RANDOM)
def test_layers_do_not_share_their_initial_values(name):
  kernels = [
    np.ravel(v)[:20] / np.std(v)
    for v in build(name).trainable_variables
    if 'kernel' in v.name
  ]
  for i, one in enumerate(kernels):
    for other in kernels[:i]:
      size = min(len(one), len(other))
      assert not np.allclose(one[:size], other[:size], atol=1e-2)


def test_another_process_builds_the_same_bits():
  names = ['mcmahan_cnn', 'reddi_cnn', 'resnet_gn']
  program = (
    'from tests.models import test_emnist as t\n'
    f'for name in {names}: print(t.weight_hash(t.build(name, 5)))'
  )
  output = subprocess.run(
    [sys.executable, '-c', program],
    check=True,
    capture_output=True,
    text=True,
  ).stdout
  assert output.split() == [weight_hash(build(name, 5)) for name in names]


def test_logistic_regression_starts_from_zero():
  assert all(not np.any(w) for w in build('logistic_regression').get_weights())


@pytest.mark.parametrize('name', QUICK)
def test_convolutions_have_their_activation_inside(name):
  model = build(name)
  for layer in model.layers:
    if isinstance(layer, tf.keras.layers.ReLU):
      # Only a normalisation may stand between a convolution and its ReLU.
      before = layer.inbound_nodes[0].inbound_layers
      assert not isinstance(before, tf.keras.layers.Conv2D)


@pytest.mark.parametrize(
  'name',
  ['logistic_regression', 'mcmahan_2nn', 'autoencoder']
  + ['mcmahan_cnn', 'reddi_cnn', 'ddp_cnn', 'resnet_gn'],
)
def test_digits_of_8x8(name):
  model = build(name, shape=(8, 8, 1))
  output = model(np.ones([3, 8, 8, 1], np.float32))
  assert output.shape[0] == 3


@pytest.mark.parametrize('name', emnist._SMALLEST_SIDE)
def test_smallest_image_builds_and_one_less_is_refused(name):
  side = emnist._SMALLEST_SIDE[name]
  model = build(name, shape=(side, side, 1))
  assert model(np.zeros([1, side, side, 1], np.float32)).shape == (1, 10)
  with pytest.raises(ValueError, match='input_shape'):
    build(name, shape=(side - 1, side, 1))


def test_too_small_image_names_what_fits():
  with pytest.raises(ValueError, match='at least 12x12.*mcmahan_cnn'):
    build('lenet5', shape=(8, 8, 1))


def test_fully_connected_takes_vectors_and_convolutional_does_not():
  assert build('mcmahan_2nn', shape=(13,)).input_shape == (None, 13)
  with pytest.raises(ValueError, match='mcmahan_cnn is convolutional'):
    build('mcmahan_cnn', shape=(64,))


def test_unknown_name_lists_the_models():
  with pytest.raises(ValueError, match="'alexnet'.*mcmahan_cnn"):
    build('alexnet')


@pytest.mark.parametrize(
  ('given', 'message'),
  [({'num_classes': 1}, 'num_classes=1'), ({'seed': -1}, 'seed=-1')],
)
def test_other_arguments_are_checked(given, message):
  with pytest.raises(ValueError, match=message):
    build('mcmahan_2nn', **given)


def test_autoencoder_is_sigmoid_around_a_linear_code():
  activations = {
    layer.name: layer.activation.__name__
    for layer in build('autoencoder').layers
    if isinstance(layer, tf.keras.layers.Dense)
  }
  assert activations.pop('code') == 'linear'
  assert set(activations.values()) == {'sigmoid'}
