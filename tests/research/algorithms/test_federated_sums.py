"""Federated sums against pooled data and independent solvers."""

import collections

import numpy as np
import pytest
import tensorflow as tf
from scipy import optimize

from datasets import federated_data
from models import linear
from research.algorithms import federated_sums
from research.runtime import in_process, stock


@pytest.fixture(scope='module', autouse=True)
def runtime():
  with in_process.InProcessRuntime() as started:
    yield started


def split(y_of, sizes=(300, 1, 40), seed=0):
  """Clients whose features differ in means; one has a single example."""
  rng = np.random.default_rng(seed)
  clients = {}
  for k, size in enumerate(sizes):
    x = (rng.normal(size=(size, 3)) + k * np.array([1, 0, -1])).astype('f4')
    clients[f'c{k}'] = {'x': x, 'y': y_of(rng, x.astype(np.float64))}
  clients['empty'] = {'x': x[:0], 'y': clients['c2']['y'][:0]}
  return federated_data.Split.from_client_arrays(clients)


def numbers(rng, x):
  y = x @ [[1, 2], [0, -1], [3, 0]] + [5, -5] + rng.normal(size=(len(x), 2))
  return y.astype(np.float32)


def counts(rng, x):
  return rng.poisson(np.exp(x @ [[0.3], [-0.2], [0.1]] + 4)).astype('f4')


def classes(rng, x):
  logits = np.c_[np.zeros(len(x)), x @ [[1, 0], [0.5, -1], [0, 1]]]
  noisy = logits + rng.gumbel(size=logits.shape)
  return np.argmax(noisy, axis=1).astype(np.int32)


def plain(batch):
  return collections.OrderedDict(x=batch['x'], y=batch['y'])


def design(data):
  x, y = data.pooled().values()
  return np.c_[x, np.ones(len(x))].astype(np.float64), y.astype(np.float64)


def test_moments_are_those_of_pooled_data():
  data = split(numbers)
  found = federated_sums.moments(data)
  z, y = design(data)
  assert found.num_examples == 341
  for name, values in (('x', z[:, :3]), ('y', y)):
    np.testing.assert_allclose(found.means[name], values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.deviations[name], values.std(0), rtol=1e-9)


def test_ridge_in_one_shot_is_centralised_ridge():
  data = split(numbers)
  penalty = 0.7
  found = federated_sums.fit('linear', data, plain, 3, 2, penalty)
  z, y = design(data)
  d = np.diag([1, 1, 1, 0])
  expected = np.linalg.solve(z.T @ z / 341 + penalty * d, z.T @ y / 341)
  np.testing.assert_allclose(found.weights, expected, rtol=1e-10)
  assert found.covariance is None


def test_the_first_sums_are_the_gram_matrix_and_moments():
  data = split(numbers)
  sums = federated_sums.likelihood_sums('linear', data, plain, 3, 2)
  datasets = [
    data.dataset(c, batch_size=7, seed=None) for c in data.client_ids[:3]
  ]
  found = sums(np.zeros([4, 2]), datasets)
  z, y = design(data)
  np.testing.assert_allclose(found['gradient'], -z.T @ y, rtol=1e-12)
  for k in range(2):
    for other in range(2):
      expected = z.T @ z if k == other else np.zeros([4, 4])
      curvature = np.asarray(found['curvature'])[:, k, :, other]
      np.testing.assert_allclose(curvature, expected, rtol=1e-12)


def test_least_squares_has_the_textbook_standard_errors():
  data = split(numbers)
  found = federated_sums.fit('linear', data, plain, 3, 2)
  z, y = design(data)
  expected, squares, *_ = np.linalg.lstsq(z, y, rcond=None)
  np.testing.assert_allclose(found.weights, expected, rtol=1e-9)
  inverse = np.diag(np.linalg.inv(z.T @ z))
  errors = np.sqrt(np.outer(inverse, squares / (341 - 4)))
  np.testing.assert_allclose(found.standard_errors, errors, rtol=1e-9)


