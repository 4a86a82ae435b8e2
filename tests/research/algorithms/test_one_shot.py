"""Least squares in one round: against algebra, and its noise against theory."""

import collections

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from models import linear
from research.aggregators import dp
from research.algorithms import local_training, one_shot
from research.privacy import noise
from tests.research.runtime import equality

LOOP = tff.learning.LoopImplementation.DATASET_REDUCE
FEATURES, TARGETS = 3, 2


@pytest.fixture(scope='module', autouse=True)
def in_process():
  with equality.in_process_runtime('scan') as runtime:
    yield runtime


def clients(sizes=(7, 40, 12), seed=0):
  rng = np.random.default_rng(seed)
  found = []
  for size in sizes:
    x = rng.normal(loc=rng.normal(size=FEATURES), size=(size, FEATURES))
    y = x @ rng.normal(size=(FEATURES, TARGETS)) + rng.normal(size=TARGETS)
    found.append((x.astype(np.float32), y.astype(np.float32)))
  return found


def datasets(data):
  return [
    tf.data.Dataset.from_tensor_slices(collections.OrderedDict(x=x, y=y)).batch(
      5
    )
    for x, y in data
  ]


def model_fn(build=lambda: linear.build('linear', FEATURES, TARGETS)):
  return tff.learning.models.from_keras_model(
    build(),
    loss=tf.keras.losses.MeanSquaredError(),
    input_spec=datasets(clients())[0].element_spec,
  )


def build(ridge=0.0, aggregator=None):
  return one_shot.build(
    model_fn,
    loop_implementation=LOOP,
    one_shot_ridge=ridge,
    model_aggregator=aggregator,
  )


def pooled(data, ridge=0.0):
  """The solution by NumPy: W over b, float64 [features + 1, targets]."""
  x = np.concatenate([x for x, _ in data]).astype(np.float64)
  y = np.concatenate([y for _, y in data]).astype(np.float64)
  x = np.concatenate([x, np.ones([len(x), 1])], axis=1)
  penalty = ridge * np.diag([1.0] * FEATURES + [0.0])
  return np.linalg.solve(x.T @ x / len(x) + penalty, x.T @ y / len(x))


def weights(output):
  kernel, bias = output.state.global_model_weights.trainable
  return np.concatenate([np.asarray(kernel), np.asarray(bias)[np.newaxis]])


@pytest.mark.parametrize('ridge', [0.0, 0.3])
def test_one_round_of_all_clients_is_the_pooled_solution(ridge):
  process, data = build(ridge), clients()
  output = process.next(process.initialize(), datasets(data))
  np.testing.assert_allclose(weights(output), pooled(data, ridge), atol=1e-5)
  metrics = output.metrics['client_work']['train']
  assert metrics['num_examples'] == 59
  # Of the model before: that of zeros.
  y = np.concatenate([y for _, y in data])
  assert metrics['loss'] == pytest.approx(np.mean(y**2), rel=1e-5)


def test_a_broken_client_is_left_out_and_counted():
  data = clients()
  broken = [(np.full_like(data[0][0], np.nan), data[0][1]), *data[1:]]
  process = build()
  output = process.next(process.initialize(), datasets(broken))
  np.testing.assert_allclose(weights(output), pooled(data[1:]), atol=1e-5)
  assert output.metrics['aggregator']['rejected_clients'] == 1
  state = output.state
  output = process.next(state, datasets(broken[:1]))
  np.testing.assert_array_equal(
    weights(output),
    np.concatenate(
      [
        state.global_model_weights.trainable[0],
        [state.global_model_weights.trainable[1]],
      ]
    ),
  )


def test_directions_that_noise_leaves_undetermined_are_left_out():
  rows = np.array([[1.0, 2.0, 0.0, 1.0, 3.0]] * 2)
  kernel, bias = one_shot.solve(
    tf.constant(rows.T @ rows, tf.float32), FEATURES, 0.0
  )
  # The least-norm solution of one equation w . (1, 2, 0, 1) = 3.
  np.testing.assert_allclose(kernel[:, 0], [0.5, 1.0, 0.0], atol=1e-5)
  np.testing.assert_allclose(bias, [0.5], atol=1e-5)


def test_the_noise_of_the_solution_has_the_covariance_of_theory():
  """With noise E of standard deviation s in each product, made symmetric.

  To first order W - W_0 = A^-1 (e - E W_0), where A is the clients' Gram matrix
  and e the noise of its products with one target w: the covariance is s^2 / 2
  A^-1 ((1 + |w|^2) I + w w^T) A^-1.
  """
  data = clients(sizes=(300, 500), seed=1)
  clip_norm, multiplier, rounds = 5e4, 2e-6, 1500
  size = FEATURES + 1 + TARGETS
  process = dp.factory(dp.FixedClipQuery(clip_norm, multiplier, 2.0)).create(
    tff.TensorType(np.float32, [size, size]), tff.TensorType(np.float32)
  )
  rows = [np.concatenate([x, np.ones([len(x), 1]), y], axis=1) for x, y in data]
  sums = [(z.T @ z).astype(np.float32) for z in rows]
  solve = tf.function(lambda total: one_shot.solve(total, FEATURES, 0.0))
  start, found = process.initialize(), []
  for number in range(rounds):
    state = dp.with_noise_key(start, noise.insecure_key(7, number))
    total = process.next(state, sums, [np.float32(1)] * 2).result
    kernel, bias = solve(tf.constant(total))
    found.append(np.append(kernel[:, 0], bias[0]))
  x = np.concatenate([x for x, _ in data]).astype(np.float64)
  x = np.concatenate([x, np.ones([len(x), 1])], axis=1)
  w = pooled(data)[:, 0]
  inverse = np.linalg.inv(x.T @ x)
  core = (1 + w @ w) * np.eye(FEATURES + 1) + np.outer(w, w)
  variance = (clip_norm * multiplier) ** 2
  theory = variance / 2 * inverse @ core @ inverse
  # Whitened by theory the sample covariance is that of unit normals: its
  # entries are off by at most 5 standard errors, a false alarm in 1e5.
  half = np.linalg.cholesky(np.linalg.inv(theory))
  white = np.cov((np.array(found, np.float64) - w) @ half, rowvar=False)
  errors = np.sqrt((1 + np.eye(FEATURES + 1)) / rounds)
  assert (np.abs(white - np.eye(FEATURES + 1)) < 5 * errors).all()


def test_other_models_are_refused():
  def deep():
    inputs = tf.keras.Input((FEATURES,))
    hidden = tf.keras.layers.Dense(4)(inputs)
    return tf.keras.Model(inputs, tf.keras.layers.Dense(TARGETS)(hidden))

  with pytest.raises(local_training.UnsuitableError, match='this model has'):
    one_shot.build(
      lambda: model_fn(deep), loop_implementation=LOOP, one_shot_ridge=0.0
    )
