"""One aggregator of all parts, nested in one order, which is stated here.

From the client's update inwards:

1. Reject: an update that is not finite has weight zero and is counted. First,
   since NaN passes through every other part.
2. Zero: an update that is far too large is replaced by zeros. Before clipping,
   which would scale it down to a size that looks right.
3. Clip: the L2 norm of the whole update, in its own coordinates. Before the
   encoding, so that the bound on what the server decodes is known when a
   quantiser or a secure sum chooses its steps.
4. Encode: rotate, then quantise (a rotation after it would not be on the grid),
   and decode at the server. This is where bits are counted.
5. Combine: the weighted mean, over plain or secure sums, or a robust rule.
   Last, since it needs what the server sees of every client.

With differential privacy, clipping and combining are one last step: what the
server has decoded of each client is clipped, summed and noised. Accounting
takes the norm of what is summed for bounded, and a decoded update may be longer
than the one that was encoded. Distributed noise has its own encoding, whose
norm is bounded, between the two.
"""

import tensorflow_federated as tff

from research.aggregators import (
  bits,
  clipping,
  compression,
  dp_distributed,
  mechanisms,
  refusals,
  rejection,
  robust,
  rotation,
  secure,
)
from research.aggregators import settings as lib
from research.privacy import distributed


def build(settings: lib.Settings) -> tff.aggregators.WeightedAggregationFactory:
  """Builds the aggregator; see the module for the order.

  Args:
    settings: What it is made of.

  Returns:
    An aggregator whose measurements have `rejected_clients` and
    `upload_bits_per_client` besides those of its parts.

  Raises:
    ValueError: If the combination is refused.
  """
  reason = refusals.refusal(settings)
  if reason:
    raise ValueError(reason)
  codec = _codec(settings)
  is_private = settings.dp_mechanism != lib.NONE
  factory = (mechanisms.build if is_private else _combine)(settings)
  if codec is not None:
    factory = compression.CompressionFactory(codec, settings.seed, factory)
  # One vector: rules, codecs and rotations are about the whole update.
  if (
    codec is not None
    or settings.aggregator != lib.MEAN
    or settings.secure_sum
    or settings.dp_mechanism in distributed.MECHANISMS
  ):
    factory = tff.aggregators.concat_factory(factory)
  if not is_private:
    factory = _bound(settings, factory)
  factory = rejection.CountRejectedFactory(factory)
  return bits.MeasureUploadFactory(
    factory, lambda value_type: _upload_bits(settings, codec, value_type)
  )


def _bound(
  settings: lib.Settings, inner: tff.aggregators.WeightedAggregationFactory
) -> tff.aggregators.WeightedAggregationFactory:
  """Zeroes and clips updates before `inner`, as far as settings say."""
  if settings.clipping == 'fixed':
    count = secure.counts() if settings.secure_sum else None
    inner = clipping.clip(inner, settings.clip_norm, count)
  elif settings.clipping == 'adaptive':
    inner = clipping.clip_adaptively(
      inner,
      settings.clip_norm,
      settings.clip_quantile,
      settings.clip_learning_rate,
    )
  return clipping.zero(inner) if settings.zeroing else inner


def _codec(settings: lib.Settings) -> compression.Codec | None:
  if settings.compression == lib.NONE:
    return None
  spec = lib.CODECS[settings.compression]
  codec = spec.build(settings.compression_bits or spec.usual_bits, settings)
  if settings.rotation == lib.NONE:
    return codec
  turn = rotation.ROTATIONS[settings.rotation]()
  return compression.Rotated(codec, turn)


def _combine(
  settings: lib.Settings,
) -> tff.aggregators.WeightedAggregationFactory:
  rule = lib.AGGREGATORS[settings.aggregator].rule
  if rule is not None:
    return robust.RobustFactory(rule(settings), settings.clients_per_round)
  if settings.secure_sum:
    return secure.mean(
      settings.clip_norm, settings.secure_sum_bits, settings.clients_per_round
    )
  return tff.aggregators.MeanFactory()


def _upload_bits(
  settings: lib.Settings,
  codec: compression.Codec | None,
  value_type: tff.Type,
) -> int:
  plain = bits.of_type(value_type)
  if codec is not None:
    return compression.upload_bits(codec, plain // 32)
  if settings.secure_sum:
    width = secure.sum_bits(
      settings.secure_sum_bits, settings.clients_per_round
    )
    return plain // 32 * width
  if settings.dp_mechanism in distributed.MECHANISMS:
    return dp_distributed.upload_bits(settings, plain // 32)
  return plain
