"""Functional models compute, differentiate and train as the Keras models."""

import collections

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from models import emnist, functional

LOSS = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def arguments(name):
  large = name in ('lenet5', 'niid_bench_cnn')
  shape = (28, 28, 1) if large else (8, 8, 1)
  return {'input_shape': shape, 'num_classes': 5, 'seed': 2}


def input_spec(shape):
  return collections.OrderedDict(
    x=tf.TensorSpec([None, *shape], tf.float32),
    y=tf.TensorSpec([None], tf.int32),
  )


def metrics():
  return [tf.keras.metrics.SparseCategoricalAccuracy('accuracy')]


def build_functional(name, metrics=metrics):
  given = arguments(name)
  loss = tf.keras.losses.MeanSquaredError() if name == 'autoencoder' else LOSS
  return emnist.build_functional(
    name,
    **given,
    loss_fn=loss,
    metrics=None if name == 'autoencoder' else metrics,
    input_spec=input_spec(given['input_shape']),
  )


def images(shape, count=6, seed=0):
  rng = np.random.default_rng(seed)
  return rng.random([count, *shape], np.float32)


@pytest.mark.parametrize(
  'name',
  [n for n in emnist.MODELS if n not in ('resnet18_gn', 'batch_norm_cnn')],
)
@pytest.mark.parametrize('training', [False, True])
def test_forward_is_that_of_keras(name, training):
  given = arguments(name)
  model = build_functional(name)
  x = images(given['input_shape'])

  with tf.Graph().as_default():
    output = model.predict_on_batch(
      model.initial_weights, tf.constant(x), training=training
    )
    with tf.compat.v1.Session() as session:
      actual = session.run(output)

  keras_model = emnist.build(name, **given)
  expected = keras_model(x, training=training).numpy()
  np.testing.assert_allclose(actual, expected, atol=1e-6, rtol=0)
  # Weights of the one can be assigned to the other, in this order.
  for mine, its in zip(
    model.initial_weights[0], keras_model.trainable_variables, strict=True
  ):
    np.testing.assert_array_equal(mine, its)


def client_data(seed, shape):
  rng = np.random.default_rng(seed)
  return tf.data.Dataset.from_tensor_slices(
    collections.OrderedDict(
      x=images(shape, 11, seed), y=rng.integers(0, 5, 11, np.int32)
    )
  ).batch(4)


def round_of(model, shape, loop):
  process = tff.learning.algorithms.build_weighted_fed_avg(
    model,
    client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.1),
    loop_implementation=loop,
  )
  state = process.initialize()
  clients = [client_data(seed, shape) for seed in range(3)]
  history = []
  for _ in range(2):
    state, output = process.next(state, clients)[:2]
    history.append(
      (
        [np.array(w) for w in process.get_model_weights(state).trainable],
        output['client_work']['train'],
      )
    )
  return history


@pytest.mark.usefixtures('stock_runtime')
@pytest.mark.parametrize('name', ['mcmahan_2nn', 'reddi_cnn'])
def test_one_round_is_that_of_the_variable_model(name):
  """Also with dropout, whichever way TFF loops over a client's batches."""
  given = arguments(name)
  loops = tff.learning.LoopImplementation

  def model_fn():
    return tff.learning.models.from_keras_model(
      emnist.build(name, **given),
      loss=LOSS,
      input_spec=input_spec(given['input_shape']),
      metrics=metrics(),
    )

  shape = given['input_shape']
  reference = round_of(model_fn, shape, loops.DATASET_REDUCE)
  functional_model = build_functional(name)
  histories = [round_of(functional_model, shape, loop) for loop in loops]
  for history in histories:
    for (weights, measured), (expected, their_metrics) in zip(
      history, reference, strict=True
    ):
      for one, other in zip(weights, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6, rtol=0)
      assert measured == pytest.approx(their_metrics, abs=1e-6)
      assert (measured['num_examples'], measured['num_batches']) == (33, 9)
  start = functional_model.initial_weights[0]
  assert any(
    np.abs(a - b).max() > 1e-3
    for a, b in zip(histories[0][0][0], start, strict=True)
  )


def dense_with(layer):
  def build():
    inputs = tf.keras.Input([4])
    hidden = layer()(tf.keras.layers.Dense(3)(inputs))
    return tf.keras.Model(inputs, hidden, name='mine')

  return build


@pytest.mark.parametrize(
  ('layer', 'message'),
  [
    (tf.keras.layers.BatchNormalization, 'mine has variables.*moving_mean'),
    (lambda: tf.keras.layers.Dropout(0.5, name='drop'), 'random state.*drop'),
    (lambda: tf.keras.layers.GaussianNoise(0.5, name='noise'), 'noise'),
  ],
)
def test_stateful_models_are_refused(layer, message):
  with pytest.raises(functional.StatefulModelError, match=message):
    functional.from_keras(
      dense_with(layer), loss_fn=LOSS, input_spec=input_spec((4,))
    )


def test_weights_in_another_order_than_keras_lists_them_are_refused():
  def build():
    inputs = tf.keras.Input([4])
    short = tf.keras.layers.Dense(2, kernel_initializer='ones')(inputs)
    long = tf.keras.layers.Dense(3, kernel_initializer='ones')(inputs)
    long = tf.keras.layers.Dense(2, kernel_initializer='ones')(long)
    return tf.keras.Model(inputs, tf.keras.layers.Add()([short, long]))

  with pytest.raises(ValueError, match='order of their depth'):
    functional.from_keras(build, loss_fn=LOSS, input_spec=input_spec((4,)))


def test_metrics_need_names_of_their_own():
  with pytest.raises(ValueError, match='same name: accuracy, accuracy'):
    build_functional('mcmahan_2nn', lambda: [*metrics(), *metrics()])
