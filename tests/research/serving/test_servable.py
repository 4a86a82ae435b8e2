"""Loading the versions of a SavedModel."""

import shutil

import numpy as np
import pytest
import tensorflow as tf

from research.export import saved_model
from research.serving import json_tensors, servable
from tests.research.export import text_tasks


def test_versions_are_numbered_folders(images_directory, tmp_path):
  for name in ('1', '10', '9', 'temporary', '.3.tmp-4', '-1', '²'):
    shutil.copytree(images_directory, tmp_path / name)
  (tmp_path / '11').mkdir()
  found = servable.versions(tmp_path)
  assert found == {n: tmp_path / str(n) for n in (1, 9, 10)}
  assert list(found) == [1, 9, 10]


def test_a_model_of_an_older_release_is_version_1(images_directory):
  assert servable.versions(images_directory) == {1: images_directory}


def test_no_model_is_one_clear_message(tmp_path):
  with pytest.raises(FileNotFoundError, match='has no model.*export'):
    servable.versions(tmp_path / 'model')


def test_signatures(images):
  assert set(images.signatures) == {
    'serving_default',
    'serve_float',
    'classify',
  }
  signature = images.signatures['classify']
  assert signature.method == 'tensorflow/serving/classify'
  assert signature.inputs == {
    'inputs': tf.TensorSpec([None], tf.string, 'inputs')
  }
  assert signature.outputs == ('classes', 'scores')
  assert images.signatures['serving_default'].method.endswith('/predict')


def test_the_answer_is_that_of_the_saved_model(
  images, images_directory, pixels
):
  direct = tf.saved_model.load(str(images_directory)).signatures
  expected = direct['serving_default'](image=tf.constant(pixels))
  found = images.signatures['serving_default'].run({'image': pixels})
  assert set(found) == set(expected)
  for name, value in expected.items():
    np.testing.assert_array_equal(found[name], value)


def test_what_the_graph_refuses_is_said_without_its_trace(images):
  with pytest.raises(json_tensors.RequestError) as refused:
    images.signatures['classify'].run({'inputs': np.array([b'*'], object)})
  assert len(str(refused.value).splitlines()) == 1
  assert 'node' not in str(refused.value)


def test_texts(tmp_path):
  """Operations of TensorFlow Text are registered where a graph has them."""
  task = text_tasks.make()
  model = text_tasks.trained(task)
  saved_model.export(task, model, tmp_path / '1')
  loaded = servable.Servable(tmp_path / '1')
  texts = np.array(['a film of its time', 'naïve 汉 😀', ''], object)
  texts = np.array([text.encode() for text in texts], object)
  found = loaded.signatures['serving_default'].run({'text': texts})
  assert set(found['label']) <= {b'negative', b'positive'}
  ids = loaded.signatures['tokenise'].run({'text': texts})['token_ids']
  outputs = loaded.signatures['serve_token_ids'].run({'token_ids': ids})
  np.testing.assert_array_equal(
    outputs['probabilities'], found['probabilities']
  )
  too_long = np.ones([1, 65], np.int32)
  with pytest.raises(json_tensors.RequestError):
    loaded.signatures['serve_token_ids'].run({'token_ids': too_long})
