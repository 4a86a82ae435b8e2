"""A .tflite file, asked as the SavedModel is."""

import numpy as np
import pytest
import tensorflow as tf

from research.serving import json_tensors, rest, tflite_form
from tests.research.export import conftest as export_conftest
from tests.research.serving import conftest


def convert(spec, serve, path, variables=()):
  """Writes a function of one input, with what comes of it by name."""
  module = tf.Module()
  module.weights = list(variables)
  function = tf.function(
    serve, input_signature=[spec], autograph=False
  ).get_concrete_function()
  converter = tf.lite.TFLiteConverter.from_concrete_functions(
    [function], module
  )
  path.write_bytes(converter.convert())
  return tflite_form.TfliteForm(path)


@pytest.fixture(scope='module')
def pixels_form(tmp_path_factory):
  task = export_conftest.make_task()
  model = task.build_keras_model()

  def serve(image):
    logits = model(tf.cast(image, tf.float32) / 255)
    return {'logits': logits, 'probabilities': tf.nn.softmax(logits)}

  spec = tf.TensorSpec([1, 8, 8, 1], tf.uint8, 'image')
  path = tmp_path_factory.mktemp('form') / 'a.tflite'
  return convert(spec, serve, path, model.variables)


def test_it_gives_what_the_model_gives(pixels_form, pixels, images):
  """Also for more examples than the file takes at once."""
  ask = conftest.Client(
    rest.Application('digits', {1: images}, {'int8': pixels_form})
  )
  body = {'instances': pixels.tolist()}
  status, answer = ask.post('/v1/forms/int8:predict', body)
  assert status == 200
  found = [row['probabilities'] for row in answer['predictions']]
  _, answer = ask.post('/v1/models/digits:predict', body)
  expected = [row['probabilities'] for row in answer['predictions']]
  np.testing.assert_allclose(found, expected, atol=1e-6)
  assert ask.get('/page.json')[1]['forms'] == ['int8']


@pytest.mark.parametrize('instances', [None, [], [[1]], [[[[256]] * 8] * 8], 1])
def test_what_it_does_not_take_is_refused(pixels_form, instances):
  with pytest.raises(json_tensors.RequestError):
    pixels_form.predict(instances)


def test_token_ids_are_padded_to_a_fixed_length(tmp_path):
  def serve(token_ids):
    total = tf.reduce_sum(token_ids, axis=1, keepdims=True)
    return {'probabilities': tf.cast(total, tf.float32)}

  spec = tf.TensorSpec([1, 5], tf.int32, 'token_ids')
  form = convert(spec, serve, tmp_path / 'a.tflite')
  assert form.predict([[1, 2], [1, 2, 3, 4, 5]]) == [[3.0], [15.0]]
  with pytest.raises(json_tensors.RequestError, match=r'shape \[-1, 5\]'):
    form.predict([[1] * 6])


def test_a_file_of_another_kind_is_refused(tmp_path):
  (tmp_path / 'a.tflite').write_bytes(b'no model')
  with pytest.raises(ValueError):
    tflite_form.TfliteForm(tmp_path / 'a.tflite')
