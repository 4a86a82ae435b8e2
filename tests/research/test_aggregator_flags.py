"""The flags of aggregation: what they build and what they refuse."""

import re

import pytest
import tensorflow_federated as tff
from absl import flags

from research.aggregators import compose, settings
from tests.experiments import binary

LOOP = tff.learning.LoopImplementation.DATASET_REDUCE


def get(*arguments):
  with binary.parsed('emnist', *arguments) as (emnist, _):
    return emnist.GROUPS.algorithm.get(LOOP)[1].model_aggregator


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--clip_norm=1'], '--clip_norm is not used by --clipping=none'),
    (
      ['--clipping=fixed', '--clip_norm=1', '--clip_quantile=0.5'],
      '--clip_quantile is not used by --clipping=fixed',
    ),
    (['--clipping=fixed'], 'needs a positive --clip_norm'),
    (['--trimmed_fraction=0.2'], 'is not used by --aggregator=mean'),
    (
      ['--aggregator=median', '--client_weighting=uniform'],
      '--client_weighting is not used by --aggregator=median',
    ),
    (
      ['--aggregator=krum', '--selected_clients=2'],
      '--selected_clients is not used by --aggregator=krum',
    ),
    (['--compression_bits=2'], 'is not used by --compression=none'),
    (
      ['--compression=top_k', '--compression_bits=2'],
      '--compression_bits is not used by --compression=top_k',
    ),
    (
      ['--compression=qsgd', '--top_k_fraction=0.1'],
      '--top_k_fraction is not used by --compression=qsgd',
    ),
    (['--secure_sum_bits=8'], 'is not used without --secure_sum'),
    (
      ['--aggregator=krum', '--client_sampling=poisson'],
      'krum with --client_sampling=poisson',
    ),
    (
      ['--secure_sum', '--clipping=fixed', '--clip_norm=1'],
      'needs --client_weighting=uniform',
    ),
    (
      [
        '--algorithm=fed_sgd',
        '--secure_sum',
        '--clipping=fixed',
        '--clip_norm=1',
      ],
      'needs --client_weighting=uniform',
    ),
    (
      [
        '--secure_sum',
        '--clipping=fixed',
        '--clip_norm=1',
        '--client_weighting=uniform',
        '--secure_sum_bits=61',
      ],
      'from 2 bits each to 62 in all',
    ),
  ],
)
def test_what_has_no_effect_or_is_unsound_is_refused(arguments, message):
  with pytest.raises(flags.IllegalFlagValueError, match=re.escape(message)):
    get(*arguments)


def test_every_flag_reaches_the_settings(monkeypatch):
  seen = []
  monkeypatch.setattr(compose, 'build', seen.append)
  get(
    '--aggregator=multi_krum',
    '--byzantine_clients=2',
    '--selected_clients=3',
    '--clipping=adaptive',
    '--clip_norm=0.5',
    '--clip_quantile=0.6',
    '--clip_learning_rate=0.4',
    '--compression=qsgd',
    '--compression_bits=5',
    '--rotation=fourier',
    '--clients_per_round=20',
    '--runtime=stock',
    '--seed=7',
  )
  get(
    '--zeroing',
    '--secure_sum',
    '--secure_sum_bits=12',
    '--client_weighting=uniform',
    '--client_sampling=poisson',
  )
  get('--aggregator=trimmed_mean', '--trimmed_fraction=0.3')
  get('--aggregator=geometric_median', '--weiszfeld_iterations=9')
  get('--compression=top_k', '--top_k_fraction=0.2')
  private = (
    '--clipping=adaptive',
    '--clip_norm=0.5',
    '--client_weighting=uniform',
    '--client_sampling=cyclic_poisson',
    '--min_separation=5',
    '--total_rounds=40',
    '--noise_multiplier=0.7',
  )
  get(
    '--dp_mechanism=banded_matrix_factorization',
    '--dp_bands=3',
    '--clipped_count_stddev=6',
    *private,
  )
  get('--dp_mechanism=blt', '--blt_buffers=2', *private)
  get('--dp_mechanism=tree_aggregation', '--tree_restart_rounds=20', *private)
  assert seen == [
    settings.Settings(
      aggregator='multi_krum',
      byzantine_clients=2,
      selected_clients=3,
      clipping='adaptive',
      clip_norm=0.5,
      clip_quantile=0.6,
      clip_learning_rate=0.4,
      compression='qsgd',
      compression_bits=5,
      rotation='fourier',
      clients_per_round=20,
      runtime='stock',
      seed=7,
    ),
    settings.Settings(
      zeroing=True,
      secure_sum=True,
      secure_sum_bits=12,
      has_uniform_weights=True,
      has_fixed_cohorts=False,
    ),
    settings.Settings(aggregator='trimmed_mean', trimmed_fraction=0.3),
    settings.Settings(aggregator='geometric_median', weiszfeld_iterations=9),
    settings.Settings(compression='top_k', top_k_fraction=0.2),
    *(
      settings.Settings(
        clipping='adaptive',
        clip_norm=0.5,
        has_uniform_weights=True,
        has_fixed_cohorts=False,
        min_separation=5,
        total_rounds=40,
        noise_multiplier=0.7,
        **own,
      )
      for own in (
        {
          'dp_mechanism': 'banded_matrix_factorization',
          'dp_bands': 3,
          'clipped_count_stddev': 6.0,
        },
        {'dp_mechanism': 'blt', 'blt_buffers': 2},
        {'dp_mechanism': 'tree_aggregation', 'tree_restart_rounds': 20},
      )
    ),
  ]
