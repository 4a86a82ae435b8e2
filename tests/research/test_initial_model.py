"""A warm start takes exactly the exported weights, or names what differs."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from absl import flags

from models import bert, quantization, weight_store
from research import initial_model
from research.export import saved_model
from tests import toy
from tests.research.export import form_tasks, text_tasks

WEIGHTS = (0.25, -3.0, 7.5)
LORA = bert.FineTuning('lora', lora_rank=2)


def linear(**kwargs):
  return toy.linear_task(toy.random_clients(), **kwargs)


def export(task, model, root):
  """Only what `apply` reads; the toy task is none that can be exported."""
  module = tf.Module()
  module.weights = list(model.variables)
  tf.saved_model.save(module, str(root / 'run' / 'model'))
  return root / 'run'


@pytest.fixture
def store(tmp_path):
  return weight_store.WeightStore(tmp_path / 'weights')


@pytest.fixture
def exported(tmp_path):
  task = linear(initial_weights=WEIGHTS)
  return export(task, task.build_keras_model(), tmp_path)


def test_nothing_given_changes_nothing():
  task = linear()
  assert initial_model.apply(task, None) is task
  assert initial_model.apply(task, '') is task


def test_models_start_from_the_exported_weights(exported, store):
  task = initial_model.apply(linear(), exported, store)
  (kernel,) = task.build_keras_model().get_weights()
  np.testing.assert_array_equal(kernel[:, 0], np.float32(WEIGHTS))
  assert task.initial_weights_sha256


def test_clients_and_server_start_from_them(exported, store):
  """TFF builds the model in graphs of its own."""
  task = initial_model.apply(linear(), exported, store)
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    model = task.model_fn()
    session.run(tf.compat.v1.global_variables_initializer())
    (kernel,) = session.run(list(model.trainable_variables))
  np.testing.assert_array_equal(kernel[:, 0], np.float32(WEIGHTS))


def test_the_hash_depends_on_the_weights(exported, store, tmp_path):
  first = initial_model.apply(linear(), exported, store)
  again = initial_model.apply(linear(), exported / 'model', store)
  assert first.initial_weights_sha256 == again.initial_weights_sha256
  (tmp_path / 'other').mkdir()
  task = linear()
  other = export(task, task.build_keras_model(), tmp_path / 'other')
  changed = initial_model.apply(linear(), other, store)
  assert changed.initial_weights_sha256 != first.initial_weights_sha256


def test_another_shape_is_named(exported, store):
  task = linear(initial_weights=(1.0, 2.0))
  message = r'its shared/kernel:0 has the shape \(3, 1\).* needs \(2, 1\)'
  with pytest.raises(flags.IllegalFlagValueError, match=message):
    initial_model.apply(task, exported, store)


def test_what_lacks_is_named(exported, store):
  with pytest.raises(
    flags.IllegalFlagValueError, match=r'has no own/kernel:0 of shape \(1, 1\)'
  ):
    initial_model.apply(linear(scale=2.0), exported, store)


def test_what_is_too_much_is_named(store, tmp_path):
  task = linear(scale=2.0)
  directory = export(task, task.build_keras_model(), tmp_path)
  with pytest.raises(
    flags.IllegalFlagValueError, match='describe has no own/kernel:0'
  ):
    initial_model.apply(linear(), directory, store)


def test_no_model_is_one_line(store, tmp_path):
  with pytest.raises(
    flags.IllegalFlagValueError, match='neither a run directory'
  ):
    initial_model.apply(linear(), tmp_path / 'none', store)


def test_images(store, tmp_path):
  task, model = form_tasks.images()
  saved_model.export(task, model, tmp_path / 'model')
  started = initial_model.apply(task, tmp_path / 'model', store)
  for found, wanted in zip(
    started.build_keras_model().get_weights(), model.get_weights(), strict=True
  ):
    np.testing.assert_array_equal(found, wanted)


def test_texts_in_evaluation_and_for_clients(store, tmp_path):
  """All of one encoder goes on, whose layers have weights of one name."""
  task = text_tasks.make()
  model = text_tasks.trained(task)
  saved_model.export(task, model, tmp_path / 'model')
  other = text_tasks.make(seed=4)
  started = initial_model.apply(other, tmp_path / 'model', store)
  assert started.initial_weights_sha256 != other.initial_weights_sha256
  ids = text_tasks.token_ids(task)
  for build in (started.build_keras_model, started.build_client_keras_model):
    np.testing.assert_array_equal(build()(ids), model(ids))
  assert not np.allclose(other.build_keras_model()(ids), model(ids))


def test_a_quantized_model_starts_another_one_with_its_ranges(store, tmp_path):
  plain = form_tasks.images()[0]
  task = plain.quantized(quantization.Settings())
  model = form_tasks.measured(task)
  saved_model.export(task, model, tmp_path / 'model')
  started = initial_model.apply(task, tmp_path, store).build_keras_model()
  for found, expected in zip(started.weights, model.weights, strict=True):
    np.testing.assert_array_equal(found, expected, found.name)
  message = 'logits/post_activation_max.* --quantize=qat, which this run lacks'
  with pytest.raises(flags.IllegalFlagValueError, match=message):
    initial_model.apply(plain, tmp_path, store)


def test_lora_begins_anew_beside_merged_kernels(store, tmp_path):
  task = text_tasks.make(tuning=LORA)
  model = text_tasks.trained(task)
  saved_model.export(task, model, tmp_path / 'model')
  started = initial_model.apply(task, tmp_path / 'model', store)
  ids = text_tasks.token_ids(task)
  found = started.build_keras_model()
  np.testing.assert_allclose(found(ids), model(ids), atol=1e-5)
  added = [v for v in found.trainable_variables if 'lora_b' in v.name]
  assert added and not any(np.any(v.numpy()) for v in added)


def test_starting_from_is_kept_by_a_copy(exported, store):
  task = initial_model.apply(linear(), exported, store)
  copy = dataclasses.replace(task, name='copy')
  (kernel,) = copy.build_keras_model().get_weights()
  np.testing.assert_array_equal(kernel[:, 0], np.float32(WEIGHTS))
