"""The flags of differential privacy; see `research.training.private_rounds`."""

from collections.abc import Sequence

import dp_accounting
from absl import flags

from datasets import download
from research import flag_values
from research.aggregators import mechanisms
from research.aggregators import settings as lib
from research.algorithms import registry
from research.privacy import accounting, calibration, guarantee
from research.privacy import journal as journal_lib
from research.tasks import task as task_lib
from research.training import (
  private_rounds,
  run_directory,
  schedules,
)

FLAGS = flag_values.FLAGS

_OTHERS = {
  'noise_multiplier': (
    'float',
    'Standard deviation of the noise / clipping norm; 0 is no privacy.',
  ),
  'target_epsilon': (
    'float',
    'Finds the noise multiplier that --total_rounds end with.',
  ),
  'delta': ('float', 'Of the guarantee; population^-1.1 by default.'),
  'max_epsilon': ('float', 'End before the round that would exceed it.'),
  'clipped_count_stddev': (
    'float',
    "Noise in adaptive clipping's count; clients_per_round / 20 by default.",
  ),
}
_SHAPES = {
  'dp_bands': 'Bands of banded_matrix_factorization; min_separation if None.',
  'blt_buffers': 'Buffers of blt; 4 by default.',
  'tree_restart_rounds': 'Rounds of a tree; all in one by default.',
}
_SWITCHES = {
  'insecure_seeded_noise': (
    'Take the noise from --seed, for tests and reproductions. Protects nothing.'
  ),
  'allow_unaccounted_release': (
    "Tell what clients' data says without noise (training metrics, counts, "
    'validation, plots). No guarantee covers it.'
  ),
}


class PrivacyFlags:
  """Differential privacy of clients."""

  def __init__(self):
    flag_values.enum(
      'dp_mechanism',
      lib.NONE,
      [lib.NONE, *lib.DP_MECHANISMS],
      'Noise that protects clients; its bound is --clipping.',
    )
    for name, (kind, text) in _OTHERS.items():
      flag_values.define(kind, name, None, text, lower_bound=0.0)
    for name, text in _SHAPES.items():
      flag_values.define('integer', name, None, text, lower_bound=1)
    for name, text in _SWITCHES.items():
      flag_values.define('boolean', name, False, text)

  def check(self, schedules_used: Sequence[schedules.Schedule]) -> None:
    """Checks what needs neither data nor accounting.

    Args:
      schedules_used: The learning rates by round.

    Raises:
      flags.IllegalFlagValueError: If flags do not fit together.
    """
    if FLAGS.dp_mechanism == lib.NONE:
      unused = [*_OTHERS, *_SHAPES, *_SWITCHES]
      flag_values.refuse_unused(unused, 'without --dp_mechanism')
      return
    if (FLAGS.noise_multiplier is None) == (FLAGS.target_epsilon is None):
      raise flags.IllegalFlagValueError(
        f'--dp_mechanism={FLAGS.dp_mechanism} needs one of --noise_multiplier '
        'and --target_epsilon, given '
        f'{"neither" if FLAGS.target_epsilon is None else "both"}.'
      )
    own = lib.DP_MECHANISMS[FLAGS.dp_mechanism]
    flag_values.refuse_unused(
      sorted(set(_SHAPES) - set(own)),
      f'by --dp_mechanism={FLAGS.dp_mechanism}',
    )
    if FLAGS.clipping != 'adaptive':
      reason = f'by --clipping={FLAGS.clipping}'
      flag_values.refuse_unused(['clipped_count_stddev'], reason)
    kinds = [schedule.kind for schedule in schedules_used]
    if schedules.PLATEAU in kinds and not FLAGS.allow_unaccounted_release:
      _refuse('a plateau schedule follows the training loss of clients')
    algorithm = registry.ALGORITHMS[FLAGS.algorithm]
    if algorithm.has_local_layers and not FLAGS.allow_unaccounted_release:
      _refuse(
        f'test metrics of --algorithm={FLAGS.algorithm} tell of what clients '
        'reconstruct from their training examples'
      )

  def get(
    self, task: task_lib.Task, run: run_directory.RunDirectory
  ) -> private_rounds.PrivateRounds | None:
    """Resolves the flags for a population.

    Args:
      task: Has the clients.
      run: Has the journal.

    Returns:
      What wraps the rounds; None without privacy.

    Raises:
      flags.IllegalFlagValueError: If there is no such guarantee.
    """
    if FLAGS.dp_mechanism == lib.NONE:
      return None
    if task.data.validation is not None and not FLAGS.allow_unaccounted_release:
      _refuse('validation examples are taken from clients')
    clients = guarantee.Sampling(
      scheme=FLAGS.client_sampling,
      population=len(task.data.train.client_ids),
      clients_per_round=FLAGS.clients_per_round,
      total_rounds=FLAGS.total_rounds,
      min_separation=FLAGS.min_separation,
    )
    try:
      return self._resolve(clients, run)
    except ValueError as error:
      raise flags.IllegalFlagValueError(str(error)) from error

  def _resolve(
    self, clients: guarantee.Sampling, run: run_directory.RunDirectory
  ) -> private_rounds.PrivateRounds:
    delta = FLAGS.delta
    if delta is None:
      delta = guarantee.default_delta(clients.population)
    strategy = mechanisms.strategy(
      FLAGS.dp_mechanism,
      clients.total_rounds,
      clients.min_separation,
      **{name: FLAGS[name].value for name in _SHAPES},
    )
    multiplier = FLAGS.noise_multiplier
    if multiplier is None:
      multiplier = calibration.noise_multiplier(
        FLAGS.target_epsilon,
        delta,
        clients,
        strategy,
        cache_folder=download.cache_directory(FLAGS.cache_dir),
      )
    settings = private_rounds.Settings(
      mechanism=FLAGS.dp_mechanism,
      noise_multiplier=multiplier,
      max_epsilon=FLAGS.max_epsilon,
      seed=FLAGS.seed if FLAGS.insecure_seeded_noise else None,
      scheme=FLAGS.client_sampling,
      allow_unaccounted_release=FLAGS.allow_unaccounted_release,
    )
    if strategy is None:
      event = dp_accounting.GaussianDpEvent(multiplier)
      accountant = accounting.build(event, clients, delta)
    else:
      accountant = accounting.build_correlated(
        strategy, multiplier, clients, delta
      )
    return private_rounds.PrivateRounds(
      settings,
      accountant,
      journal_lib.Journal(run.privacy_journal),
      run.privacy_json,
    )


def _refuse(what: str) -> None:
  raise flags.IllegalFlagValueError(
    f'--dp_mechanism={FLAGS.dp_mechanism}: {what} without noise. Leave it out, '
    'or give --allow_unaccounted_release, of which the model card then tells.'
  )
