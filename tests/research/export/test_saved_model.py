"""The SavedModel: signatures, what loading needs, atomic replacement."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from research.export import parity, saved_model
from research.training import fault_injection
from tests.research.export import conftest

CLI = [sys.executable, '-m', 'tensorflow.python.tools.saved_model_cli']


def run(command, **kwargs):
  return subprocess.run(
    [os.fspath(part) for part in command],
    check=True,
    capture_output=True,
    text=True,
    **kwargs,
  ).stdout


@pytest.fixture
def exported(task, model, tmp_path):
  return saved_model.export(task, model, tmp_path / 'model')


def kernel(directory):
  return tf.saved_model.load(os.fspath(directory)).weights[0].numpy()


def names(directory):
  return sorted(path.name for path in directory.iterdir())


def test_signatures_are_described(exported, tmp_path):
  outputs = {
    'class': {'dtype': 'int64', 'shape': [None]},
    'logits': {'dtype': 'float32', 'shape': [None, 10]},
    'probabilities': {'dtype': 'float32', 'shape': [None, 10]},
  }
  image = {'dtype': 'uint8', 'shape': [None, 8, 8, 1]}
  assert exported.signatures == {
    'serving_default': {'inputs': {'image': image}, 'outputs': outputs},
    'serve_float': {
      'inputs': {'image': {**image, 'dtype': 'float32'}},
      'outputs': outputs,
    },
    'classify': {
      'inputs': {'inputs': {'dtype': 'string', 'shape': [None]}},
      'outputs': {
        'classes': {'dtype': 'string', 'shape': [None, 10]},
        'scores': {'dtype': 'float32', 'shape': [None, 10]},
      },
    },
  }
  assert exported.directory == tmp_path / 'model'
  assert names(tmp_path) == ['model']


def test_preprocessing_is_inside(exported, model):
  """uint8, scaled by the graph, is what the Keras model makes of x / 255."""
  image = np.random.default_rng(0).integers(0, 256, [5, 8, 8, 1], np.uint8)
  scaled = image.astype(np.float32) / np.float32(255)
  signatures = tf.saved_model.load(os.fspath(exported.directory)).signatures
  logits = model(scaled).numpy()
  exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
  expected = {
    'logits': logits,
    'probabilities': exponentials / exponentials.sum(axis=1, keepdims=True),
    'class': logits.argmax(axis=1),
  }
  for name, given in (('serving_default', image), ('serve_float', scaled)):
    outputs = signatures[name](image=tf.constant(given))
    assert sorted(outputs) == sorted(expected)
    for key, value in expected.items():
      np.testing.assert_allclose(outputs[key], value, atol=1e-6, rtol=0)


def test_dropout_is_off(tmp_path):
  task = conftest.make_task(model='ddp_cnn')
  model = task.build_keras_model()
  saved_model.export(task, model, tmp_path / 'model')
  serve = tf.saved_model.load(os.fspath(tmp_path / 'model')).signatures
  image = np.full([3, 8, 8, 1], 0.5, np.float32)
  logits = serve['serve_float'](image=tf.constant(image))['logits']
  np.testing.assert_allclose(logits, model(image, training=False), atol=1e-6)


def test_loads_in_a_process_without_tff_and_without_our_code(
  exported, model, tmp_path
):
  np.save(
    tmp_path / 'image.npy', np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1)
  )
  program = """
