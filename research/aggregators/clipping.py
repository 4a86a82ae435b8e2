"""Bounds on the norms of the clients' updates, by TFF's factories.

Clipping to a fixed norm is the norm bounding of Sun et al. 2019, "Can You
Really Backdoor Federated Learning?", arXiv:1911.07963.
"""

import math

import tensorflow_federated as tff

Factory = tff.aggregators.WeightedAggregationFactory

_quantile = tff.aggregators.PrivateQuantileEstimationProcess.no_noise


def clip(
  inner: Factory,
  clip_norm: float,
  count: tff.aggregators.UnweightedAggregationFactory | None = None,
) -> Factory:
  """Scales each update down to an L2 norm of at most `clip_norm`.

  Args:
    inner: Aggregates the clipped updates.
    clip_norm: The bound, over all tensors of an update together.
    count: Sums the number of clipped clients; None is a plain sum.

  Returns:
    The aggregator, with `clipped_count` and `clipping_norm` measured.
  """
  return tff.aggregators.clipping_factory(float(clip_norm), inner, count)


def clip_adaptively(
  inner: Factory,
  initial_clip_norm: float,
  quantile: float,
  learning_rate: float,
) -> Factory:
  """Clips to a running estimate of a quantile of the updates' norms.

  Andrew, Thakkar et al. 2021, "Differentially Private Learning with Adaptive
  Clipping", arXiv:1905.03871, the geometric update of Algorithm 1, without
  noise: it protects nothing.

  Args:
    inner: Aggregates the clipped updates.
    initial_clip_norm: The L2 norm of the first round.
    quantile: Share of the clients that are to be left unclipped.
    learning_rate: Of the logarithm of the norm, per round.

  Returns:
    The aggregator, with `clipped_count` and `clipping_norm` measured.
  """
  estimate = _quantile(float(initial_clip_norm), quantile, learning_rate)
  return tff.aggregators.clipping_factory(estimate, inner)


def zero(inner: Factory) -> Factory:
  """Replaces updates that are far larger than any before by zeros.

  An update is zeroed if its largest absolute coordinate exceeds twice an
  estimate of its 0.98 quantile, plus one. The numbers are those of
  `tff.learning.robust_aggregator`; the estimate starts at 10 and moves by up to
  a factor of ten per round. A zeroed client keeps its weight in a mean.

  Args:
    inner: Aggregates the other updates, and the zeros.

  Returns:
    The aggregator, with `zeroed_count` and `zeroing_norm` measured.
  """
  estimate = _quantile(
    10.0, 0.98, math.log(10.0), multiplier=2.0, increment=1.0
  )
  return tff.aggregators.zeroing_factory(estimate, inner)
