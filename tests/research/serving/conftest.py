"""Small models as SavedModels, and what asks them in this process."""

import json
import types

import numpy as np
import pytest
import tensorflow as tf
import werkzeug.test

from research.export import saved_model
from research.serving import rest, servable
from tests.research.export import conftest as export_conftest

FEATURES = ('width', 'height', 'depth')


def regression_task(targets=('price',)):
  """A task on tables; its model is one dense layer."""

  def build():
    layer = tf.keras.layers.Dense(
      len(targets), kernel_initializer='ones', name='dense'
    )
    return tf.keras.Sequential([tf.keras.Input([len(FEATURES)]), layer])

  return types.SimpleNamespace(
    name='table',
    data=types.SimpleNamespace(feature_names=FEATURES, target_names=targets),
    kind='regression',
    class_names=(),
    build_keras_model=build,
    preprocess_features=lambda x: x,
    postprocess=lambda y: 2 * y,
    example_shape=(len(FEATURES),),
  )


def export(task, directory):
  return saved_model.export(task, task.build_keras_model(), directory)


class Client:
  """Posts JSON to an application; gives the status and the answer."""

  def __init__(self, application):
    self._client = werkzeug.test.Client(application)

  def post(self, path, body):
    if not isinstance(body, bytes):
      body = json.dumps(body).encode()
    answer = self._client.post(path, data=body)
    assert answer.content_type == 'application/json'
    return answer.status_code, json.loads(answer.data)

  def get(self, path):
    answer = self._client.get(path)
    return answer.status_code, json.loads(answer.data)


@pytest.fixture(scope='session')
def images_directory(tmp_path_factory):
  """A classifier of images [8, 8, 1]."""
  directory = tmp_path_factory.mktemp('images') / 'model' / '1'
  export(export_conftest.make_task(), directory)
  return directory


@pytest.fixture(scope='session')
def table_directory(tmp_path_factory):
  """A regression of three features: twice their sum."""
  directory = tmp_path_factory.mktemp('table') / 'model' / '1'
  export(regression_task(), directory)
  return directory


@pytest.fixture(scope='session')
def images(images_directory):
  return servable.Servable(images_directory)


@pytest.fixture(scope='session')
def table(table_directory):
  return servable.Servable(table_directory)


@pytest.fixture(scope='session')
def ask_images(images):
  limits = rest.Limits(body_bytes=100_000, batch_size=8)
  return Client(rest.Application('digits', {1: images}, limits=limits))


@pytest.fixture(scope='session')
def ask_table(table):
  return Client(rest.Application('table', {1: table}))


@pytest.fixture
def pixels():
  return np.random.default_rng(0).integers(0, 256, [3, 8, 8, 1], np.uint8)
