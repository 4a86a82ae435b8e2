"""Regression tasks: standardisation inside, units outside."""

import numpy as np
import pytest
import tensorflow as tf

from datasets import regression
from models import linear
from research.export import saved_model
from research.tasks import linear_regression as tasks

FEATURES = linear.Standardisation((48.0,) * 10, (13.0,) * 10)
TARGETS = linear.Standardisation((150.0,), (77.0,))


@pytest.fixture(scope='module')
def diabetes():
  return regression.load(regression.Config('diabetes', num_clients=3))


@pytest.mark.parametrize('degree', [1, 2])
def test_the_exported_model_takes_and_gives_units(diabetes, degree, tmp_path):
  features = linear.Features(FEATURES, degree)
  task = tasks.build(diabetes, 'linear', features, TARGETS)
  model = task.build_keras_model()
  rng = np.random.default_rng(0)
  kernel = 0.1 * rng.normal(size=(len(features.products), 1))
  model.set_weights([kernel, np.array([0.3])])
  exported = saved_model.export(task, model, tmp_path / 'model')
  x = diabetes.test.client('test')['x'][:20]
  z = (x.astype(np.float64) - 48) / 13
  columns = [np.prod(z[:, list(p)], axis=1) for p in features.products]
  expected = 150 + 77 * (np.stack(columns, axis=1) @ kernel + 0.3)
  serve = tf.saved_model.load(str(exported.directory)).signatures[
    'serving_default'
  ]
  found = serve(features=tf.constant(x))['prediction'].numpy()
  np.testing.assert_allclose(found, expected, rtol=2e-5)
  assert exported.signatures['serving_default']['inputs'] == {
    'features': {'dtype': 'float32', 'shape': [None, 10]}
  }


def test_targets_are_standardised_for_training_alone(diabetes):
  task = tasks.build(diabetes, 'linear', linear.Features(FEATURES), TARGETS)
  batch = diabetes.test.client('test')
  y = task.preprocess(batch)['y'].numpy()
  np.testing.assert_allclose(y, (batch['y'] - 150) / 77, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(task.postprocess(y), batch['y'], rtol=1e-5)


def test_poisson_predicts_counts():
  data = regression.load(regression.Config('synthetic_counts'))
  identity = linear.Standardisation.identity
  task = tasks.build(data, 'poisson', linear.Features(identity(5)), identity(1))
  outputs = tf.constant([[0.0], [np.log(7.0)]])
  np.testing.assert_allclose(task.postprocess(outputs), [[1], [7]], rtol=1e-6)


def test_logistic_regression_is_classification():
  data = regression.load(regression.Config('breast_cancer'))
  identity = linear.Standardisation.identity
  task = tasks.build(
    data, 'logistic', linear.Features(identity(30)), identity(1)
  )
  assert task.kind == 'classification'
  assert task.predictor_names == ('benign',)
  outputs = saved_model.servable_outputs(
    task, task.build_keras_model(), tf.zeros([2, 30])
  )
  np.testing.assert_array_equal(outputs['probabilities'], np.full([2, 2], 0.5))


@pytest.mark.parametrize(
  'family, message',
  [('poisson', 'are classes'), ('linear', 'are classes')],
)
def test_data_of_another_kind_is_refused(family, message):
  data = regression.load(regression.Config('breast_cancer'))
  identity = linear.Standardisation.identity
  with pytest.raises(ValueError, match=message):
    tasks.build(data, family, linear.Features(identity(30)), identity(1))


def test_a_standardisation_of_another_size_is_refused(diabetes):
  identity = linear.Standardisation.identity
  with pytest.raises(ValueError, match='feature_means .* 10 numbers'):
    tasks.build(diabetes, 'linear', linear.Features(identity(9)), TARGETS)
  with pytest.raises(ValueError, match='target_means .* 1 numbers'):
    tasks.build(diabetes, 'linear', linear.Features(FEATURES), identity(2))
