"""Reports by class and by kind of span against numbers worked out by hand."""

import collections
import dataclasses
import functools
import json

import numpy as np
import pytest
import tensorflow as tf

from datasets import federated_data
from research.tasks import task as task_lib
from research.training import (
  classification_report,
  evaluation,
  plots,
  run_directory,
)
from tests import toy
from tests.research.training import test_evaluation

NAMES = ('ant', 'bee', 'cat')
# Of six examples; no cat is recognised.
LABELS = [0, 0, 0, 1, 1, 2]
CLASSES = [0, 0, 1, 1, 1, 0]


def task():
  """A model that calls each example the class its features show."""
  arrays = {
    'x': np.eye(3, dtype=np.float32)[CLASSES],
    'y': np.array(LABELS, np.int32),
  }
  clients = {
    'a': {key: array[:4] for key, array in arrays.items()},
    'b': {key: array[4:] for key, array in arrays.items()},
  }
  split = federated_data.Split.from_client_arrays(clients)
  data = toy.regression_data(toy.random_clients((1,)))
  model = functools.partial(
    tf.keras.Sequential,
    [tf.keras.Input((3,)), tf.keras.layers.Lambda(tf.identity)],
  )
  return task_lib.Task(
    name='toy',
    data=dataclasses.replace(
      data, train=split, test=split, class_names=NAMES, num_classes=3
    ),
    kind='classification',
    class_names=NAMES,
    build_keras_model=model,
    build_loss=functools.partial(
      tf.keras.losses.SparseCategoricalCrossentropy, from_logits=True
    ),
    build_metrics=list,
    preprocess_features=lambda x: x,
    preprocess=lambda batch: collections.OrderedDict(batch),
    example_shape=(3,),
    evaluation_batch_size=4,
  )


def write(directory, of_task):
  with run_directory.RunDirectory(directory, 'run') as run:
    evaluator = evaluation.Evaluator(of_task)
    return classification_report.write(run, of_task, evaluator)


def test_classes(tmp_path, monkeypatch):
  drawn, draw = [], plots.confusion_matrix

  def remember(matrix, names, path):
    drawn.append((matrix.tolist(), names))
    return draw(matrix, names, path)

  monkeypatch.setattr(plots, 'confusion_matrix', remember)
  text = write(tmp_path, task())
  report = json.loads((tmp_path / 'run/report.json').read_text())
  expected = {
    'ant': (2 / 3, 2 / 3, 2 / 3, 3),
    'bee': (2 / 3, 1, 0.8, 2),
    'cat': (0, 0, 0, 1),
    'macro avg': (4 / 9, 5 / 9, (2 / 3 + 0.8) / 3, 6),
  }
  for name, numbers in expected.items():
    found = [
      report[name][key]
      for key in ('precision', 'recall', 'f1-score', 'support')
    ]
    assert found == pytest.approx(numbers), name
  assert report['accuracy'] == pytest.approx(4 / 6)
  # Rows are true classes.
  assert drawn == [([[2, 1, 0], [0, 2, 0], [1, 0, 0]], NAMES)]
  png = (tmp_path / 'run/plots/confusion_matrix.png').read_bytes()
  assert png.startswith(b'\x89PNG') and len(png) > 5_000
  lines = [line.split() for line in text.splitlines()]
  assert lines[0] == ['precision', 'recall', 'f1', 'examples']
  assert lines[2] == ['bee', '0.667', '1.000', '0.800', '2']


def test_spans(tmp_path):
  text = write(tmp_path, toy.token_task('tagging', *test_evaluation.TAGGED))
  report = json.loads((tmp_path / 'run/report.json').read_text())
  zero = {'precision': 0, 'recall': 0, 'f1': 0}
  # Of two persons one is found, by three guesses; of one place none.
  assert report == {
    'LOC': {**zero, 'support': 1},
    'PER': {
      'precision': pytest.approx(1 / 3),
      'recall': pytest.approx(1 / 2),
      'f1': pytest.approx(2 / 5),
      'support': 2,
    },
    'all spans': {
      'precision': pytest.approx(1 / 3),
      'recall': pytest.approx(1 / 3),
      'f1': pytest.approx(1 / 3),
      'support': 3,
    },
  }
  assert text.splitlines()[2].split() == ['PER', '0.333', '0.500', '0.400', '2']
  assert not (tmp_path / 'run/plots/confusion_matrix.png').exists()


def test_of_language_models_there_is_no_report(tmp_path):
  language = toy.token_task(
    'masked_language_modelling', *test_evaluation.TAGGED
  )
  assert write(tmp_path, language) == ''
  assert not (tmp_path / 'run/report.json').exists()
