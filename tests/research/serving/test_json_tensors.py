"""JSON to arrays and back."""

import json
import math

import numpy as np
import pytest
import tensorflow as tf

from research.serving import json_tensors


def spec(dtype, *shape, name='x'):
  return tf.TensorSpec([None, *shape], dtype, name)


@pytest.mark.parametrize(
  'body, message',
  [
    (b'', 'JSON Parse error'),
    (b'{"instances": [1,', 'JSON Parse error'),
    (b'\xff\xfe\xfd', 'JSON Parse error'),
    (b'[' * 100_000, 'JSON Parse error'),
    (b'{"a": ' + b'9' * 5000 + b'}', 'JSON Parse error'),
    (b'[1]', 'must be a JSON object'),
    (b'null', 'must be a JSON object'),
  ],
)
def test_what_is_no_json_object_is_refused(body, message):
  with pytest.raises(json_tensors.RequestError, match=message):
    json_tensors.parse(body)


@pytest.mark.parametrize(
  'dtype, value',
  [
    (tf.uint8, [[0], [255]]),
    (tf.int32, [[-(2**31)], [2**31 - 1]]),
    (tf.int64, [[-(2**63)], [2**63 - 1]]),
    (tf.uint64, [[0], [2**64 - 1]]),
    (tf.float32, [[0.1], [-3]]),
    (tf.float64, [[0.1], [1e300]]),
    (tf.bool, [[True], [False]]),
  ],
)
def test_numbers_arrive_exactly(dtype, value):
  array = json_tensors.to_array(value, spec(dtype, 1))
  assert array.dtype == dtype.as_numpy_dtype
  np.testing.assert_array_equal(array, np.array(value, dtype.as_numpy_dtype))


def test_numbers_that_json_lacks():
  body = json_tensors.parse(b'{"x": [NaN, Infinity, -Infinity, 1]}')
  array = json_tensors.to_array(body['x'], spec(tf.float32))
  np.testing.assert_array_equal(array, [np.nan, np.inf, -np.inf, 1])
  written = json_tensors.dumps(json_tensors.from_array(array, 'x'))
  assert written == b'[NaN, Infinity, -Infinity, 1.0]'


@pytest.mark.parametrize(
  'dtype, value, message',
  [
    (tf.uint8, [[256]], 'does not fit uint8'),
    (tf.uint8, [[-1]], 'does not fit uint8'),
    (tf.uint8, [[2**80]], 'does not fit uint8'),
    (tf.float32, [[1e39]], 'does not fit float32'),
    (tf.float32, [[10**400]], 'does not fit float32'),
    (tf.uint8, [[1.0]], '1.0 is not of the type of x, uint8'),
    (tf.uint8, [[True]], 'True is not of the type'),
    (tf.float32, [['1']], "'1' is not of the type"),
    (tf.float32, [[None]], 'None is not of the type'),
    (tf.float32, [[{'b64': ''}]], 'is not of the type'),
    (tf.bool, [[1]], '1 is not of the type'),
    (tf.string, [[1]], '1 is neither a string'),
    (tf.string, [['\ud800']], 'can not be read'),
    (tf.string, [[{'b64': '*'}]], 'can not be read'),
    (tf.string, [[{'b64': 'aGk=', 'c': 1}]], 'is neither a string'),
    (tf.uint8, [[1], [1, 2]], 'not all of the same length'),
    (tf.uint8, [[1], 1], 'not all of the same length'),
    (tf.uint8, [[[1]]], r'must be of shape \[-1, 1\], not \[1, 1, 1\]'),
    (tf.uint8, [[1, 2]], r'must be of shape \[-1, 1\], not \[1, 2\]'),
    (tf.uint8, 1, r'must be of shape \[-1, 1\], not \[\]'),
    (tf.uint8, [[]], r'must be of shape \[-1, 1\], not \[1, 0\]'),
  ],
)
def test_what_does_not_fit_is_refused(dtype, value, message):
  with pytest.raises(json_tensors.RequestError, match=message):
    json_tensors.to_array(value, spec(dtype, 1))


def test_strings_are_bytes_in_utf_8():
  value = ['naïve 汉 😀', {'b64': '/wA='}]
  array = json_tensors.to_array(value, spec(tf.string))
  assert array.tolist() == ['naïve 汉 😀'.encode(), b'\xff\x00']
  assert json_tensors.from_array(array[:1], 'label') == ['naïve 汉 😀']
  assert json_tensors.from_array(array[1:], 'png_bytes') == [{'b64': '/wA='}]


