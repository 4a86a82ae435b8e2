"""The flags of differential privacy; see `research.training.private_rounds`."""

import dataclasses
import math
from collections.abc import Sequence

import tensorflow as tf
import tensorflow_federated as tff
from absl import flags

from datasets import download
from research import fault_flags, flag_values, statistics_flags
from research.aggregators import settings as lib
from research.algorithms import attacks, local_training, registry
from research.privacy import (
  accounting,
  distributed,
  distributed_accounting,
  guarantee,
  local,
  matrix_factorization,
  mechanism,
)
from research.privacy import canaries as canaries_lib
from research.privacy import journal as journal_lib
from research.tasks import task as task_lib
from research.training import (
  faults,
  private_rounds,
  run_directory,
  sampling,
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
_AUDIT = 'audit_canaries'
_AUDIT_TEXT = (
  'So many more clients, each in the training with probability 1/2, send '
  'random directions, and the final model tells who was in: a lower bound of '
  'epsilon. Canaries are noise to the model; no guarantee gets weaker.'
)
# What canaries send / clipping norm, so that clipping has to do its work.
_CANARY_NORM = 10.0


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
    flag_values.define('integer', _AUDIT, 0, _AUDIT_TEXT, lower_bound=0)

  def check(self, schedules_used: Sequence[schedules.Schedule]) -> None:
    """Checks what needs neither data nor accounting.

    Args:
      schedules_used: The learning rates by round.

    Raises:
      flags.IllegalFlagValueError: If flags do not fit together.
    """
    if FLAGS.dp_mechanism == lib.NONE:
      unused = [*_OTHERS, *_SHAPES, *_SWITCHES, _AUDIT]
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
    is_distributed = FLAGS.dp_mechanism in distributed.MECHANISMS
    if is_distributed and FLAGS.client_dropout_rate:
      raise flags.IllegalFlagValueError(
        f'--dp_mechanism={FLAGS.dp_mechanism} with --client_dropout_rate: a '
        'client that drops out takes its share of the noise with it, and less '
        'would be left than is accounted for. Lower --clients_per_round '
        'instead.'
      )

  def attack(self) -> attacks.Attack | None:
    """How canaries change what they send; None without an audit.

    Raises:
      flags.IllegalFlagValueError: If there can't be canaries.
    """
    if not FLAGS.audit_canaries:
      return None
    name = f'--audit_canaries={FLAGS.audit_canaries}'
    if FLAGS.client_sampling == sampling.FIXED_SIZE:
      raise flags.IllegalFlagValueError(
        f'{name} with --client_sampling={FLAGS.client_sampling}: a canary that '
        'takes part would take the place of another client, and the audit '
        'needs one that is there or not, with all others as they are. Use '
        'poisson or cyclic_poisson.'
      )
    if FLAGS.poison != faults.NONE:
      raise flags.IllegalFlagValueError(
        f'{name} with --poison={FLAGS.poison}: both change what clients send; '
        'leave one out.'
      )
    fault_flags.check_algorithm(name)
    return attacks.REPLACE

  def get(
    self,
    task: task_lib.Task,
    sampler: sampling.ClientSampler,
    run: run_directory.RunDirectory,
  ) -> private_rounds.PrivateRounds | None:
    """Resolves the flags for a population.

    Args:
      task: Has the clients.
      sampler: Draws them.
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
    try:
      journal = journal_lib.Journal(run.privacy_journal)
      rounds = FLAGS.total_rounds
      # What was released counts, however few rounds are asked for now. What
      # correlates their noise is made for one number of rounds.
      if FLAGS.dp_mechanism not in matrix_factorization.MECHANISMS:
        rounds = max(rounds, journal.rounds)
      clients = guarantee.Sampling.of(sampler, rounds)
      return self._resolve(clients, task, run, journal)
    except ValueError as error:
      raise flags.IllegalFlagValueError(str(error)) from error

  def _resolve(
    self,
    clients: guarantee.Sampling,
    task: task_lib.Task,
    run: run_directory.RunDirectory,
    journal: journal_lib.Journal,
  ) -> private_rounds.PrivateRounds:
    delta = FLAGS.delta
    if delta is None:
      delta = guarantee.default_delta(clients.population)
    accountant = _accountant(clients, task, delta)
    if FLAGS.max_epsilon is not None and not journal.releases:
      _check_limit(FLAGS.max_epsilon, accountant.guarantee(1).epsilon)
    settings = private_rounds.Settings(
      mechanism=FLAGS.dp_mechanism,
      noise_multiplier=accountant.noise_multiplier,
      noise_to_cohort_ratio=_noise_to_cohort_ratio(
        accountant.noise_multiplier, clients
      ),
      max_epsilon=FLAGS.max_epsilon,
      seed=FLAGS.seed if FLAGS.insecure_seeded_noise else None,
      scheme=FLAGS.client_sampling,
      allow_unaccounted_release=FLAGS.allow_unaccounted_release,
      event=accountant.event,
    )
    return private_rounds.PrivateRounds(
      settings,
      accountant,
      journal,
      run.privacy_json,
      _canaries(task, clients),
    )


def _check_limit(limit: float, first: float) -> None:
  """Raises if a budget allows no round."""
  if first > limit:
    raise guarantee.AccountingError(
      f'--max_epsilon={limit:g}: the first round alone has an epsilon of '
      f'{guarantee.round_up(first)}. Allow more, or add noise.'
    )


def _noise_to_cohort_ratio(
  noise_multiplier: float, clients: guarantee.Sampling
) -> float:
  """Of the clients that are expected to answer, which is no secret."""
  answers = clients.clients_per_round * (1 - FLAGS.client_dropout_rate)
  if not answers:
    return math.inf
  if FLAGS.dp_mechanism in local.MECHANISMS:
    return noise_multiplier / math.sqrt(answers)
  return noise_multiplier / answers


def _canaries(
  task: task_lib.Task, clients: guarantee.Sampling
) -> canaries_lib.Canaries | None:
  """The canaries of `--audit_canaries`; None without."""
  if not FLAGS.audit_canaries:
    return None
  weights = local_training.model_types(task.model_fn).weights
  sends_statistics = (
    task.has_statistics
    and FLAGS.statistics_aggregation != statistics_flags.NONE
  )
  return canaries_lib.Canaries(
    number=FLAGS.audit_canaries,
    probability=clients.probability,
    shapes=_shapes(weights.trainable),
    norm=_CANARY_NORM * FLAGS.clip_norm,
    min_separation=clients.min_separation or 1,
    seed=FLAGS.seed,
    statistics=_shapes(weights.non_trainable) if sends_statistics else None,
  )


def _shapes(weights_type: tff.Type) -> list[list[int]]:
  """Shapes of the floats of a type."""
  specs = tf.nest.flatten(tff.types.type_to_tf_tensor_specs(weights_type))
  return [spec.shape.as_list() for spec in specs if spec.dtype.is_floating]


def _accountant(
  clients: guarantee.Sampling, task: task_lib.Task, delta: float
) -> accounting.Accountant:
  """Of the mechanism, with the noise that a flag gives or aims at."""
  if FLAGS.dp_mechanism in distributed.MECHANISMS:
    return _distributed_accountant(clients, task, delta)
  correlation = mechanism.strategy(
    FLAGS.dp_mechanism,
    clients.total_rounds,
    clients.min_separation,
    **{name: FLAGS[name].value for name in _SHAPES},
  )
  multiplier = FLAGS.noise_multiplier
  if multiplier is None:
    multiplier = mechanism.noise_multiplier(
      FLAGS.target_epsilon,
      FLAGS.dp_mechanism,
      clients,
      delta,
      correlation,
      download.cache_directory(FLAGS.cache_dir),
    )
  return mechanism.accountant(
    FLAGS.dp_mechanism, multiplier, clients, delta, correlation
  )


def _distributed_accountant(
  clients: guarantee.Sampling, task: task_lib.Task, delta: float
) -> accounting.Accountant:
  name, multiplier = FLAGS.dp_mechanism, FLAGS.noise_multiplier
  # How much rounding adds to a norm depends on the number of weights.
  weights = task.model_fn().trainable_variables
  encoding = distributed.Encoding(
    clip_norm=FLAGS.clip_norm,
    noise_multiplier=multiplier or 0.0,
    clients_per_round=FLAGS.clients_per_round,
    size=sum(math.prod(weight.shape) for weight in weights),
    bits=FLAGS.secure_sum_bits,
  )
  if multiplier is None:
    multiplier = distributed_accounting.noise_multiplier(
      FLAGS.target_epsilon, name, encoding, clients, delta
    )
    encoding = dataclasses.replace(encoding, noise_multiplier=multiplier)
  return distributed_accounting.build(name, encoding, clients, delta)


def refuse_release(what: str) -> None:
  """Raises if a command would tell what private clients' data say.

  Args:
    what: That it would tell.

  Raises:
    flags.IllegalFlagValueError: If the run is private, and
      `--allow_unaccounted_release` is not given.
  """
  if FLAGS.dp_mechanism == lib.NONE or FLAGS.allow_unaccounted_release:
    return
  raise flags.IllegalFlagValueError(
    f'The run has --dp_mechanism={FLAGS.dp_mechanism}, and {what} without '
    'noise: no guarantee covers that. If nobody else will see it, give '
    '--allow_unaccounted_release.'
  )


def _refuse(what: str) -> None:
  raise flags.IllegalFlagValueError(
    f'--dp_mechanism={FLAGS.dp_mechanism}: {what} without noise. Leave it out, '
    'or give --allow_unaccounted_release, of which the model card then tells.'
  )
