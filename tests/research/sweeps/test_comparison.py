import json
import math

import pytest

from research.aggregators import bits
from research.sweeps import comparison
from research.training import metrics

COLUMNS = ('round', 'test_accuracy', 'epsilon', 'delta')


@pytest.fixture
def files(tmp_path):
  for name, content in (
    ('plain', '--total_rounds=2'),
    ('private', '--dp_mechanism=gaussian\n--target_epsilon=8\n'),
  ):
    (tmp_path / f'{name}.flags').write_text(content)
  return [tmp_path / 'plain.flags', tmp_path / 'private.flags']


def run(directory, values):
  """A run directory whose rows are (round, accuracy, epsilon)."""
  directory.mkdir(parents=True)
  csv = metrics.MetricsCsv(directory / 'metrics.csv', COLUMNS)
  for row in values:
    delta = None if row[2] is None else 1e-5
    csv.append(dict(zip(COLUMNS, (*row, delta), strict=True)))
  if values[0][2] is not None:
    report = json.dumps({'relation': 'replace_one_client'})
    (directory / 'privacy.json').write_text(report)
  return directory


@pytest.fixture
def found(files, tmp_path):
  plain, weak, strong = comparison.lines(files, 'target_epsilon', ['4', '8'])
  return comparison.by_round(
    {
      (plain, 0): run(tmp_path / 'a', [(1, None, None), (2, 0.7, None)]),
      (plain, 1): run(tmp_path / 'b', [(1, None, None), (2, 0.9, None)]),
      (weak, 0): run(tmp_path / 'c', [(1, 0.2, 1.0), (2, 0.4, 4.0)]),
      (strong, 0): run(tmp_path / 'd', [(1, 0.3, 2.0), (2, 0.6, 8.0)]),
    },
    'test_accuracy',
  )


def test_only_files_with_the_flag_are_varied(files):
  plain, weak, strong = comparison.lines(files, 'target_epsilon', ['4', '8'])
  assert plain.run_name(1) == 'plain_seed1'
  assert plain.flags == (f'--flagfile={files[0]}',)
  assert weak.run_name(0) == 'private_4_seed0'
  assert strong.flags == (f'--flagfile={files[1]}', '--target_epsilon=8')
  assert len(comparison.lines(files, None, [''])) == 2


def test_the_last_values_have_mean_and_deviation_over_seeds(found):
  last = comparison.final(found, 'test_accuracy')
  assert list(last['name']) == ['plain', 'private', 'private']
  assert list(last['seeds']) == [2, 1, 1]
  assert list(last['mean']) == pytest.approx([0.8, 0.4, 0.6])
  assert last['deviation'][0] == pytest.approx(math.sqrt(0.02))
  assert math.isnan(last['deviation'][1])
  assert list(last['epsilon'][1:]) == [4.0, 8.0]
  assert list(last['delta'][1:]) == [1e-5, 1e-5]
  assert list(last['relation']) == [None, *['replace_one_client'] * 2]


def test_lines_keep_their_order(tmp_path):
  # Enough rows for a sorting that is not stable to mix them.
  names = [f'file{number}' for number in range(30)]
  runs = {
    (comparison.Line(name, None, ()), 0): run(
      tmp_path / name, [(r, 0.1, None) for r in range(1, 11)]
    )
    for name in names
  }
  found = comparison.by_round(runs, 'test_accuracy')
  assert list(comparison.final(found, 'test_accuracy')['name']) == names


def test_the_table_shows_rounds_on_the_way(found):
  text = comparison.table(found, 'test_accuracy', [1])
  assert 'private 4, test_accuracy by round:' in text
  assert 'plain, test_accuracy by round' not in text
  assert '0.8000' in text
  plain, weak, _ = [line.split() for line in text.splitlines()[-3:]]
  assert weak[-3:] == ['4.0000', '1e-05', 'replace_one_client']
  assert plain[-3:] == ['-', '-', '-']


@pytest.fixture
def cost(files, tmp_path):
  """Costs of two seeds of one line and of one without bits."""
  runs = {}
  columns = ('round', bits.UPLOAD, bits.DOWNLOAD)
  plain, private, _ = comparison.lines(files, 'target_epsilon', ['4', '8'])
  for line, seed, seconds in (
    (plain, 0, (9.0, 1.0, 2.0)),
    (plain, 1, (9.0, 3.0, 4.0)),
    (private, 0, (5.0, 5.0, 6.0)),
  ):
    folder = tmp_path / f'cost_{line.name}_{seed}'
    folder.mkdir()
    csv = metrics.MetricsCsv(folder / 'metrics.csv', columns)
    timing = metrics.MetricsCsv(
      folder / 'timing.csv', ('round', 'train_seconds')
    )
    for number, second in enumerate(seconds, 1):
      sent = None if line is private else 8_000_000
      csv.append(dict(zip(columns, (number, sent, 16_000_000), strict=True)))
      timing.append({'round': number, 'train_seconds': second})
    runs[line, seed] = folder
  return comparison.costs(runs)


def test_costs_are_megabytes_and_median_seconds(cost):
  assert list(cost['name']) == ['plain', 'private']
  assert cost['upload_megabytes'][0] == 1.0
  assert math.isnan(cost['upload_megabytes'][1])
  assert list(cost['download_megabytes']) == [2.0, 2.0]
  # Medians of the seeds are 2 and 4: the first round's tracing has no part.
  assert list(cost['seconds_per_round']) == [3.0, 5.0]


def test_costs_stand_beside_what_was_reached(found, cost):
  text = comparison.table(found, 'test_accuracy', cost=cost)
  plain = text.splitlines()[-3].split()
  assert plain[-3:] == ['1.0000', '2.0000', '3.0000']


def test_pictures_and_tables_are_written(found, cost, tmp_path):
  pictures = comparison.draw(found, 'test_accuracy', tmp_path, 0.1)
  assert [path.name for path in pictures] == ['comparison.png', 'privacy.png']
  tables = comparison.write(found, 'test_accuracy', tmp_path, cost)
  assert tables[0].read_text().count('\n') == 7
  assert 'seconds_per_round' in tables[1].read_text()
  without = found[found['name'] == 'plain']
  assert len(comparison.draw(without, 'test_accuracy', tmp_path)) == 1


def test_an_unknown_metric_is_named_with_those_there_are(files, tmp_path):
  (line, _) = comparison.lines(files, None, [''])
  runs = {(line, 0): run(tmp_path / 'a', [(1, 0.5, 1.0)])}
  with pytest.raises(ValueError, match='--metric=recall .*test_accuracy, eps'):
    comparison.by_round(runs, 'recall')


def test_the_constant_class_is_read_from_the_config(tmp_path):
  config = tmp_path / 'config.json'
  config.write_text(json.dumps({'constant_class_accuracy': 0.25}))
  assert comparison.constant_class_accuracy(tmp_path) == 0.25
  config.write_text('{}')
  assert comparison.constant_class_accuracy(tmp_path) is None
