"""Private runs of the binary: what they tell, spend, keep and refuse."""

import json
import math
import shutil
import signal

import pytest
from absl import flags

from experiments import emnist
from research import privacy_flags
from research.privacy import guarantee, noise
from research.training import fault_injection, metrics
from tests.experiments import binary

PRIVATE = (
  *binary.TINY,
  '--dp_mechanism=gaussian',
  '--noise_multiplier=1.5',
  '--clipping=fixed',
  '--clip_norm=0.5',
  '--client_weighting=uniform',
  '--client_sampling=poisson',
)
PUBLIC = {
  'round',
  'test_loss',
  'test_accuracy',
  'upload_bits_per_client',
  'download_bits_per_client',
  'client_learning_rate',
  'server_learning_rate',
  'epsilon',
  'epsilon_rdp',
  'delta',
  'noise_multiplier',
  'noise_to_cohort_ratio',
  'insecure_seeded_noise',
  'clip_norm',
}


def run(root, *arguments, **variables):
  return binary.run(
    'emnist', *PRIVATE, f'--root_output_dir={root}', *arguments, **variables
  )


def rows(root):
  return metrics.read(root / 'emnist' / 'metrics.csv')


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  root = tmp_path_factory.mktemp('whole')
  result = run(root)
  assert result.returncode == 0, result.stderr
  assert 'epsilon' in result.stderr
  # With the time it would tell how many clients took part.
  assert 'examples/s' not in result.stderr
  return root


def test_each_row_has_its_epsilon_and_nothing_without_noise(whole):
  for row in rows(whole):
    told = {name for name, value in row.items() if value is not None}
    assert told <= PUBLIC
    assert PUBLIC - told <= {'test_loss', 'test_accuracy'}
    assert 0 < row['epsilon'] <= row['epsilon_rdp']
  spent = [row['epsilon'] for row in rows(whole)]
  assert spent == sorted(set(spent))
  plots = {path.name for path in (whole / 'emnist' / 'plots').iterdir()}
  assert plots == {'loss.png', 'accuracy.png'}


def test_the_model_card_states_the_guarantee(whole):
  card = json.loads((whole / 'emnist' / 'model_card.json').read_text())
  assert card['privacy']['epsilon'] == rows(whole)[-1]['epsilon']
  assert card['privacy']['releases'] == 4
  text = (whole / 'emnist' / 'model_card.md').read_text()
  assert '## Privacy' in text
  assert 'add_or_remove_one_client' in text
  assert 'ChaCha20' in text
  assert 'seeded' not in card['privacy']['statement']
  # By the seed anyone could tell who took part.
  assert card['flags']['seed'] != 0 and '| --seed | 0 |' not in text


@pytest.mark.parametrize(
  'command', [('evaluate', '--split=train'), ('personalize',)]
)
def test_what_clients_say_of_a_finished_run_is_kept_back(command, whole):
  result = binary.run(*command, f'--run_dir={whole / "emnist"}')
  assert result.returncode == 2
  assert 'give --allow_unaccounted_release' in result.stderr


def test_a_dry_run_tells_what_it_will_cost(whole, capsys):
  given = [*PRIVATE, '--dry_run', f'--root_output_dir={whole / "dry"}']
  with binary.parsed('emnist', *given):
    emnist.main(['emnist'])
  text = capsys.readouterr().out
  assert guarantee.round_up(rows(whole)[-1]['epsilon']) in text
  assert 'noise multiplier 1.5' in text and 'add_or_remove' in text


def test_fewer_rounds_than_were_released_are_accounted(whole, tmp_path):
  shutil.copytree(whole / 'emnist', tmp_path / 'emnist')
  with open(tmp_path / 'emnist' / 'privacy_journal.txt', 'a') as journal:
    journal.write('5\n')
  result = run(tmp_path)
  assert result.returncode == 0, result.stderr
  card = json.loads((tmp_path / 'emnist' / 'model_card.json').read_text())
  assert card['privacy']['rounds'] == card['privacy']['releases'] == 5
  assert card['privacy']['epsilon'] > rows(whole)[-1]['epsilon']


