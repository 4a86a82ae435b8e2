"""The REST API, against the SavedModel and TensorFlow Serving's protos."""

import json
import re
import types

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
  classification_pb2,
  get_model_metadata_pb2,
  get_model_status_pb2,
  prediction_log_pb2,
  regression_pb2,
)

from research.serving import rest, servable
from tests.research.serving import conftest

PREDICT = '/v1/models/digits:predict'
CLASSIFY = '/v1/models/digits:classify'


def close(found, expected):
  np.testing.assert_array_equal(np.array(found, expected.dtype), expected)


def warm_up(directory, signature):
  """The request of the warm-up file for a signature."""
  file = directory / 'assets.extra' / 'tf_serving_warmup_requests'
  for record in tf.data.TFRecordDataset(str(file)):
    log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
    request = getattr(log, log.WhichOneof('log_type')).request
    if request.model_spec.signature_name == signature:
      return request
  raise KeyError(signature)


def examples_as_json(request):
  """The examples of a ClassificationRequest as the REST API has them."""
  rows = []
  for example in request.input.example_list.examples:
    features = example.features.feature
    rows.append(
      {
        name: list(getattr(feature, feature.WhichOneof('kind')).value)
        for name, feature in features.items()
      }
    )
  return {
    'signature_name': request.model_spec.signature_name,
    'examples': rows,
  }


def test_rows_and_columns_give_what_the_saved_model_gives(
  ask_images, images, pixels
):
  expected = images.signatures['serving_default'].run({'image': pixels})
  given = pixels.tolist()
  for instances in (given, [{'image': one} for one in given]):
    status, answer = ask_images.post(PREDICT, {'instances': instances})
    assert status == 200 and set(answer) == {'predictions'}
    for name, value in expected.items():
      close([row[name] for row in answer['predictions']], value)
  for inputs in (given, {'image': given}):
    status, answer = ask_images.post(PREDICT, {'inputs': inputs})
    assert status == 200 and set(answer) == {'outputs'}
    for name, value in expected.items():
      close(answer['outputs'][name], value)


def test_a_signature_and_a_version_are_chosen(ask_images, images, pixels):
  scaled = np.float32(pixels) / np.float32(255)
  expected = images.signatures['serve_float'].run({'image': scaled})
  body = {'signature_name': 'serve_float', 'instances': scaled.tolist()}
  path = '/v1/models/digits/versions/1:predict'
  _, answer = ask_images.post(path, body)
  close([row['logits'] for row in answer['predictions']], expected['logits'])


def test_the_latest_version_answers(images, table):
  both = rest.Application('both', {2: images, 10: table})
  ask = conftest.Client(both)
  _, answer = ask.get('/v1/models/both')
  versions = [each['version'] for each in answer['model_version_status']]
  assert versions == ['10', '2']
  status, _ = ask.post(
    '/v1/models/both:predict', {'instances': [[1.0, 2.0, 3.0]]}
  )
  assert status == 200
  status, _ = ask.post(
    '/v1/models/both/versions/2:predict', {'instances': [[1.0, 2.0, 3.0]]}
  )
  assert status == 400


def test_predict_request_and_answer_are_those_of_the_protos(
  ask_images, images, images_directory
):
  request = warm_up(images_directory, 'serving_default')
  (tensor,) = request.inputs.values()
  array = tf.make_ndarray(tensor)
  status, answer = ask_images.post(PREDICT, {'instances': array.tolist()})
  assert status == 200
  expected = images.signatures['serving_default'].run({'image': array})
  close(answer['predictions'][0]['logits'], expected['logits'][0])


