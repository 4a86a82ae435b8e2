"""experiments/emnist.py from the command line, on synthetic data."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from absl import flags

from research.training import metrics, run_directory
from tests.experiments import binary

ARTEFACTS = (
  'config.json',
  'metrics.csv',
  'timing.csv',
  'model_card.json',
  'model_card.md',
  'model/1/saved_model.pb',
  'plots/accuracy.png',
  'plots/loss.png',
  'plots/examples_per_client.png',
  'plots/labels_per_client.png',
)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A finished run: its root directory and what the binary printed."""
  root = tmp_path_factory.mktemp('runs')
  result = binary.run(
    'emnist',
    *binary.TINY,
    '--validation_examples=40',
    '--client_momentum=0.5',
    '--client_optimizer=momentum',
    f'--root_output_dir={root}',
    '--experiment_name=first',
  )
  assert result.returncode == 0, result.stderr
  return root, result


def test_a_run_leaves_everything_that_it_promises(finished):
  root, result = finished
  for name in ARTEFACTS:
    assert (root / 'first' / name).is_file(), name
  assert list((root / 'first' / 'tensorboard').glob('events.*'))
  assert 'test_accuracy' in result.stdout
  assert str(root / 'first' / 'model' / '1') in result.stdout
  assert 'synthetic_digits: ' in result.stdout.splitlines()[0]
  lines = [line for line in result.stderr.splitlines() if line]
  assert [line.split()[:2] for line in lines] == [
    ['round', f'{i}/4'] for i in (1, 2, 3, 4)
  ]


def test_metrics_have_a_row_per_round_and_evaluations_when_due(finished):
  rows = metrics.read(finished[0] / 'first' / 'metrics.csv')
  assert [row['round'] for row in rows] == [1, 2, 3, 4]
  evaluated = [row['test_accuracy'] is not None for row in rows]
  assert evaluated == [False, True, False, True]
  assert [row['validation_loss'] is not None for row in rows] == evaluated
  assert all(row['clients'] == 3 and row['examples'] > 0 for row in rows)
  assert rows[-1]['test_loss'] < rows[1]['test_loss']


def test_config_alone_recreates_the_run(finished):
  root = finished[0]
  result = binary.run(
    'emnist',
    f'--from_config={root}/first/config.json',
    '--experiment_name=second',
    '--noexport',
  )
  assert result.returncode == 0, result.stderr
  files = [root / name / 'metrics.csv' for name in ('first', 'second')]
  assert files[0].read_bytes() == files[1].read_bytes()
  states = [
    root / name / 'checkpoints/round_000004/state.npz'
    for name in ('first', 'second')
  ]
  assert states[0].read_bytes() == states[1].read_bytes()


def test_other_flags_are_refused_in_the_same_directory(finished):
  root = finished[0]
  before = (root / 'first' / 'metrics.csv').read_bytes()
  arguments = (
    f'--from_config={root}/first/config.json',
    '--client_learning_rate=0.3',
    '--total_rounds=9',
  )
  with (
    binary.parsed('emnist', *arguments) as (emnist, argv),
    pytest.raises(
      run_directory.ResumeError,
      match='--client_learning_rate: was 0.1, now 0.3',
    ),
  ):
    emnist.main(argv)
  assert (root / 'first' / 'metrics.csv').read_bytes() == before


def test_evaluate_and_export_work_on_the_finished_run(finished, tmp_path):
  run = finished[0] / 'first'
  output = tmp_path / 'summary.json'
  result = binary.run('evaluate', f'--run_dir={run}', f'--output={output}')
  assert result.returncode == 0, result.stderr
  summary = json.loads(output.read_text())
  last = metrics.read(run / 'metrics.csv')[-1]
  assert summary['accuracy']['mean'] == last['test_accuracy']
  assert summary['loss']['mean'] == last['test_loss']
  values = list(summary['accuracy'].values())[1:]
  assert values == sorted(values)
  # Without its newest checkpoint the run exports the one before, and says so.
  copy = tmp_path / 'copy'
  shutil.copytree(run, copy)
  shutil.rmtree(copy / 'checkpoints' / 'round_000004')
  result = binary.run('export', f'--run_dir={copy}')
  assert result.returncode == 0, result.stderr
  card = json.loads((copy / 'model_card.json').read_text())
  assert card['metrics']['round'] == 3


def write_own_file(path, rows=30):
  """Writes pixels of three labels by three clients, as text."""
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, [rows, 64])
  table = pd.DataFrame(pixels, columns=[f'pixel{i}' for i in range(64)])
  table['label'] = np.arange(rows) % 3
  table['client_id'] = np.arange(rows) // 10
  table.to_csv(path, index=False)


