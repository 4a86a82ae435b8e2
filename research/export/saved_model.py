"""A trained model as a SavedModel that anything can serve.

The directory needs neither TFF nor this project: preprocessing is part of the
graph, and the named signatures take images or texts as they come.
"""

import ctypes
import dataclasses
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from research.export import serving_signatures, text_signatures
from research.tasks import task as task_lib
from research.training import atomic, fault_injection

SERVING = text_signatures.SERVING
SERVING_FLOAT = 'serve_float'
IMAGE = 'image'
FEATURES = 'features'

Verify = Callable[[pathlib.Path], Any]


class ExportError(ValueError):
  """A model can't be exported for a task."""


@dataclasses.dataclass(frozen=True)
class Exported:
  """What `export` made.

  Attributes:
    directory: The SavedModel.
    signatures: For each signature its inputs and outputs: name, dtype, shape
      (None for the batch dimension).
    verification: What `verify` returned; None without it.
  """

  directory: pathlib.Path
  signatures: dict[str, Any]
  verification: Any = None


def export(
  task: task_lib.Task,
  keras_model: tf.keras.Model,
  directory: atomic.Path,
  verify: Verify | None = None,
) -> Exported:
  """Writes a SavedModel, complete or not at all.

  Its signatures are `serving_default` (uint8 in [0, 255]) and `serve_float`
  (float32 in [0, 1]), both with the input `image` [batch, *example_shape];
  examples that are no images have `serving_default` for float32 alone, and rows
  of a table the input `features`. The outputs of classification are `logits`
  and `probabilities` (float32 [batch, classes]) and `class` (int64 [batch]); of
  reconstruction, `reconstruction`; of regression, `prediction` [batch,
  targets]; of clustering, `squared_distances` (float32 [batch, clusters]) and
  `cluster` (int64 [batch], the nearest). Texts: see `text_signatures`; what
  TensorFlow Serving takes besides: `serving_signatures`.

  Args:
    task: The task; its `preprocess_features` becomes part of the graph.
    keras_model: The trained model, built after the last TFF computation.
    directory: Where to put it; an earlier model there is replaced in one step
      at the end.
    verify: Called with the directory that holds the finished model under its
      temporary name. If it raises, the earlier model stays.

  Returns:
    The directory, its signatures and what `verify` returned.

  Raises:
    ExportError: If the model's output does not fit the task.
  """
  directory = pathlib.Path(directory).absolute()
  has_texts = text_signatures.is_text(task)
  # The variables alone: Keras' description of its layers is of no use to serve.
  module = tf.Module()
  if has_texts:
    signatures, module.weights = text_signatures.trace(task, keras_model)
    _check_outputs(task, signatures[text_signatures.SERVE_TOKEN_IDS])
  else:
    signatures = {
      name: _trace(task, keras_model, dtype)
      for name, dtype in input_dtypes(task).items()
    }
    _check_outputs(task, signatures[SERVING])
    module.weights = list(keras_model.variables)
  signatures |= serving_signatures.trace(task, signatures)
  directory.parent.mkdir(parents=True, exist_ok=True)
  temporary = atomic.temporary_path(directory)
  shutil.rmtree(temporary, ignore_errors=True)
  try:
    tf.saved_model.save(module, os.fspath(temporary), signatures=signatures)
    if has_texts:
      text_signatures.save_without_text(module, signatures, temporary)
    serving_signatures.finish(temporary, signatures)
    sync_tree(temporary)
    fault_injection.reached('export')
    verification = verify(temporary) if verify else None
    put_in_place(temporary, directory)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  described = {name: _describe(fn) for name, fn in signatures.items()}
  return Exported(directory, described, verification)


def input_dtypes(task: task_lib.Task) -> dict[str, tf.DType]:
  """The signatures and their inputs; features that are no images are floats."""
  if len(task.example_shape) == 3:
    return {SERVING: tf.uint8, SERVING_FLOAT: tf.float32}
  return {SERVING: tf.float32}


def input_name(task: task_lib.Task) -> str:
  """The name of the signatures' input."""
  return FEATURES if task.data.feature_names else IMAGE


