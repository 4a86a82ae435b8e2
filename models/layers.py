"""Layers whose randomness is a function of a seed and of what they are given.

Nothing here keeps a random state: two processes, two runtimes and two halves of
a resumed run draw the same numbers.
"""

import hashlib
from collections.abc import Sequence

import tensorflow as tf


def derive_seed(seed: int, name: str) -> int:
  """Derives the seed of one layer from the seed of the model.

  Args:
    seed: The model's seed.
    name: The layer's name; layers of one model have different ones.

  Returns:
    An integer in [0, 2**31), the same in each process and version.
  """
  digest = hashlib.sha256(f'{seed}/{name}'.encode()).digest()
  return int.from_bytes(digest[:4], 'big') % 2**31


@tf.keras.saving.register_keras_serializable(package='tff_research')
class BatchSeededDropout(tf.keras.layers.Layer):
  """Dropout whose mask follows from its seed and the batch of examples.

  Called with `[hidden, examples]`; `examples` is the model's float32 input. The
  mask is a counter-based random number keyed by the seed and a checksum of the
  examples' bits, so that it differs between clients, rounds and batches (their
  examples or the order of those differ) and is equal wherever the same batch
  is trained on.

  `tf.keras.layers.Dropout(seed=...)` can't be used in TFF: in the loop over a
  dataset that reduces, each client of each round meets the same sequence of
  masks, and in the loop over an iterator the masks depend on how often the
  process has trained before, which a resumed run can't repeat.
  """

  def __init__(self, rate: float, seed: int, **kwargs):
    """Stores the rate and the seed.

    Args:
      rate: The probability to drop a unit, in [0, 1).
      seed: What distinguishes this layer's masks from those of another layer.
      **kwargs: Of the Keras layer, as its name.

    Raises:
      ValueError: If the rate is no such probability.
    """
    super().__init__(**kwargs)
    if not 0 <= rate < 1:
      raise ValueError(f'rate={rate} must be at least 0 and less than 1')
    self.rate = rate
    self.seed = seed

  def get_config(self):
    return {**super().get_config(), 'rate': self.rate, 'seed': self.seed}

  def compute_output_shape(self, input_shape):
    return input_shape[0]

  def call(self, inputs: Sequence[tf.Tensor], training=None) -> tf.Tensor:
    hidden, examples = inputs
    if not training:
      return tf.identity(hidden)
    key = tf.stack([_checksum(examples), tf.constant(self.seed, tf.int64)])
    # The algorithm is named because the automatic choice depends on the device.
    uniform = tf.random.stateless_uniform(
      tf.shape(hidden), key, dtype=hidden.dtype, alg='philox'
    )
    scaled = hidden / (1 - self.rate)
    return tf.where(uniform >= self.rate, scaled, tf.zeros_like(hidden))


def _checksum(examples: tf.Tensor) -> tf.Tensor:
  """Sums the bits of float32 numbers, weighted by position: a scalar int64.

  Integer arithmetic is exact in any order of summation, so that every device
  and runtime finds the same checksum.
  """
  flat = tf.reshape(tf.cast(examples, tf.float32), [-1])
  bits = tf.cast(tf.bitcast(flat, tf.int32), tf.int64)
  positions = tf.range(tf.size(bits, out_type=tf.int64))
  # 4093 is prime: neighbours and rows get different weights.
  weights = 1 + positions * 1597 % 4093
  return tf.reduce_sum(bits * weights)
