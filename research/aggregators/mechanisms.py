"""The private mean of each `--dp_mechanism`."""

import functools

import tensorflow_federated as tff

from research.aggregators import dp, dp_distributed, dp_ftrl, dp_local
from research.aggregators import settings as lib
from research.privacy import distributed, local, matrix_factorization


@functools.cache
def strategy(
  mechanism: str,
  total_rounds: int,
  min_separation: int | None,
  dp_bands: int | None = None,
  blt_buffers: int | None = None,
  tree_restart_rounds: int | None = None,
) -> matrix_factorization.Strategy | None:
  """How a mechanism's noise is correlated; None if it is not.

  Optimising it can take seconds: aggregator and accountant share the result.

  Args:
    mechanism: One of `settings.DP_MECHANISMS`.
    total_rounds: See `matrix_factorization.build`, as for what follows.
    min_separation: There.
    dp_bands: `bands` there.
    blt_buffers: `buffers` there; None is its default.
    tree_restart_rounds: `restart_period` there.

  Raises:
    ValueError: If an argument is out of range.
  """
  if mechanism not in matrix_factorization.MECHANISMS:
    return None
  buffers = {} if blt_buffers is None else {'buffers': blt_buffers}
  return matrix_factorization.build(
    mechanism,
    total_rounds,
    min_separation,
    bands=dp_bands,
    restart_period=tree_restart_rounds,
    **buffers,
  )


def build(settings: lib.Settings) -> tff.aggregators.WeightedAggregationFactory:
  """Builds the aggregator; it ignores the clients' weights.

  Raises:
    ValueError: If an argument is out of range.
  """
  if settings.dp_mechanism in distributed.MECHANISMS:
    return dp_distributed.build(settings)
  if settings.dp_mechanism in local.MECHANISMS:
    return dp_local.build(settings)
  correlation = strategy(
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
