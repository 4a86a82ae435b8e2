"""Takes a BERT encoder out of an ONNX file, quantised to 8 bits or not.

An exporter keeps the names of embeddings and biases, but dense layers' weights
lose theirs; the nodes that use them are still called after their layers. Of
ONNX's protocol buffers only nodes and initialisers are needed, so that these
are read here rather than by a package that would pin protobuf.
"""

import dataclasses
import os
import pathlib
import re
import struct
from collections.abc import Iterator, Mapping

import numpy as np

from models import bert_checkpoint, bert_checkpoint_files

CheckpointError = bert_checkpoint_files.CheckpointError

# Field numbers of onnx.proto.
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_INPUT, _NODE_NAME, _NODE_TYPE, _NODE_ATTRIBUTE = 1, 3, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INT = 1, 3
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 8, 9
# Where values that are not raw lie, by type; ints are varints, floats packed.
_FLOATS, _INTS, _WIDE_INTS = 4, 5, 7
_TYPES = {
  1: ('<f4', _FLOATS),
  2: ('u1', _INTS),
  3: ('i1', _INTS),
  6: ('<i4', _INTS),
  7: ('<i8', _WIDE_INTS),
  10: ('<f2', None),
}
_PRODUCTS = ('MatMul', 'MatMulInteger', 'Gemm')
_LAYER = re.compile(
  r'(?:^|[/.])((?:encoder/layer\.\d+|pooler|cls/predictions/transform)/.*)/'
  r'(?:MatMul|Gemm)\w*$'
)


@dataclasses.dataclass(frozen=True)
class _Node:
  kind: str
  name: str
  inputs: tuple[str, ...]
  attributes: Mapping[str, int]


def read(
  path: str | os.PathLike,
  *,
  num_heads: int,
  vocabulary: tuple[str, ...],
  lowercase: bool = True,
  name: str | None = None,
) -> bert_checkpoint.Checkpoint:
  """Reads an encoder from an ONNX file.

  Args:
    path: The file.
    num_heads: Attention heads of a layer, which no tensor's shape tells.
    vocabulary: Its tokens, which no ONNX file holds.
    lowercase: Whether text becomes lower case before tokenisation.
    name: What to call it; the file's name if None.

  Returns:
    The checkpoint; 8-bit weights are turned back into float32.

  Raises:
    CheckpointError: If the file is damaged or holds no BERT encoder.
  """
  path = pathlib.Path(path)
  tensors = read_weights(path)
  try:
    config = _infer_config(tensors, num_heads)
  except CheckpointError as error:
    raise CheckpointError(
      f'{path} holds no complete BERT encoder: {error}'
    ) from error
  return bert_checkpoint.assemble(
    config,
    tensors,
    vocabulary,
    lowercase=lowercase,
    name=name or path.stem,
    source=str(path),
  )


def _infer_config(
  tensors: Mapping[str, np.ndarray], num_heads: int
) -> bert_checkpoint.Config:
  words, positions, segments = (
    tensors.get(f'embeddings.{part}_embeddings.weight', np.zeros((0, 0)))
    for part in ('word', 'position', 'token_type')
  )
  inner = tensors.get('encoder.layer.0.intermediate.dense.bias', np.zeros(0))
  layers = {re.match(r'encoder\.layer\.\d+\.', name) for name in tensors}
  return bert_checkpoint.Config(
    vocabulary_size=len(words),
    num_layers=len({match.group() for match in layers if match}),
    num_heads=num_heads,
    hidden_size=words.shape[-1],
    intermediate_size=inner.size,
    max_positions=len(positions),
    num_segments=len(segments),
  )


