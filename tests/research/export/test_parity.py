"""The parity check passes for equal models, and only for those."""

import os
import tempfile

import numpy as np
import pytest
import tensorflow as tf

from models import quantization
from research.export import fresh_process, parity, saved_model
from tests.research.export import conftest

needs_openvino = pytest.mark.skipif(
  not parity.serving_python().exists(), reason='serving environment missing'
)


@pytest.fixture
def directory(task, model, tmp_path):
  return saved_model.export(task, model, tmp_path / 'model').directory


@pytest.fixture
def this_process(monkeypatch):
  """Saves the start of a TensorFlow process where that is not the point."""
  run = parity.run_script

  def run_here(script, python, directory, inputs):
    if script != 'fresh_process.py':
      return run(script, python, directory, inputs)
    with tempfile.TemporaryDirectory() as folder:
      given, results = (os.path.join(folder, n) for n in ('i.npz', 'o.npz'))
      np.savez(given, **inputs)
      fresh_process.main(os.fspath(directory), given, results)
      with np.load(results) as outputs:
        return dict(outputs)

  monkeypatch.setattr(parity, 'run_script', run_here)


@pytest.fixture
def no_openvino(monkeypatch, tmp_path):
  monkeypatch.setenv(parity.SERVING_PYTHON, os.fspath(tmp_path / 'none'))


def test_equal_models_pass(task, model, directory, no_openvino):
  report = parity.check(task, model, directory)
  result = report['tensorflow']
  assert report['batches'] == [1, 32]
  assert result['runtime'] == f'TensorFlow {tf.__version__}'
  assert result['tolerance'] == 1e-5
  assert result['max_abs_difference'] < 1e-5
  signatures = ('serving_default', 'serve_float')
  assert set(result['outputs']) == {
    f'{signature}/{batch}/{output}'
    for signature in signatures
    for batch in (1, 32)
    for output in ('class', 'logits', 'probabilities')
  }


def test_absent_openvino_is_said(
  this_process, task, model, directory, no_openvino
):
  report = parity.check(task, model, directory, batches=[1])
  reason = report['openvino']['not_run']
  assert reason.startswith('serving environment missing')
  assert parity.SERVING_PYTHON in reason
  assert 'openvino not run (serving environment missing' in parity.summary(
    report
  )


def test_other_weights_are_found(
  this_process, task, model, directory, no_openvino
):
  bias = model.trainable_variables[-1]
  bias.assign_add(tf.one_hot(3, 10) * 1e-3)
  with pytest.raises(parity.ParityError, match=r'logits.*beyond 1e-05'):
    parity.check(task, model, directory, batches=[1])


def test_weights_that_are_no_numbers_are_found(
  this_process, task, model, tmp_path, no_openvino
):
  bias = model.trainable_variables[-1]
  before = bias.numpy()
  bias.assign(bias * np.nan)
  exported = saved_model.export(task, model, tmp_path / 'nan')
  bias.assign(before)
  with pytest.raises(parity.ParityError, match='off by inf'):
    parity.check(task, model, exported.directory, batches=[1])


def test_a_broken_serving_environment_is_an_error(
  this_process, task, model, directory, monkeypatch, tmp_path
):
  python = tmp_path / 'python'
  python.write_text('#!/bin/sh\necho no openvino here >&2\nexit 1\n')
  python.chmod(0o755)
  monkeypatch.setenv(parity.SERVING_PYTHON, os.fspath(python))
  with pytest.raises(parity.ParityError, match='no openvino here'):
    parity.check(task, model, directory, batches=[1])


def difference(output, expected, actual, logits=None):
  key = f'serving_default/1/{output}'
  values = {'serving_default/1/logits': logits, key: np.array(expected)}
  return parity._difference(key, values[key], np.array(actual), values)


def test_difference_is_relative_to_the_largest_logit():
  assert difference('logits', [[400.0, 1.0]], [[400.0, 1.5]]) == (0.5, 400)
  assert difference('logits', [[0.4, 0.1]], [[0.4, 0.2]]) == (0.1, 1)


def test_difference_of_classes_is_that_of_their_logits():
  logits = np.array([[1.0, 3.0, 2.5]])
  assert difference('class', [1], [1], logits) == (0, 3)
  assert difference('class', [1], [2], logits) == (0.5, 3)


