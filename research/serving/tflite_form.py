"""A .tflite file beside a SavedModel, asked by the same kind of request."""

import os
import threading

import numpy as np
import tensorflow as tf

from research.serving import json_tensors


class TfliteForm:
  """A converted model: pixels or token ids in, the model's outputs out.

  Attributes:
    input: The one input: name, dtype and shape, None for the batch and where
      the length is free.
  """

  def __init__(self, path: str | os.PathLike[str]):
    """Loads a file.

    Args:
      path: With a signature of one input, as TensorFlow's converter writes it.

    Raises:
      ValueError: If it is not such a file.
    """
    interpreter = tf.lite.Interpreter(os.fspath(path), num_threads=1)
    names = list(interpreter.get_signature_list())
    if len(names) != 1:
      raise ValueError(f'{path} has {len(names)} signatures; one is wanted')
    self._runner = interpreter.get_signature_runner(names[0])
    inputs = self._runner.get_input_details()
    if len(inputs) != 1:
      raise ValueError(f'{path} has the inputs {sorted(inputs)}; one is wanted')
    ((name, details),) = inputs.items()
    sizes = [None if n < 0 else int(n) for n in details['shape_signature']]
    dtype = tf.as_dtype(details['dtype'])
    self.input = tf.TensorSpec([None, *sizes[1:]], dtype, name)
    # An interpreter is one set of buffers.
    self._lock = threading.Lock()

  def predict(self, instances: json_tensors.Json) -> list[json_tensors.Json]:
    """Answers the row format.

    Args:
      instances: The examples. Token ids may be shorter than the input, where
        its length is fixed; 0 follows.

    Returns:
      The outputs of each, as `json_tensors.rows` has them.

    Raises:
      json_tensors.RequestError: If they are not what the input takes.
    """
    spec = self.input
    if spec.shape.rank == 2 and spec.shape[1] and isinstance(instances, list):
      instances = [_padded(instance, spec.shape[1]) for instance in instances]
    array = json_tensors.from_instances(instances, {spec.name: spec})[spec.name]
    answers = []
    with self._lock:
      # One by one, since the batch of a file may be fixed.
      for example in array:
        answers.append(self._runner(**{spec.name: example[np.newaxis]}))
    return json_tensors.rows(
      {name: np.concatenate([a[name] for a in answers]) for name in answers[0]}
    )


def _padded(instance: json_tensors.Json, length: int) -> json_tensors.Json:
  if not isinstance(instance, list) or len(instance) > length:
    return instance
  return instance + [0] * (length - len(instance))
