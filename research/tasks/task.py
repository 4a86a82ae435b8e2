"""What is learned: federated data, a model, a loss and metrics."""

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence

import tensorflow as tf
import tensorflow_federated as tff

from datasets import federated_data
from models import mixed_precision, weight_store
from models import quantization as quantization_lib
from research.tasks import frozen_model

Batch = collections.OrderedDict


@dataclasses.dataclass(frozen=True)
class Task:
  """A learning problem, independent of algorithm and runtime.

  Attributes:
    name: The value of `--task`.
    data: The clients' examples.
    kind: `classification` (logits against integer labels), `reconstruction`
      (the model's output against its input), `regression` (the model's output
      [n, targets] against numbers), `clustering` (squared distances
      [n, clusters]; the labels serve evaluation alone), or, with logits and a
      label for each token [n, length], `tagging` and
      `masked_language_modelling`.
    class_names: One name per class; empty for the other kinds.
    build_keras_model: Makes a fresh model with seeded initial weights; its
      output is logits, the reconstruction, what `postprocess` takes, or
      squared distances.
    build_loss: Makes the loss, a mean over the examples of a batch.
    build_metrics: Makes the training metrics.
    preprocess_features: Maps a raw batch of `x` to the model's float32 input;
      graph operations only, since it is part of the exported model.
    preprocess: Maps a raw batch with keys `x` and `y` to a model batch.
    example_shape: Shape of one raw example.
    client_model: What clients train in place of the Keras model, if anything;
      its weights are those of the Keras model.
    postprocess: Of regression, maps the model's output to predictions in the
      targets' own units; part of the exported model as `preprocess_features`.
    has_frozen_weights: Whether the variables that the Keras model doesn't train
      are constants of every process: neither sent nor kept in checkpoints.
    trains_part: Whether clients train a part of the model alone, as LoRA.
    initial_weights_sha256: Hash of pre-trained weights; empty without any.
    initial_files: See `starting_from`.
    evaluation_batch_size: Examples that are evaluated at once.
    quantization: How the model is quantized in training; None is not at all.
  """

  name: str
  data: federated_data.FederatedData
  kind: str
  class_names: tuple[str, ...]
  build_keras_model: Callable[[], tf.keras.Model]
  build_loss: Callable[[], tf.keras.losses.Loss]
  build_metrics: Callable[[], list[tf.keras.metrics.Metric]]
  preprocess_features: Callable[[tf.Tensor], tf.Tensor]
  preprocess: Callable[[Batch], Batch]
  example_shape: tuple[int, ...]
  client_model: tff.learning.models.FunctionalModel | None = None
  postprocess: Callable[[tf.Tensor], tf.Tensor] = tf.identity
  has_frozen_weights: bool = False
  trains_part: bool = False
  initial_weights_sha256: str = ''
  evaluation_batch_size: int = 500
  quantization: quantization_lib.Settings | None = None
  initial_files: tuple[pathlib.Path, ...] = ()

  @functools.cached_property
  def input_spec(self) -> Batch:
    """Specs of a preprocessed batch; the batch dimension is unknown."""
    raw = tf.nest.map_structure(
      lambda spec: tf.TensorSpec([None, *spec.shape], spec.dtype),
      self.data.train.element_spec,
    )
    concrete = tf.function(self.preprocess).get_concrete_function(raw)
    return tf.nest.map_structure(
      lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype),
      concrete.structured_outputs,
    )

  def layers(self) -> dict[str, tuple[int, ...]]:
    """Positions of each layer's variables among the model's trainable ones.

    Layers are in the model's order; those without trainable variables lack.
    """
    model = self.build_keras_model()
    positions = {id(v): i for i, v in enumerate(model.trainable_variables)}
    return {
      layer.name: tuple(positions[id(v)] for v in layer.trainable_variables)
      for layer in model.layers
      if layer.trainable_variables
    }

  def model_fn(self) -> tff.learning.models.VariableModel:
    """Builds the model as TFF wants it: anew at each call."""
    if self.client_model is not None:
      return tff.learning.models.model_from_functional(
        self.client_model, self._metric_constructors()
      )
    model = tff.learning.models.from_keras_model(
      self.build_client_keras_model(),
      loss=self.build_loss(),
      input_spec=self.input_spec,
      metrics=self.build_metrics(),
    )
    if not self.has_frozen_weights:
      return model
    return frozen_model.FrozenModel(model, quantization_lib.ranges(model))

  def build_client_keras_model(self) -> tf.keras.Model:
    """Makes what clients train, where that is no `client_model`."""
    return self.build_keras_model()

  def starting_from(self, files: Sequence[pathlib.Path], sha256: str) -> 'Task':
    """Returns the task with other initial weights.

    Args:
      files: Of a `weight_store.WeightStore`, one for each weight in the order
        in which `build_keras_model` makes them.
      sha256: The new `initial_weights_sha256`.
    """
    build = self.build_keras_model

    def build_keras_model() -> tf.keras.Model:
      with weight_store.initial_values(files):
        return build()

    return dataclasses.replace(
      self,
      build_keras_model=build_keras_model,
      initial_files=tuple(files),
      initial_weights_sha256=sha256,
    )

  def weights_of(
    self, model: tf.keras.Model
  ) -> tff.learning.models.ModelWeights:
    """The variables of a Keras model that a learning process's state has."""
    others = model.non_trainable_variables
    if self.has_frozen_weights:
      others = quantization_lib.ranges(model)
    return tff.learning.models.ModelWeights(model.trainable_variables, others)

  @functools.cached_property
  def has_statistics(self) -> bool:
    """Whether the model has variables that clients measure, and don't train."""
    if self.has_frozen_weights:
      return self.quantization is not None
    return any(not v.trainable for v in self._untrained)

  @functools.cached_property
  def frozen_names(self) -> tuple[str, ...]:
    """Names of weights in frozen layers that a server sends all the same."""
    if self.has_frozen_weights:
      return ()
    return tuple(v.name for v in self._untrained if v.trainable)

  @functools.cached_property
  def _untrained(self) -> list[tf.Variable]:
    """Float variables that no gradient moves; frozen ones are `trainable`."""
    others = self.build_keras_model().non_trainable_variables
    return [v for v in others if v.dtype.is_floating]

  def quantized(self, settings: quantization_lib.Settings) -> 'Task':
    """Returns the task with a model that is quantized in training.

    Args:
      settings: How.

    Raises:
      ValueError: If the model does not allow it.
    """
    if self.client_model is not None:
      raise ValueError(
        'Quantization-aware training computes in float32: leave out '
        '--mixed_precision.'
      )
    build = quantization_lib.recipe(self.build_keras_model(), settings)
    return dataclasses.replace(
      self, build_keras_model=build, quantization=settings
    )

  def in_mixed_precision(self, compute_format: str) -> 'Task':
    """See the function of this name."""
    if self.quantization is not None:
      raise ValueError(
        f'--mixed_precision={compute_format} does not go with --quantize=qat, '
        'which computes in float32.'
      )
    model = mixed_precision.from_keras(
      self.build_keras_model,
      compute_format,
      loss_fn=self.build_loss(),
      metrics=self.build_metrics,
      input_spec=self.input_spec,
    )
    return dataclasses.replace(self, client_model=model)

  def _metric_constructors(self) -> list[Callable[[], tf.keras.metrics.Metric]]:
    """What makes each metric, and those that models from Keras always have."""
    return [
      *(
        lambda index=index: self.build_metrics()[index]
        for index in range(len(self.build_metrics()))
      ),
      tff.learning.metrics.NumExamplesCounter,
      tff.learning.metrics.NumBatchesCounter,
    ]


def in_mixed_precision(task: Task, compute_format: str) -> Task:
  """Returns a task whose clients compute in 16 bit.

  Weights, evaluation and export stay float32.

  Args:
    task: The task.
    compute_format: A key of `mixed_precision.FORMATS`, or none for the task as
      it is.

  Raises:
    ValueError: If the model does not allow it.
  """
  if compute_format == mixed_precision.NONE:
    return task
  return task.in_mixed_precision(compute_format)
