"""Tasks of each kind whose models are as if trained, for tests of forms."""

import numpy as np
import tensorflow as tf

from datasets import load, regression
from models import linear
from research.tasks import emnist, linear_regression
from tests.research.export import text_tasks

_STEPS, _EXAMPLES = 60, 256


def images(kind='classification'):
  """A task on generated digits, and a model that has learned some of it."""
  name, model = {
    'classification': ('digit_recognition', 'mcmahan_2nn'),
    'reconstruction': ('autoencoder', 'autoencoder'),
    'clustering': ('clustering', 'k_means'),
  }[kind]
  data = load.load(load.LoadConfig('synthetic_digits'))
  task = emnist.build(name, data, model)
  return task, fitted(task)


def table(family='linear'):
  """A task on a table, and a model that has learned it."""
  dataset = {'linear': 'diabetes', 'logistic': 'breast_cancer'}[family]
  data = regression.load(regression.Config(dataset))
  pooled = data.train.pooled()
  features = linear.Features(_standardisation(pooled['x']))
  if family == 'linear':
    targets = _standardisation(pooled['y'].reshape(len(pooled['x']), -1))
  else:
    count = linear_regression.num_predictors(data)
    targets = linear.Standardisation.identity(count)
  task = linear_regression.build(data, family, features, targets)
  return task, fitted(task)


def _standardisation(values):
  values = values.astype(np.float64)
  means, scales = values.mean(axis=0), values.std(axis=0)
  return linear.Standardisation(tuple(means), tuple(scales))


def texts(name):
  """A task on generated texts, and a model that has learned some of it."""
  task = text_tasks.make(name)
  return task, fitted(task, rate=3e-3)


def measured(task):
  """A model of a quantized task on images that has seen a batch of them."""
  model = task.build_keras_model()
  images = task.data.train.pooled()['x'][:32]
  model(task.preprocess_features(tf.constant(images)), training=True)
  return model


def fitted(task, rate=1e-2):
  """A model after some steps on the same training examples."""
  model, loss = task.build_keras_model(), task.build_loss()
  pooled = {k: v[:_EXAMPLES] for k, v in task.data.train.pooled().items()}
  batch = task.preprocess({k: tf.constant(v) for k, v in pooled.items()})
  optimizer = tf.keras.optimizers.legacy.Adam(rate)

  @tf.function
  def step():
    with tf.GradientTape() as tape:
      value = loss(batch['y'], model(batch['x'], training=True))
    variables = model.trainable_variables
    optimizer.apply_gradients(
      zip(tape.gradient(value, variables), variables, strict=True)
    )

  for _ in range(_STEPS):
    step()
  return model