import sys, numpy as np, tensorflow as tf
serve = tf.saved_model.load('model').signatures['serving_default']
logits = serve(image=tf.constant(np.load('image.npy')))['logits'].numpy()
forbidden = {'tensorflow_federated', 'models', 'research', 'datasets'}
assert not forbidden & set(sys.modules), forbidden & set(sys.modules)
print(*map(repr, logits[0].tolist()))
"""
  output = run(
    [sys.executable, '-c', program],
    cwd=tmp_path,
    env={**os.environ, 'PYTHONPATH': ''},
  )
  image = np.arange(64, dtype=np.float32).reshape(1, 8, 8, 1) / 255
  np.testing.assert_allclose(
    np.array(output.split(), np.float64), model(image)[0], atol=1e-6
  )


def test_saved_model_cli_shows_and_runs_it(exported, model, tmp_path):
  shown = run(
    [*CLI, 'show', '--dir', exported.directory]
    + ['--tag_set', 'serve', '--signature_def', 'serving_default']
  )
  assert "inputs['image'] tensor_info:\n      dtype: DT_UINT8" in shown
  assert 'shape: (-1, 8, 8, 1)' in shown
  for output in ('class', 'logits', 'probabilities'):
    assert f"outputs['{output}']" in shown

  np.save(tmp_path / 'image.npy', np.full([2, 8, 8, 1], 255, np.uint8))
  run(
    [*CLI, 'run', '--dir', exported.directory]
    + ['--tag_set', 'serve', '--signature_def', 'serving_default']
    + ['--inputs', f'image={tmp_path / "image.npy"}']
    + ['--outdir', tmp_path / 'out']
  )
  logits = np.load(tmp_path / 'out' / 'logits.npy')
  expected = model(np.ones([2, 8, 8, 1], np.float32))
  np.testing.assert_allclose(logits, expected, atol=1e-6)


def test_clustering(tmp_path):
  task = conftest.make_task('clustering', 'k_means', num_classes=3)
  model = task.build_keras_model()
  exported = saved_model.export(task, model, tmp_path / 'model')
  assert exported.signatures['serving_default']['outputs'] == {
    'cluster': {'dtype': 'int64', 'shape': [None]},
    'squared_distances': {'dtype': 'float32', 'shape': [None, 3]},
  }
  signatures = tf.saved_model.load(os.fspath(exported.directory)).signatures
  image = np.random.default_rng(0).integers(0, 256, [5, 8, 8, 1], np.uint8)
  outputs = signatures['serving_default'](image=tf.constant(image))
  (centroids,) = model.get_weights()
  x = image.reshape(5, 1, 64) / 255
  distances = np.square(x - centroids).sum(axis=2)
  np.testing.assert_allclose(outputs['squared_distances'], distances, rtol=1e-5)
  np.testing.assert_array_equal(outputs['cluster'], distances.argmin(axis=1))


def test_reconstruction(tmp_path):
  task = conftest.make_task('reconstruction', 'autoencoder')
  model = task.build_keras_model()
  exported = saved_model.export(task, model, tmp_path / 'model')
  assert exported.signatures['serving_default']['outputs'] == {
    'reconstruction': {'dtype': 'float32', 'shape': [None, 8, 8, 1]}
  }


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'num_classes': 3}, r'logits of shape \[None, 10\].*needs \[None, 3\]'),
    ({'kind': 'ranking'}, "kind 'ranking'"),
    ({'kind': 'reconstruction'}, r'needs \[None, 8, 8, 1\]'),
  ],
)
def test_a_model_that_does_not_fit_the_task_is_refused(
  model, tmp_path, given, message
):
  with pytest.raises(saved_model.ExportError, match=message):
    saved_model.export(conftest.make_task(**given), model, tmp_path / 'model')
  assert not names(tmp_path)


def change(model):
  model.trainable_variables[0].assign_add(
    tf.ones_like(model.trainable_variables[0])
  )


def test_a_second_export_replaces_the_first(exported, task, model, tmp_path):
  before = kernel(exported.directory)
  change(model)
  saved_model.export(task, model, exported.directory)
  np.testing.assert_allclose(kernel(exported.directory), before + 1, atol=1e-6)
  assert names(tmp_path) == ['model']


def test_replacing_leaves_no_moment_without_a_model(
  exported, task, model, monkeypatch
):
  """At each rename there is a model; without an exchange this can't be."""
  real, seen = os.rename, []

  def rename(*args, **kwargs):
    seen.append(args)
    return real(*args, **kwargs)

  monkeypatch.setattr(os, 'rename', rename)
  saved_model.export(task, model, exported.directory)
  assert not seen


def test_an_exception_leaves_the_earlier_model(
  exported, task, model, tmp_path, monkeypatch
):
  before = kernel(exported.directory)
  change(model)

  def fail(point):
    assert point == 'export'
    raise KeyboardInterrupt

  monkeypatch.setattr(fault_injection, 'reached', fail)
  with pytest.raises(KeyboardInterrupt):
    saved_model.export(task, model, exported.directory)
  np.testing.assert_array_equal(kernel(exported.directory), before)
  assert names(tmp_path) == ['model']


def test_sigkill_leaves_the_earlier_model(exported, tmp_path):
  before = kernel(exported.directory)
  program = """
import sys
from research.export import saved_model
from tests.research.export import conftest
task = conftest.make_task()
model = task.build_keras_model()
model.trainable_variables[0].assign_add(model.trainable_variables[0])
saved_model.export(task, model, sys.argv[1])
"""
  killed = subprocess.run(
    [sys.executable, '-c', program, os.fspath(exported.directory)],
    env={**os.environ, fault_injection.VARIABLE: 'export:1'},
  )
  assert killed.returncode == -signal.SIGKILL
  np.testing.assert_array_equal(kernel(exported.directory), before)
  # What it leaves is recognised by its name and removed with the next start.
  assert names(tmp_path) != ['model']
  assert saved_model.atomic.remove_leftovers(tmp_path)
  assert names(tmp_path) == ['model']


def test_a_model_that_fails_verification_is_not_put_in_place(
  exported, task, model, tmp_path
):
  before = kernel(exported.directory)
  change(model)

  def refuse(directory):
    assert kernel(directory)[0, 0] == pytest.approx(before[0, 0] + 1, abs=1e-6)
    raise parity.ParityError('no')

  with pytest.raises(parity.ParityError):
    saved_model.export(task, model, exported.directory, verify=refuse)
  np.testing.assert_array_equal(kernel(exported.directory), before)
  result = saved_model.export(
    task, model, exported.directory, verify=lambda directory: directory.name
  )
  assert result.verification != 'model'
