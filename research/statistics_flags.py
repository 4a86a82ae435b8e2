"""The flags of variables that clients measure; see `algorithms.statistics`."""

from collections.abc import Callable

import tensorflow_federated as tff
from absl import flags

from research import flag_values
from research.algorithms import statistics

FLAGS = flag_values.FLAGS
NONE = 'none'
_NAMES = ('statistics_aggregation', 'statistics_scale')
_SCALE = 0.1


class StatisticsFlags:
  """How ranges of quantization and moments of normalisations are aggregated."""

  def __init__(self):
    flag_values.enum(
      'statistics_aggregation',
      statistics.MEAN,
      [*statistics.RULES, NONE],
      'How the server learns ranges of quantization and moments of batch '
      'normalisation: min_max takes the widest range; none leaves them as they '
      'were at first, as TFF does, and shows what goes wrong then.',
    )
    flag_values.define(
      'float',
      'statistics_scale',
      None,
      'Their factor in the vector that privacy or --secure_sum sums; '
      f'{_SCALE} by default. Larger is less noise and more clipping.',
    )

  def get(
    self,
    build_aggregator: Callable[[], tff.aggregators.WeightedAggregationFactory],
  ) -> statistics.Settings | None:
    """Returns how statistics are aggregated, if at all.

    Args:
      build_aggregator: Makes their aggregator, where they are summed plainly.

    Raises:
      flags.IllegalFlagValueError: If flags do not fit together.
    """
    hidden = is_part_of_update()
    if not hidden:
      flag_values.refuse_unused(
        ['statistics_scale'], 'without differential privacy or --secure_sum'
      )
    if FLAGS.statistics_aggregation == NONE:
      flag_values.refuse_unused(
        ['statistics_scale'], 'by --statistics_aggregation=none'
      )
      return None
    scale = FLAGS.statistics_scale
    try:
      return statistics.Settings(
        rule=FLAGS.statistics_aggregation,
        is_part_of_update=hidden,
        scale=_SCALE if scale is None else scale,
        build_aggregator=build_aggregator,
      )
    except ValueError as error:
      raise flags.IllegalFlagValueError(
        f'--statistics_aggregation, --statistics_scale: {error}'
      ) from error


def is_part_of_update() -> bool:
  """Whether a sum of statistics of their own would tell what must be hidden."""
  return FLAGS.dp_mechanism != 'none' or FLAGS.secure_sum


def refuse_unused(has_statistics: bool) -> None:
  """Raises if flags say how to aggregate what the model does not have."""
  if not has_statistics:
    flag_values.refuse_unused(
      _NAMES,
      'by a model without quantization and batch normalisation',
    )
