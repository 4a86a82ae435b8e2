"""experiments/privacy_budget.py from the command line."""

import csv

import pytest

from research.privacy import budget, guarantee, priv_unit
from tests.experiments import binary

SMALL = (
  '--population=100',
  '--clients_per_round=10',
  '--total_rounds=20',
)


def rows_of(folder):
  with open(folder / 'privacy_budget/privacy_budget.csv') as file:
    return list(csv.DictReader(file))


def run(tmp_path, *arguments):
  result = binary.run(
    'privacy_budget',
    *arguments,
    f'--root_output_dir={tmp_path}',
    TFF_RESEARCH_CACHE=str(tmp_path / 'cache'),
  )
  assert result.returncode == 0, result.stderr
  return result.stdout


def test_the_command_answers_with_a_table_a_file_and_a_plot(tmp_path):
  printed = run(
    tmp_path,
    '--population=3400',
    '--clients_per_round=100',
    '--total_rounds=500',
    '--noise_multiplier=0.6,0.8,1.0',
  )
  for part in ['add_or_remove_one_client', 'poisson', 'unit        client']:
    assert part in printed
  rows = rows_of(tmp_path)
  assert [row['noise_multiplier'] for row in rows] == ['0.6', '0.8', '1.0']
  for row in rows:
    assert row['unit'] == 'client' and row['delta'] == '0.0001'
    assert row['relation'] == 'add_or_remove_one_client'
    assert row['client_sampling'] == 'poisson'
    assert float(row['epsilon']) == float(row['epsilon_pld'])
    assert float(row['epsilon_pld']) < float(row['epsilon_rdp'])
    assert guarantee.round_up(float(row['epsilon'])) in printed
  assert (tmp_path / 'privacy_budget/plots/privacy_budget.png').is_file()


def test_every_combination_is_a_run(tmp_path):
  run(
    tmp_path,
    '--population=100,200',
    '--clients_per_round=10,20',
    '--total_rounds=3,5',
    '--noise_multiplier=2',
    '--client_sampling=fixed_size',
    '--plot_against=population',
  )
  rows = rows_of(tmp_path)
  assert len(rows) == 8
  assert {row['epsilon_pld'] for row in rows} == {''}
  assert {row['relation'] for row in rows} == {'replace_one_client'}
  by_population = {row['population']: row['delta'] for row in rows}
  assert by_population == {'100': '0.006', '200': '0.002'}


def test_a_target_gives_the_noise(tmp_path):
  printed = run(
    tmp_path,
    *SMALL,
    '--target_epsilon=1,4',
    '--clients_per_round=1',
    '--client_sampling=cyclic_poisson',
    '--min_separation=10',
  )
  assert 'cyclic_poisson, 10 rounds apart' in printed
  for row, target in zip(rows_of(tmp_path), (1, 4), strict=True):
    assert 0.999 * target <= float(row['epsilon']) <= target
    assert row['min_separation'] == '10'


CYCLIC = ('--client_sampling=cyclic_poisson', '--min_separation=5')


def test_correlated_noise_is_planned(tmp_path):
  arguments = [*SMALL, *CYCLIC, '--clients_per_round=20', '--target_epsilon=4']
  found = {}
  for name in ('gaussian', 'tree_aggregation', 'blt'):
    printed = run(tmp_path, *arguments, f'--dp_mechanism={name}')
    assert f'noise       {name}: ' in printed
    (row,) = rows_of(tmp_path)
    assert 0.999 * 4 <= float(row['epsilon']) <= 4
    assert row['dp_mechanism'] == name
    found[name] = float(row['noise_multiplier'])
  # With everyone of a group in each of its 4 turns, independent noise has a
  # sensitivity of 2; a tree of 20 leaves, at most, of 2 sqrt(5) and more.
  assert found['tree_aggregation'] > 2 * found['gaussian']
  assert found['gaussian'] < found['blt'] < found['tree_aggregation']


def test_reports_are_planned(tmp_path):
  run(
    tmp_path, *SMALL, '--dp_mechanism=local_priv_unit', '--noise_multiplier=9'
  )
  (row,) = rows_of(tmp_path)
  assert row['relation'] == 'any_two_values_of_a_client'
  expected = priv_unit.composed_epsilon(9.0, 20, float(row['delta']))
  assert float(row['epsilon']) == pytest.approx(expected)


