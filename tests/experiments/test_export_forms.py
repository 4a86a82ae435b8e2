"""experiments/export.py --forms on a run of each binary."""

import importlib.util
import json

import numpy as np
import pytest
import tensorflow as tf

from research.export import parity
from research.training import checkpoint
from tests.experiments import binary

pytestmark = pytest.mark.skipif(
  not parity.serving_python().exists(), reason='serving environment missing'
)

HAS_ONNX = importlib.util.find_spec('tf2onnx') is not None
NAMES = (
  *('saved_model', 'tflite', 'tflite_dynamic', 'tflite_float16'),
  'tflite_int8',
  *(['onnx'] if HAS_ONNX else []),
)
ALL = f'--forms={",".join(NAMES)}'
RUNS = {
  'emnist': (
    '--dataset=synthetic_digits',
    '--model=mcmahan_2nn',
    '--clients_per_round=5',
    '--total_rounds=10',
    '--noexport',
  ),
  'linear_regression': (
    '--clients_per_round=10',
    '--total_rounds=5',
    '--client_learning_rate=0.2',
    '--noexport',
  ),
  'bert': (
    '--dataset=synthetic_movie_reviews',
    '--model=tiny',
    '--vocabulary_size=300',
    '--total_rounds=3',
    '--clients_per_round=5',
    '--client_learning_rate=0.05',
    '--noexport',
  ),
}


def run(name, root, *flags):
  result = binary.run(
    name, *flags, f'--root_output_dir={root}', f'--experiment_name={name}'
  )
  assert result.returncode == 0, result.stderr[-3000:]
  return root / name


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
  """A finished run of the quickest model."""
  root = tmp_path_factory.mktemp('runs')
  return run('emnist', root, *binary.TINY, '--noexport', '--export_every=2')


@pytest.mark.slow
@pytest.mark.parametrize('name', list(RUNS))
def test_all_forms_of_each_binary(name, tmp_path):
  directory = run(name, tmp_path, *RUNS[name])
  result = binary.run('export', f'--run_dir={directory}', ALL)
  assert result.returncode == 0, result.stdout + result.stderr[-3000:]
  card = json.loads((directory / 'model_card.json').read_text())
  assert list(card['forms']) == list(NAMES)
  assert all(report['passed'] for report in card['forms'].values())
  text = (directory / 'model_card.md').read_text()
  for form in NAMES:
    assert f'\n| `{form}` | ' in text
    assert f'\n{form}: ' in result.stdout
    saved = json.loads((directory / 'forms' / f'{form}.json').read_text())
    assert saved == card['forms'][form]
    assert (directory / saved['file']).exists()
  # An export of the SavedModel alone keeps what is said of the same weights.
  again = binary.run('export', f'--run_dir={directory}')
  assert again.returncode == 0, again.stderr[-3000:]
  assert (directory / 'model_card.md').read_text() == text


def test_a_form_that_fails_is_an_exit_status(digits, tmp_path):
  """Calibrated on black images, int8 takes all others for those."""
  black = tmp_path / 'black.npy'
  config = json.loads((digits / 'config.json').read_text())
  assert config['flags']['dataset'] == 'synthetic_digits'
  np.save(black, np.zeros([4, 8, 8, 1], np.uint8))
  result = binary.run(
    'export',
    f'--run_dir={digits}',
    '--forms=tflite_int8',
    f'--calibration_file={black}',
  )
  assert result.returncode == 4, result.stderr[-3000:]
  assert 'tflite_int8: FAILED: agreement is 0.' in result.stdout
  assert result.stderr.splitlines()[-1] == 'error: 1 of 1 forms fail'
  card = (digits / 'model_card.md').read_text()
  assert '**Form `tflite_int8` fails its check**' in card
  assert '4 examples of black.npy' in card


def weights(directory):
  loaded = tf.saved_model.load(str(directory))
  return [weight.numpy() for weight in loaded.weights]


def test_models_of_rounds_on_the_way(digits):
  folders = sorted((digits / 'exports').iterdir())
  assert [folder.name for folder in folders] == ['round_00002', 'round_00004']
  early, last = (weights(folder) for folder in folders)
  assert not np.allclose(early[0], last[0])
  saved = checkpoint.CheckpointManager(digits / 'checkpoints').load_latest()
  for leaf, weight in zip(saved.leaves, last, strict=False):
    np.testing.assert_array_equal(leaf, weight)


def test_a_run_starts_from_an_exported_model(digits, tmp_path):
  """Clients that do not move leave the weights that they were given."""
  start = digits / 'exports' / 'round_00002'
  directory = run(
    'emnist',
    tmp_path,
    *binary.TINY,
    '--total_rounds=1',
    '--client_learning_rate=0',
    '--noexport',
    '--export_every=1',
    f'--initial_model={start}',
  )
  found = weights(directory / 'exports' / 'round_00001')
  for value, wanted in zip(found, weights(start), strict=True):
    np.testing.assert_array_equal(value, wanted)
  config = json.loads((directory / 'config.json').read_text())
  assert config['initial_weights_sha256']
  evaluated = binary.run('evaluate', f'--run_dir={directory}')
  assert evaluated.returncode == 0, evaluated.stderr[-3000:]


def test_a_file_that_nothing_reads_is_refused(digits):
  result = binary.run(
    'export', f'--run_dir={digits}', '--calibration_file=x.npy'
  )
  assert result.returncode == 2
  assert 'is for --forms=tflite_int8' in result.stderr


def test_forms_without_a_runtime_are_refused(digits, tmp_path):
  result = binary.run(
    'export',
    f'--run_dir={digits}',
    '--forms=tflite',
    TFF_RESEARCH_SERVING_PYTHON=str(tmp_path / 'none'),
  )
  assert result.returncode == 2
  assert 'make serving' in result.stderr
