"""experiments/emnist.py --task=clustering from the command line."""

import re
import signal

import numpy as np
import pytest
import tensorflow as tf
from absl import flags

from datasets import load
from research.training import fault_injection, metrics
from tests.experiments import binary

CLUSTERING = (
  *binary.TINY,
  '--task=clustering',
  '--model=k_means',
  '--algorithm=fed_kmeans',
)


@pytest.fixture(scope='module')
def killed(tmp_path_factory):
  """The directory of a run that was killed, resumed and finished."""
  root = tmp_path_factory.mktemp('killed')
  arguments = (*CLUSTERING, f'--root_output_dir={root}')
  point = {fault_injection.VARIABLE: 'checkpoint_write:2'}
  first = binary.run('emnist', *arguments, **point)
  assert first.returncode == -signal.SIGKILL, first.stderr
  finished = binary.run('emnist', *arguments)
  assert finished.returncode == 0, finished.stderr
  assert 'Resuming' in finished.stdout
  assert 'test purity' in finished.stderr
  return root / 'emnist'


def test_a_run_leaves_everything_that_it_promises(killed):
  for name in ('centroids', 'purity', 'loss', 'labels_per_client'):
    assert (killed / f'plots/{name}.png').is_file(), name
  rows = metrics.read(killed / 'metrics.csv')
  assert 'train_purity' not in rows[0]
  assert [row['test_purity'] is not None for row in rows] == [0, 1, 0, 1]
  losses = [row['train_loss'] for row in rows]
  assert losses == sorted(losses, reverse=True)
  assert rows[-1]['server_learning_rate'] is None
  # Ten clusters of 64 features: counts and sums up, centroids down.
  assert rows[-1]['upload_bits_per_client'] == 32 * 10 * (1 + 64)
  assert rows[-1]['download_bits_per_client'] == 32 * 10 * 64
  serve = tf.saved_model.load(str(killed / 'model/1')).signatures
  image = np.zeros([3, 8, 8, 1], np.uint8)
  assert serve['serving_default'](image=image)['cluster'].shape == (3,)


def test_clients_that_are_not_asked_still_count(killed):
  clients = len(load.load(load.LoadConfig('synthetic_digits')).train.client_ids)
  forgotten = 3 / clients
  assert 0 < forgotten < 1
  rows = metrics.read(killed / 'metrics.csv')
  expected = 0
  # Round 1 seeds the centroids, and does not count.
  for row in rows[1:]:
    expected = (1 - forgotten) * expected + row['examples']
  state = np.load(killed / 'checkpoints/round_000004/state.npz')
  (counts,) = (v for v in state.values() if v.shape == (10,))
  assert counts.sum() == pytest.approx(expected, rel=1e-5)


def test_a_killed_run_ends_with_the_bits_of_a_whole_one(killed, tmp_path):
  result = binary.run(
    'emnist', *CLUSTERING, '--noexport', f'--root_output_dir={tmp_path}'
  )
  assert result.returncode == 0, result.stderr
  for name in ('metrics.csv', 'checkpoints/round_000004/state.npz'):
    whole = (tmp_path / 'emnist' / name).read_bytes()
    assert (killed / name).read_bytes() == whole


def test_evaluate_works_on_the_finished_run(killed):
  result = binary.run('evaluate', f'--run_dir={killed}')
  assert result.returncode == 0, result.stderr
  last = metrics.read(killed / 'metrics.csv')[-1]
  table = {line.split()[0]: line.split() for line in result.stdout.splitlines()}
  for name in ('loss', 'purity'):
    assert float(table[name][1]) == pytest.approx(
      last[f'test_{name}'], abs=1e-4
    )


def test_dry_run_estimates_and_leaves_nothing(tmp_path, capsys):
  root = f'--root_output_dir={tmp_path}/runs'
  arguments = (*CLUSTERING, '--num_clusters=3', '--dry_run', root)
  with binary.parsed('emnist', *arguments) as (emnist, argv):
    emnist.main(argv)
  assert '192 parameters' in capsys.readouterr().out
  assert not (tmp_path / 'runs').exists()


UNUSED = 'is not used by --algorithm=fed_kmeans'


@pytest.mark.parametrize(
  'arguments, message',
  [
    (
      ['--algorithm=fed_avg'],
      "--algorithm=fed_avg can't learn a task of the kind clustering with the "
      'loss NearestSquaredDistance; fed_kmeans can.',
    ),
    (
      ['--task=digit_recognition', '--model=mcmahan_2nn'],
      "--algorithm=fed_kmeans can't learn a task of the kind classification "
      'with the loss SparseCategoricalCrossentropy; ditto, fed_avg,',
    ),
    (['--client_learning_rate=1'], f'--client_learning_rate {UNUSED}'),
    (['--server_learning_rate=0.5'], f'--server_learning_rate {UNUSED}'),
    (['--server_momentum=0.5'], f'--server_momentum {UNUSED}'),
    (['--server_optimizer=adam'], f'--server_optimizer {UNUSED}'),
    (['--client_epochs_per_round=2'], f'--client_epochs_per_round {UNUSED}'),
    (['--mixed_precision=float16'], f'--mixed_precision {UNUSED}'),
    (['--aggregator=median'], f'--aggregator {UNUSED}'),
    (['--clipping=fixed', '--clip_norm=1'], '--clipping, --clip_norm are not'),
    (['--poison=sign_flip', '--poisoned_fraction=0.5'], 'has no form'),
    (
      ['--poison=label_flip', '--poisoned_fraction=0.5'],
      'this task is a clustering',
    ),
    (['--num_classes=10'], '--num_classes is not used by --task=clustering'),
    (
      ['--task=digit_recognition', '--num_clusters=3'],
      '--num_clusters is not used by --task=digit_recognition',
    ),
    (['--model=logistic_regression'], 'does not fit --task=clustering'),
  ],
)
def test_mistakes_name_the_flag(arguments, message, tmp_path):
  root = f'--root_output_dir={tmp_path}/runs'
  with (
    binary.parsed('emnist', *CLUSTERING, root, *arguments) as (emnist, argv),
    pytest.raises(flags.Error, match=re.escape(message)),
  ):
    emnist.main(argv)
  assert not (tmp_path / 'runs/emnist/metrics.csv').exists()
