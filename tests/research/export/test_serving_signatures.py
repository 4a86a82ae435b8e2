"""Signatures that TensorFlow Serving takes besides, and the warm-up file."""

import shutil

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from research.export import exporter, saved_model, serving_signatures
from research.training import run_directory
from tests.research.export import conftest, text_tasks
from tests.research.serving import conftest as serving_conftest

_LISTS = {
  bytes: ('bytes_list', tf.train.BytesList),
  int: ('int64_list', tf.train.Int64List),
  float: ('float_list', tf.train.FloatList),
}
WARM_UP = 'assets.extra/tf_serving_warmup_requests'


def load(task, model, directory):
  saved_model.export(task, model, directory)
  return tf.saved_model.load(str(directory)).signatures


def example(**features):
  """A serialised example, by hand."""
  made = {}
  for name, values in features.items():
    kind, values_of_kind = _LISTS[type(values[0])]
    made[name] = tf.train.Feature(**{kind: values_of_kind(value=values)})
  return tf.train.Example(
    features=tf.train.Features(feature=made)
  ).SerializeToString()


def methods(directory):
  stored = saved_model_pb2.SavedModel.FromString(
    (directory / 'saved_model.pb').read_bytes()
  )
  definitions = stored.meta_graphs[0].signature_def
  return {name: each.method_name for name, each in definitions.items()}


def logs(directory):
  return [
    prediction_log_pb2.PredictionLog.FromString(record.numpy())
    for record in tf.data.TFRecordDataset(str(directory / WARM_UP))
  ]


def test_classify_gives_the_probabilities_by_name(task, model, tmp_path):
  serve = load(task, model, tmp_path / '1')
  image = np.random.default_rng(0).integers(0, 256, [3, 8, 8, 1], np.uint8)
  examples = [example(image=each.ravel().tolist()) for each in image]
  found = serve['classify'](inputs=tf.constant(examples))
  expected = serve['serving_default'](image=tf.constant(image))
  np.testing.assert_array_equal(found['scores'], expected['probabilities'])
  classes = [[str(i).encode() for i in range(10)]] * 3
  assert found['classes'].numpy().tolist() == classes
  assert methods(tmp_path / '1') | {'__saved_model_init_op': ''} == {
    'serving_default': 'tensorflow/serving/predict',
    'serve_float': 'tensorflow/serving/predict',
    'classify': 'tensorflow/serving/classify',
    '__saved_model_init_op': '',
  }


@pytest.mark.parametrize('pixel', [-1, 256, 2**40])
def test_pixels_that_are_none_are_refused(task, model, tmp_path, pixel):
  serve = load(task, model, tmp_path / '1')
  with pytest.raises(tf.errors.InvalidArgumentError, match='fit into uint8'):
    serve['classify'](inputs=tf.constant([example(image=[pixel] * 64)]))


def test_regress_gives_the_prediction(tmp_path):
  task = serving_conftest.regression_task()
  serve = load(task, task.build_keras_model(), tmp_path / '1')
  examples = [example(features=[1.0, 2.0, 4.0]), example(features=[0.0] * 3)]
  found = serve['regress'](inputs=tf.constant(examples))
  assert found['outputs'].numpy().tolist() == [[14.0], [0.0]]
  assert methods(tmp_path / '1')['regress'] == 'tensorflow/serving/regress'


def test_what_is_neither_has_neither(tmp_path):
  """TensorFlow Serving's regress has one number for an example."""
  two = serving_conftest.regression_task(('price', 'weight'))
  clusters = conftest.make_task('clustering', 'k_means', num_classes=3)
  for name, task in {'two': two, 'clusters': clusters}.items():
    serve = load(task, task.build_keras_model(), tmp_path / name)
    assert not {'classify', 'regress'} & set(serve)


def test_texts_are_classified_and_tokenised(tmp_path):
  task = text_tasks.make()
  serve = load(task, text_tasks.trained(task), tmp_path / '1')
  texts = ['The film is fine.', 'a straße of its time', '']
  examples = [example(text=[text.encode()]) for text in texts]
  found = serve['classify'](inputs=tf.constant(examples))
  expected = serve['serving_default'](text=tf.constant(texts))
  np.testing.assert_array_equal(found['scores'], expected['probabilities'])
  ids = serve['tokenise'](text=tf.constant(texts))['token_ids']
  by_ids = serve['serve_token_ids'](token_ids=ids)
  np.testing.assert_array_equal(by_ids['logits'], expected['logits'])
  below = tf.saved_model.load(str(tmp_path / '1' / 'token_ids')).signatures
  assert set(below) == {'serving_default', 'serve_token_ids'}


def test_every_signature_is_warmed_up(task, model, tmp_path):
  """With requests that it answers."""
  serve = load(task, model, tmp_path / '1')
  names = []
  for log in logs(tmp_path / '1'):
    kind = log.WhichOneof('log_type')
    request = getattr(log, kind).request
    name = request.model_spec.signature_name
    names.append(name)
    if kind == 'predict_log':
      given = {k: tf.make_ndarray(v) for k, v in request.inputs.items()}
    else:
      assert (kind, name) == ('classify_log', 'classify')
      examples = request.input.example_list.examples
      given = {'inputs': [each.SerializeToString() for each in examples]}
    outputs = serve[name](**{k: tf.constant(v) for k, v in given.items()})
    assert all(value.shape[0] == 1 for value in outputs.values())
  assert sorted(names) == sorted(serve)


def test_the_fingerprint_is_that_of_the_marked_model(task, model, tmp_path):
  saved_model.export(task, model, tmp_path / '1')
  read = tf.saved_model.experimental.read_fingerprint
  found = read(str(tmp_path / '1'))
  plain = tmp_path / 'plain'
  shutil.copytree(tmp_path / '1', plain)
  updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(
    str(plain)
  )
  updater.replace_method_name('classify', 'tensorflow/serving/predict')
  updater.save()
  serving_signatures.fingerprinting_utils.write_fingerprint(str(plain))
  assert found.saved_model_checksum != read(str(plain)).saved_model_checksum


def test_a_model_of_an_older_release_gives_way(tmp_path):
  run = run_directory.RunDirectory(tmp_path, 'run')
  above = run.model.parent
  for name in ('variables', 'assets', 'token_ids', '1', 'own'):
    (above / name).mkdir(parents=True)
  for name in ('saved_model.pb', 'fingerprint.pb', 'own.txt'):
    (above / name).touch()
  exporter.remove_unversioned(above)
  assert sorted(each.name for each in above.iterdir()) == [
    '1',
    'own',
    'own.txt',
  ]