def read_weights(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns the weights as float32 under canonical names.

  Args:
    path: An ONNX file that holds its weights itself.

  Raises:
    CheckpointError: If it is damaged or holds no BERT encoder.
  """
  try:
    nodes, stored = _read_graph(memoryview(path.read_bytes()))
  except OSError as error:
    raise CheckpointError(f'{path} can not be read: {error}') from error
  except (ValueError, IndexError, KeyError, struct.error) as error:
    raise CheckpointError(
      f'{path} is damaged, or no ONNX file with its weights inside: {error!r}'
    ) from error
  tensors = {
    name.removesuffix('_quantized'): _dequantise(name, stored)
    for name in stored
    if np.issubdtype(stored[name].dtype, np.floating)
    or name.endswith('_quantized')
  }
  for node in nodes:
    if node.kind not in _PRODUCTS or len(node.inputs) < 2:
      continue
    used = node.inputs[1].removesuffix('_quantized')
    layer = _LAYER.search(node.name)
    if used not in tensors or layer is None:
      continue
    weight = tensors.pop(used)
    transposed = node.kind == 'Gemm' and node.attributes.get('transB')
    tensors[layer.group(1).replace('/', '.') + '.weight'] = (
      np.ascontiguousarray(weight if transposed else weight.T)
    )
  return bert_checkpoint_files.canonical(_named(tensors), str(path))


def _named(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Leaves out the graph's constants, which are not called like weights."""
  return {
    name: tensor
    for name, tensor in tensors.items()
    if re.search(r'\.(weight|bias)$', name)
  }


def _dequantise(name: str, stored: Mapping[str, np.ndarray]) -> np.ndarray:
  values = stored[name]
  base = name.removesuffix('_quantized')
  if base == name:
    return values
  # One scale for all, or one for each column.
  scale, zero = stored[base + '_scale'], stored[base + '_zero_point']
  return (values.astype('<f4') - zero.astype('<f4')) * scale


def _read_graph(
  data: memoryview,
) -> tuple[list[_Node], dict[str, np.ndarray]]:
  """Returns the nodes and the initialisers of a ModelProto's graph."""
  graphs = [v for field, v in _fields(data) if field == _MODEL_GRAPH]
  if len(graphs) != 1:
    raise ValueError('there is no graph in it')
  nodes, stored = [], {}
  for field, value in _fields(graphs[0]):
    if field == _GRAPH_NODE:
      nodes.append(_read_node(value))
    elif field == _GRAPH_INITIALIZER:
      name, tensor = _read_tensor(value)
      stored[name] = tensor
  return nodes, stored


def _read_node(data: memoryview) -> _Node:
  inputs, texts, attributes = [], {}, {}
  for field, value in _fields(data):
    if field == _NODE_INPUT:
      inputs.append(_text(value))
    elif field in (_NODE_NAME, _NODE_TYPE):
      texts[field] = _text(value)
    elif field == _NODE_ATTRIBUTE:
      parts = dict(_fields(value))
      if isinstance(parts.get(_ATTRIBUTE_INT), int):
        attributes[_text(parts[_ATTRIBUTE_NAME])] = parts[_ATTRIBUTE_INT]
  return _Node(
    kind=texts.get(_NODE_TYPE, ''),
    name=texts.get(_NODE_NAME, ''),
    inputs=tuple(inputs),
    attributes=attributes,
  )


def _read_tensor(data: memoryview) -> tuple[str, np.ndarray]:
  dims, single, values = [], {}, []
  fields = list(_fields(data))
  for field, value in fields:
    if field == _TENSOR_DIMS:
      dims += [value] if isinstance(value, int) else _varints(value)
    elif field in (_TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW):
      single[field] = value
  name = _text(single[_TENSOR_NAME])
  if single[_TENSOR_TYPE] not in _TYPES:
    # Of strings, booleans and the like BERT has no weights.
    return name, np.zeros(0, bool)
  dtype, place = _TYPES[single[_TENSOR_TYPE]]
  if _TENSOR_RAW in single:
    return name, np.frombuffer(single[_TENSOR_RAW], dtype).reshape(dims)
  for field, value in fields:
    if field == place == _FLOATS:
      values += np.frombuffer(value, '<f4').tolist()
    elif field == place:
      values += [value] if isinstance(value, int) else _varints(value)
  return name, np.array(values).astype(dtype).reshape(dims)


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
  """Yields the fields of a message: numbers as int, all else as bytes."""
  at = 0
  while at < len(data):
    key, at = _varint(data, at)
    field, form = key >> 3, key & 7
    if form == 0:
      value, at = _varint(data, at)
    else:
      if form == 2:
        size, at = _varint(data, at)
      else:
        size = {1: 8, 5: 4}[form]
      if at + size > len(data):
        raise ValueError('it was cut off')
      value, at = data[at : at + size], at + size
    yield field, value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
  value = shift = 0
  while True:
    byte = data[at]
    at += 1
    value |= (byte & 0x7F) << shift
    shift += 7
    if byte < 0x80:
      # Negative numbers are stored as their two's complement in 64 bits.
      return value - (value >> 63 << 64), at


def _varints(data: memoryview) -> list[int]:
  values, at = [], 0
  while at < len(data):
    value, at = _varint(data, at)
    values.append(value)
  return values


def _text(data: memoryview) -> str:
  return bytes(data).decode('utf-8')