def test_a_float32_has_no_digits_of_a_double():
  rng = np.random.default_rng(0)
  bits = rng.integers(0, 2**32, 10_000, dtype=np.uint64).astype(np.uint32)
  array = bits.view(np.float32)
  array = array[np.isfinite(array)]
  assert json_tensors.from_array(np.float32([0.2]), 'x') == [0.2]
  text = json_tensors.dumps(json_tensors.from_array(array, 'x'))
  np.testing.assert_array_equal(np.float32(json.loads(text)), array)


def test_instances_are_values_or_objects():
  one = {'x': spec(tf.int32)}
  for given in ([1, 2], [{'x': 1}, {'x': 2}]):
    assert json_tensors.from_instances(given, one)['x'].tolist() == [1, 2]
  two = {'x': spec(tf.int32), 'y': spec(tf.string, name='y')}
  made = json_tensors.from_instances([{'x': 1, 'y': 'a'}], two)
  assert made['x'].tolist() == [1] and made['y'].tolist() == [b'a']
  text = {'y': two['y']}
  made = json_tensors.from_instances([{'b64': 'aGk='}], text)
  assert made['y'].tolist() == [b'hi']


@pytest.mark.parametrize(
  'instances, names, message',
  [
    ([], 'x', 'not empty'),
    (None, 'x', 'must be a list'),
    ([1, {'x': 1}], 'x', 'item 0 of'),
    ([{'x': 1}, {'z': 1}], 'x', 'item 1 of'),
    ([1], 'xy', 'must be an object with x, y'),
    ([{'x': 1}], 'xy', 'must be an object with x, y'),
  ],
)
def test_instances_that_do_not_fit_are_refused(instances, names, message):
  specs = {name: spec(tf.int32, name=name) for name in names}
  with pytest.raises(json_tensors.RequestError, match=message):
    json_tensors.from_instances(instances, specs)


def test_columns():
  two = {name: spec(tf.int32, name=name) for name in 'xy'}
  made = json_tensors.from_inputs({'x': [1], 'y': [2, 3]}, two)
  assert [made[name].tolist() for name in 'xy'] == [[1], [2, 3]]
  for wrong in ([1], {'x': [1]}, {'x': [1], 'y': [1], 'z': [1]}):
    with pytest.raises(json_tensors.RequestError, match='x, y'):
      json_tensors.from_inputs(wrong, two)


def test_rows_need_one_batch_size():
  outputs = {'a': np.zeros([2, 1]), 'b': np.arange(2)}
  assert json_tensors.rows(outputs) == [
    {'a': [0.0], 'b': 0},
    {'a': [0.0], 'b': 1},
  ]
  assert json_tensors.rows({'b': np.arange(2)}) == [0, 1]
  for other in (np.arange(3), np.array(1)):
    with pytest.raises(json_tensors.RequestError, match='no common batch size'):
      json_tensors.rows({**outputs, 'c': other})
  assert json_tensors.columns({'b': np.array(1)}) == 1
  assert json_tensors.columns({'a': np.arange(1), 'b': np.array(1)}) == {
    'a': [0],
    'b': 1,
  }


def test_examples_have_the_kind_of_their_values():
  made = tf.train.Example.FromString(
    json_tensors.to_example(
      {'i': [1, True], 'f': 0.5, 's': ['ü', {'b64': '/w=='}], 'n': math.nan},
      {'i': 7, 'c': 2},
    )
  ).features.feature
  assert made['i'].int64_list.value == [1, 1]
  assert made['c'].int64_list.value == [2]
  assert made['f'].float_list.value == [0.5]
  assert math.isnan(made['n'].float_list.value[0])
  assert made['s'].bytes_list.value == ['ü'.encode(), b'\xff']


@pytest.mark.parametrize(
  'features',
  [
    [],
    {'i': [1, 1.0]},
    {'i': ['a', 1]},
    {'i': None},
    {'i': [[1]]},
    {'i': 2**63},
    {'f': 1e39},
    {'s': {'b65': ''}},
    {'\ud800': 1},
  ],
)
def test_values_of_no_kind_are_refused(features):
  with pytest.raises(json_tensors.RequestError):
    json_tensors.to_example(features)