def test_difference_of_clusters_is_that_of_their_distances():
  values = {'a/1/squared_distances': np.array([[2.0, 0.5, 0.75]])}
  for chosen, expected in ((1, 0), (2, 0.25)):
    found = parity._difference(
      'a/1/cluster', np.array([1]), np.array([chosen]), values
    )
    assert found == (expected, 2)


def test_difference_of_forms_is_an_error():
  with pytest.raises(parity.ParityError, match='shape'):
    difference('logits', [[1.0, 2.0]], [[1.0]])
  with pytest.raises(parity.ParityError, match='int32'):
    difference('class', np.array([1]), np.array([1], np.int32))


@needs_openvino
@pytest.mark.parametrize(
  ('kind', 'model', 'shape'),
  [
    ('classification', 'mcmahan_cnn', (28, 28, 1)),
    ('classification', 'reddi_cnn', (8, 8, 1)),
    ('classification', 'resnet_gn', (32, 32, 3)),
    ('reconstruction', 'autoencoder', (8, 8, 1)),
    ('clustering', 'k_means', (8, 8, 1)),
  ],
)
def test_openvino_agrees(this_process, tmp_path, kind, model, shape):
  task = conftest.make_task(kind, model, shape)
  keras_model = task.build_keras_model()
  exported = saved_model.export(task, keras_model, tmp_path / 'model')
  report = parity.check(task, keras_model, exported.directory)
  result = report['openvino']
  assert result['runtime'].startswith('OpenVINO 20')
  assert 0 < result['max_difference'] <= result['tolerance'] == 1e-4
  outputs = {'classification': 'logits', 'clustering': 'cluster'}
  name = outputs.get(kind, kind)
  assert f'serving_default/32/{name}' in result['outputs']
  print(parity.summary(report))


@needs_openvino
def test_openvino_finds_other_weights(
  this_process, task, model, directory, monkeypatch
):
  model.trainable_variables[-1].assign_add(tf.one_hot(3, 10) * 1e-3)
  monkeypatch.setattr(parity, 'TENSORFLOW_TOLERANCE', 1.0)
  with pytest.raises(parity.ParityError, match='OpenVINO.*beyond 1e-04'):
    parity.check(task, model, directory, batches=[1])


def test_a_step_of_a_wide_range_is_a_small_difference():
  """Random images may give logits that are few steps of what digits give."""
  expected = {'a/1/logits': np.array([[0.5, -0.25]])}
  actual = {'a/1/logits': np.array([[0.5, -0.15]])}
  _, narrow = parity.compare('any', expected, actual)
  _, wide = parity.compare('any', expected, actual, least_scale=16.0)
  assert narrow == {'a/1/logits': pytest.approx(0.1)}
  assert wide == {'a/1/logits': pytest.approx(0.1 / 16)}


def test_the_range_of_a_quantized_output():
  task = conftest.make_task('classification', 'mcmahan_cnn', (28, 28, 1))
  built = task.build_keras_model()
  model = quantization.recipe(built, quantization.Settings())()
  low, high = quantization.ranges(model)[-2:]
  assert low.name.startswith('logits/') and high.name.startswith('logits/')
  assert parity._output_range(model) == 1.0
  low.assign(-20.0)
  high.assign(12.0)
  assert parity._output_range(model) == 20.0


@needs_openvino
def test_openvino_agrees_where_a_channel_is_pruned_to_zeros(tmp_path):
  task = conftest.make_task('classification', 'mcmahan_cnn', (28, 28, 1))
  task.quantization = quantization.Settings()
  built = task.build_keras_model()
  model = quantization.recipe(built, task.quantization)()
  images = np.random.default_rng(0).random([4, 28, 28, 1], np.float32)
  model(images, training=True)
  for variable in model.trainable_variables:
    if variable.name.startswith('conv_'):
      is_kept = np.arange(variable.shape[-1]) % 2
      variable.assign(variable * is_kept)
  exported = saved_model.export(task, model, tmp_path / 'model')
  report = parity.check(task, model, exported.directory)
  assert report['openvino']['max_difference'] <= parity.QUANTIZED_TOLERANCE
