"""experiments/linear_regression.py from the command line."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from research.training import metrics
from tests.experiments import binary

TINY = (
  '--dataset=synthetic_numbers',
  '--synthetic_clients=4',
  '--synthetic_alpha=0.5',
  '--clients_per_round=4',
  '--total_rounds=2',
  '--client_learning_rate=0.2',
  '--l2_penalty=0.01',
)
ARTEFACTS = (
  'config.json',
  'metrics.csv',
  'coefficients.csv',
  'clients.csv',
  'model_card.md',
  'model/1/saved_model.pb',
  'plots/loss.png',
  'plots/examples_per_client.png',
  'plots/coefficients.png',
  'plots/residuals.png',
  'plots/drift.png',
)


def run(root, name, *flags):
  return binary.run(
    'linear_regression',
    *flags,
    f'--root_output_dir={root}',
    f'--experiment_name={name}',
  )


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """Two rounds: the root directory and what the binary printed."""
  root = tmp_path_factory.mktemp('runs')
  result = run(root, 'first', *TINY)
  assert result.returncode == 0, result.stderr
  return root, result


def test_two_rounds_leave_everything_that_they_promise(finished):
  root, result = finished
  for name in ARTEFACTS:
    assert (root / 'first' / name).is_file(), name
  assert 'target y_0' in result.stdout.splitlines()[0]
  assert 'largest difference from the pooled solution' in result.stdout
  rows = metrics.read(root / 'first' / 'metrics.csv')
  assert rows[-1]['test_loss'] > 0 and 'test_accuracy' not in rows[-1]
  table = pd.read_csv(root / 'first' / 'coefficients.csv')
  assert list(table['feature']) == [f'x_{k}' for k in range(5)] + [
    '(intercept)'
  ]
  # A penalty leaves no standard errors.
  assert table['standard_error'].isna().all()


def test_config_and_model_have_the_standardisation(finished, tmp_path):
  path = finished[0] / 'first'
  saved = json.loads((path / 'config.json').read_text())['flags']
  assert len(saved['feature_means']) == len(saved['feature_scales']) == 5
  assert len(saved['target_means']) == 1
  table = pd.read_csv(path / 'coefficients.csv')
  x = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
  *kernel, bias = table['coefficient_in_units']
  serve = tf.saved_model.load(str(path / 'model/1')).signatures[
    'serving_default'
  ]
  found = serve(features=tf.constant(x))['prediction'].numpy()[:, 0]
  np.testing.assert_allclose(found, x @ np.array(kernel) + bias, rtol=1e-4)
  # Evaluated on data with other means the run keeps its own standardisation.
  rng = np.random.default_rng(1)
  names = [f'x_{k}' for k in range(5)]
  own = pd.DataFrame(100 + 7 * rng.normal(size=(40, 5)), columns=names)
  own['target'] = own.sum(axis=1)
  own['client_id'] = np.arange(40) % 2
  own['part'] = np.where(np.arange(40) < 10, 'train', 'test')
  own.to_csv(tmp_path / 'own.csv', index=False)
  output = tmp_path / 'summary.json'
  result = binary.run(
    'evaluate',
    f'--run_dir={path}',
    '--dataset=file',
    f'--data_file={tmp_path / "own.csv"}',
    '--split_column=part',
    f'--output={output}',
  )
  assert result.returncode == 0, result.stderr
  test = own[own['part'] == 'test']
  predicted = serve(features=tf.constant(test[names].to_numpy(np.float32)))
  error = predicted['prediction'].numpy()[:, 0] - test['target'].to_numpy()
  expected = np.mean((error / float(saved['target_scales'][0])) ** 2)
  loss = json.loads(output.read_text())['loss']['mean']
  np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_a_resumed_run_ends_as_one_in_one_go(finished, tmp_path):
  root = finished[0]
  shutil.copytree(root / 'first', tmp_path / 'first')
  resumed = run(tmp_path, 'first', *TINY, '--total_rounds=4', '--noexport')
  assert resumed.returncode == 0, resumed.stderr
  assert 'Resuming' in resumed.stdout
  whole = run(tmp_path, 'whole', *TINY, '--total_rounds=4', '--noexport')
  assert whole.returncode == 0, whole.stderr
  states = [
    tmp_path / name / 'checkpoints/round_000004/state.npz'
    for name in ('first', 'whole')
  ]
  assert states[0].read_bytes() == states[1].read_bytes()


def test_classes_are_fitted_and_exported(tmp_path):
  result = run(
    tmp_path,
    'classes',
    '--model=logistic',
    '--polynomial_degree=2',
    '--total_rounds=2',
    '--l2_penalty=0.1',
    '--client_learning_rate=0.01',
    '--dataset=file',
    f'--data_file={_classes(tmp_path)}',
    '--target_columns=kind',
    '--clients_per_round=3',
  )
  assert result.returncode == 0, result.stderr
  table = pd.read_csv(tmp_path / 'classes' / 'coefficients.csv')
  assert set(table['output']) == {'high', 'middle'}
  assert 'a*b' in set(table['feature'])
  assert (tmp_path / 'classes/plots/labels_per_client.png').is_file()
  assert 'accuracy' in result.stdout


def _classes(folder):
  rng = np.random.default_rng(0)
  table = pd.DataFrame(rng.normal(size=(60, 2)), columns=['a', 'b'])
  noisy = table['a'] + rng.normal(size=60)
  table['kind'] = np.where(noisy > 0.5, 'high', 'middle')
  table.loc[noisy < -0.5, 'kind'] = 'a_low'
  table['client_id'] = np.arange(60) % 3
  path = folder / 'classes.csv'
  table.to_csv(path, index=False)
  return path


@pytest.mark.parametrize(
  'flags, message',
  [
    (['--synthetic_noise=1'], '--synthetic_noise is not used by'),
    (
      ['--model=poisson', '--target_means=1'],
      '--target_means is not used by --model=poisson',
    ),
  ],
)
def test_flags_without_effect_are_refused(tmp_path, flags, message):
  result = run(tmp_path, 'refused', '--dry_run', *flags)
  assert result.returncode == 2
  assert message in result.stderr
