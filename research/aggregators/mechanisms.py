"""The private mean of each `--dp_mechanism`."""

import tensorflow_federated as tff

from research.aggregators import dp, dp_distributed, dp_ftrl, dp_local
from research.aggregators import settings as lib
from research.privacy import distributed, local, mechanism


def build(settings: lib.Settings) -> tff.aggregators.WeightedAggregationFactory:
  """Builds the aggregator; it ignores the clients' weights.

  Raises:
    ValueError: If an argument is out of range.
  """
  if settings.dp_mechanism in distributed.MECHANISMS:
    return dp_distributed.build(settings)
  if settings.dp_mechanism in local.MECHANISMS:
    return dp_local.build(settings)
  correlation = mechanism.strategy(
    settings.dp_mechanism,
    settings.total_rounds,
    settings.min_separation,
    settings.dp_bands,
    settings.blt_buffers,
    settings.tree_restart_rounds,
  )
  if correlation is None:
    return dp.build(settings)
  adaptive = None
  if settings.clipping == 'adaptive':
    adaptive = dp.AdaptiveClipping(
      settings.clip_quantile,
      settings.clip_learning_rate,
      settings.clipped_count_stddev,
    )
  return dp_ftrl.CorrelatedNoiseFactory(
    correlation,
    clip_norm=settings.clip_norm,
    noise_multiplier=settings.noise_multiplier,
    clients_per_round=float(settings.clients_per_round),
    adaptive_clipping=adaptive,
  )
