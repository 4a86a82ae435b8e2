"""Image tasks: EMNIST and what has its form (MNIST, CIFAR-10, own images)."""

import collections
import dataclasses
import functools
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from datasets import federated_data
from models import emnist as models
from models import k_means
from research.tasks import task as task_lib

# Clients whose pixels are looked at before a run starts.
_CLIENTS_CHECKED = 20


@dataclasses.dataclass(frozen=True)
class Spec:
  """A task that `--task` can name.

  Attributes:
    kind: See `task.Task`.
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
  'clustering': Spec('clustering', 'digits', 'k_means', None),
}
# What the other models are for is classification.
_KINDS = {'autoencoder': 'reconstruction', 'k_means': 'clustering'}
_LOSSES = {
  'classification': functools.partial(
    tf.keras.losses.SparseCategoricalCrossentropy, from_logits=True
  ),
  'reconstruction': tf.keras.losses.MeanSquaredError,
  'clustering': k_means.NearestSquaredDistance,
}


def _preprocess_features(features: tf.Tensor) -> tf.Tensor:
  """Scales uint8 images to [0, 1]; floats are taken as scaled already."""
  if features.dtype.is_integer:
    return tf.cast(features, tf.float32) / 255.0
  return tf.cast(features, tf.float32)


def _check_pixels(data: federated_data.FederatedData) -> None:
  """Raises if float images are not in [0, 1], where models expect them."""
  for client_id in data.train.client_ids[:_CLIENTS_CHECKED]:
    images = data.train.client(client_id)['x']
    if images.ndim != 4 or images.dtype == np.uint8:
      return
    if images.size and not 0 <= np.nanmin(images) <= np.nanmax(images) <= 1:
      raise ValueError(
        f'The images of client {client_id!r} are {images.dtype} from '
        f'{np.nanmin(images)} to {np.nanmax(images)}. Give uint8 pixels, or '
        'floats from 0 to 1.'
      )


def build(
  name: str,
  data: federated_data.FederatedData,
  model: str | None = None,
  seed: int = 0,
  num_classes: int | None = None,
  num_clusters: int | None = None,
) -> task_lib.Task:
  """Builds a task.

  Args:
    name: A key of `TASKS`.
    data: Clients with images `x` and labels `y`.
    model: A key of `models.MODELS`; the task's usual one if None.
    seed: Of the initial weights and dropout.
    num_classes: Outputs of the model; as many as the data has if None.
    num_clusters: Of clustering; as many as the data has classes if None.

  Returns:
    The task.

  Raises:
    ValueError: If task, model and data do not fit together.
  """
  spec = TASKS[name]
  model = model or spec.model
  num_classes = num_classes or data.num_classes
  if num_classes < data.num_classes:
    raise ValueError(
      f'--num_classes is {num_classes}, but --dataset={data.name} has '
      f'{data.num_classes} classes.'
    )
  if spec.num_classes not in (None, num_classes):
    raise ValueError(
      f'--task={name} needs {spec.num_classes} classes, but '
      f'--dataset={data.name} has {num_classes}. '
      '--task=image_classification takes any number.'
    )
  if _KINDS.get(model, 'classification') != spec.kind:
    raise ValueError(f'--model={model} does not fit --task={name}.')
  _check_pixels(data)
  shape = tuple(data.train.element_spec['x'].shape)
  outputs = num_classes
  if spec.kind == 'clustering':
    outputs = num_clusters or data.num_classes

  def build_keras_model() -> tf.keras.Model:
    return models.build(
      model, input_shape=shape, num_classes=outputs, seed=seed
    )

  def preprocess(batch: task_lib.Batch) -> task_lib.Batch:
    x = _preprocess_features(batch['x'])
    y = x if spec.kind == 'reconstruction' else batch['y']
    return collections.OrderedDict(x=x, y=y)

  def build_metrics() -> list[tf.keras.metrics.Metric]:
    if spec.kind != 'classification':
      return []
    return [tf.keras.metrics.SparseCategoricalAccuracy('accuracy')]

  extra = range(data.num_classes, num_classes)
  class_names = (*data.class_names, *map(str, extra))
  return task_lib.Task(
    name=name,
    data=data,
    kind=spec.kind,
    class_names=class_names if spec.kind == 'classification' else (),
    build_keras_model=build_keras_model,
    build_loss=_LOSSES[spec.kind],
    build_metrics=build_metrics,
    preprocess_features=_preprocess_features,
    preprocess=preprocess,
    example_shape=shape,
  )
