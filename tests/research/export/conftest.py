"""A tiny task with what the export needs of one, and its trained model."""

import types

import pytest
import tensorflow as tf

from models import emnist

SHAPE = (8, 8, 1)


def scale(image):
  if image.dtype.is_integer:
    return tf.cast(image, tf.float32) / 255
  return image


def make_task(
  kind='classification',
  model='mcmahan_2nn',
  shape=SHAPE,
  num_classes=10,
  preprocess_features=scale,
):
  """What saved_model, parity and model_card use of a Task."""
  return types.SimpleNamespace(
    quantization=None,
    name='tiny',
    data=types.SimpleNamespace(feature_names=(), target_names=()),
    kind=kind,
    class_names=tuple(str(i) for i in range(num_classes)),
    build_keras_model=lambda: emnist.build(
      model, input_shape=shape, num_classes=num_classes, seed=1
    ),
    preprocess_features=preprocess_features,
    example_shape=shape,
  )


@pytest.fixture
def task():
  return make_task()


@pytest.fixture
def model(task):
  return task.build_keras_model()