def test_secure_noise_differs_and_seeded_noise_does_not(whole, tmp_path):
  def weights(root):
    return (root / 'emnist/checkpoints/round_000004/state.npz').read_bytes()

  for name in ('secure', 'seeded', 'again'):
    insecure = [] if name == 'secure' else ['--insecure_seeded_noise']
    result = run(tmp_path / name, '--noexport', *insecure)
    assert result.returncode == 0, result.stderr
  assert weights(tmp_path / 'secure') != weights(whole)
  assert weights(tmp_path / 'seeded') == weights(tmp_path / 'again')
  assert rows(tmp_path / 'seeded')[0]['insecure_seeded_noise'] == 1
  report = json.loads((tmp_path / 'seeded/emnist/privacy.json').read_text())
  assert report['statement'].startswith('The noise is seeded')


def test_a_round_that_is_drawn_again_is_charged_again(whole, tmp_path):
  at_round_3 = {fault_injection.VARIABLE: 'round:3'}
  assert run(tmp_path, **at_round_3).returncode == -signal.SIGKILL
  result = run(tmp_path)
  assert result.returncode == 0, result.stderr
  journal = tmp_path / 'emnist' / 'privacy_journal.txt'
  assert journal.read_text() == '1\n2\n3\n3\n4\n'
  charged, once = rows(tmp_path), rows(whole)
  assert charged[1]['epsilon'] == once[1]['epsilon']
  assert charged[2]['epsilon'] > once[2]['epsilon']
  assert charged[3]['epsilon'] > once[3]['epsilon']


@pytest.mark.slow
def test_seeded_noise_of_a_killed_run_is_that_of_a_whole_one(tmp_path):
  seeded = ('--insecure_seeded_noise', '--noexport')
  at_round_3 = {fault_injection.VARIABLE: 'round:3'}
  killed = run(tmp_path / 'killed', *seeded, **at_round_3)
  assert killed.returncode == -signal.SIGKILL
  for name in ('killed', 'whole'):
    result = run(tmp_path / name, *seeded)
    assert result.returncode == 0, result.stderr
  assert rows(tmp_path / 'killed') == rows(tmp_path / 'whole')


def test_a_run_ends_before_its_budget_does(whole, tmp_path):
  spent = [row['epsilon'] for row in rows(whole)]
  budget = f'--max_epsilon={(spent[2] + spent[3]) / 2}'
  result = run(tmp_path, budget)
  assert result.returncode == 0, result.stderr
  assert 'ends after round 3' in result.stdout
  assert [row['epsilon'] for row in rows(tmp_path)] == spent[:3]
  assert rows(tmp_path)[-1]['test_accuracy'] is not None
  assert (tmp_path / 'emnist' / 'model' / '1' / 'saved_model.pb').is_file()
  again = run(tmp_path, budget, '--total_rounds=50')
  assert again.returncode == 0, again.stderr
  assert len(rows(tmp_path)) == 3
  more = run(tmp_path, '--max_epsilon=100')
  assert more.returncode != 0
  assert '--max_epsilon' in more.stderr


def test_a_lost_journal_is_refused(tmp_path):
  at_round_3 = {fault_injection.VARIABLE: 'round:3'}
  assert run(tmp_path, **at_round_3).returncode == -signal.SIGKILL
  (tmp_path / 'emnist' / 'privacy_journal.txt').unlink()
  result = run(tmp_path)
  assert result.returncode == 2
  assert 'privacy that was spent is unknown' in result.stderr


def test_a_target_is_met_and_kept_on_resume(tmp_path):
  target = [f for f in PRIVATE if not f.startswith('--noise_multiplier')]
  target += ['--target_epsilon=4', '--noexport', f'--cache_dir={tmp_path}']
  target += [f'--root_output_dir={tmp_path}']
  result = binary.run('emnist', *target)
  assert result.returncode == 0, result.stderr
  assert 4 * 0.998 < rows(tmp_path)[-1]['epsilon'] <= 4
  longer = binary.run('emnist', *target, '--total_rounds=9')
  assert longer.returncode == 2
  assert 'a run keeps its noise' in longer.stderr


