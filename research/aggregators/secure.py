"""A simulated secure sum: fixed-point numbers, added modulo a power of two.

What a secure aggregation protocol computes (Bonawitz et al. 2017, "Practical
Secure Aggregation for Privacy-Preserving Machine Learning", Section 4), without
its cryptography: nothing is hidden from whoever runs the simulation. The number
of rejected clients and the training metrics are plain sums even so.
"""

import collections

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff


def sum_bits(bits: int, most_clients: int) -> int:
  """Bits of a coordinate: enough that the sum of a full cohort can't wrap."""
  return _modulus(bits, most_clients).bit_length() - 1


def _levels(bits: int) -> int:
  return (1 << (bits - 1)) - 1


def _modulus(bits: int, most_clients: int) -> int:
  """The least power of two that tells all possible sums apart."""
  return 1 << (2 * most_clients * _levels(bits)).bit_length()


class FixedPointSumFactory(tff.aggregators.UnweightedAggregationFactory):
  """Sums float32 tensors whose coordinates have a common bound.

  A coordinate x becomes the integer round(x / bound * (2 ** (bits - 1) - 1)),
  so that the sum of n clients is off by at most n * bound / (2 ** bits - 2)
  per coordinate. `out_of_bound_clients` counts clients that had to be cut to
  the bound; up to rounding there are none behind a clipping to the same norm.
  """

  def __init__(self, bound: float, bits: int, most_clients: int):
    """Checks the numbers.

    Args:
      bound: Largest absolute value of a coordinate.
      bits: Of one client's coordinate, its sign included.
      most_clients: The largest cohort; with more the sum might wrap.

    Raises:
      ValueError: If the bound is not positive, or the sum needs over 62 bits.
    """
    if not bound > 0:
      raise ValueError(f'a secure sum needs a positive bound, given {bound}')
    if bits < 2 or sum_bits(bits, most_clients) > 62:
      raise ValueError(
        f'a secure sum of {most_clients} clients with {bits} bits each needs '
        f'{sum_bits(bits, most_clients)} bits; from 2 bits each to 62 in all '
        'are possible'
      )
    self._bound = bound
    self._levels = _levels(bits)
    self._modulus = _modulus(bits, most_clients)

  def create(self, value_type):
    levels, modulus = self._levels, self._modulus

    @tff.tensorflow.computation(value_type)
    def to_integers(value):
      def convert(tensor):
        scaled = tf.round(tf.cast(tensor, tf.float64) / self._bound * levels)
        cut = tf.clip_by_value(scaled, -levels, levels)
        return tf.cast(cut, tf.int64) % modulus, tf.reduce_any(
          tf.not_equal(cut, scaled)
        )

      parts = [convert(tensor) for tensor in tf.nest.flatten(value)]
      integers = tf.nest.pack_sequence_as(value, [part[0] for part in parts])
      is_outside = tf.reduce_any([part[1] for part in parts])
      return integers, tf.cast(is_outside, tf.int32)

    integer_type = to_integers.type_signature.result[0]

    @tff.tensorflow.computation(integer_type)
    def to_sum(total):
      def convert(tensor):
        signed = tf.where(tensor >= modulus // 2, tensor - modulus, tensor)
        wide = tf.cast(signed, tf.float64) * (self._bound / levels)
        return tf.cast(wide, tf.float32)

      return tf.nest.map_structure(convert, total)

    modular_sum = tff.aggregators.SecureModularSumFactory(
      np.int64(modulus)
    ).create(integer_type)

    @tff.federated_computation(
      modular_sum.initialize.type_signature.result,
      tff.FederatedType(value_type, tff.CLIENTS),
    )
    def next_fn(state, value):
      integers, is_outside = tff.federated_map(to_integers, value)
      output = modular_sum.next(state, integers)
      outside = tff.federated_secure_sum_bitwidth(is_outside, 1)
      return tff.templates.MeasuredProcessOutput(
        output.state,
        tff.federated_map(to_sum, output.result),
        tff.federated_zip(
          collections.OrderedDict(out_of_bound_clients=outside)
        ),
      )

    return tff.templates.AggregationProcess(modular_sum.initialize, next_fn)


def mean(
  clip_norm: float, bits: int, most_clients: int
) -> tff.aggregators.MeanFactory:
  """The mean over two secure sums, for clipped updates and weights 0 or 1.

  Args:
    clip_norm: The L2 norm to which updates are clipped, so that it bounds every
      coordinate.
    bits: Of one client's coordinate.
    most_clients: The largest cohort.

  Returns:
    The aggregator.
  """
  return tff.aggregators.MeanFactory(
    FixedPointSumFactory(clip_norm, bits, most_clients),
    FixedPointSumFactory(1.0, 2, most_clients),
  )


def counts() -> tff.aggregators.UnweightedAggregationFactory:
  """Sums of 0 and 1 per client, for how many were clipped."""
  return tff.aggregators.SecureSumFactory(1, 0)
