"""Writes the client work of a round as an HLO module, with its shapes."""

import os
import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from research.training import atomic

HLO = 'program.hlo.pb'
ARGUMENTS = 'arguments.npz'
RESULTS = 'results.npz'

# TensorFlow's words about an op without an XLA kernel.
_NO_KERNEL = re.compile(r'(\w+) \(No registered .*?\{\{node ([^}]+)\}\}')


class UnsupportedOperationError(ValueError):
  """A program has an operation that a compiler can't compile."""


class ClientProgram(Protocol):
  """The work of one client, or of several that are vectorised.

  Attributes:
    function: A tf.function with jit_compile=True from tensors to a flat
      sequence of tensors.
    example_arguments: Its arguments; their shapes are those of the program.
    argument_names: One name for each.
    result_names: One name for each result.
  """

  function: Any
  example_arguments: Sequence[tf.Tensor]
  argument_names: Sequence[str]
  result_names: Sequence[str]


def layer_names(model: tf.keras.Model) -> list[str]:
  """The names of a model's layers, those inside of layers among them."""
  return [
    module.name
    for module in model.submodules
    if isinstance(module, tf.keras.layers.Layer)
  ]


def origin(op_name: str, layers: Iterable[str]) -> str:
  """Says where an operation comes from.

  Args:
    op_name: The path of a TensorFlow node, as while/conv_1/Conv2D, or the
      `op_name` that XLA made of it.
    layers: The names of the model's layers.

  Returns:
    The innermost Keras layer on the path and the node; where there is none, the
    node of the TFF leaf.
  """
  if not op_name:
    return 'an operation without a name'
  layers, parts = set(layers), op_name.split('/')
  # TensorFlow numbers a layer that is called again: dense, dense_1.
  bare = [re.sub(r'_\d+$', '', part) for part in parts]
  for names in (parts, bare):
    for name in reversed(names):
      if name in layers:
        return f'Keras layer {name} ({op_name})'
  return f'TFF leaf, node {op_name}'


def write(
  program: ClientProgram, directory: atomic.Path, layers: Sequence[str]
) -> dict[str, Any]:
  """Writes the HLO module of a program.

  Args:
    program: The program.
    directory: An existing directory; `program.hlo.pb` (a serialised HloProto's
      module, before any optimisation) is put there.
    layers: The names of the model's layers, for errors.

  Returns:
    For the manifest: `arguments` and `results`, each a list with name, dtype
    and shape in order.

  Raises:
    UnsupportedOperationError: If TensorFlow has no XLA kernel for an op; the
      message has the Keras layer or TFF leaf of each.
    ValueError: If a shape is not static.
  """
  arguments = program.example_arguments
  concrete = program.function.get_concrete_function(*arguments)
  captured = concrete.captured_inputs
  described = {
    'arguments': _describe(
      [
        *program.argument_names,
        *(f'captured_{i}' for i in range(len(captured))),
      ],
      [*arguments, *captured],
    ),
    'results': _describe(program.result_names, concrete.outputs),
  }
  try:
    ir = program.function.experimental_get_compiler_ir(*arguments)
    module = ir(stage='hlo_serialized')
  except (ValueError, tf.errors.OpError) as error:
    raise _unsupported(error, layers) from error
  atomic.write_bytes(os.path.join(directory, HLO), module)
  return described


def run(program: ClientProgram, directory: atomic.Path) -> list[np.ndarray]:
  """Runs a program here and writes its arguments for another runtime.

  Args:
    program: The program.
    directory: Where `arguments.npz` is put: arg_0, arg_1, ...

  Returns:
    The results, as TensorFlow's XLA computes them on this machine.
  """
  arguments = program.example_arguments
  captured = program.function.get_concrete_function(*arguments).captured_inputs
  values = [np.asarray(value) for value in (*arguments, *captured)]
  np.savez(
    os.path.join(directory, ARGUMENTS),
    **{f'arg_{i}': value for i, value in enumerate(values)},
  )
  return [np.asarray(result) for result in program.function(*arguments)]


def largest_difference(
  expected: Sequence[np.ndarray], results_file: atomic.Path
) -> float:
  """The largest difference of results from those in a file.

  It is relative to the largest value of a result, where that is above 1: sums
  over clients are as large as they have examples.

  Args:
    expected: The results.
    results_file: .npz with result_0, result_1, ...

  Returns:
    The difference; infinity where one is not a number, or has another shape or
    dtype.
  """
  largest = 0.0
  with np.load(results_file) as stored:
    if len(stored.files) != len(expected):
      return np.inf
    for i, value in enumerate(expected):
      other = stored[f'result_{i}']
      if other.shape != value.shape or other.dtype != value.dtype:
        return np.inf
      if value.size:
        wide = np.subtract(other, value, dtype=np.float64)
        scale = max(1.0, float(np.abs(value).max()))
        largest = max(largest, float(np.abs(wide).max()) / scale)
        if not np.isfinite(wide).all():
          return np.inf
  return largest


def _describe(
  names: Sequence[str], tensors: Sequence[Any]
) -> list[dict[str, Any]]:
  described = []
  for name, tensor in zip(names, tensors, strict=True):
    if not tensor.shape.is_fully_defined():
      raise ValueError(f'XLA needs static shapes; {name} has {tensor.shape}.')
    described.append(
      {
        'name': name,
        'dtype': tensor.dtype.name,
        'shape': tensor.shape.as_list(),
      }
    )
  return described


def _unsupported(
  error: Exception, layers: Sequence[str]
) -> UnsupportedOperationError:
  nodes = dict.fromkeys(_NO_KERNEL.findall(str(error)))
  if not nodes:
    return UnsupportedOperationError(f'TensorFlow makes no HLO of it: {error}')
  listed = '; '.join(f'{op} of {origin(node, layers)}' for op, node in nodes)
  return UnsupportedOperationError(f'XLA has no operation for {listed}.')
