"""An encoder inside an ONNX file, written here byte by byte, is read."""

import re
import struct

import numpy as np
import pytest

from models import bert_checkpoint, bert_checkpoint_onnx
from tests.models import test_bert_checkpoint as forms

TYPES = {'float32': 1, 'uint8': 2, 'int8': 3}


def varint(value):
  value &= (1 << 64) - 1
  out = b''
  while value > 0x7F:
    out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
  return out + bytes([value])


def field(number, value):
  if isinstance(value, int):
    return varint(number << 3) + varint(value)
  value = value.encode() if isinstance(value, str) else value
  return varint(number << 3 | 2) + varint(len(value)) + value


def tensor(name, values, raw=True):
  values = np.asarray(values)
  out = b''.join(field(1, size) for size in values.shape)
  out += field(2, TYPES[values.dtype.name]) + field(8, name)
  if raw:
    return field(5, out + field(9, values.tobytes()))
  if values.dtype == np.float32:
    return field(5, out + field(4, values.tobytes()))
  return field(
    5, out + field(5, b''.join(map(varint, values.ravel().tolist())))
  )


def node(kind, name, inputs, **attributes):
  out = b''.join(field(1, given) for given in inputs)
  out += field(2, f'{name}_output') + field(3, name) + field(4, kind)
  for key, value in attributes.items():
    out += field(5, field(1, key) + field(3, value) + field(20, 2))
  return field(1, out)


def quantised(name, values, columns, dtype):
  """Writes values of 8 bits; returns them and what they stand for."""
  axis = 0 if columns else None
  low, high = values.min(axis).clip(max=0), values.max(axis).clip(min=0)
  scale = np.asarray((high - low) / 255, np.float32)
  zero = np.round(-low / scale) + np.iinfo(dtype).min
  zero = zero.astype(dtype)
  limits = np.iinfo(dtype)
  small = np.round(values / scale) + zero
  small = small.clip(limits.min, limits.max).astype(dtype)
  meant = (small.astype(np.float64) - zero) * scale
  content = tensor(f'{name}_scale', scale, raw=False)
  content += tensor(f'{name}_zero_point', zero, raw=False)
  return content + tensor(f'{name}_quantized', small), meant


def write(path, quantise=None, prefix='bert.', pooler='Gemm'):
  """Writes a graph as torch exports it; returns what its weights stand for.

  Args:
    path: The file.
    quantise: Of the matrices: None, 'all' (a scale each) or 'columns'.
    prefix: What the exporter put before each name.
    pooler: The kind of its product.
  """
  tensors, graph, meant = forms.random_tensors(head=False), b'', {}
  for number, (name, value) in enumerate(tensors.items()):
    meant[name] = value
    dense = name.endswith('.weight') and 'LayerNorm' not in name
    if not dense:
      graph += tensor(prefix + name, value)
      continue
    embedding = 'embeddings' in name
    transposed = 'pooler' in name and pooler == 'Gemm' and not quantise
    stored = prefix + name if embedding else f'onnx::MatMul_{number}'
    value = value if embedding or transposed else value.T
    if quantise:
      columns = quantise == 'columns' and not embedding
      dtype = np.uint8 if embedding else np.int8
      content, value = quantised(stored, value, columns, dtype)
      meant[name] = value if embedding else value.T
      graph += content
    else:
      graph += tensor(stored, np.ascontiguousarray(value))
    if not embedding:
      kind = 'MatMulInteger' if quantise else 'MatMul'
      kind = 'Gemm' if transposed else kind
      path_of = f'/{prefix}{name}'.removesuffix('.weight').replace('.', '/')
      path_of = re.sub(r'layer/(\d)', r'layer.\1', path_of)
      used = f'{stored}_quantized' if quantise else stored
      attributes = {'transB': 1} if transposed else {}
      graph += node(
        kind, f'{path_of}/{kind}_quant', ['x', used, 'b'], **attributes
      )
  graph += tensor('/bert/Constant_output_0', np.float32(-3e38))
  graph += node('MatMul', '/bert/encoder/layer.0/attention/MatMul', ['q', 'k'])
  path.write_bytes(field(1, 8) + field(2, 'pytorch') + field(7, graph))
  return meant


def read(path, **changes):
  settings = {'num_heads': 2, 'vocabulary': forms.VOCABULARY, **changes}
  return bert_checkpoint_onnx.read(path, **settings)


@pytest.mark.parametrize('prefix', ['', 'bert.', 'model.0.auto_model.'])
def test_float_weights(tmp_path, prefix):
  meant = write(tmp_path / 'small.onnx', prefix=prefix)
  got = read(tmp_path / 'small.onnx')
  assert got.config == forms.CONFIG and got.name == 'small'
  assert set(got.tensors) == set(bert_checkpoint.expected_shapes(forms.CONFIG))
  for name, values in got.tensors.items():
    np.testing.assert_array_equal(values, meant[name], name)


@pytest.mark.parametrize('quantise', ['all', 'columns'])
def test_weights_of_8_bits(tmp_path, quantise):
  meant = write(tmp_path / 'small.onnx', quantise)
  got = read(tmp_path / 'small.onnx')
  assert got.config == forms.CONFIG
  exact = forms.random_tensors(head=False)
  for name, values in got.tensors.items():
    np.testing.assert_allclose(values, meant[name], atol=1e-6)
    np.testing.assert_allclose(values, exact[name], atol=0.03)


def test_files_that_can_not_be_read(tmp_path):
  path = tmp_path / 'small.onnx'
  write(path)
  whole = path.read_bytes()

  def refused(text, **changes):
    with pytest.raises(bert_checkpoint.CheckpointError, match=text):
      read(path, **changes)

  refused('has 10 tokens', vocabulary=forms.VOCABULARY[:10])
  refused('hidden_size 8 is no multiple of num_heads 3', num_heads=3)
  for size in (len(whole) - 1, 1000, 5, 0):
    path.write_bytes(whole[:size])
    refused(r'small\.onnx is damaged')
  path.write_bytes(b'PK\x03\x04' + bytes(100))
  refused(r'small\.onnx is damaged')
  path.write_bytes(field(7, tensor('fc.weight', np.ones((2, 2), 'f'))))
  refused(r'small\.onnx lacks the tensor embeddings\.word_embeddings\.weight')
  query = re.escape('layer.0/attention/self/query')
  path.write_bytes(whole.replace(b'self/query', b'self/other'))
  refused('lacks the tensor encoder.layer.0.attention.self.query.weight')
  assert re.search(query.encode(), whole)
  # Field 14: values that lie in a file of their own.
  lost = field(1, 11) + field(1, 8) + field(2, 1) + field(8, 'a') + field(14, 1)
  path.write_bytes(field(7, field(5, lost)))
  refused(r'small\.onnx is damaged, or no ONNX file with its weights inside')
  path.unlink()
  refused(r'small\.onnx can not be read')


def test_negative_numbers_and_fixed_fields():
  # int32 -5 is ten bytes; a fixed64 and a fixed32 are stepped over.
  data = field(5, varint(-5)) + varint(2 << 3 | 1) + struct.pack('<d', 1.0)
  data += varint(3 << 3 | 5) + struct.pack('<f', 2.0) + field(4, 300)
  got = list(bert_checkpoint_onnx._fields(memoryview(data)))
  assert [number for number, _ in got] == [5, 2, 3, 4]
  assert bert_checkpoint_onnx._varints(got[0][1]) == [-5]
  assert got[3][1] == 300
