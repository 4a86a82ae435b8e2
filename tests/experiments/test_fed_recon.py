"""A run whose clients keep a part of the model, from training to the card."""

import json
import re
import signal

import numpy as np
import pandas as pd
import pytest
from absl import flags

from research.training import fault_injection
from tests.experiments import binary

FLAGS = (
  *binary.TINY,
  '--model=mcmahan_2nn',
  '--algorithm=fed_recon',
  '--local_layers=logits',
  '--total_rounds=2',
  '--rounds_per_evaluation=1',
  '--client_plan=scan',
)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  root = tmp_path_factory.mktemp('runs')
  result = binary.run('emnist', *FLAGS, f'--root_output_dir={root}')
  assert result.returncode == 0, result.stderr
  return root / 'emnist'


@pytest.mark.slow
def test_a_killed_run_equals_a_whole_one(run, tmp_path):
  flags_of_run = (*FLAGS, '--noexport', f'--root_output_dir={tmp_path}')
  killed = binary.run(
    'emnist', *flags_of_run, **{fault_injection.VARIABLE: 'round:2'}
  )
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  resumed = binary.run('emnist', *flags_of_run)
  assert 'after round 1 of 2' in resumed.stdout, resumed.stderr
  for name in ('metrics.csv', 'checkpoints/round_000002/state.npz'):
    expected = (run / name).read_bytes()
    assert (tmp_path / 'emnist' / name).read_bytes() == expected


def test_the_test_metrics_are_those_of_personalize(run):
  result = binary.run('personalize', f'--run_dir={run}')
  assert result.returncode == 0, result.stderr
  assert "Each client's reconstructed local part" in result.stdout
  clients = pd.read_csv(run / 'personalization.csv')
  last = pd.read_csv(run / 'metrics.csv').iloc[-1]
  for name in ('loss', 'accuracy'):
    after = np.average(
      clients[f'after_{name}'], weights=clients['test_examples']
    )
    assert last[f'test_{name}'] == pytest.approx(after, rel=1e-6)
  # The initial local part is one for all clients, and knows none of them.
  assert (clients['after_loss'] < clients['before_loss']).mean() > 0.9


def test_only_the_global_part_is_sent_and_the_card_says_so(run):
  """Two layers of 200 on 64 pixels are global, one of 10 is local."""
  last = pd.read_csv(run / 'metrics.csv').iloc[-1]
  weights = 64 * 200 + 200 + 200 * 200 + 200
  assert last['upload_bits_per_client'] == 32 * weights
  assert last['download_bits_per_client'] == 32 * (weights + 1)
  card = json.loads((run / 'model_card.json').read_text())
  assert card['parameters'] == weights + 200 * 10 + 10
  assert card['local part'].startswith('logits: initial weights, which each')
  assert '| local part | logits: initial' in (run / 'model_card.md').read_text()


def test_the_model_without_its_local_part_is_not_evaluated(run):
  result = binary.run('evaluate', f'--run_dir={run}')
  assert result.returncode == 2
  assert f'experiments.personalize --run_dir={run}' in result.stderr


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--local_layers=head'], 'have weights are dense_1, dense_2, logits.'),
    (['--model=logistic_regression', '--local_layers='], 'model with more'),
    (['--partition=iid', '--partition_clients=9'], 'whose clients have both'),
    (['--validation_examples=300', '--validation_by=clients'], 'validation'),
    (['--client_epochs_per_round=2'], 'is not used by --algorithm=fed_recon'),
  ],
)
def test_mistakes_are_named_before_training(arguments, message, tmp_path):
  root = f'--root_output_dir={tmp_path}/runs'
  with (
    binary.parsed('emnist', *FLAGS, root, *arguments) as (emnist, argv),
    pytest.raises(flags.Error, match=re.escape(message)),
  ):
    emnist.main(argv)
  assert not (tmp_path / 'runs/emnist/metrics.csv').exists()
