"""Models as TFLite files: float, with rounded weights, and in int8."""

import collections
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf
from tensorflow.lite.tools import flatbuffer_utils

FLOAT = 'float'
DYNAMIC_RANGE = 'dynamic_range'
FLOAT16 = 'float16'
INT8 = 'int8'

# What normalisations, softmax and the standardisation of tables are made of.
# Masked attention adds -1e9 to scores, whose int8 range would be lost to it.
_FLOAT_OPERATIONS = (
  *('SOFTMAX', 'LOG_SOFTMAX', 'EXP', 'MEAN', 'SUM', 'SQUARE', 'SQRT', 'RSQRT'),
  *('SQUARED_DIFFERENCE', 'ADD', 'SUB', 'MUL', 'DIV', 'MAXIMUM', 'MINIMUM'),
)
MATRIX_PRODUCTS = (
  'FULLY_CONNECTED',
  'BATCH_MATMUL',
  'CONV_2D',
  'DEPTHWISE_CONV_2D',
  'TRANSPOSE_CONV',
)


class ConversionError(ValueError):
  """A model can't be converted as asked."""


def convert(
  function: tf.types.experimental.ConcreteFunction,
  variables: Sequence[tf.Variable],
  precision: str,
  representative: np.ndarray | None = None,
) -> bytes:
  """Converts a function of one tensor.

  `FLOAT` computes as it is. `DYNAMIC_RANGE` stores weights as int8 and rounds
  what they are multiplied by as it comes; `FLOAT16` stores them as float16 and
  computes in float32. `INT8` has weights (per channel) and activations in int8,
  whose ranges are known beforehand (Jacob et al. 2018, arXiv:1712.05877);
  normalisations and softmax stay float32.

  Args:
    function: What is converted; its outputs have names.
    variables: Those that it reads.
    precision: One of the four.
    representative: For INT8, inputs [examples, ...] from which the ranges of
      activations are found. None is for functions that have learned them:
      those with fake quantisation.

  Returns:
    The content of the file; its signature is `serving_default`.

  Raises:
    ConversionError: If INT8 knows no ranges.
  """
  module = tf.Module()
  module.weights = list(variables)
  converter = tf.lite.TFLiteConverter.from_concrete_functions(
    [function], module
  )
  if precision == FLOAT:
    return converter.convert()
  converter.optimizations = [tf.lite.Optimize.DEFAULT]
  if precision == FLOAT16:
    converter.target_spec.supported_types = [tf.float16]
  if precision != INT8:
    return converter.convert()
  if representative is None:
    if not has_fake_quantization(function):
      raise ConversionError(
        'int8 needs the ranges of activations: give representative examples, '
        'or a model that was trained with quantization in mind and has them.'
      )
    return converter.convert()

  def examples() -> Iterator[list[np.ndarray]]:
    for start in range(len(representative)):
      yield [representative[start : start + 1]]

  converter.representative_dataset = examples
  # The debugger is what TensorFlow offers to choose operations by.
  options = tf.lite.experimental.QuantizationDebugOptions(
    denylisted_ops=list(_FLOAT_OPERATIONS)
  )
  debugger = tf.lite.experimental.QuantizationDebugger(
    converter=converter, debug_dataset=examples, debug_options=options
  )
  return debugger.get_nondebug_quantized_model()


def has_fake_quantization(
  function: tf.types.experimental.ConcreteFunction,
) -> bool:
  """Whether a function has operations that round as int8 does."""
  graph = function.graph.as_graph_def()
  nodes = [*graph.node]
  for inner in graph.library.function:
    nodes += inner.node_def
  return any(node.op.startswith('FakeQuantWithMinMax') for node in nodes)


def operations(content: bytes) -> dict[str, dict[str, int]]:
  """Counts a file's operations by what they compute in.

  Args:
    content: Of the file.

  Returns:
    For each operation, as `FULLY_CONNECTED`, the dtype of its output to how
    many there are; `float32 by int8` are float operations with int8 weights.
  """
  model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
  counts = collections.defaultdict(collections.Counter)
  for graph in model.subgraphs:
    for operation in graph.operators:
      name = flatbuffer_utils.opcode_to_name(model, operation.opcodeIndex)
      output = _dtype(graph.tensors[operation.outputs[0]])
      constants = [
        _dtype(graph.tensors[index])
        for index in operation.inputs
        if index >= 0 and _is_constant(model, graph.tensors[index])
      ]
      if (
        output == 'float32' and name in MATRIX_PRODUCTS and 'int8' in constants
      ):
        output = 'float32 by int8'
      counts[name][output] += 1
  return {name: dict(sorted(counts[name].items())) for name in sorted(counts)}


def _dtype(tensor) -> str:
  return flatbuffer_utils.type_to_name(tensor.type).lower()


def _is_constant(model, tensor) -> bool:
  data = model.buffers[tensor.buffer].data
  return data is not None and len(data) > 0