def test_keys_are_written_nowhere(tmp_path, monkeypatch):
  keys = []

  def secure_key():
    keys.append(original())
    return keys[-1]

  original = noise.secure_key
  monkeypatch.setattr(noise, 'secure_key', secure_key)
  with binary.parsed('emnist', *PRIVATE, f'--root_output_dir={tmp_path}'):
    emnist.main(['emnist'])
  assert len({key.tobytes() for key in keys}) == 4
  files = [path for path in tmp_path.rglob('*') if path.is_file()]
  assert len(files) > 10
  for path in files:
    content = path.read_bytes()
    for key in keys:
      assert key.tobytes() not in content, path
      for word in key:
        assert str(word).encode() not in content, path


@pytest.mark.parametrize(
  ('arguments', 'expected'),
  [
    ([], 1.5 / 8),
    (['--client_dropout_rate=0.5'], 1.5 / 4),
    (['--client_dropout_rate=1'], math.inf),
    (['--dp_mechanism=local_gaussian'], 1.5 / math.sqrt(8)),
  ],
  ids=str,
)
def test_noise_is_compared_with_the_clients_that_answer(arguments, expected):
  sampling = guarantee.Sampling('poisson', 100, 8, 10)
  with binary.parsed('emnist', *PRIVATE, *arguments):
    found = privacy_flags._noise_to_cohort_ratio(1.5, sampling)
  assert found == pytest.approx(expected)


OTHERS = {
  'distributed_skellam': ('fixed', ['--secure_sum_bits=12'], 'secure sum'),
  'distributed_discrete_gaussian': ('fixed', [], 'discrete Gaussian'),
  'local_gaussian': ('fixed', [], 'local differential privacy'),
  'local_laplace': ('l1', [], 'L1 norm'),
  'local_priv_unit': ('fixed', [], 'PrivUnit'),
}


@pytest.mark.parametrize(
  'mechanism',
  [
    'distributed_skellam',
    *(pytest.param(m, marks=pytest.mark.slow) for m in list(OTHERS)[1:]),
  ],
)
def test_other_mechanisms_train_within_a_target(mechanism, tmp_path):
  clipping, more, words = OTHERS[mechanism]
  given = [f for f in PRIVATE if not f.startswith('--noise_multiplier')]
  given += [
    f'--dp_mechanism={mechanism}',
    f'--clipping={clipping}',
    '--target_epsilon=4',
    f'--root_output_dir={tmp_path}',
    *more,
  ]
  result = binary.run('emnist', *given)
  assert result.returncode == 0, result.stderr
  last = rows(tmp_path)[-1]
  assert 4 * 0.998 < last['epsilon'] <= 4
  card = (tmp_path / 'emnist' / 'model_card.md').read_text()
  assert 'This is a simulation' in card
  assert words in card
  if mechanism == 'distributed_skellam':
    bits, size = (
      last['upload_bits_per_client'],
      last['download_bits_per_client'],
    )
    weights = (size - 32) / 32
    assert bits == 12 * 2 ** math.ceil(math.log2(weights))


REFUSED = (
  (
    ['--dp_mechanism=distributed_skellam', '--client_dropout_rate=0.1'],
    'takes its share of the noise with it',
  ),
  (['--secure_sum_bits=12'], 'without --secure_sum'),
  (['--dp_mechanism=local_laplace'], 'needs --clipping=l1'),
  (['--dp_mechanism=none', '--clipping=none'], 'without --dp_mechanism'),
  (['--target_epsilon=1'], 'needs one of --noise_multiplier and --target'),
  (['--clipping=none'], 'needs --clipping'),
  (['--client_weighting=examples'], '--client_weighting=uniform'),
  (['--algorithm=scaffold'], 'not used by --algorithm=scaffold'),
  (['--clipped_count_stddev=1'], 'not used by --clipping=fixed'),
  (
    [
      '--client_learning_rate_schedule=plateau',
      '--client_learning_rate_decay_rounds=5',
      '--client_learning_rate_decay_rate=0.5',
    ],
    'follows the training loss of clients without noise',
  ),
  (
    ['--algorithm=fed_recon'],
    'reconstruct from their training examples without noise',
  ),
)


