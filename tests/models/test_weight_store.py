"""Weights in files: named by content, mended, read by variables in order."""

import hashlib

import numpy as np
import pytest
import tensorflow as tf

from models import weight_store

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)


def names(directory):
  return sorted(path.name for path in directory.iterdir())


def test_a_file_is_named_by_its_content(tmp_path):
  store = weight_store.WeightStore(tmp_path / 'deep' / 'store')
  path = store.put(ARRAY)
  content = np.array([0, 1, 2, 3, 4, 5], '<f4').tobytes()
  assert path.is_absolute() and path.read_bytes() == content
  assert path.name == hashlib.sha256(content).hexdigest() + '.f32'
  # The order in memory, the shape and the type make no difference.
  for same in (np.asfortranarray(ARRAY), ARRAY.ravel(), ARRAY.astype(float)):
    assert store.put(same) == path
  assert store.put(ARRAY.T) != path
  # Nor is a temporary file left.
  assert len(names(path.parent)) == 2
  assert all(name.endswith('.f32') for name in names(path.parent))


def test_a_file_that_is_whole_is_not_written_again(tmp_path):
  store = weight_store.WeightStore(tmp_path)
  path = store.put(ARRAY)
  before = path.stat()
  assert store.put(ARRAY) == path
  after = path.stat()
  assert (after.st_ino, after.st_mtime_ns) == (
    before.st_ino,
    before.st_mtime_ns,
  )


@pytest.mark.parametrize('damage', [b'', b'\0' * 24, b'\0' * 30])
def test_a_damaged_file_is_mended(tmp_path, damage):
  store = weight_store.WeightStore(tmp_path)
  path = store.put(ARRAY)
  whole = path.read_bytes()
  path.write_bytes(damage)
  assert store.put(ARRAY) == path and path.read_bytes() == whole
  assert names(tmp_path) == [path.name]


def test_the_default_is_a_folder_of_the_cache(own_cache):
  path = weight_store.WeightStore().put(ARRAY)
  assert path.parent == own_cache / 'weights'


def make(shapes):
  """Variables of these shapes and, between them, a counter."""
  made = []
  for shape in shapes:
    made.append(tf.Variable(tf.zeros(shape), shape=shape))
    tf.Variable(tf.zeros([], tf.int64), dtype=tf.int64)
  return made


def layers(sizes):
  """Dense layers, whose weights are a kernel and a bias each."""
  made = [tf.keras.layers.Dense(size) for size in sizes]
  for layer in made:
    layer.build([None, 2])
  return [variable for layer in made for variable in layer.weights]


def test_weights_come_back_in_the_order_of_creation(tmp_path):
  store = weight_store.WeightStore(tmp_path)
  with weight_store.creation_order() as order:
    made = layers([3, 4])
  assert [v.ref() for v in order] == [v.ref() for v in made]
  rng = np.random.default_rng(0)
  values = [rng.normal(size=v.shape).astype(np.float32) for v in order]
  files = [store.put(value) for value in values]
  with weight_store.initial_values(files):
    found = layers([3, 4])
  for variable, value in zip(found, values, strict=True):
    np.testing.assert_array_equal(variable, value)
  # Beyond the block all is as ever.
  assert not layers([3])[1].numpy().any()


def test_counters_are_no_weights():
  with weight_store.creation_order() as order:
    made = make([[2], [3]])
  assert [v.ref() for v in order] == [v.ref() for v in made]


def test_too_many_or_too_few_variables_are_an_error(tmp_path):
  store = weight_store.WeightStore(tmp_path)
  files = [store.put(np.zeros(n)) for n in (6, 3)]
  with (
    pytest.raises(ValueError, match='More than 2 variables'),
    weight_store.initial_values(files),
  ):
    layers([3, 3])
  with (
    pytest.raises(ValueError, match='2 variables are made, not 3'),
    weight_store.initial_values([*files, files[0]]),
  ):
    layers([3])


def test_a_file_of_another_size_is_an_error(tmp_path):
  store = weight_store.WeightStore(tmp_path)
  files = [store.put(np.zeros(n)) for n in (7, 3)]
  with (
    pytest.raises(tf.errors.InvalidArgumentError, match='shape'),
    weight_store.initial_values(files),
  ):
    layers([3])
