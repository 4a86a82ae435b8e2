"""Keras models whose arithmetic is 16 bit and whose weights are float32.

The scheme of Micikevicius et al. 2018, "Mixed Precision Training"
(arXiv:1710.03740): float32 master weights, 16 bit copies of them in the forward
and backward pass, and for float16 a loss scale. Here the scale is part of the
model: gradients are multiplied at the logits and divided where they reach the
float32 weights, so that every algorithm gets true gradients.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from models import functional, layers

NONE = 'none'
# Formats with the factor of their gradients. bfloat16 has the exponents of
# float32; float16 underflows below 6e-8 and overflows above 65,504, so that
# 2**10 keeps gradients of weights from 6e-11 to 64.
FORMATS: Mapping[str, float] = {'bfloat16': 1.0, 'float16': 2.0**10}

# Statistics over many values need float32, and dropout takes its mask from the
# bits of the float32 examples, which so is that of a float32 model.
_FLOAT32_LAYERS = (
  tf.keras.layers.GroupNormalization,
  tf.keras.layers.LayerNormalization,
  tf.keras.layers.UnitNormalization,
  tf.keras.layers.Softmax,
  layers.BatchSeededDropout,
)


class MixedPrecisionError(ValueError):
  """A model can't compute in the format that is asked for."""


def from_keras(
  build_model: Callable[[], tf.keras.Model],
  compute_format: str,
  *,
  loss_fn: tf.keras.losses.Loss,
  metrics: Callable[[], Sequence[tf.keras.metrics.Metric]] | None = None,
  input_spec: Mapping[str, tf.TensorSpec],
) -> tff.learning.models.FunctionalModel:
  """Converts a stateless float32 Keras model to a mixed-precision one.

  Layers compute in 16 bit, except normalisations, softmax and seeded dropout,
  which compute in float32. The output is cast to float32 before the loss and
  the metrics. Like `functional.from_keras` this must be called outside of a
  graph, and its result in one.

  Args:
    build_model: Makes the float32 model with its initial weights: a functional
      or sequential Keras model.
    compute_format: A key of `FORMATS`.
    loss_fn: The loss of a batch; labels and float32 outputs in.
    metrics: Makes metrics with names of their own, beside the usual ones.
    input_spec: Specs of a batch with keys x and y.

  Returns:
    A functional model with float32 weights and gradients.

  Raises:
    MixedPrecisionError: If a layer does not compute in float32 to begin with,
      or can't compute in the format.
    functional.StatefulModelError: If the model is not stateless.
  """
  reference = functional.from_keras(
    build_model, loss_fn=loss_fn, metrics=metrics, input_spec=input_spec
  )
  keras_model = build_model()
  rebuild = _rebuilder(keras_model, compute_format)
  scale = FORMATS[compute_format]

  @tf.function
  def predict_on_batch(model_weights, x, training=True):
    waiting = list(model_weights[0])

    def take_weight(_, **kwargs):
      weight = _scale_gradient(waiting.pop(0), 1 / scale)
      return tf.cast(weight, tf.as_dtype(kwargs['dtype']))

    with tf.variable_creator_scope(take_weight):
      model = rebuild()
    output = model(x, training=training)
    return tf.nest.map_structure(
      lambda value: _scale_gradient(tf.cast(value, tf.float32), scale), output
    )

  model = tff.learning.models.FunctionalModel(
    initial_weights=reference.initial_weights,
    predict_on_batch_fn=predict_on_batch,
    loss_fn=reference.loss,
    metrics_fns=(
      reference.initialize_metrics_state,
      reference.update_metrics_state,
      reference.finalize_metrics,
    ),
    input_spec=input_spec,
  )
  _check_trains(model, keras_model.name, compute_format)
  return model


def _scale_gradient(tensor: tf.Tensor, scale: float) -> tf.Tensor:
  """Returns the tensor; its gradient is multiplied by `scale`."""
  if scale == 1:
    return tensor

  @tf.custom_gradient
  def identity(value):
    return tf.identity(value), lambda gradient: gradient * scale

  return identity(tensor)


def _rebuilder(
  model: tf.keras.Model, compute_format: str
) -> Callable[[], tf.keras.Model]:
  """Returns what builds the model anew with 16 bit layers."""
  try:
    config = model.get_config()
  except NotImplementedError as error:
    raise MixedPrecisionError(
      f'{model.name} is no functional or sequential Keras model: its layers '
      'can not be built anew in another format.'
    ) from error
  _set_dtypes(model, config, compute_format)
  # Keras takes entries out of the configuration that it reads.
  return lambda: type(model).from_config(copy.deepcopy(config))


def _set_dtypes(
  model: tf.keras.Model, config: dict[str, Any], compute_format: str
) -> None:
  """Writes the layers' new formats into the configuration of a model."""
  by_name = {layer.name: layer for layer in model.layers}
  for spec in config['layers']:
    layer = by_name.get(spec['config']['name'])
    if isinstance(layer, tf.keras.Model):
      _set_dtypes(layer, spec['config'], compute_format)
    elif layer and not isinstance(layer, tf.keras.layers.InputLayer):
      if {layer.compute_dtype, layer.variable_dtype} != {'float32'}:
        raise MixedPrecisionError(
          f'{layer.name} of {model.name} computes in {layer.compute_dtype}: '
          'mixed precision starts from a float32 model.'
        )
      is_exact = isinstance(layer, _FLOAT32_LAYERS)
      spec['config']['dtype'] = 'float32' if is_exact else compute_format


def _check_trains(
  model: tff.learning.models.FunctionalModel, name: str, compute_format: str
) -> None:
  """Takes the gradient of one batch of zeros."""
  try:
    with tf.Graph().as_default():
      batch = tf.nest.map_structure(
        lambda spec: tf.zeros([size or 2 for size in spec.shape], spec.dtype),
        model.input_spec,
      )
      weights = tf.nest.map_structure(tf.constant, model.initial_weights)
      with tf.GradientTape() as tape:
        tape.watch(weights)
        output = model.predict_on_batch(weights, batch['x'], training=True)
        loss = model.loss(output, batch['y'])
      gradients = tape.gradient(loss, weights)
      with tf.compat.v1.Session() as session:
        session.run(gradients)
  except (TypeError, ValueError, tf.errors.OpError) as error:
    raise MixedPrecisionError(
      f'{name} can not be trained in {compute_format}: {error}'
    ) from error