def test_personalize_fine_tunes_each_client(finished, tmp_path):
  run = finished[0] / 'first'
  output = tmp_path / 'clients.csv'
  flags = (f'--run_dir={run}', f'--output={output}')
  result = binary.run('personalize', *flags, '--fine_tuning_epochs=3')
  assert result.returncode == 0, result.stderr
  rows = pd.read_csv(output)
  assert len(rows) > 3
  assert (rows['after_loss'] != rows['before_loss']).all()
  assert rows['after_accuracy'].mean() >= rows['before_accuracy'].mean()
  assert (run / 'plots/personalization.png').is_file()
  result = binary.run(
    'personalize', *flags, '--partition=iid', '--partition_clients=3'
  )
  assert result.returncode == 2
  assert 'wants data whose clients have both' in result.stderr


def test_personalize_takes_the_models_that_ditto_kept(tmp_path):
  flags = ('--algorithm=ditto', '--noexport', f'--root_output_dir={tmp_path}')
  result = binary.run('emnist', *binary.TINY, *flags)
  assert result.returncode == 0, result.stderr
  run = tmp_path / 'emnist'
  rows = pd.read_csv(run / 'metrics.csv')
  assert rows['personal_loss'].notna().all()
  asked = {path.name for path in (run / 'client_states').iterdir()}
  result = binary.run('personalize', f'--run_dir={run}')
  assert result.returncode == 0, result.stderr
  assert "Each client's own model" in result.stdout
  assert 0 < len(pd.read_csv(run / 'personalization.csv')) <= len(asked)
  result = binary.run(
    'personalize', f'--run_dir={run}', '--fine_tuning_epochs=2'
  )
  assert result.returncode == 2
  assert (
    '--fine_tuning_epochs is not used by --algorithm=ditto' in result.stderr
  )
  shutil.rmtree(run / 'client_states')
  result = binary.run('personalize', f'--run_dir={run}')
  assert result.returncode == 2
  assert 'No client with test examples has a model of its own' in result.stderr


def test_evaluate_takes_own_data_with_fewer_classes(finished, tmp_path):
  path = tmp_path / 'own.csv'
  write_own_file(path)
  result = binary.run(
    'evaluate',
    f'--run_dir={finished[0] / "first"}',
    '--dataset=file',
    f'--data_file={path}',
    '--feature_shape=8,8,1',
    '--split=train',
  )
  assert result.returncode == 0, result.stderr
  assert '3 client(s)' in result.stdout
  loss = float(result.stdout.splitlines()[2].split()[1])
  # Pixels that were not scaled to [0, 1] would give logits of hundreds.
  assert loss < 20


def test_data_that_has_changed_since_the_run_is_refused(tmp_path):
  path = tmp_path / 'own.csv'
  write_own_file(path)
  flags_of_run = (
    '--task=image_classification',
    '--model=logistic_regression',
    '--dataset=file',
    f'--data_file={path}',
    '--feature_shape=8,8,1',
    '--clients_per_round=2',
    '--total_rounds=1',
    '--noexport',
    f'--root_output_dir={tmp_path}',
  )
  result = binary.run('emnist', *flags_of_run)
  assert result.returncode == 0, result.stderr
  write_own_file(path, rows=40)
  result = binary.run('evaluate', f'--run_dir={tmp_path / "emnist"}')
  assert result.returncode == 2
  assert 'The data is not what the run was trained on' in result.stderr
  arguments = (
    f'--from_config={tmp_path}/emnist/config.json',
    '--experiment_name=again',
  )
  with (
    binary.parsed('emnist', *arguments) as (emnist, argv),
    pytest.raises(flags.Error, match='The data is not what the run'),
  ):
    emnist.main(argv)


