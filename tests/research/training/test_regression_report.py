"""The tables and pictures of a finished regression."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from datasets import federated_data, synthetic_regression
from models import linear
from research.algorithms import federated_sums
from research.runtime import in_process
from research.tasks import linear_regression as tasks
from research.training import evaluation, regression_report, run_directory
from tests import toy

FORM = synthetic_regression.Config(
  clients=4, features=3, targets=2, examples=60, beta=2.0, noise=0.5
)


@pytest.fixture(scope='module')
def runtime():
  with in_process.InProcessRuntime() as started:
    yield started


@pytest.fixture(scope='module')
def task(runtime):
  data = synthetic_regression.load(FORM)
  features, targets = tasks.standardise(data, 'linear')
  return tasks.build(data, 'linear', linear.Features(features), targets)


@pytest.fixture(scope='module')
def fit(task):
  return federated_sums.fit('linear', task.data.train, task.preprocess, 3, 2)


def set_weights(evaluator, weights):
  evaluator.model.set_weights([weights[:-1], weights[-1]])


def test_coefficients_in_units_are_least_squares_on_raw_data(task, fit):
  table = regression_report.coefficients(task, fit.weights, fit)
  x, y = task.data.train.pooled().values()
  z = np.c_[x, np.ones(len(x))].astype(np.float64)
  expected, squares, *_ = np.linalg.lstsq(z, y.astype(np.float64), rcond=None)
  inverse = np.diag(np.linalg.inv(z.T @ z))
  errors = np.sqrt(np.outer(inverse, squares / (len(x) - 4)))
  assert list(table['feature'][::2]) == ['x_0', 'x_1', 'x_2', '(intercept)']
  assert list(table['output'][:2]) == ['y_0', 'y_1']
  for name, values in (
    ('coefficient_in_units', expected),
    ('standard_error_in_units', errors),
  ):
    found = table[name].to_numpy().reshape(4, 2)
    np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-5)


def test_products_of_features_have_no_units(task, fit):
  features = linear.Features(task.features.standardisation, 2)
  squared = tasks.build(task.data, 'linear', features, task.targets)
  table = regression_report.coefficients(squared, np.zeros([10, 2]), None)
  assert 'coefficient_in_units' not in table
  assert table['standard_error'].isna().all()


def test_quality_is_that_of_scikit_learn(task, fit):
  evaluator = evaluation.Evaluator(task)
  set_weights(evaluator, fit.weights)
  table = regression_report.clients(task, evaluator)
  rows = table.set_index(['split', 'client', 'target'])
  client = task.data.test.client_ids[1]
  standard = task.features.standardisation
  for name, arrays in (
    (client, task.data.test.client(client)),
    (regression_report.POOLED, task.data.test.pooled()),
  ):
    z = (arrays['x'] - np.array(standard.means)) / np.array(standard.scales)
    predicted = z @ fit.weights[:-1] + fit.weights[-1]
    predicted = predicted * task.targets.scales + task.targets.means
    row = rows.loc[('test', name, 'y_1')]
    y = arrays['y'][:, 1]
    expected = sklearn_metrics.r2_score(y, predicted[:, 1])
    np.testing.assert_allclose(row['r2'], expected, rtol=1e-5)
    error = sklearn_metrics.mean_squared_error(y, predicted[:, 1]) ** 0.5
    np.testing.assert_allclose(row['rmse'], error, rtol=1e-5)
    assert row['examples'] == len(y)
  assert len(table) == 2 * (4 + 4 + 2)


def test_equal_targets_have_no_r2():
  rmse, r2 = regression_report.quality(np.ones(3), np.array([1, 1, 4]))
  assert rmse == pytest.approx(3**0.5)
  assert np.isnan(r2)


def test_the_files_are_written(task, fit, tmp_path):
  evaluator = evaluation.Evaluator(task)
  set_weights(evaluator, fit.weights + 0.25)
  run = run_directory.RunDirectory(tmp_path, 'run')
  run.path.mkdir()
  text = regression_report.write(run, task, evaluator, 0.1)
  assert 'difference from the pooled solution 2.5e-01' in text
  for name in ('coefficients.csv', 'clients.csv', 'plots/coefficients.png'):
    assert (run.path / name).stat().st_size, name
  for name in ('residuals', 'drift'):
    assert (run.plots / f'{name}.png').stat().st_size
  drifts = regression_report.drift_by_steps(task, fit.weights, 0.1)
  assert drifts[1] < 1e-6 < drifts[10] < drifts[100]
  assert not regression_report.drift_by_steps(task, fit.weights, 1e3)


def test_a_model_without_a_pooled_solution_is_still_reported(tmp_path, runtime):
  x = np.arange(12, dtype=np.float32)[:, np.newaxis]
  client = {'x': x, 'y': (x[:, 0] > 5).astype(np.int32)}
  split = federated_data.Split.from_client_arrays({'a': client})
  data = federated_data.FederatedData(
    name='separated',
    partition='natural',
    train=split,
    validation=None,
    test=split,
    num_classes=2,
    class_names=('low', 'high'),
    source=toy.SOURCE,
    content_sha256='0' * 64,
    feature_names=('a',),
  )
  features, targets = tasks.standardise(data, 'logistic')
  task = tasks.build(data, 'logistic', linear.Features(features), targets)
  run = run_directory.RunDirectory(tmp_path, 'run')
  run.path.mkdir()
  evaluator = evaluation.Evaluator(task)
  text = regression_report.write(run, task, evaluator)
  assert 'no pooled solution' in text
  assert 'accuracy' in (run.path / 'clients.csv').read_text()
