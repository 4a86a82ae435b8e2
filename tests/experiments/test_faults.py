"""Runs with clients that fail, lag or lie: they survive, and are counted."""

import pandas as pd
import pytest

from tests.experiments import binary

FLAGS = (
  '--dataset=digits',
  '--partition=iid',
  '--partition_clients=30',
  '--model=logistic_regression',
  '--client_epochs_per_round=5',
  '--total_rounds=15',
  '--rounds_per_evaluation=15',
  '--noexport',
)
ATTACK = ('--poison=scale', '--poison_scale=-10', '--poisoned_fraction=0.2')


def train(root, *flags):
  result = binary.run('emnist', *FLAGS, *flags, f'--root_output_dir={root}')
  assert result.returncode == 0, result.stderr
  return pd.read_csv(root / 'emnist/metrics.csv')


def test_a_robust_aggregator_keeps_what_the_mean_loses(tmp_path):
  averaged = train(tmp_path / 'mean', *ATTACK)
  median = train(tmp_path / 'median', *ATTACK, '--aggregator=median')
  assert averaged['poisoned_clients'].sum() > 5
  assert list(averaged['poisoned_clients']) == list(median['poisoned_clients'])
  # Without poison it is 0.91.
  assert averaged['test_accuracy'].iloc[-1] < 0.8
  assert median['test_accuracy'].iloc[-1] > 0.89


@pytest.mark.parametrize(
  'flags, column',
  [
    (('--client_dropout_rate=0.4',), 'dropped_clients'),
    (('--straggler_rate=0.5',), 'straggling_clients'),
    (
      ('--poison=not_finite', '--poisoned_fraction=0.3'),
      'poisoned_clients',
    ),
    (('--poison=label_flip', '--poisoned_fraction=0.3'), 'poisoned_clients'),
  ],
)
def test_the_run_survives_and_counts(tmp_path, flags, column):
  rows = train(tmp_path, *flags)
  assert rows[column].sum() > 5
  counted = {
    'dropped_clients': (rows['examples'] / 240).round()
    + rows['dropped_clients'],
    'straggling_clients': (rows['examples'] < 2400).astype(int) * 10,
    'poisoned_clients': rows['clients'],
  }[column]
  assert (counted == 10).all()
  if '--poison=not_finite' in flags:
    assert (rows['rejected_clients'] == rows['poisoned_clients']).all()
  assert rows['test_accuracy'].iloc[-1] > 0.85


@pytest.mark.parametrize(
  'flags, message',
  [
    (('--poison=scale',), 'give both, or neither'),
    (('--poisoned_fraction=0.1',), 'give both, or neither'),
    (
      ('--poison=sign_flip', '--poisoned_fraction=0.1', '--poison_scale=3'),
      '--poison_scale is not used by --poison=sign_flip',
    ),
    (
      ('--algorithm=mime', '--poison=scale', '--poisoned_fraction=0.1'),
      '--algorithm=mime has no form; fed_avg, fed_prox have',
    ),
    (('--client_dropout_rate=1.5',), 'client_dropout_rate'),
  ],
)
def test_what_does_not_fit_is_refused(tmp_path, flags, message):
  result = binary.run('emnist', *FLAGS, *flags, f'--root_output_dir={tmp_path}')
  assert result.returncode != 0
  assert message in result.stderr
  assert 'Traceback' not in result.stderr


def test_a_regression_has_no_labels_to_flip(tmp_path):
  result = binary.run(
    'linear_regression',
    f'--root_output_dir={tmp_path}',
    '--poison=label_flip',
    '--poisoned_fraction=0.5',
  )
  assert result.returncode == 2
  assert '--poison=label_flip wants classes' in result.stderr
