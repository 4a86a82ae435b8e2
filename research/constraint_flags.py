"""The flags of pruned and clustered weights; see `weight_constraints`."""

from absl import flags

from models import pruning, weight_clustering
from research import flag_values

FLAGS = flag_values.FLAGS
NONE, MAGNITUDE, PRESERVE = 'none', 'magnitude', 'preserve'
_SCHEDULE = (
  'final_sparsity',
  'pruning_begin_round',
  'pruning_end_round',
  'rounds_per_pruning',
)
_FINAL_SPARSITY = 0.8


class ConstraintFlags:
  """Whether the server prunes and clusters its weights, and when."""

  def __init__(self):
    define = flag_values.define
    flag_values.enum(
      'prune',
      NONE,
      [NONE, MAGNITUDE, PRESERVE],
      'magnitude makes the smallest weights of each kernel zero, more of them '
      'from round to round; preserve keeps the zeros of --initial_model.',
    )
    define(
      'float',
      'final_sparsity',
      _FINAL_SPARSITY,
      "Share of a kernel's weights that are zero in the end.",
      lower_bound=0.0,
      upper_bound=1.0,
    )
    define(
      'integer',
      'pruning_begin_round',
      0,
      'Round after which pruning begins.',
      lower_bound=0,
    )
    define(
      'integer',
      'pruning_end_round',
      None,
      'Round after which --final_sparsity is reached; half of all rounds is a '
      'good choice, since the rest heals what pruning hurts.',
      lower_bound=1,
    )
    define(
      'integer',
      'rounds_per_pruning',
      1,
      'Rounds from one pruning to the next.',
      lower_bound=1,
    )
    define(
      'integer',
      'weight_clusters',
      None,
      'Different values that a kernel has; all weights are free by default.',
      lower_bound=2,
    )
    define(
      'integer',
      'clustering_begin_round',
      0,
      'Round after which weights are clustered.',
      lower_bound=0,
    )

  def pruning(self) -> pruning.Settings | None:
    """Returns how weights are pruned, if at all.

    Raises:
      flags.IllegalFlagValueError: If flags do not fit together.
    """
    if FLAGS.prune != MAGNITUDE:
      flag_values.refuse_unused(_SCHEDULE, f'by --prune={FLAGS.prune}')
    if FLAGS.prune == NONE:
      return None
    if FLAGS.prune == PRESERVE:
      if not FLAGS.initial_model:
        raise flags.IllegalFlagValueError(
          '--prune=preserve keeps the zeros of a pruned model: give it as '
          '--initial_model.'
        )
      return pruning.Settings(final_sparsity=0.0)
    total, end = FLAGS.total_rounds, FLAGS.pruning_end_round
    if end is None or end > total:
      raise flags.IllegalFlagValueError(
        f'--pruning_end_round={end}: with --prune=magnitude it must be a round '
        f'of the {total} of --total_rounds, half of them '
        f'({max(total // 2, 1)}) for one.'
      )
    if not FLAGS.final_sparsity:
      raise flags.IllegalFlagValueError(
        '--final_sparsity=0 with --prune=magnitude would prune nothing.'
      )
    try:
      return pruning.Settings(
        final_sparsity=FLAGS.final_sparsity,
        begin_round=FLAGS.pruning_begin_round,
        end_round=end,
        rounds_per_pruning=FLAGS.rounds_per_pruning,
      )
    except ValueError as error:
      raise flags.IllegalFlagValueError(
        f'--prune=magnitude: {error}'
      ) from error

  def clustering(self) -> weight_clustering.Settings | None:
    """Returns how weights are clustered, if at all."""
    if FLAGS.weight_clusters is None:
      flag_values.refuse_unused(
        ['clustering_begin_round'], 'without --weight_clusters'
      )
      return None
    return weight_clustering.Settings(
      FLAGS.weight_clusters, FLAGS.clustering_begin_round
    )
