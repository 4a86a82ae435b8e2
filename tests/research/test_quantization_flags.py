"""What the flags of quantization give and refuse."""

import pytest
from absl import flags

from models import quantization
from research import quantization_flags, statistics_flags
from research.algorithms import statistics
from tests.experiments import binary

IMAGES = '--dataset=synthetic_digits --model=logistic_regression'
PRIVATE = (
  '--dp_mechanism=gaussian --noise_multiplier=1 --clipping=fixed '
  '--clip_norm=0.1 --client_weighting=uniform --client_sampling=poisson'
)


def settings(*arguments):
  with binary.parsed('emnist', *arguments) as (module, _):
    return module._QUANTIZATION.settings()


def aggregation(*arguments):
  with binary.parsed('emnist', *arguments):
    return _statistics().get(dict)


def _statistics():
  group = object.__new__(statistics_flags.StatisticsFlags)
  return group


def test_defaults_are_those_of_the_library():
  assert settings('--quantize=qat') == quantization.Settings()


def test_every_flag_arrives():
  assert settings(
    '--quantize=qat',
    '--weight_bits=4',
    '--noper_channel_weights',
    '--nosymmetric_weights',
    '--initial_range=3',
  ) == quantization.Settings(4, False, False, 3.0)


def test_ranges_do_not_begin_with_the_first_batch_where_sums_are_hidden():
  assert settings('--quantize=qat', *PRIVATE.split()).initial_range == 6
  assert settings('--quantize=qat', '--secure_sum').initial_range == 6
  with pytest.raises(flags.IllegalFlagValueError, match='--initial_range=0'):
    settings('--quantize=qat', '--initial_range=0', *PRIVATE.split())


def test_statistics_are_a_part_of_the_update_where_sums_are_hidden():
  plain = aggregation()
  assert not plain.is_part_of_update
  for hidden in (PRIVATE.split(), ['--secure_sum']):
    assert aggregation(*hidden).is_part_of_update
  assert aggregation('--secure_sum', '--statistics_scale=2').scale == 2
  assert aggregation('--statistics_aggregation=none') is None
  assert aggregation('--statistics_aggregation=min_max').rule == (
    statistics.MIN_MAX
  )


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ('--statistics_scale=2', 'without differential privacy or --secure_sum'),
    (
      '--secure_sum --statistics_aggregation=min_max',
      'need the rule mean',
    ),
    (
      '--secure_sum --statistics_aggregation=none --statistics_scale=2',
      'by --statistics_aggregation=none',
    ),
    ('--secure_sum --statistics_scale=0', 'must be positive'),
  ],
)
def test_statistics_that_do_not_fit(arguments, message):
  with pytest.raises(flags.IllegalFlagValueError, match=message):
    aggregation(*arguments.split())


def test_the_projects_own_files_parse():
  files = sorted((binary.ROOT / 'experiments/quantization').glob('*.flags'))
  found = {}
  for path in files:
    with binary.parsed('emnist', f'--flagfile={path}') as (module, rest):
      assert rest == ['emnist']
      module.GROUPS.algorithm.get(None)
      found[path.stem] = flags.FLAGS.quantize, flags.FLAGS.model
  assert found == {
    'batch_norm_float': ('none', 'batch_norm_cnn'),
    'batch_norm_qat': ('qat', 'batch_norm_cnn'),
    'float': ('none', 'mcmahan_cnn'),
    'qat': ('qat', 'mcmahan_cnn'),
    'qat_ranges_stay': ('qat', 'mcmahan_cnn'),
  }


REFUSED = {
  f'{IMAGES} --weight_bits=4': '--weight_bits is not used without --quantize',
  f'{IMAGES} --statistics_aggregation=min_max': (
    '--statistics_aggregation is not used by a model without'
  ),
  f'{IMAGES} --quantize=qat --algorithm=scaffold': (
    '--algorithm=fed_avg and fed_prox aggregate them'
  ),
  f'{IMAGES} --quantize=qat --mixed_precision=bfloat16': (
    'does not go with --quantize=qat'
  ),
  f'{IMAGES} --quantize=qat --float_layers=dense': (
    '--float_layers=dense: the model has'
  ),
  '--dataset=synthetic_digits --task=clustering --algorithm=fed_kmeans '
  '--quantize=qat': 'squared_distances (SquaredDistances) would train',
}


@pytest.fixture(scope='module')
def answers():
  return dict(
    zip(REFUSED, binary.refusals('emnist', list(REFUSED)), strict=True)
  )


@pytest.mark.parametrize('line', REFUSED)
def test_refusals_of_a_binary(answers, line):
  assert REFUSED[line] in answers[line]


def test_names_of_the_flags_that_need_quantization():
  """Each has to be refused without it."""
  assert set(quantization_flags._NAMES) == {
    *quantization.Settings.__dataclass_fields__,
    'float_layers',
  }