def servable_outputs(
  task: task_lib.Task, keras_model: tf.keras.Model, image: tf.Tensor
) -> dict[str, tf.Tensor]:
  """The outputs of the exported signatures, from the Keras model itself.

  Args:
    task: The task.
    keras_model: Its model.
    image: Raw examples [batch, *example_shape], uint8 or float32.

  Returns:
    The outputs by name.
  """
  outputs = keras_model(task.preprocess_features(image), training=False)
  if task.kind == 'reconstruction':
    return {'reconstruction': tf.identity(outputs)}
  if task.kind == 'regression':
    return {'prediction': tf.identity(task.postprocess(outputs))}
  if task.kind == 'clustering':
    return {
      'squared_distances': tf.identity(outputs),
      'cluster': tf.argmin(outputs, axis=-1, output_type=tf.int64),
    }
  return {
    'logits': tf.identity(outputs),
    'probabilities': tf.nn.softmax(outputs),
    'class': tf.argmax(outputs, axis=-1, output_type=tf.int64),
  }


def _trace(
  task: task_lib.Task, keras_model: tf.keras.Model, dtype: tf.DType
) -> tf.types.experimental.ConcreteFunction:
  spec = tf.TensorSpec([None, *task.example_shape], dtype, input_name(task))

  @tf.function(input_signature=[spec], autograph=False)
  def serve(image):
    return servable_outputs(task, keras_model, image)

  return serve.get_concrete_function()


def _check_outputs(
  task: task_lib.Task, serve: tf.types.experimental.ConcreteFunction
) -> None:
  """Refuses a model whose outputs are not what the task's kind promises."""
  shapes = {k: list(v.shape) for k, v in serve.structured_outputs.items()}
  if text_signatures.is_text(task):
    wanted = {'logits': text_signatures.logits_shape(task)}
  elif task.kind == 'classification':
    wanted = {'logits': [None, len(task.class_names)]}
  elif task.kind == 'reconstruction':
    wanted = {'reconstruction': [None, *task.example_shape]}
  elif task.kind == 'regression':
    wanted = {'prediction': [None, len(task.data.target_names)]}
  elif task.kind == 'clustering':
    # Any number of clusters.
    wanted = {'squared_distances': [None, shapes['squared_distances'][-1]]}
  else:
    raise ExportError(
      f'task {task.name} is of kind {task.kind!r}; classification, '
      'reconstruction, regression and clustering can be exported'
    )
  for name, shape in wanted.items():
    if shapes[name] != shape:
      raise ExportError(
        f'the model gives {name} of shape {shapes[name]}, but task {task.name} '
        f'needs {shape}'
      )


def _describe(
  function: tf.types.experimental.ConcreteFunction,
) -> dict[str, Any]:
  """Names, dtypes and shapes of what goes in and out."""

  def describe(spec):
    return {'dtype': spec.dtype.name, 'shape': spec.shape.as_list()}

  outputs = function.structured_outputs
  (given,), _ = function.structured_input_signature
  return {
    'inputs': {given.name: describe(given)},
    'outputs': {name: describe(outputs[name]) for name in sorted(outputs)},
  }


def sync_tree(directory: pathlib.Path) -> None:
  """Makes all that is in a directory durable."""
  for folder, _, names in os.walk(directory):
    for name in names:
      atomic.sync_directory(os.path.join(folder, name))
    atomic.sync_directory(folder)


def put_in_place(temporary: pathlib.Path, directory: pathlib.Path) -> None:
  """Makes `temporary` be `directory`; what was there is at `temporary` then.

  There is a complete directory at each moment.
  """
  if directory.exists():
    _exchange(temporary, directory)
  else:
    os.rename(temporary, directory)
  atomic.sync_directory(directory.parent)


def _exchange(one: pathlib.Path, other: pathlib.Path) -> None:
  """Swaps the names of two directories in one step.

  `os.rename` can't replace a directory that has content, and two renames leave
  a moment without a model; renameat2 of Linux can.
  """
  at_working_directory, rename_exchange = -100, 2
  renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
  failed = renameat2(
    at_working_directory,
    os.fsencode(one),
    at_working_directory,
    os.fsencode(other),
    rename_exchange,
  )
  if failed:
    # Some network file systems have no exchange.
    atomic.remove_directory(other)
    os.rename(one, other)
