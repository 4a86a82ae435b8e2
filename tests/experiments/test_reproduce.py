import pathlib
import subprocess
import sys

import pandas as pd
import pytest
from absl import flags

from research import paper_targets
from tests.experiments import binary

PAPERS = binary.ROOT / 'experiments' / 'papers'
TARGETS = sorted(
  str(path.relative_to(PAPERS).with_suffix(''))
  for path in PAPERS.rglob('*.flags')
)


def rows(*values):
  return [
    {'round': round_num, 'test_accuracy': value}
    for round_num, value in enumerate(values, 1)
  ]


@pytest.mark.parametrize(
  'values, expected',
  [
    # Between rounds 2 (0.8) and 3 (0.9) a third of the way.
    ((0.5, 0.8, 0.9), 2 + 1 / 3),
    # The dip does not count: the curve is made monotone first.
    ((0.5, 0.8, 0.6, 0.9), 3 + 1 / 3),
    ((0.5, None, 0.9), 1 + 2 * (5 / 6 - 0.5) / 0.4),
    ((0.5, 5 / 6), 2),
    ((0.5, 0.8), None),
  ],
)
def test_crossing_is_interpolated_on_the_monotone_curve(values, expected):
  crossing = paper_targets.rounds_to_target(
    rows(*values), 'test_accuracy', 5 / 6
  )
  assert crossing == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize('name', TARGETS)
def test_every_flag_file_parses_and_names_its_paper(name):
  target = paper_targets.read_target(PAPERS, name)
  assert target.paper and target.provenance
  if target.binary != 'emnist':
    # Parsed by test_bert_flags.py: a process has the flags of one binary.
    assert target.binary == 'bert'
    return
  with binary.parsed('emnist', f'--flagfile={target.flag_file}'):
    assert flags.FLAGS.client_learning_rate > 0


# Accuracies of NIID-Bench's MNIST rows, and the partition's flags.
NIID_ALGORITHMS = ('fed_avg', 'scaffold', 'fed_prox', 'fed_nova')
NIID_BENCH = {
  'iid': ((0.991, 0.992, 0.992, 0.990), {'partition': 'iid'}),
  'dirichlet': (
    (0.989, 0.990, 0.990, 0.988),
    {'partition': 'dirichlet', 'dirichlet_alpha': 0.5},
  ),
  'two_classes': (
    (0.966, 0.966, 0.967, 0.965),
    {'partition': 'classes', 'classes_per_client': 2},
  ),
}
NIID_SHARED = {
  'dataset': 'mnist',
  'model': 'niid_bench_cnn',
  'partition_clients': 10,
  'clients_per_round': 10,
  'client_epochs_per_round': 10,
  'client_batch_size': 64,
}


def test_niid_bench_has_no_cell_besides_its_table():
  names = {name for name in TARGETS if name.startswith('niid_bench/')}
  assert names == {
    f'niid_bench/mnist_{partition}_{algorithm}'
    for partition in NIID_BENCH
    for algorithm in NIID_ALGORITHMS
  }


@pytest.mark.parametrize('partition', NIID_BENCH)
@pytest.mark.parametrize('column', range(4))
def test_a_cell_of_niid_bench_is_what_its_name_says(partition, column):
  values, division = NIID_BENCH[partition]
  algorithm = NIID_ALGORITHMS[column]
  name = f'niid_bench/mnist_{partition}_{algorithm}'
  target = paper_targets.read_target(PAPERS, name)
  assert (target.target, target.at_round) == (values[column], 50)
  expected = {**NIID_SHARED, **division, 'algorithm': algorithm}
  # Scaffold takes plain steps alone; the paper's have momentum.
  if algorithm == 'scaffold':
    expected |= {'client_optimizer': 'sgd', 'client_learning_rate': 0.03}
  else:
    momentum = {'client_optimizer': 'momentum', 'client_momentum': 0.9}
    expected |= momentum | {'client_learning_rate': 0.01}
  full = f'--flagfile={target.flag_file}'
  reduced = binary.ROOT / 'experiments' / 'niid_bench_reduced.flags'
  with binary.parsed('emnist', full):
    assert {key: flags.FLAGS[key].value for key in expected} == expected
    assert flags.FLAGS.total_rounds == 50
    assert not flags.FLAGS.validation_examples
    saved = flags.FLAGS.flag_values_dict()
  with binary.parsed('emnist', full, f'--flagfile={reduced}'):
    small = flags.FLAGS.flag_values_dict()
  # Everything else is the full scale's.
  assert {k: v for k, v in small.items() if v != saved[k]} == {
    'total_rounds': 10,
    'rounds_per_evaluation': 10,
    'validation_examples': 54_000,
  }


