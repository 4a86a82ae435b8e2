"""The model card says what the run knows, and its example runs."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from research.export import forms_table, model_card, saved_model


@pytest.fixture
def info():
  return {
    'name': 'my_run',
    'task': 'digit_recognition',
    'parameters': np.int64(199_210),
    'data': {
      'name': 'digits',
      'title': 'Handwritten digits',
      'licence': 'CC BY 4.0',
      'citation': 'Alpaydin & Kaynak (1998)\n| UCI',
      'url': 'https://archive.ics.uci.edu/dataset/80',
      'sha256': '0' * 64,
    },
    'flags': {'clients_per_round': 10, 'model': None},
    'metrics': {'accuracy': np.float32(0.5), 'loss': float('nan')},
    'versions': {'tensorflow': '2.14.1'},
    'parity': {
      'batches': [1, 32],
      'tensorflow': {
        'runtime': 'TensorFlow 2.14.1',
        'tolerance': 1e-5,
        'max_difference': 2.4e-7,
      },
      'openvino': {'not_run': 'serving environment missing'},
    },
  }


def read(directory):
  card = json.loads((directory / 'model_card.json').read_text())
  return card, (directory / 'model_card.md').read_text()


def test_everything_is_in_both_files(info, tmp_path):
  model_card.write(tmp_path, info)
  card, text = read(tmp_path)
  assert card['parameters'] == 199_210
  assert card['flags'] == {'clients_per_round': 10, 'model': None}
  assert card['metrics'] == {'accuracy': 0.5, 'loss': 'nan'}
  assert card['data'] == info['data']
  assert card['parity'] == info['parity']
  for line in (
    '# Model card: my_run',
    '| parameters | 199210 |',
    '| licence | CC BY 4.0 |',
    '| citation | Alpaydin & Kaynak (1998) \\| UCI |',
    '| --clients_per_round | 10 |',
    '| accuracy | 0.5 |',
    '| tensorflow | 2.14.1 |',
    'Parity with the trained model: TensorFlow 2.14.1 within 2.4e-07 '
    '(tolerance 1e-05); openvino not run (serving environment missing).',
  ):
    assert line in text.splitlines()


def test_privacy_is_always_stated(info, tmp_path):
  model_card.write(tmp_path, info)
  card, text = read(tmp_path)
  assert card['privacy'] == 'none: no differential privacy'
  assert '| privacy | none: no differential privacy |' in text
  model_card.write(tmp_path, {**info, 'privacy': 'epsilon 2 at delta 1e-5'})
  card, text = read(tmp_path)
  assert card['privacy'] == 'epsilon 2 at delta 1e-5'
  assert 'none: no' not in text


@pytest.mark.parametrize('key', model_card._REQUIRED)
def test_what_is_absent_is_named(info, tmp_path, key):
  del info[key]
  with pytest.raises(ValueError, match=f'lacks {key}'):
    model_card.write(tmp_path, info)
  assert not list(tmp_path.iterdir())


def test_absent_licence_is_named(info, tmp_path):
  del info['data']['licence']
  with pytest.raises(ValueError, match=r'lacks data\.licence'):
    model_card.write(tmp_path, info)


def test_forms_are_side_by_side(info, tmp_path):
  latency = {'1': {'p50_ms': 0.5, 'p99_ms': 1.25, 'runs': 200}}
  good = {
    'title': 'TFLite, float32',
    'file': 'forms/tflite.tflite',
    'passed': True,
    'reasons': [],
    'bytes': 12_345,
    'gzip_bytes': 9_876,
    'runtime': 'LiteRT 2.3.0',
    'bound': 'outputs within 1e-05',
    'max_abs_difference': 2e-7,
    'agreement': 1.0,
    'accuracy': 0.75,
    'model_accuracy': 0.75,
    'examples': 1000,
    'latency': latency,
  }
  bad = {
    'title': 'ONNX, float32',
    'file': 'forms/onnx.onnx',
    'passed': False,
    'reasons': ['can not be made'],
  }
  model_card.write(tmp_path, {**info, 'forms': {'tflite': good, 'onnx': bad}})
  card, text = read(tmp_path)
  assert card['forms']['tflite'] == good
  for line in (
    '| form | bytes | gzip | max difference | agreement | test accuracy | '
    'ms for 1 (p50, p99) | run by |',
    '| `tflite` | 12,345 | 9,876 | 2e-07 | 1.0000 | 0.75 | 0.50, 1.25 | '
    'LiteRT 2.3.0 |',
    '| `onnx` **failed** |  |  |  |  |  |  |  |',
    '**Form `onnx` fails its check**: can not be made.',
    '- `tflite`: TFLite, float32, in `forms/tflite.tflite`; bound: outputs '
    'within 1e-05.',
  ):
    assert line in text.splitlines()
  assert '| forms |' not in text
  model_card.write(tmp_path, info)
  assert '## Forms' not in read(tmp_path)[1]


def test_example_of_the_card_runs(info, task, model, tmp_path):
  exported = saved_model.export(task, model, tmp_path / 'model')
  model_card.write(tmp_path, {**info, 'signatures': exported.signatures})
  _, text = read(tmp_path)
  assert (
    '| serving_default | inputs | image | uint8 | [None, 8, 8, 1] |' in text
  )
  example = text.split('```python\n')[1].split('```')[0]
  assert len(example.splitlines()) == 5
  output = subprocess.run(
    [sys.executable, '-c', example],
    check=True,
    capture_output=True,
    text=True,
    cwd=tmp_path,
    env={**os.environ, 'PYTHONPATH': ''},
  ).stdout
  assert "'class': <tf.Tensor: shape=(1,), dtype=int64" in output


def test_latencies_are_neither_cut_nor_in_powers():
  shown = [forms_table.milliseconds(v) for v in (0.00451, 0.1, 2194.777)]
  assert shown == ['0.0045', '0.10', '2194.78']
