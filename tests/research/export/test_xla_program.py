"""Programs are written with their shapes; ops lead back to their layers."""

import json
import types

import numpy as np
import pytest
import tensorflow as tf

from models import emnist
from research.export import xla_program
from tests.research.export import xla_programs

LAYERS = ['image', 'conv_1', 'dense', 'dense_2', 'logits']


@pytest.mark.parametrize(
  'op_name, expected',
  [
    ('while/conv_1/Conv2D', 'Keras layer conv_1 (while/conv_1/Conv2D)'),
    # The innermost layer; gradients and vectorised nodes carry the path, too.
    (
      'gradient_tape/while/dense/conv_1/Conv2DBackpropFilter/pfor/Conv2D',
      'Keras layer conv_1 (gradient_tape/while/dense/conv_1/'
      'Conv2DBackpropFilter/pfor/Conv2D)',
    ),
    ('while/dense_2/MatMul', 'Keras layer dense_2 (while/dense_2/MatMul)'),
    # The second call of a layer.
    ('while/dense_1/MatMul', 'Keras layer dense (while/dense_1/MatMul)'),
    ('while/mul_3', 'TFF leaf, node while/mul_3'),
    ('', 'an operation without a name'),
  ],
)
def test_origin(op_name, expected):
  assert xla_program.origin(op_name, LAYERS) == expected


def test_layers_inside_of_layers_have_names():
  inner = tf.keras.Sequential([tf.keras.layers.Dense(2, name='inside')])
  model = tf.keras.Sequential([inner, tf.keras.layers.Flatten(name='flat')])
  assert {'inside', 'flat'} <= set(xla_program.layer_names(model))
  model = emnist.build(
    'mcmahan_cnn', input_shape=(28, 28, 1), num_classes=10, seed=0
  )
  assert {'conv_1', 'conv_2', 'logits'} <= set(xla_program.layer_names(model))


def test_a_program_is_written_with_its_shapes(tmp_path):
  program = xla_programs.linear_regression(clients=(3,), steps=4, batch=5)
  described = xla_program.write(program, tmp_path, [])
  assert (tmp_path / xla_program.HLO).stat().st_size > 100
  assert described == {
    'arguments': [
      {'name': 'weight_0', 'dtype': 'float32', 'shape': [100, 1]},
      {'name': 'x', 'dtype': 'float32', 'shape': [3, 4, 5, 100]},
      {'name': 'y', 'dtype': 'float32', 'shape': [3, 4, 5]},
    ],
    'results': [{'name': 'weight_0', 'dtype': 'float32', 'shape': [3, 100, 1]}],
  }
  json.dumps(described)


def test_captured_tensors_are_arguments(tmp_path):
  offset = tf.constant([1.0, 2.0])
  program = xla_programs.one_operation('a', lambda x: x + offset, tf.zeros([2]))
  described = xla_program.write(program, tmp_path, [])
  assert [a['name'] for a in described['arguments']] == [
    'argument_0',
    'captured_0',
  ]
  (result,) = xla_program.run(program, tmp_path)
  assert result.tolist() == [1, 2]
  with np.load(tmp_path / xla_program.ARGUMENTS) as stored:
    assert stored['arg_1'].tolist() == [1, 2]


def test_an_op_without_kernel_is_named_with_its_layer(tmp_path):
  program = xla_programs.one_operation(
    'dense', lambda x: tf.strings.length(tf.strings.as_string(x)), tf.zeros([2])
  )
  with pytest.raises(
    xla_program.UnsupportedOperationError,
    match=r'AsString of Keras layer dense \(model/dense/AsString\)',
  ):
    xla_program.write(program, tmp_path, LAYERS)
  assert not (tmp_path / xla_program.HLO).exists()


def test_shapes_must_be_static(tmp_path):
  function = tf.function(
    lambda x: tf.boolean_mask(x, x > 0), jit_compile=True, autograph=False
  )
  program = types.SimpleNamespace(
    function=function,
    example_arguments=(tf.constant([1.0, -1.0]),),
    argument_names=('x',),
    result_names=('y',),
  )
  with pytest.raises(ValueError, match=r'y has \(None,\)'):
    xla_program.write(program, tmp_path, [])


def difference(tmp_path, expected, **results):
  np.savez(tmp_path / 'r.npz', **results)
  return xla_program.largest_difference(expected, tmp_path / 'r.npz')


def test_largest_difference(tmp_path):
  one, two = np.float32([1, 2]), np.float32([[3]])
  assert difference(tmp_path, [one], result_0=one) == 0
  # Relative to the largest value, where that is above 1.
  both = {'result_0': one, 'result_1': two + 6}
  assert difference(tmp_path, [one, two], **both) == 2
  assert difference(tmp_path, [two / 4], result_0=two / 4 - 1) == 1
  assert difference(tmp_path, [one], result_0=one * np.nan) == np.inf
  assert difference(tmp_path, [one], result_0=one[:1]) == np.inf
  assert difference(tmp_path, [one], result_0=one.astype(np.int32)) == np.inf
  assert difference(tmp_path, [one], result_0=one, result_1=two) == np.inf
