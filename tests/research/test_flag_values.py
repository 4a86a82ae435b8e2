import json

import pytest
from absl import flags

from research import flag_values
from tests.experiments import binary


def test_saved_flags_fill_in_what_the_command_line_lacks(tmp_path):
  path = tmp_path / 'config.json'
  saved = {'total_rounds': 7, 'seed': 3, 'feature_shape': ['28', '28', '1']}
  path.write_text(json.dumps({'flags': saved}))
  with binary.parsed('emnist', '--seed=9'):
    flag_values.apply_saved(path)
    assert flags.FLAGS.total_rounds == 7
    assert flags.FLAGS.seed == 9
    assert flags.FLAGS.feature_shape == ['28', '28', '1']


@pytest.mark.parametrize(
  'text, message',
  [
    ('{', 'is not the config.json'),
    ('[]', 'is not the config.json'),
    ('{"flags": {"no_such_flag": 1}}', 'flags that this binary lacks: no_such'),
  ],
)
def test_a_file_that_is_no_config_is_named(text, message, tmp_path):
  path = tmp_path / 'config.json'
  path.write_text(text)
  with (
    binary.parsed('emnist'),
    pytest.raises(flags.IllegalFlagValueError, match=message),
  ):
    flag_values.apply_saved(path)


def test_what_is_saved_can_be_saved_again(tmp_path):
  with binary.parsed('emnist', '--client_learning_rate=0.25'):
    values = flag_values.values()
  assert values['client_learning_rate'] == 0.25
  assert not {'from_config', 'dry_run'} & set(values)
  path = tmp_path / 'config.json'
  path.write_text(json.dumps({'flags': values}))
  with binary.parsed('emnist'):
    flag_values.apply_saved(path)
    assert flag_values.values() == values


def test_only_flags_that_cannot_change_a_result_are_free():
  with binary.parsed('emnist'):
    free = flag_values.free_names()
  assert {'root_output_dir', 'total_rounds', 'runtime', 'data_dir'} <= free
  assert {'device', 'xla', 'client_plan', 'clients_per_chunk'} <= free
  decisive = {
    'seed',
    'dataset',
    'model',
    'client_learning_rate',
    'server_momentum',
    'rounds_per_evaluation',
    'client_sampling',
    'mixed_precision',
  }
  assert not decisive & free