def test_classify_request_and_answer_are_those_of_the_protos(
  ask_images, images, images_directory
):
  request = warm_up(images_directory, 'classify')
  assert isinstance(request, classification_pb2.ClassificationRequest)
  status, answer = ask_images.post(CLASSIFY, examples_as_json(request))
  assert status == 200
  (pairs,) = answer['results']
  response = classification_pb2.ClassificationResponse()
  classes = [{'label': label, 'score': score} for label, score in pairs]
  json_format.ParseDict(
    {'result': {'classifications': [{'classes': classes}]}}, response
  )
  (found,) = response.result.classifications
  assert [each.label for each in found.classes] == [*'0123456789']
  ones = np.ones([1, 8, 8, 1], np.uint8)
  expected = images.signatures['serving_default'].run({'image': ones})
  close([c.score for c in found.classes], expected['probabilities'][0])


def test_regress_request_and_answer_are_those_of_the_protos(
  ask_table, table_directory
):
  request = warm_up(table_directory, 'regress')
  assert isinstance(request, regression_pb2.RegressionRequest)
  body = examples_as_json(request)
  body['examples'].append({'features': [1.5, -2.0, 4.0]})
  status, answer = ask_table.post('/v1/models/table:regress', body)
  assert status == 200
  response = regression_pb2.RegressionResponse()
  json_format.ParseDict(
    {'result': {'regressions': [{'value': v} for v in answer['results']]}},
    response,
  )
  # Twice the sum of the features; those of the warm-up are ones.
  assert [each.value for each in response.result.regressions] == [6.0, 7.0]


def test_examples_share_the_context(ask_images):
  body = {'signature_name': 'classify', 'examples': [{'image': [1] * 64}]}
  expected = ask_images.post(CLASSIFY, body)
  body = {**body, 'context': {'image': [1] * 64}, 'examples': [{}]}
  assert ask_images.post(CLASSIFY, body) == expected
  assert expected[0] == 200


def test_status_is_that_of_the_proto(ask_images):
  for path in ('/v1/models/digits', '/v1/models/digits/versions/1'):
    status, answer = ask_images.get(path)
    found = json_format.ParseDict(
      answer, get_model_status_pb2.GetModelStatusResponse()
    )
    (version,) = found.model_version_status
    assert status == 200 and version.version == 1
    assert version.state == version.AVAILABLE


def test_metadata_is_that_of_the_proto(ask_images, images_directory):
  status, answer = ask_images.get('/v1/models/digits/metadata')
  assert status == 200
  assert answer['model_spec'] == {
    'name': 'digits',
    'signature_name': '',
    'version': '1',
  }
  found = json_format.ParseDict(
    answer['metadata']['signature_def'],
    get_model_metadata_pb2.SignatureDefMap(),
  )
  stored = saved_model_pb2.SavedModel.FromString(
    (images_directory / 'saved_model.pb').read_bytes()
  )
  wanted = stored.meta_graphs[0].signature_def
  assert dict(found.signature_def) == dict(wanted)


def test_not_a_number_goes_in_and_comes_out(ask_table):
  path = '/v1/models/table:predict'
  status, answer = ask_table.post(path, b'{"instances": [[NaN, 1, 2]]}')
  assert status == 200
  assert np.isnan(answer['predictions'][0][0])
  _, answer = ask_table.post(path, b'{"instances": [[-Infinity, 1, 2]]}')
  assert answer['predictions'] == [[-np.inf]]


def test_texts_are_unicode(table):
  """Names in errors, too."""
  ask = conftest.Client(rest.Application('täble', {1: table}))
  assert ask.get('/v1/models/t%C3%A4ble')[0] == 200
  status, answer = ask.get('/v1/models/汉')
  assert status == 404 and '汉' in answer['error']


