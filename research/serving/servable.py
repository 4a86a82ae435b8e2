"""The versions of a SavedModel, loaded to be asked."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.protobuf import saved_model_pb2

from research.serving import json_tensors

DEFAULT_SIGNATURE = 'serving_default'
_FILE = 'saved_model.pb'


@dataclasses.dataclass(frozen=True)
class Signature:
  """One function of a SavedModel.

  Attributes:
    name: What it is called.
    method: Its kind, as 'tensorflow/serving/predict'.
    inputs: The inputs by name.
    outputs: The names of the outputs.
    function: Takes the inputs by name, and gives the outputs by name.
  """

  name: str
  method: str
  inputs: Mapping[str, tf.TensorSpec]
  outputs: tuple[str, ...]
  function: Any

  def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gives the outputs.

    Raises:
      json_tensors.RequestError: If the graph refuses the inputs.
    """
    given = {
      name: tf.constant(value, self.inputs[name].dtype)
      for name, value in inputs.items()
    }
    try:
      outputs = self.function(**given)
    except (tf.errors.InvalidArgumentError, tf.errors.OutOfRangeError) as error:
      raise json_tensors.RequestError(_reason(error)) from error
    return {name: np.asarray(value) for name, value in outputs.items()}


class Servable:
  """A SavedModel in memory.

  Attributes:
    signatures: Its signatures by name.
    metadata: As the REST API describes it: {'signature_def': {name: ...}}.
  """

  def __init__(self, directory: str | os.PathLike[str]):
    """Loads a SavedModel.

    Args:
      directory: Of the SavedModel.

    Raises:
      FileNotFoundError: If it is not there.
      ImportError: If it reads texts, and TensorFlow Text is not installed.
    """
    directory = pathlib.Path(directory)
    stored = saved_model_pb2.SavedModel.FromString(
      (directory / _FILE).read_bytes()
    )
    (graph,) = stored.meta_graphs
    _register_operations(graph.meta_info_def.stripped_op_list.op)
    # Its functions live as long as the object that they were loaded with.
    self._model = tf.saved_model.load(os.fspath(directory))
    self.metadata = {
      'signature_def': {
        name: json_format.MessageToDict(
          definition,
          preserving_proto_field_name=True,
          including_default_value_fields=True,
        )
        for name, definition in sorted(graph.signature_def.items())
      }
    }
    self.signatures = {
      name: _signature(name, function, graph.signature_def[name])
      for name, function in self._model.signatures.items()
    }


def versions(directory: str | os.PathLike[str]) -> dict[int, pathlib.Path]:
  """Finds the versions of a model, in the layout of TensorFlow Serving.

  Args:
    directory: Holds a SavedModel in each folder that is named by a number. What
      is a SavedModel itself, as older releases wrote it, is version 1.

  Returns:
    The SavedModels by version.

  Raises:
    FileNotFoundError: If there is none.
  """
  directory = pathlib.Path(directory)
  found = {
    int(path.parent.name): path.parent
    for path in directory.glob(f'*/{_FILE}')
    if path.parent.name.isascii() and path.parent.name.isdigit()
  }
  if not found and (directory / _FILE).is_file():
    found = {1: directory}
  if not found:
    raise FileNotFoundError(
      f'{directory} has no model: neither {_FILE} nor a folder with it that is '
      'named by a version, as 1. `python -m experiments.export --run_dir=...` '
      'exports one.'
    )
  return dict(sorted(found.items()))


def _signature(name, function, definition) -> Signature:
  _, inputs = function.structured_input_signature
  return Signature(
    name,
    definition.method_name,
    dict(sorted(inputs.items())),
    tuple(sorted(function.structured_outputs)),
    function,
  )


def _register_operations(operations) -> None:
  """Imports TensorFlow Text where a graph has operations that are not known."""
  unknown = [op.name for op in operations if not hasattr(tf.raw_ops, op.name)]
  if unknown:
    try:
      import tensorflow_text  # noqa: F401
    except ImportError as error:
      raise ImportError(
        f'the model has the operations {", ".join(unknown)}, which the package '
        'tensorflow-text has, and it is not installed; `make env` installs it'
      ) from error


def _reason(error: tf.errors.OpError) -> str:
  """What an operation has to say, without the trace of the graph."""
  lines = [line.strip() for line in error.message.splitlines()]
  noise = ('Detected at', 'Graph execution error', '<stack traces', '[[{{node')
  kept = [line for line in lines if line and not line.startswith(noise)]
  return kept[0] if kept else 'the model refuses the request'
