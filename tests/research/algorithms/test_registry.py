"""The algorithms that flags can name: their flags, and the page about them."""

import re

import pytest
import tensorflow_federated as tff
from absl import flags

from models import bert, pruning
from research.algorithms import local_training, registry
from tests.experiments import binary
from tests.research.export import text_tasks

_REDUCE = tff.learning.LoopImplementation.DATASET_REDUCE


def get(*arguments):
  with binary.parsed('emnist', *arguments) as (emnist, _):
    return emnist.GROUPS.algorithm.get(_REDUCE)


def test_own_hyperparameters_come_from_flags_or_defaults():
  default = registry.ALGORITHMS['fed_prox'].hparams['proximal_strength']
  _, settings, _ = get('--algorithm=fed_prox')
  assert settings.hparams == {'proximal_strength': default}
  _, settings, _ = get('--algorithm=fed_prox', '--proximal_strength=0')
  assert settings.hparams == {'proximal_strength': 0.0}
  _, settings, _ = get('--algorithm=fed_nova')
  assert settings.hparams == {}


def test_hyperparameters_of_another_algorithm_are_refused():
  message = '--proximal_strength is not used by --algorithm=fed_avg'
  with pytest.raises(flags.IllegalFlagValueError, match=message):
    get('--algorithm=fed_avg', '--proximal_strength=0.1')


def test_a_flag_has_the_kind_of_its_hyperparameter():
  _, settings, _ = get('--algorithm=fed_recon')
  assert settings.hparams == registry.ALGORITHMS['fed_recon'].hparams
  _, settings, _ = get(
    '--algorithm=fed_recon',
    '--local_layers=dense_2,logits',
    '--reconstruction_epochs=3',
    '--support_is_query',
  )
  assert settings.hparams == {
    'local_layers': ['dense_2', 'logits'],
    'reconstruction_epochs': 3,
    'reconstruction_learning_rate': 0.1,
    'support_is_query': True,
  }
  assert type(settings.hparams['reconstruction_epochs']) is int


def _default(value: registry.Hparam) -> str:
  if isinstance(value, bool):
    return f' ({str(value).lower()})'
  return f' ({value:g})' if value != () else ''


def _row(name: str, algorithm: registry.Algorithm) -> str:
  own = ' '.join(
    f'`--{key}`{_default(v)}' for key, v in algorithm.hparams.items()
  )
  refused = ' '.join(f'`--{key}`' for key in sorted(algorithm.unused_flags))
  cells = (f'`{name}`', algorithm.paper, own, refused)
  return '|' + '|'.join(f' {cell} ' if cell else ' ' for cell in cells) + '|'


def test_the_page_lists_every_algorithm():
  page = (binary.ROOT / 'docs' / 'algorithms.md').read_text()
  rows = [line for line in page.splitlines() if re.match(r'\| `', line)]
  expected = [_row(*item) for item in sorted(registry.ALGORITHMS.items())]
  assert [row for row in rows if '`--algorithm`' not in row] == expected


def test_an_unsuitable_optimizer_is_one_line(tmp_path):
  result = binary.run(
    'emnist',
    *binary.TINY,
    f'--root_output_dir={tmp_path}',
    '--algorithm=fed_nova',
    '--client_optimizer=adam',
  )
  assert result.returncode == 2
  assert 'sgd and momentum' in result.stderr
  assert 'Traceback' not in result.stderr


@pytest.mark.parametrize('name', ['fed_prox', 'fed_nova', 'mime'])
def test_the_binary_trains_with_it(tmp_path, name):
  result = binary.run(
    'emnist',
    *binary.TINY,
    f'--root_output_dir={tmp_path}',
    f'--algorithm={name}',
    '--total_rounds=2',
    '--noexport',
  )
  assert result.returncode == 0, result.stderr
  assert 'round 2/2' in result.stdout + result.stderr


def test_weights_are_pruned_only_where_all_of_them_are_trained():
  settings = registry.Settings(
    client_optimizer=None,
    server_optimizer=None,
    client_weighting=None,
    loop_implementation=_REDUCE,
    pruning=pruning.Settings(final_sparsity=0.5),
  )
  algorithm = registry.ALGORITHMS['fed_avg']
  assert algorithm._constraints(text_tasks.make(), settings).positions
  task = text_tasks.make(tuning=bert.FineTuning('lora', lora_rank=2))
  with pytest.raises(local_training.UnsuitableError, match='fine_tuning=full'):
    algorithm._constraints(task, settings)