_REFUSED = (
  ('--noise_multiplier=1 --dp_mechanism=blt', 'needs cyclic_poisson'),
  ('--noise_multiplier=1 --dp_bands=3', '--dp_bands is not used by --dp_mech'),
  ('--noise_multiplier=0', '--noise_multiplier=0: give numbers above 0'),
  ('--noise_multiplier=x', '--noise_multiplier=x: give numbers above 0'),
  ('--noise_multiplier=nan', 'nan: give numbers above 0'),
  ('--noise_multiplier=', '--noise_multiplier=: give numbers above 0'),
  ('--noise_multiplier=1 --total_rounds=1.5', '=1.5: give whole numbers'),
  ('--noise_multiplier=1 --clients_per_round=101', 'a population of 100'),
  ('--noise_multiplier=1 --delta=0.01', 'Delta 0.01 for 100 clients'),
  ('--noise_multiplier=1 --delta=0', 'Delta 0 for 100 clients'),
  ('--noise_multiplier=1 --population=1 --clients_per_round=1', 'no one to'),
  ('', 'Give either --noise_multiplier'),
  ('--noise_multiplier=1 --target_epsilon=1', 'Give either'),
  ('--noise_multiplier=1 --min_separation=3', 'of 3 under poisson sampling'),
  ('--target_epsilon=1e9', 'asks for next to no noise'),
  ('--target_epsilon=1 --plot_against=noise_multiplier', 'is the result'),
  ('--noise_multiplier=1 word', 'Only flags are expected'),
  ('--noise_multiplier=1 --experiment_name=a/b', 'without a slash'),
)


def test_what_makes_no_sense_is_refused(tmp_path):
  common = ' '.join([*SMALL, f'--root_output_dir={tmp_path}'])
  errors = binary.refusals(
    'privacy_budget',
    [f'{common} {arguments}' for arguments, _ in _REFUSED],
    TFF_RESEARCH_CACHE=str(tmp_path / 'cache'),
  )
  for error, (arguments, message) in zip(errors, _REFUSED, strict=True):
    assert error and message in error, arguments
  assert not (tmp_path / 'privacy_budget').exists()


def drawn(monkeypatch, tmp_path, planned, against):
  """The axes of the plot."""
  figures = []
  monkeypatch.setattr(
    budget.plots, 'save', lambda fig, path: figures.append(fig) or path
  )
  budget.plot(planned, against, tmp_path / 'x.png')
  return figures[0].axes[0]


def test_a_curve_ends_in_the_epsilon_of_its_run(tmp_path, monkeypatch):
  sampling = guarantee.Sampling('poisson', 100, 10, 200)
  planned = budget.runs([sampling], None, noise_multipliers=[1.0, 2.0])
  axes = drawn(monkeypatch, tmp_path, planned, 'total_rounds')
  assert [line.get_label() for line in axes.lines] == [
    'noise multiplier 1',
    'noise multiplier 2',
  ]
  for line, run in zip(axes.lines, planned, strict=True):
    x, y = line.get_data()
    assert (x[0], x[-1]) == (1, 200)
    assert y[-1] == run.row()['epsilon']
    assert list(y) == sorted(y)
  for part in ['add_or_remove_one_client', 'poisson', 'delta 0.006', 'client']:
    assert part in axes.get_title()


def test_noise_against_the_population(tmp_path, monkeypatch):
  samplings = [guarantee.Sampling('poisson', n, 10, 5) for n in (100, 1000)]
  planned = budget.runs(samplings, None, target_epsilons=[2.0])
  axes = drawn(monkeypatch, tmp_path, planned, 'population')
  (line,) = axes.lines
  assert list(line.get_xdata()) == [100, 1000]
  assert list(line.get_ydata()) == [run.noise_multiplier for run in planned]
  assert 'delta 0.0005 to 0.006' in axes.get_title()


def test_many_lines_are_cut_and_said_to_be(tmp_path, monkeypatch):
  sampling = guarantee.Sampling('poisson', 100, 100, 2)
  noise = [float(z) for z in range(1, 13)]
  planned = budget.runs([sampling], None, noise_multipliers=noise)
  axes = drawn(monkeypatch, tmp_path, planned, 'total_rounds')
  assert len(axes.lines) == 10
  assert 'the first 10 of 12 lines' in axes.get_title()