@pytest.mark.parametrize('arguments, message', REFUSED, ids=str)
def test_what_does_not_fit_is_refused_before_data_is_loaded(arguments, message):
  clip = [f for f in PRIVATE if not f.startswith('--clip_norm')]
  given = clip if '--clipping=none' in arguments else PRIVATE
  with (
    binary.parsed('emnist', *given, *arguments),
    pytest.raises(flags.IllegalFlagValueError, match=message),
  ):
    emnist.GROUPS.algorithm.get(None)


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--validation_examples=20'], 'validation examples are taken from'),
    (['--noise_multiplier=0'], 'without noise there is no privacy'),
    (['--delta=0.5'], 'must be above 0 and below'),
    (['--max_epsilon=0.01'], 'the first round alone has an epsilon of'),
    (
      ['--dp_mechanism=distributed_skellam', '--secure_sum_bits=2'],
      'give at least',
    ),
  ],
  ids=str,
)
def test_what_does_not_fit_the_population_is_refused(
  arguments, message, tmp_path
):
  result = run(tmp_path, *arguments)
  assert result.returncode == 2
  assert message in result.stderr


def test_an_unaccounted_release_is_told_first(tmp_path):
  result = run(
    tmp_path, '--allow_unaccounted_release', '--validation_examples=20'
  )
  assert result.returncode == 0, result.stderr
  assert rows(tmp_path)[-1]['train_loss'] > 0
  assert rows(tmp_path)[-1]['validation_loss'] > 0
  text = (tmp_path / 'emnist' / 'model_card.md').read_text()
  privacy = text.partition('## Privacy')[2].strip()
  assert privacy.startswith('Besides the model, figures of the clients')


@pytest.mark.parametrize(
  'module, own',
  [
    ('emnist', ('--dataset=digits', '--model=logistic_regression')),
    ('linear_regression', ('--algorithm=fed_avg', '--nostandardise')),
    ('linear_regression', ('--algorithm=fed_sgd', '--nostandardise')),
    ('linear_regression', ('--algorithm=one_shot', '--nostandardise')),
  ],
  ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_every_task_takes_the_same_flags(module, own, tmp_path):
  # The other algorithms weigh by themselves.
  averages = not {'--algorithm=fed_sgd', '--algorithm=one_shot'} & {*own}
  result = binary.run(
    module,
    *own,
    *(['--client_weighting=uniform'] if averages else []),
    '--dp_mechanism=gaussian',
    '--noise_multiplier=2',
    '--delta=0.01',
    '--clipping=fixed',
    '--clip_norm=1',
    '--client_sampling=poisson',
    '--clients_per_round=5',
    '--total_rounds=2',
    '--noexport',
    f'--root_output_dir={tmp_path}',
  )
  assert result.returncode == 0, result.stderr
  (csv,) = tmp_path.glob('*/metrics.csv')
  found = metrics.read(csv)
  assert {n for n, v in found[-1].items() if v is not None} <= PUBLIC
  assert 0 < found[0]['epsilon'] < found[1]['epsilon']
  assert (csv.parent / 'privacy.json').is_file()
  assert not (csv.parent / 'coefficients.csv').exists()


def test_regression_is_not_standardised_by_private_sums(tmp_path):
  arguments = ('--dp_mechanism=gaussian', '--noise_multiplier=2')
  result = binary.run(
    'linear_regression',
    *arguments,
    '--clipping=fixed',
    '--clip_norm=1',
    '--client_weighting=uniform',
    '--client_sampling=poisson',
    f'--root_output_dir={tmp_path}',
  )
  assert result.returncode == 2
  assert 'Give means and scales that are public' in result.stderr


def test_the_projects_own_files_of_private_runs_parse():
  files = sorted((binary.ROOT / 'experiments' / 'private').glob('*.flags'))
  assert len(files) > 2
  for path in files:
    with binary.parsed('emnist', f'--flagfile={path}') as (module, rest):
      assert rest == ['emnist']
      module.GROUPS.algorithm.get(None)