def test_the_page_on_niid_bench_has_the_numbers_of_its_table():
  page = (binary.ROOT / 'docs' / 'niid_bench.md').read_text()
  table = pd.read_csv(binary.ROOT / 'experiments' / 'niid_bench_reduced.csv')
  measured = dict(zip(table['cell'], table['test_accuracy'], strict=True))
  for partition, title in (
    ('iid', 'IID'),
    ('dirichlet', 'Dirichlet 0.5'),
    ('two_classes', '#C=2'),
  ):
    cells = [title]
    for value, algorithm in zip(
      NIID_BENCH[partition][0], NIID_ALGORITHMS, strict=True
    ):
      reduced = measured.pop(f'mnist_{partition}_{algorithm}')
      cells.append(f'{100 * reduced:.1f} ({100 * value:.1f})')
    assert f'| {" | ".join(cells)} |\n' in page
  assert not measured


def test_the_flag_file_of_make_emnist_parses():
  path = binary.ROOT / 'experiments' / 'emnist.flags'
  with binary.parsed('emnist', f'--flagfile={path}'):
    assert flags.FLAGS.model == 'mcmahan_cnn'


def test_an_unknown_target_lists_the_known_ones():
  with pytest.raises(ValueError, match=TARGETS[0]):
    paper_targets.read_target(PAPERS, 'nothing/here')


def test_outcome_gives_mean_deviation_and_verdict():
  target = paper_targets.read_target(PAPERS, 'mcmahan2017/table2_mnist_cnn_iid')
  row = paper_targets.outcome(target, {0: 22.0, 1: 26.0, 2: 24.0}, None)
  assert (row['mean'], row['std'], row['paper']) == (24.0, 2.0, 20)
  assert row['within_tolerance']
  assert not paper_targets.outcome(target, {0: 29.0}, None)['within_tolerance']
  missed = paper_targets.outcome(target, {0: 22.0, 1: None}, None)
  assert missed['mean'] is None
  assert not missed['within_tolerance']


def test_the_outcome_has_the_weakest_guarantee_of_its_runs():
  target = paper_targets.read_target(PAPERS, 'tff_tutorial/mnist_by_writer_dp')
  private = [{'epsilon': e, 'delta': 1e-5} for e in (1.0, 2.5)]
  found = [paper_targets.guarantee(private[:n]) for n in (1, 2)]
  assert found == [(1.0, 1e-5), (2.5, 1e-5)]
  plain = paper_targets.guarantee(rows(0.5, 0.6))
  assert plain is None and paper_targets.guarantee([]) is None
  row = paper_targets.outcome(target, {0: 0.8, 1: 0.8}, None, found)
  assert (row['epsilon'], row['delta']) == (2.5, 1e-5)
  row = paper_targets.outcome(target, {0: 0.8}, None, [plain])
  assert row['epsilon'] is row['delta'] is None


def _target(tmp_path, *comments):
  names = ('paper', 'metric', 'provenance')
  lines = [*(f'# {name}: test_accuracy' for name in names), *comments]
  (tmp_path / 'one.flags').write_text('\n'.join(lines))
  return paper_targets.read_target(tmp_path, 'one')


def test_a_value_at_a_round_is_compared_absolutely(tmp_path):
  target = _target(
    tmp_path, '# target: 0.8', '# tolerance: 0.015', '# at_round: 3'
  )
  assert target.number(rows(0.9, 0.9)) is None
  assert target.number(rows(0.9, 0.9, 0.81)) == 0.81
  row = paper_targets.outcome(target, {0: 0.81, 1: 0.815}, None)
  assert row['number'] == 'test_accuracy at round 3'
  assert row['paper'] == 0.8
  assert row['within_tolerance']
  outside = paper_targets.outcome(target, {0: 0.82, 1: 0.812}, None)
  assert not outside['within_tolerance']


