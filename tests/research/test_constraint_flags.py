"""What the flags of pruned and clustered weights give and refuse."""

import pytest
from absl import flags

from models import pruning, weight_clustering
from research.training import metrics
from tests.experiments import binary

MAGNITUDE = '--prune=magnitude --total_rounds=20'


def settings(line):
  with binary.parsed('emnist', *line.split()) as (module, _):
    _, found, _ = module.GROUPS.algorithm.get(None)
    return found.pruning, found.clustering


def test_nothing_is_the_default():
  assert settings('') == (None, None)


def test_every_flag_arrives():
  assert settings(
    f'{MAGNITUDE} --final_sparsity=0.6 --pruning_begin_round=2 '
    '--pruning_end_round=8 --rounds_per_pruning=3 --weight_clusters=16 '
    '--clustering_begin_round=5'
  ) == (pruning.Settings(0.6, 2, 8, 3), weight_clustering.Settings(16, 5))


def test_zeros_of_a_pruned_model_are_kept():
  found, _ = settings('--prune=preserve --initial_model=somewhere')
  assert found.preserves


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('--final_sparsity=0.5', '--final_sparsity is not used by --prune=none'),
    ('--clustering_begin_round=5', 'without --weight_clusters'),
    ('--prune=preserve', 'give it as --initial_model'),
    (
      '--prune=preserve --initial_model=a --pruning_end_round=3',
      'not used by --prune=preserve',
    ),
    (MAGNITUDE, r'--pruning_end_round=None: .* half of them \(10\)'),
    (f'{MAGNITUDE} --pruning_end_round=21', 'a round of the 20'),
    (f'{MAGNITUDE} --pruning_end_round=2 --final_sparsity=0', 'prune nothing'),
    (f'{MAGNITUDE} --pruning_end_round=2 --final_sparsity=1', 'below 1'),
    (
      f'{MAGNITUDE} --pruning_end_round=5 --rounds_per_pruning=2',
      'must be a multiple of rounds_per_pruning=2',
    ),
  ],
)
def test_what_does_not_fit(line, message):
  with pytest.raises(flags.IllegalFlagValueError, match=message):
    settings(line)


def test_the_projects_own_files_parse():
  found = {}
  for path in sorted((binary.ROOT / 'experiments/compression').glob('*.flags')):
    prune, cluster = settings(f'--flagfile={path}')
    found[path.stem] = (
      prune and prune.final_sparsity,
      cluster and cluster.num_clusters,
      '--quantize=qat' in path.read_text(),
    )
  assert found == {
    'clustered': (None, 16, False),
    'clustered_qat': (None, 16, True),
    'pruned': (0.8, None, False),
    'pruned_clustered_qat': (0.8, 16, True),
    'pruned_qat': (0.8, None, True),
  }


RUN = (
  '--dataset=synthetic_digits --model=mcmahan_2nn --clients_per_round=3 '
  '--total_rounds=4 --prune=magnitude --final_sparsity=0.75 '
  '--pruning_end_round=2'
)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """A pruned run, one that starts from its model, and what was refused."""
  root = tmp_path_factory.mktemp('runs')
  lines = [
    f'{RUN} --root_output_dir={root} --experiment_name=pruned',
    f'{RUN} --root_output_dir={root} --noexport --algorithm=scaffold',
    '--dataset=synthetic_digits --model=mcmahan_2nn --clients_per_round=3 '
    f'--total_rounds=2 --root_output_dir={root} --noexport --quantize=qat '
    f'--experiment_name=preserved --prune=preserve '
    f'--initial_model={root}/pruned',
  ]
  return root, binary.refusals('emnist', lines)


def test_sparsity_is_in_each_row(runs):
  root, errors = runs
  assert errors[0] is None
  rows = metrics.read(root / 'pruned/metrics.csv')
  # Equation 1 of Zhu and Gupta at half of the way, and at its end.
  expected = [0.75 * (1 - 0.5**3), 0.75, 0.75, 0.75]
  found = [row['sparsity'] for row in rows]
  assert found == pytest.approx(expected, abs=1e-4)


def test_other_algorithms_refuse(runs):
  assert '--algorithm=fed_avg and fed_prox can' in runs[1][1]


def test_quantization_goes_on_from_a_pruned_model(runs):
  root, errors = runs
  assert errors[2] is None
  before = metrics.read(root / 'pruned/metrics.csv')[-1]['sparsity']
  rows = metrics.read(root / 'preserved/metrics.csv')
  assert [row['sparsity'] for row in rows] == [before] * 2