def test_dry_run_estimates_and_leaves_nothing(tmp_path):
  result = binary.run(
    'emnist', *binary.TINY, '--dry_run', f'--root_output_dir={tmp_path}/runs'
  )
  assert result.returncode == 0, result.stderr
  for word in ('data', 'parameters', 'local steps', 's per round', 'GB'):
    assert word in result.stdout
  assert not (tmp_path / 'runs').exists()


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--client_momentum=0.9'], '--client_momentum is not used by'),
    (['--algorithm=fed_sgd', '--client_learning_rate=1'], 'is not used by'),
    (['--dirichlet_alpha=2'], 'is not used by --partition='),
    (['--classes_per_client=3'], 'is not used by --partition='),
    (['--clients_per_round=500'], 'give a number from 1 to'),
    (['--task=autoencoder'], '--model=logistic_regression does not fit'),
    (['--task=character_recognition'], 'needs 62 classes'),
    (['--client_learning_rate_schedule=cosine'], 'needs decay_rounds'),
    (['--from_config=/nowhere.json'], 'is not the config.json of a run'),
    (['--experiment_name=a/b'], 'must be the name of one'),
    (['--trackers=nonsense'], '--trackers has nonsense'),
    (['--feature_shape=8,x'], 'must be whole numbers, as 28,28,1'),
    (['--runtime=stock', '--xla=on'], 'the stock worker ignores XLA'),
    (
      ['--runtime=in_process', '--xla=on', '--client_plan=scan'],
      '--xla=on needs --client_plan=vmap',
    ),
    # Given, although it is the default.
    (['--server_optimizer=sgd', '--server_momentum=0'], '--server_momentum'),
    (['--partition=natural', '--partition_clients=100'], 'is not used by'),
    (['stray'], 'Only flags are expected'),
  ],
)
def test_mistakes_name_the_flag(arguments, message, tmp_path):
  root = f'--root_output_dir={tmp_path}/runs'
  with (
    binary.parsed('emnist', *binary.TINY, root, *arguments) as (emnist, argv),
    pytest.raises(flags.Error, match=re.escape(message)),
  ):
    emnist.main(argv)
  assert not (tmp_path / 'runs/emnist/metrics.csv').exists()


def test_a_mistake_ends_in_one_line(tmp_path):
  result = binary.run(
    'emnist',
    *binary.TINY,
    f'--root_output_dir={tmp_path}/runs',
    '--clients_per_round=500',
  )
  assert result.returncode == 2
  (line,) = result.stderr.strip().splitlines()
  assert line.startswith('error: --clients_per_round is 500')


@pytest.mark.parametrize(
  'arguments',
  [
    ('--algorithm=fed_sgd', '--client_sampling=poisson'),
    ('--server_optimizer=yogi', '--server_learning_rate_schedule=cosine')
    + ('--server_learning_rate_decay_rounds=4', '--partition=dirichlet')
    + ('--client_weighting=uniform',),
    ('--task=autoencoder', '--model=autoencoder', '--total_rounds=2')
    + ('--dataset=synthetic_emnist_characters',),
  ],
)
def test_other_algorithms_and_tasks_run(arguments, tmp_path):
  result = binary.run(
    'emnist',
    *binary.TINY,
    f'--root_output_dir={tmp_path}',
    '--noexport',
    *arguments,
  )
  assert result.returncode == 0, result.stderr


def test_clients_train_in_16_bit_and_the_run_says_so(tmp_path):
  first_rounds = {}
  for number_format in ('none', 'float16'):
    result = binary.run(
      'emnist',
      *binary.TINY,
      '--runtime=stock',
      '--model=mcmahan_2nn',
      f'--mixed_precision={number_format}',
      '--client_learning_rate=0.3',
      '--total_rounds=2',
      '--noexport',
      f'--root_output_dir={tmp_path}/{number_format}',
    )
    assert result.returncode == 0, result.stderr
    run = tmp_path / number_format / 'emnist'
    first, last = metrics.read(run / 'metrics.csv')
    assert last['train_loss'] < first['train_loss']
    assert last['rejected_clients'] == 0
    first_rounds[number_format] = first['train_loss']
  assert first_rounds['float16'] == pytest.approx(
    first_rounds['none'], rel=0.02
  )
  assert first_rounds['float16'] != first_rounds['none']
  config = json.loads((run / 'config.json').read_text())
  assert config['runtime']['name'] == 'stock'
  assert config['runtime']['device'] == 'cpu'
  state = np.load(run / 'checkpoints/round_000002/state.npz')
  assert state['leaf_00000'].dtype == np.float32
  # It decides the result: no resume without it.
  arguments = (
    f'--from_config={run}/config.json',
    '--mixed_precision=none',
    '--total_rounds=3',
  )
  with (
    binary.parsed('emnist', *arguments) as (emnist, argv),
    pytest.raises(run_directory.ResumeError, match='--mixed_precision: was'),
  ):
    emnist.main(argv)


def test_helpshort_lists_the_flags_with_their_help():
  result = binary.run('emnist', '--helpshort')
  assert '--clients_per_round' in result.stdout
  assert '(a positive integer)' in result.stdout