@pytest.mark.parametrize(
  'comments', [[], ['# paper_rounds: 3', '# at_round: 3']]
)
def test_a_flag_file_says_rounds_or_a_round(tmp_path, comments):
  with pytest.raises(ValueError, match='paper_rounds or at_round'):
    _target(tmp_path, '# target: 0.8', '# tolerance: 0.1', *comments)


def test_ledger_keeps_one_row_per_target(tmp_path):
  path = tmp_path / 'results.csv'
  paper_targets.write_ledger(path, {'target': 'b', 'mean': 1.0})
  # A number whose last digit a careless reader loses, and an empty cell.
  exact = {'target': 'c', 'mean': 25.555555555555557, 'spread': None}
  paper_targets.write_ledger(path, exact)
  paper_targets.write_ledger(path, {'target': 'a', 'mean': 2.0})
  paper_targets.write_ledger(path, {'target': 'b', 'mean': 3.0})
  table = pd.read_csv(path)
  assert list(table['target']) == ['a', 'b', 'c']
  assert list(table['mean'])[:2] == [2.0, 3.0]
  assert 'c,25.555555555555557,\n' in path.read_text()


def test_the_command_runs_seeds_and_writes_the_ledger(tmp_path):
  ledger = tmp_path / 'results.csv'
  extra = [
    f'--extra_flag={flag}'
    for flag in (
      '--dataset=synthetic_mnist',
      '--model=logistic_regression',
      '--clients_per_round=3',
      '--client_epochs_per_round=1',
      '--total_rounds=2',
      '--noexport',
    )
  ]
  result = binary.run(
    'reproduce',
    '--target=mcmahan2017/table2_mnist_cnn_iid',
    '--seeds=7',
    f'--root_output_dir={tmp_path}',
    f'--ledger={ledger}',
    *extra,
  )
  assert result.returncode == 0, result.stderr
  (row,) = pd.read_csv(ledger).to_dict('records')
  assert row['seeds'] == 7
  assert len(list(pathlib.Path(tmp_path).glob('*_seed*/metrics.csv'))) == 1


@pytest.mark.timeout(300)
def test_a_seed_ends_once_it_has_reached_the_target(tmp_path):
  """99,999 rounds are asked for; a few already reach 20 % of four classes."""
  lines = [
    '# paper: none',
    '# metric: test_accuracy',
    '# target: 0.2',
    '# paper_rounds: 2',
    '# tolerance: 0.5',
    '# provenance: this test',
    *binary.TINY,
    '--total_rounds=99999',
    '--rounds_per_evaluation=1',
    '--client_learning_rate=0.1',
  ]
  flag_file = tmp_path / 'easy.flags'
  flag_file.write_text('\n'.join(lines))
  # The flag files of papers are the binary's own: a test brings another folder.
  code = (
    'import pathlib\n'
    'from research import cli\n'
    'from experiments import reproduce\n'
    f'reproduce.PAPERS = pathlib.Path({str(tmp_path)!r})\n'
    'reproduce._POLL_SECONDS = 0.1\n'
    'cli.run(reproduce.main)\n'
  )
  command = [sys.executable, '-c', code, '--target=easy', '--seeds=3']
  command += [f'--root_output_dir={tmp_path}', f'--ledger={tmp_path}/ledger']
  run_dir = tmp_path / 'easy_seed3'
  sizes = []
  for _ in range(2):
    result = subprocess.run(
      command, cwd=binary.ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    sizes.append((run_dir / 'metrics.csv').stat().st_size)
  # The second call trained no more, and the run has its model.
  assert sizes[0] == sizes[1] < 1_000_000
  assert (run_dir / 'model' / '1' / 'saved_model.pb').is_file()
  (row,) = pd.read_csv(tmp_path / 'ledger').to_dict('records')
  assert 0 < float(row['by_seed']) < 1000


def test_a_failing_run_ends_the_command():
  code = (
    'import sys\n'
    'from experiments import reproduce\n'
    'command = [sys.executable, "-c", "raise SystemExit(3)"]\n'
    'reproduce._run(command, enough=bool)\n'
  )
  result = subprocess.run([sys.executable, '-c', code], cwd=binary.ROOT)
  assert result.returncode == 3
