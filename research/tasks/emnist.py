"""Image tasks: EMNIST and what has its form (MNIST, CIFAR-10, own images)."""

import collections
import dataclasses
from collections.abc import Mapping

import tensorflow as tf

from datasets import federated_data
from models import emnist as models
from research.tasks import task as task_lib

# Mean and standard deviation of CIFAR-10's training images by channel.
_CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR10_STD = (0.2470, 0.2435, 0.2616)


@dataclasses.dataclass(frozen=True)
class Spec:
  """A task that `--task` can name.

  Attributes:
    kind: `classification` or `reconstruction`.
    dataset: The dataset if no flag names one.
    model: The model if no flag names one.
    num_classes: What the data must have; None is any number.
  """

  kind: str
  dataset: str
  model: str
  num_classes: int | None


TASKS: Mapping[str, Spec] = {
  'digit_recognition': Spec('classification', 'mnist', 'mcmahan_cnn', 10),
  'character_recognition': Spec(
    'classification', 'emnist_characters', 'reddi_cnn', 62
  ),
  'image_classification': Spec('classification', 'cifar10', 'resnet_gn', None),
  'autoencoder': Spec(
    'reconstruction', 'emnist_characters', 'autoencoder', None
  ),
}


def _preprocess_features(dataset: str, images: tf.Tensor) -> tf.Tensor:
  """Scales uint8 images to [0, 1]; floats are taken as scaled already."""
  if images.dtype.is_integer:
    images = tf.cast(images, tf.float32) / 255.0
  if dataset.removeprefix('synthetic_') == 'cifar10':
    images = (images - _CIFAR10_MEAN) / _CIFAR10_STD
  return tf.cast(images, tf.float32)


def build(
  name: str,
  data: federated_data.FederatedData,
  model: str | None = None,
  seed: int = 0,
) -> task_lib.Task:
  """Builds a task.

  Args:
    name: A key of `TASKS`.
    data: Clients with images `x` and labels `y`.
    model: A key of `models.MODELS`; the task's usual one if None.
    seed: Of the initial weights and dropout.

  Returns:
    The task.

  Raises:
    ValueError: If task, model and data do not fit together.
  """
  spec = TASKS[name]
  model = model or spec.model
  if spec.num_classes not in (None, data.num_classes):
    raise ValueError(
      f'--task={name} needs {spec.num_classes} classes, but '
      f'--dataset={data.name} has {data.num_classes}. '
      '--task=image_classification takes any number.'
    )
  if (model == 'autoencoder') != (spec.kind == 'reconstruction'):
    raise ValueError(f'--model={model} does not fit --task={name}.')
  shape = tuple(data.train.element_spec['x'].shape)

  def build_keras_model() -> tf.keras.Model:
    return models.build(
      model, input_shape=shape, num_classes=data.num_classes, seed=seed
    )

  def preprocess_features(images: tf.Tensor) -> tf.Tensor:
    return _preprocess_features(data.name, images)

  def preprocess(batch: task_lib.Batch) -> task_lib.Batch:
    x = preprocess_features(batch['x'])
    y = x if spec.kind == 'reconstruction' else batch['y']
    return collections.OrderedDict(x=x, y=y)

  def build_loss() -> tf.keras.losses.Loss:
    if spec.kind == 'reconstruction':
      return tf.keras.losses.MeanSquaredError()
    return tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)

  def build_metrics() -> list[tf.keras.metrics.Metric]:
    if spec.kind == 'reconstruction':
      return []
    return [tf.keras.metrics.SparseCategoricalAccuracy('accuracy')]

  return task_lib.Task(
    name=name,
    data=data,
    kind=spec.kind,
    class_names=data.class_names if spec.kind == 'classification' else (),
    build_keras_model=build_keras_model,
    build_loss=build_loss,
    build_metrics=build_metrics,
    preprocess_features=preprocess_features,
    preprocess=preprocess,
    example_shape=shape,
  )
