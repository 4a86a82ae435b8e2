"""Keras models as functional models of TFF, for models without any state."""

import collections
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff


class StatefulModelError(ValueError):
  """A model keeps a state beside its trainable weights."""


def from_keras(
  build_model: Callable[[], tf.keras.Model],
  *,
  loss_fn: tf.keras.losses.Loss,
  metrics: Callable[[], Sequence[tf.keras.metrics.Metric]] | None = None,
  input_spec: Mapping[str, tf.TensorSpec],
) -> tff.learning.models.FunctionalModel:
  """Converts a stateless Keras model to a pure function of weights and batch.

  The result can be called only in a graph (`tff.tensorflow.computation` or
  `tf.Graph`); this function itself must be called outside of one.

  Args:
    build_model: Makes the model with seeded initial weights, which become the
      initial weights of the functional model.
    loss_fn: The loss of a batch; labels and outputs in.
    metrics: Makes metrics with names of their own. `loss`, `num_examples` and
      `num_batches` are always there, as in `from_keras_model` of TFF.
    input_spec: Specs of a batch with keys x and y.

  Returns:
    The functional model.

  Raises:
    StatefulModelError: If the model has variables that are not trained (as
      batch normalisation has) or layers that keep a random state.
    ValueError: If the model creates its weights in another order than it lists
      them, or anew with other values; or if two metrics have the same name.
  """

  def build_metrics():
    return _with_defaults(metrics() if metrics else [], loss_fn)

  build_metrics()
  keras_model = build_model()
  _check_stateless(keras_model)
  model = tff.learning.models.functional_model_from_keras(
    build_model,
    loss_fn=loss_fn,
    input_spec=input_spec,
    metrics_constructor=build_metrics,
  )
  _check_order(keras_model, model)
  return model


def _check_stateless(model: tf.keras.Model) -> None:
  variables = [variable.name for variable in model.non_trainable_variables]
  if variables:
    raise StatefulModelError(
      f'{model.name} has variables that are not trained '
      f'({", ".join(variables)}): a functional model has none. Use group '
      'normalisation in place of batch normalisation, or the model as a '
      'VariableModel (tff.learning.models.from_keras_model).'
    )
  random = [
    layer.name
    for layer in model.layers
    if isinstance(layer, tf.keras.__internal__.layers.BaseRandomLayer)
  ]
  if random:
    raise StatefulModelError(
      f'{model.name} has layers that keep a random state '
      f'({", ".join(random)}): a functional model draws from its inputs alone. '
      'Use models.layers.BatchSeededDropout.'
    )


def _check_order(
  keras_model: tf.keras.Model, model: tff.learning.models.FunctionalModel
) -> None:
  """Makes sure that trained weights can be assigned to the Keras model.

  TFF lists weights in the order of their creation, Keras by the depth of their
  layers: with branches the two may differ.
  """
  listed = [variable.numpy() for variable in keras_model.trainable_variables]
  created = model.initial_weights[0]
  if not all(map(np.array_equal, listed, created)):
    raise ValueError(
      f'{keras_model.name} does not give the same weights in the order of '
      'creation and in trainable_variables: seed its initialisers, and create '
      'layers of parallel branches in the order of their depth'
    )


def _with_defaults(
  metrics: Sequence[tf.keras.metrics.Metric], loss_fn: tf.keras.losses.Loss
) -> collections.OrderedDict[str, tf.keras.metrics.Metric]:
  """Adds what `tff.learning.models.from_keras_model` measures in any case."""
  defaults = [
    tf.keras.metrics.MeanMetricWrapper(loss_fn.call, name='loss'),
    tff.learning.metrics.NumExamplesCounter(),
    tff.learning.metrics.NumBatchesCounter(),
  ]
  everything = [*metrics, *defaults]
  named = collections.OrderedDict((m.name, m) for m in everything)
  if len(named) != len(everything):
    names = ', '.join(metric.name for metric in everything)
    raise ValueError(f'two metrics have the same name: {names}')
  return named
