"""Flag files side by side, in the binary."""

import pandas as pd
import pytest

from tests.experiments import binary

FILES = {
  'plain': (*binary.TINY, '--total_rounds=2'),
  'private': (
    *binary.TINY,
    '--total_rounds=2',
    '--dp_mechanism=gaussian',
    '--noise_multiplier=1',
    '--clipping=fixed',
    '--clip_norm=1',
    '--client_weighting=uniform',
    '--client_sampling=poisson',
  ),
}


@pytest.fixture
def folder(tmp_path):
  directory = tmp_path / 'files'
  directory.mkdir()
  for name, lines in FILES.items():
    (directory / f'{name}.flags').write_text('\n'.join(lines))
  return directory


def run(folder, root, *arguments):
  return binary.run(
    'compare',
    '--binary=emnist',
    f'--flag_files={folder}',
    f'--root_output_dir={root}',
    *arguments,
  )


def test_files_are_run_and_compared(folder, tmp_path):
  result = run(folder, tmp_path, '--table_rounds=2')
  assert result.returncode == 0, result.stderr
  assert 'private, test_accuracy by round' in result.stdout
  assert 'The most frequent class alone: 0.' in result.stdout
  root = tmp_path / 'comparison'
  for name in ('comparison.png', 'privacy.png'):
    assert (root / name).is_file()
  first = pd.read_csv(root / 'comparison.csv')
  assert list(first['name']) == ['plain', 'private']
  assert first['epsilon'][1] > 0 and first['delta'][1] > 0
  assert first['relation'][1] == 'add_or_remove_one_client'


@pytest.mark.slow
def test_the_same_command_goes_on_with_more_seeds(folder, tmp_path):
  assert run(folder, tmp_path).returncode == 0
  root = tmp_path / 'comparison'
  rows = (root / 'runs' / 'plain_seed0' / 'metrics.csv').read_bytes()
  again = run(folder, tmp_path, '--seeds=0,1')
  assert again.returncode == 0, again.stderr
  assert list(pd.read_csv(root / 'comparison.csv')['seeds']) == [2, 2]
  assert (root / 'runs/plain_seed0/metrics.csv').read_bytes() == rows


def test_a_failed_run_is_told_with_its_log(folder, tmp_path):
  (folder / 'plain.flags').write_text('--dataset=unheard_of')
  result = run(folder / 'plain.flags', tmp_path)
  assert result.returncode == 1
  assert 'logs/plain_seed0.log' in result.stderr


def test_bad_flags_are_refused(folder, tmp_path):
  expected = {
    '--flag_files=nowhere.flags': 'nowhere.flags is not there',
    f'--flag_files={folder} --vary=target_epsilon': 'write a flag and its',
    f'--flag_files={folder} --vary=target_epsilon=1': 'none of the files has',
    f'--flag_files={folder} --seeds=a': 'whole numbers',
  }
  common = f'--binary=emnist --root_output_dir={tmp_path}'
  errors = binary.refusals(
    'compare', [f'{common} {arguments}' for arguments in expected]
  )
  for error, message in zip(errors, expected.values(), strict=True):
    assert message in error