def objective(family, z, y):
  def value(flat):
    weights = flat.reshape(4, -1)
    u = z @ weights
    if family == 'poisson':
      return np.mean(np.exp(u) - y * u)
    logits = np.c_[np.zeros(len(u)), u]
    own = np.take_along_axis(logits, y[:, None].astype(int), axis=1)
    return np.mean(np.log(np.exp(logits).sum(1)) - own[:, 0])

  return value


@pytest.mark.parametrize(
  'family, y_of, number', [('poisson', counts, 1), ('logistic', classes, 2)]
)
@pytest.mark.parametrize('penalty', [0.0, 0.05])
def test_newton_steps_find_what_another_optimizer_finds(
  family, y_of, number, penalty
):
  data = split(y_of)
  found = federated_sums.fit(family, data, plain, 3, number, penalty)
  z, y = design(data)
  plain_value = objective(family, z, y)

  def value(flat):
    return plain_value(flat) + penalty * np.sum(flat.reshape(4, -1)[:3] ** 2)

  start = found.weights.ravel() + 0.05
  other = optimize.minimize(value, start, method='BFGS', options={'gtol': 1e-8})
  np.testing.assert_allclose(found.weights.ravel(), other.x, atol=1e-5)
  if penalty:
    assert found.covariance is None
    return
  # The information is the second derivative of the negative log-likelihood.
  size = found.weights.size
  step = 1e-4
  hessian = np.zeros([size, size])
  moves = step * np.eye(size)
  for i in range(size):
    for j in range(size):
      at = found.weights.ravel()
      hessian[i, j] = sum(
        si * sj * plain_value(at + si * moves[i] + sj * moves[j])
        for si in (1, -1)
        for sj in (1, -1)
      ) / (4 * step**2)
  np.testing.assert_allclose(
    found.covariance,
    np.linalg.inv(hessian * len(z)),
    rtol=1e-3,
    atol=1e-3 * np.abs(found.covariance).max(),
  )


def test_dependent_features_give_the_solution_of_least_norm():
  data = split(numbers)

  def doubled(batch):
    x = tf.concat([batch['x'], batch['x'][:, :1]], axis=1)
    return collections.OrderedDict(x=x, y=batch['y'])

  found = federated_sums.fit('linear', data, doubled, 4, 2)
  z, y = design(data)
  z = np.c_[z[:, :3], z[:, 0], z[:, 3]]
  np.testing.assert_allclose(found.weights, np.linalg.pinv(z) @ y, atol=1e-8)
  assert found.covariance is None


def test_separated_classes_have_no_best_weights():
  data = split(lambda rng, x: (x[:, 0] > 0.5).astype(np.int32))
  with pytest.raises(federated_sums.FitError, match='do not converge'):
    federated_sums.fit('logistic', data, plain, 3, 1)
  found = federated_sums.fit('logistic', data, plain, 3, 1, 0.01)
  assert np.isfinite(found.weights).all()


def test_standardisation_is_rounded_and_leaves_constants():
  moments = federated_sums.Moments(
    3.0,
    {'x': np.array([1234.56789, 7.0, 0.0])},
    {'x': np.array([0.0123456789, 1e-9, 0.0])},
  )
  assert moments.standardisation('x') == linear.Standardisation(
    (1234.5678900, 7.0, 0.0), (0.0123457, 1.0, 1.0)
  )


def test_the_stock_runtime_finds_the_same():
  data = split(numbers)
  found = []
  for runtime in (in_process.InProcessRuntime(), stock.StockRuntime()):
    with runtime:
      moments = federated_sums.moments(data)
      fit = federated_sums.fit('linear', data, plain, 3, 2)
    found.append((moments.standardisation('x'), fit))
  assert found[0][0] == found[1][0]
  np.testing.assert_allclose(found[0][1].weights, found[1][1].weights)