@pytest.mark.parametrize(
  'path, body, status, message',
  [
    (PREDICT, b'{', 400, 'JSON Parse error'),
    (PREDICT, {}, 400, "one of 'instances' and 'inputs'"),
    (PREDICT, {'instances': [], 'inputs': []}, 400, "one of 'instances'"),
    (PREDICT, {'instances': []}, 400, '0 examples'),
    (PREDICT, {'instances': 3}, 400, "'instances' must be a list"),
    (PREDICT, {'instances': [[1, 2]]}, 400, 'must be of shape'),
    (PREDICT, {'instances': [0] * 9}, 400, '9 examples; .* 1 to 8'),
    (PREDICT, {'inputs': [[[[0]] * 8] * 8] * 9}, 400, '9 examples'),
    (PREDICT, {'signature_name': 'x', 'inputs': 0}, 400, '"x" not found'),
    (PREDICT, {'signature_name': 1, 'inputs': 0}, 400, 'must be a string'),
    (PREDICT, b' ' * 100_001, 413, 'larger than 100000 bytes'),
    (CLASSIFY, {'examples': [{}]}, 400, 'of the method .*/predict'),
    (CLASSIFY, {'signature_name': 'classify'}, 400, "'examples' must be"),
    (
      CLASSIFY,
      {'signature_name': 'classify', 'examples': [{}] * 9},
      400,
      '9 examples',
    ),
    (
      CLASSIFY,
      {'signature_name': 'classify', 'examples': [{'image': [1.0] * 64}]},
      400,
      'expected type: int64',
    ),
    (
      CLASSIFY,
      {'signature_name': 'classify', 'examples': [{'image': [256] * 64}]},
      400,
      'a value of image does not fit into uint8',
    ),
    (
      CLASSIFY,
      {'signature_name': 'classify', 'context': 1, 'examples': [{}]},
      400,
      "'context' must be an object",
    ),
    (
      '/v1/models/digits:regress',
      {'signature_name': 'classify', 'examples': [{}]},
      400,
      ':regress needs one of tensorflow/serving/regress',
    ),
    ('/v1/models/other:predict', {}, 404, r'Latest\(other\)'),
    ('/v1/models/digits/versions/2:predict', {}, 404, r'\(digits, 2\)'),
    ('/v1/models/digits/versions/x:predict', {}, 404, r'\(digits, x\)'),
    ('/v1/models/digits/metadata', {}, 405, 'Malformed request: POST'),
    ('/v1/models/..%2F..%2Fetc/metadata', {}, 404, 'Malformed request'),
    ('/v1/forms/int8:predict', {}, 404, 'there are: none'),
    ('/etc/passwd', {}, 404, 'Malformed request'),
  ],
)
def test_what_is_wrong_is_said_with_the_right_status(
  ask_images, path, body, status, message
):
  found, answer = ask_images.post(path, body)
  assert (found, list(answer)) == (status, ['error'])
  assert re.search(message, answer['error'])


def test_what_would_grow_is_refused(ask_images):
  """A context counts for each example."""
  body = {'signature_name': 'classify'}
  context = {'text': ['x' * 90_000]}
  status, answer = ask_images.post(
    CLASSIFY, {**body, 'context': context, 'examples': [{}] * 8}
  )
  assert status == 400 and "'context' is too large" in answer['error']


def test_free_dimensions_are_bounded():
  spec = tf.TensorSpec([None, None], tf.int32, 'ids')
  sums = servable.Signature(
    'serving_default',
    'tensorflow/serving/predict',
    {'ids': spec},
    ('total',),
    lambda ids: {'total': tf.reduce_sum(ids, axis=1)},
  )
  model = types.SimpleNamespace(signatures={sums.name: sums}, metadata={})
  ask = conftest.Client(
    rest.Application('sums', {1: model}, limits=rest.Limits(length=3))
  )
  path = '/v1/models/sums:predict'
  assert ask.post(path, {'instances': [[1, 2, 3]]}) == (
    200,
    {'predictions': [6]},
  )
  for body in ({'instances': [[1] * 4]}, {'inputs': [[1] * 4]}):
    status, answer = ask.post(path, body)
    assert status == 400 and 'length of 4; 3 is' in answer['error']


def test_a_failure_is_logged_and_not_told(ask_images, images, monkeypatch):
  def fail(*_):
    raise RuntimeError('a secret')

  monkeypatch.setattr(type(images.signatures['classify']), 'run', fail)
  body = {'instances': np.zeros([1, 8, 8, 1], int).tolist()}
  status, answer = ask_images.post(PREDICT, body)
  assert status == 500 and 'secret' not in json.dumps(answer)
