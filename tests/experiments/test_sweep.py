"""experiments/sweep.py from the command line, on synthetic data."""

import json

import pandas as pd
import pytest
from absl import flags

from research import flag_values
from tests.experiments import binary

ARGUMENTS = (
  '--binary=emnist',
  '--grid=client_learning_rate=0.001,0.3',
  *(f'--extra_flag={flag}' for flag in binary.TINY),
  '--extra_flag=--total_rounds=2',
  '--processes=2',
)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A finished sweep: its directory, what was printed, and that of a repeat."""
  root = tmp_path_factory.mktemp('runs')
  results = [
    binary.run('sweep', *ARGUMENTS, f'--root_output_dir={root}')
    for _ in range(2)
  ]
  for result in results:
    assert result.returncode == 0, result.stderr
  return root / 'sweep', *(result.stdout for result in results)


def test_a_sweep_leaves_what_it_promises(finished):
  directory, printed, _ = finished
  table = pd.read_csv(directory / 'results.csv', keep_default_na=False)
  assert list(table['client_learning_rate']) == [0.001, 0.3]
  assert list(table['status']) == ['finished'] * 2
  assert list(table['best']) == ['', 'best']
  runs = sorted(path.name for path in (directory / 'runs').iterdir())
  assert runs == ['cell_000_seed0', 'cell_001_seed0']
  assert not list(directory.glob('runs/*/model'))
  assert (directory / 'sweep.png').is_file()
  lines = printed.splitlines()
  assert sum(line.startswith(('[1/2] ', '[2/2] ')) for line in lines) == 2


def test_a_finished_sweep_runs_nothing_again(finished):
  assert '[1/2]' not in finished[2]
  assert 'best' in finished[2]


def test_the_best_flag_file_is_the_best_run(finished):
  config = json.loads(
    (finished[0] / 'runs/cell_001_seed0/config.json').read_text()
  )
  with binary.parsed('emnist', f'--flagfile={finished[0]}/best.flags'):
    assert flags.FLAGS.client_learning_rate == 0.3
    values = flag_values.values()
  # Runs of a sweep have their own places, and do not export.
  free = {'root_output_dir', 'experiment_name', 'num_classes', 'export'}
  differing = {n for n in values if values[n] != config['flags'][n]}
  assert differing <= free


# Arguments of the command, and what it answers; none starts a process.
_REFUSED = {
  '--binary=emnits': '--binary=emnits is unknown; there are bert',
  '--binary=evaluate': '--binary=evaluate is unknown',
  '--binary=emnist': '--grid is missing',
  '--binary=emnist --grid=a': 'not a flag name with its values',
  '--binary=emnist --grid=a=1 --seeds=0,x': '--seeds=0,x: give different',
  '--binary=emnist --grid=a=1 --seeds=1,01': '--seeds=1,01: give different',
  '--binary=emnist --grid=a=1 --seeds=': '--seeds is empty',
  '--binary=emnist --grid=a=1 --trials=3': '--trials is not used by',
  '--binary=emnist --grid=a=1 --search=random': 'random needs --trials',
  '--binary=emnist --grid=a=1 --extra_flag=a': 'as --extra_flag=--a',
  '--binary=emnist --grid=a=1 --extra_flag=--a=1': '--a is in --grid and in',
  '--binary=emnist --grid=a=1 word': 'Only flags are expected',
}


def test_wrong_flags_are_refused_at_once():
  errors = binary.refusals('sweep', list(_REFUSED))
  for error, expected in zip(errors, _REFUSED.values(), strict=True):
    assert expected in error


def test_a_dry_run_lists_cells_and_makes_nothing(tmp_path):
  result = binary.run(
    'sweep',
    '--binary=emnist',
    '--grid=client_learning_rate=log:0.01:1',
    '--grid=server_optimizer=sgd,adam',
    '--search=bayesian',
    '--trials=8',
    '--seeds=0,1',
    '--dry_run',
    f'--root_output_dir={tmp_path}',
  )
  assert result.returncode == 0, result.stderr
  lines = result.stdout.splitlines()
  assert [line.split(':')[0] for line in lines[:5]] == [
    f'cell {i}' for i in range(5)
  ]
  assert lines[5].startswith('3 more, chosen by results')
  assert lines[6] == '8 cells, 2 seeds, 16 runs'
  assert not list(tmp_path.iterdir())
