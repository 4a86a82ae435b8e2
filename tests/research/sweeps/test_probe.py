"""What a binary says of flags: in this process, the probe has its own."""

import importlib

import pytest
from absl import flags
from absl.testing import flagsaver

from research.sweeps import probe
from tests.experiments import binary


def describe(shared=(), swept=None, module='experiments.emnist'):
  # Before flags are saved: those that an import adds are lost afterwards.
  importlib.import_module(module)
  with flagsaver.flagsaver():
    return probe.describe(module, shared, swept or {})


def test_types_values_and_lines(tmp_path):
  file = tmp_path / 'base.flags'
  file.write_text('--client_learning_rate=0.5\n--model=logistic_regression\n')
  found = describe(
    [f'--flagfile={file}', '--total_rounds=7', '--noexport'],
    {'client_learning_rate': ['0.1', '1'], 'clients_per_round': ['3']},
  )
  assert found.exports
  assert found.flag_types == {
    'client_learning_rate': 'float',
    'clients_per_round': 'int',
  }
  # A flag file's value of a swept flag does not count.
  assert sorted(found.lines) == [
    '--model=logistic_regression',
    '--noexport',
    '--total_rounds=7',
  ]
  assert found.decisive['model'] == 'logistic_regression'
  assert found.decisive['total_rounds'] == 7
  assert found.decisive['client_batch_size'] == 10
  absent = {'client_learning_rate', 'seed', 'experiment_name', 'device'}
  assert not absent & set(found.decisive)


@pytest.mark.parametrize(
  'shared, swept, message',
  [
    ((), {'client_lr': ['1']}, 'emnist has no flag --client_lr'),
    ((), {'client_learning_rat': ['1']}, 'did you mean client_learning_rate'),
    ((), {'client_learning_rate': ['1', 'x']}, '--client_learning_rate=x'),
    ((), {'client_learning_rate': ['-1']}, 'non-negative'),
    ((), {'clients_per_round': ['2.5']}, '--clients_per_round=2.5'),
    ((), {'model': ['cnn']}, r'--model=cnn: value should be one of'),
    ((), {'seed': ['1']}, 'use --seeds'),
    ((), {'experiment_name': ['1']}, 'the sweep sets it'),
    (('--no_such=1',), {}, "--extra_flag: Unknown command line flag 'no_such'"),
    (('--client_momentum=x',), {}, '--extra_flag: .*--client_momentum=x'),
    (('word',), {}, '--extra_flag: Only flags are expected'),
    (('--seed=3',), {}, '--extra_flag sets --seed: use --seeds'),
    (('--dry_run',), {}, '--extra_flag sets --dry_run'),
  ],
)
def test_wrong_flags_are_refused_before_anything_runs(shared, swept, message):
  with pytest.raises(flags.IllegalFlagValueError, match=message):
    describe(shared, swept)


def test_what_does_not_train_is_refused(monkeypatch):
  with pytest.raises(flags.IllegalFlagValueError, match='can not be swept'):
    monkeypatch.setattr(probe.flag_values, 'names', lambda: ('run_dir',))
    describe(module='experiments.emnist')


def test_a_module_that_fails_says_why(monkeypatch):
  monkeypatch.chdir(binary.ROOT)
  with pytest.raises(
    flags.IllegalFlagValueError, match="No module named 'experiments.absent'"
  ):
    probe.ask('experiments.absent', [], {})
