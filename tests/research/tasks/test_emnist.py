import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from datasets import federated_data, load
from research.tasks import emnist
from research.tasks import task as task_lib


def image_data(images):
  images = np.asarray(images)
  data = load.load(load.LoadConfig('synthetic_digits'))
  split = federated_data.Split.from_client_arrays(
    {'a': {'x': images, 'y': np.zeros(len(images), np.int32)}}
  )
  return dataclasses.replace(data, train=split, test=split)


def test_bytes_are_scaled_and_floats_are_taken_as_they_are():
  pixels = np.full([2, 8, 8, 1], 51, np.uint8)
  task = emnist.build('digit_recognition', image_data(pixels))
  assert np.allclose(task.preprocess_features(tf.constant(pixels)), 0.2)
  floats = tf.constant(pixels / 255, tf.float32)
  assert np.allclose(task.preprocess_features(floats), 0.2)


def test_floats_that_are_no_fractions_are_refused():
  pixels = np.full([2, 8, 8, 1], 51, np.float32)
  with pytest.raises(ValueError, match='from 51.0 to 51.0. Give uint8 pixels'):
    emnist.build('digit_recognition', image_data(pixels))


def test_the_autoencoder_learns_its_input():
  data = load.load(load.LoadConfig('synthetic_emnist_digits'))
  task = emnist.build('autoencoder', data)
  batch = data.train.client(data.train.client_ids[0])
  batch = task.preprocess({k: tf.constant(v[:2]) for k, v in batch.items()})
  np.testing.assert_array_equal(batch['x'], batch['y'])
  assert task.build_keras_model()(batch['x']).shape == batch['x'].shape


@pytest.mark.parametrize(
  'name, model, num_classes, message',
  [
    ('character_recognition', 'mcmahan_cnn', None, 'needs 62 classes'),
    ('digit_recognition', 'autoencoder', None, 'does not fit'),
    ('digit_recognition', 'k_means', None, 'does not fit'),
    ('clustering', 'mcmahan_2nn', None, 'does not fit'),
    ('image_classification', 'mcmahan_cnn', 3, '--num_classes is 3'),
  ],
)
def test_what_does_not_fit_together_is_refused(
  name, model, num_classes, message
):
  data = load.load(load.LoadConfig('synthetic_digits'))
  with pytest.raises(ValueError, match=message):
    emnist.build(name, data, model, num_classes=num_classes)


def test_a_model_may_have_more_classes_than_the_data():
  data = load.load(load.LoadConfig('synthetic_digits'))
  task = emnist.build(
    'image_classification', data, 'logistic_regression', num_classes=12
  )
  assert task.class_names[-2:] == ('10', '11')
  assert task.build_keras_model().output_shape == (None, 12)


def test_clusters_are_as_many_as_classes_or_as_asked_for():
  data = load.load(load.LoadConfig('synthetic_digits'))
  for asked, found in ((None, 10), (4, 4)):
    task = emnist.build('clustering', data, num_clusters=asked)
    assert task.kind == 'clustering'
    assert task.build_keras_model().output_shape == (None, found)


def test_mixed_precision_changes_what_clients_train_and_nothing_else():
  data = load.load(load.LoadConfig('synthetic_digits'))
  exact = emnist.build('digit_recognition', data, 'mcmahan_2nn', seed=4)
  assert task_lib.in_mixed_precision(exact, 'none') is exact
  mixed = task_lib.in_mixed_precision(exact, 'bfloat16')
  batch = tf.nest.map_structure(
    tf.constant, data.train.client(data.train.client_ids[0])
  )
  batch = {key: t.numpy() for key, t in exact.preprocess(batch).items()}
  measured, predictions = [], []
  for task in (exact, mixed):
    with tf.Graph().as_default():
      model = task.model_fn()
      with tf.control_dependencies([model.forward_pass(batch).loss]):
        metrics = model.report_local_unfinalized_metrics()
      output = model.predict_on_batch(batch['x'], training=False)
      with tf.compat.v1.Session() as session:
        variables = [*model.trainable_variables, *model.local_variables]
        session.run(tf.compat.v1.variables_initializer(variables))
        weights = session.run(list(model.trainable_variables))
        measured.append(session.run(metrics))
        predictions.append(session.run(output))
  assert all(weight.dtype == np.float32 for weight in weights)
  for mine, its in zip(
    weights, exact.build_keras_model().get_weights(), strict=True
  ):
    np.testing.assert_array_equal(mine, its)
  assert measured[0].keys() == measured[1].keys()
  assert measured[0]['num_examples'] == measured[1]['num_examples']
  np.testing.assert_allclose(predictions[1], predictions[0], atol=0.05)
  assert not np.array_equal(predictions[1], predictions[0])
  # What is evaluated and exported computes in float32.
  assert mixed.build_keras_model().compute_dtype == 'float32'
