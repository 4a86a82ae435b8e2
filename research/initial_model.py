"""Starts a run from the weights of an exported model (`--initial_model`)."""

import collections
import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from absl import flags

from models import kernels, lora, quantization, weight_store
from research.export import text_signatures
from research.serving import servable
from research.tasks import task as task_lib


def apply(
  task: task_lib.Task,
  directory: str | os.PathLike | None,
  store: weight_store.WeightStore | None = None,
) -> task_lib.Task:
  """Lets a task's models start from an exported model's weights.

  A weight is met by the exported one of its name and shape; of several of one
  name, by the one in its place among these. What is neither trained nor
  exported (as a pooler that no output reads) stays as it was, and so does LoRA,
  which begins anew beside kernels that have the exported one's in them.

  Args:
    task: The task.
    directory: A run directory, or a SavedModel that `experiments.export` made;
      None or '' leaves the task as it is.
    store: Where the weights are kept.

  Returns:
    The task; its `initial_weights_sha256` depends on the weights.

  Raises:
    flags.IllegalFlagValueError: If there is no model, or a weight of one is
      not met in the other; it names the weight.
  """
  if not directory:
    return task
  exported = _read(pathlib.Path(directory).expanduser())
  with weight_store.creation_order() as made:
    model = task.build_keras_model()
  values = _matched(exported, made, model, directory)
  store = store or weight_store.WeightStore()
  files = tuple(store.put(value) for value in values)
  digest = hashlib.sha256(task.initial_weights_sha256.encode())
  for file in files:
    digest.update(file.name.encode())
  return task.starting_from(files, digest.hexdigest())


def _read(directory: pathlib.Path) -> dict[str, list[np.ndarray]]:
  """The weights of an exported model: for each name those that have it."""
  if (directory / 'model').is_dir():
    directory = directory / 'model'
  try:
    directory = max(servable.versions(directory).items())[1]
    # Of texts the model on token ids, which loads without TensorFlow Text.
    if (directory / text_signatures.WITHOUT_TEXT).is_dir():
      directory = directory / text_signatures.WITHOUT_TEXT
    loaded = tf.saved_model.load(os.fspath(directory))
    weights = list(loaded.weights)
  except (OSError, AttributeError) as error:
    raise flags.IllegalFlagValueError(
      f'--initial_model={directory} is neither a run directory with a model/ '
      f'nor a SavedModel of experiments.export: {error}'
    ) from error
  found = collections.defaultdict(list)
  for weight in weights:
    # Integers are counters of Keras and TF-MOT.
    if weight.dtype.is_floating:
      found[weight.name].append(weight.numpy())
  return found


def _matched(
  exported: Mapping[str, Sequence[np.ndarray]],
  made: Sequence[tf.Variable],
  model: tf.keras.Model,
  directory: str | os.PathLike,
) -> list[np.ndarray]:
  """The first value of each variable, in the order in which they are made."""
  waiting = {name: list(arrays) for name, arrays in exported.items()}
  places = {id(variable): place for place, variable in enumerate(made)}
  values = [variable.numpy() for variable in made]
  trained = {id(variable) for variable in model.trainable_variables}
  start = f'--initial_model={directory}'
  for variable in model.variables:
    place = places.get(id(variable))
    if place is None:
      continue
    name, shape = variable.name, tuple(variable.shape)
    if not waiting.get(name):
      # LoRA's are merged into the kernel that they change.
      is_merged = kernels.name(variable).startswith(lora.PREFIX)
      if is_merged or id(variable) not in trained:
        continue
      raise flags.IllegalFlagValueError(
        f'{start} has no {name} of shape {shape}; it has '
        f'{", ".join(sorted(exported))}.'
      )
    value = waiting[name].pop(0)
    if value.shape != shape:
      raise flags.IllegalFlagValueError(
        f'{start}: its {name} has the shape {value.shape}, but the model that '
        f'the flags describe needs {shape}.'
      )
    values[place] = value
  if left := sorted(name for name, arrays in waiting.items() if arrays):
    message = (
      f'{start}: the model that the flags describe has no {", ".join(left)}.'
    )
    if any(quantization.end_of_range(name) for name in left):
      message += ' It was trained with --quantize=qat, which this run lacks.'
    raise flags.IllegalFlagValueError(message)
  return values
