"""Layers whose randomness is a function of a seed and of what they are given.

Nothing here keeps a random state: two processes, two runtimes and two halves of
a resumed run draw the same numbers.
"""

import hashlib
from collections.abc import Sequence

import tensorflow as tf

_MASK = 2**32 - 1


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
  mask is a hash of the unit's position, the seed and a checksum of the
  examples. So it differs between clients, rounds and batches (their examples
  or the order of those differ), and is equal wherever the same batch is met.

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
    scaled = hidden / (1 - self.rate)
    kept = random_bits(examples, self.seed, hidden) >= int(self.rate * 2**32)
    return tf.where(kept, scaled, tf.zeros_like(hidden))


def random_bits(examples: tf.Tensor, seed: int, like: tf.Tensor) -> tf.Tensor:
  """Gives each unit of `like` a number in [0, 2**32) as int64.

  Made of integer arithmetic, which is exact everywhere: the random numbers of
  TensorFlow's own stateless operations differ between XLA and its kernels.
  """
  key = _mix(tf.constant(seed, tf.int64)) + _checksum(examples)
  low, high = key & _MASK, tf.bitwise.right_shift(key, 32) & _MASK
  units = tf.range(tf.size(like, out_type=tf.int64))
  return tf.reshape(
    _mix((_mix((units + _mix(low)) & _MASK) + _mix(high)) & _MASK),
    tf.shape(like),
  )


def _checksum(examples: tf.Tensor) -> tf.Tensor:
  """Sums the values of examples, weighted by position: a scalar int64.

  Values count in steps of 1/1024, which tells the 256 levels of an image apart
  and hides how a device rounds when it scales them.
  """
  flat = tf.reshape(tf.cast(examples, tf.float32), [-1])
  values = tf.cast(tf.round(flat * 1024), tf.int64)
  positions = tf.range(tf.size(values, out_type=tf.int64))
  return tf.reduce_sum(values * _mix(positions))


def _mix(numbers: tf.Tensor) -> tf.Tensor:
  """Hashes numbers in [0, 2**32), one to one, so that all bits look random.

  The multipliers come from a search for little bias
  (https://github.com/skeeto/hash-prospector, "two round functions"); they are
  below 2**31, so that no product overflows int64.
  """
  for shift, multiplier in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
    numbers = tf.bitwise.bitwise_xor(
      numbers, tf.bitwise.right_shift(numbers, shift)
    )
    numbers = numbers * multiplier & _MASK
  return tf.bitwise.bitwise_xor(numbers, tf.bitwise.right_shift(numbers, 15))
