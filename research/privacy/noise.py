"""Gaussian noise from a cryptographic generator, in TensorFlow operations.

The bits are ChaCha20's (Nir and Langley 2018, RFC 8439, Section 2.3) and a
function of a key that each round has for itself, so that whoever does not have
the key cannot tell the noise from a true one. What no generator mends: normal
numbers in floating point have gaps, by which an adversary who sees exact sums
can learn more than the theory says (Mironov 2012, "On Significance of the Least
Significant Bits for Differential Privacy"). Only the discrete mechanisms are
free of this.
"""

import hashlib
import math
import secrets
from typing import Any

import numpy as np
import tensorflow as tf

GENERATOR = 'ChaCha20 (RFC 8439) and the Box-Muller transform in float32'

# "expand 32-byte k" in little-endian words.
_CONSTANTS = (0x61707865, 0x3320646E, 0x79622D32, 0x6B206574)
_WORDS_PER_BLOCK = 16
# Blocks that are computed together, 512 kB.
_CHUNK = 8192
_DOUBLE_ROUNDS = 10
# Of nonces, keeps Laplace numbers apart from normal ones of the same stream.
_LAPLACE = 1


def secure_key() -> np.ndarray:
  """A key from the operating system's generator, uint32 [8]."""
  return np.frombuffer(secrets.token_bytes(32), np.uint32)


def insecure_key(seed: int, round_num: int) -> np.ndarray:
  """A key that whoever knows the seed can make, uint32 [8]; protects nothing.

  Args:
    seed: The run's.
    round_num: The round, counted from 1.
  """
  text = f'insecure noise key {seed} {round_num}'
  return np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint32)


def no_key() -> np.ndarray:
  """What stands where no key is: zeros, of which the noise is NaN."""
  return np.zeros([8], np.uint32)


def is_key(key: tf.Tensor) -> tf.Tensor:
  """Whether it is not what stands where no key is."""
  return tf.reduce_any(tf.not_equal(key, tf.constant(0, tf.uint32)))


def _rotate(x: tf.Tensor, bits: int) -> tf.Tensor:
  left = tf.bitwise.left_shift(x, tf.constant(bits, tf.uint32))
  right = tf.bitwise.right_shift(x, tf.constant(32 - bits, tf.uint32))
  return tf.bitwise.bitwise_or(left, right)


def _quarter_rounds(a, b, c, d):
  """RFC 8439, Section 2.1, on all columns of four rows at once."""
  for first, second in ((16, 12), (8, 7)):
    a = a + b
    d = _rotate(tf.bitwise.bitwise_xor(d, a), first)
    c = c + d
    b = _rotate(tf.bitwise.bitwise_xor(b, c), second)
  return a, b, c, d


def _double_round(a, b, c, d):
  """RFC 8439, Section 2.3: the columns, then the diagonals."""
  a, b, c, d = _quarter_rounds(a, b, c, d)
  b, c, d = (tf.roll(x, -i, axis=0) for i, x in ((1, b), (2, c), (3, d)))
  a, b, c, d = _quarter_rounds(a, b, c, d)
  b, c, d = (tf.roll(x, i, axis=0) for i, x in ((1, b), (2, c), (3, d)))
  return a, b, c, d


@tf.function(jit_compile=True)
def chacha20(
  key: tf.Tensor,
  nonce: tf.Tensor,
  num_blocks: int,
  first_block: tf.Tensor | int = 0,
) -> tf.Tensor:
  """A part of the key stream.

  Args:
    key: uint32 [8].
    nonce: uint32 [3].
    num_blocks: How many blocks of 16 words.
    first_block: The counter of the first.

  Returns:
    uint32 [16, num_blocks], the words of a block in a column.
  """
  shape = [4, num_blocks]

  def column(words):
    return tf.broadcast_to(words[:, tf.newaxis], shape)

  counter = tf.cast(first_block, tf.uint32)
  counter += tf.cast(tf.range(num_blocks), tf.uint32)
  nonces = tf.broadcast_to(nonce[:, tf.newaxis], [3, num_blocks])
  initial = (
    column(tf.constant(_CONSTANTS, tf.uint32)),
    column(key[:4]),
    column(key[4:]),
    tf.concat([counter[tf.newaxis], nonces], axis=0),
  )
  _, *final = tf.while_loop(
    lambda i, *unused: i < _DOUBLE_ROUNDS,
    lambda i, *rows: (i + 1, *_double_round(*rows)),
    (0, *initial),
  )
  return tf.concat([x + y for x, y in zip(final, initial, strict=True)], axis=0)


def _uniforms(words: tf.Tensor) -> tf.Tensor:
  """float32 in (0, 1] of uint32; as exact as float32 is near 0."""
  return (tf.cast(words, tf.float32) + 0.5) * 2.0**-32


def standard_normals(
  key: tf.Tensor, stream: int, specs: Any, salt: tf.Tensor | None = None
) -> Any:
  """Independent standard normal numbers.

  Args:
    key: uint32 [8], never used twice with the same stream; of zeros the
      numbers are NaN, so that a forgotten key shows.
    stream: At least 0; streams of one key are independent.
    specs: A structure of float32 `tf.TensorSpec` with known shapes.
    salt: uint32 [2], of one of many who draw from the same stream.

  Returns:
    Tensors of these specs.
  """
  flat = tf.nest.flatten(specs)
  sizes = [math.prod(spec.shape.as_list()) for spec in flat]
  minus_two = tf.where(is_key(key), -2.0, math.nan)
  nonce = _nonce(stream, salt)
  blocks = max(1, math.ceil(sum(sizes) / _WORDS_PER_BLOCK))
  chunk = min(blocks, _CHUNK)
  parts = []
  # Chunks fit a cache, and TensorFlow computes several side by side.
  for first in range(0, blocks, chunk):
    words = chacha20(key, nonce, chunk, tf.constant(first, tf.uint32))
    radius = tf.sqrt(minus_two * tf.math.log(_uniforms(words[:8])))
    angle = 2.0 * math.pi * _uniforms(words[8:])
    parts += [radius * tf.cos(angle), radius * tf.sin(angle)]
  numbers = tf.concat([tf.reshape(part, [-1]) for part in parts], axis=0)
  found = []
  for size, spec in zip(sizes, flat, strict=True):
    found.append(tf.reshape(numbers[:size], spec.shape))
    numbers = numbers[size:]
  return tf.nest.pack_sequence_as(specs, found)


def _nonce(stream: int, salt: tf.Tensor | None) -> tf.Tensor:
  if salt is None:
    return tf.constant([stream, 0, 0], tf.uint32)
  return tf.concat([tf.constant([stream], tf.uint32), salt], axis=0)


def uniforms(
  key: tf.Tensor, stream: int, count: int, salt: tf.Tensor | None = None
) -> tf.Tensor:
  """Independent numbers in [0, 1) with 53 bits.

  Args:
    key: uint32 [8], never used twice with the same stream; of zeros the numbers
      are NaN.
    stream: At least 0; streams of one key are independent.
    count: How many.
    salt: uint32 [2], of one of many who draw from the same stream.

  Returns:
    float64 [count].
  """
  blocks = max(1, math.ceil(2 * count / _WORDS_PER_BLOCK))
  words = chacha20(key, _nonce(stream, salt), blocks)
  numbers = _wide_uniforms(tf.reshape(words, [2, -1])[:, :count])
  return tf.where(is_key(key), numbers, math.nan)


def _wide_uniforms(words: tf.Tensor) -> tf.Tensor:
  """float64 [n] in [0, 1) with 53 bits, of uint32 [2, n]."""
  high = tf.bitwise.right_shift(words[0], tf.constant(5, tf.uint32))
  low = tf.bitwise.right_shift(words[1], tf.constant(6, tf.uint32))
  high, low = (tf.cast(tf.cast(x, tf.int64), tf.float64) for x in (high, low))
  return (high * 2.0**26 + low) * 2.0**-53


def sum_of_laplace(
  key: tf.Tensor, stream: int, count: tf.Tensor, size: int
) -> tf.Tensor:
  """The sum of `count` draws of `size` independent Laplace numbers.

  Args:
    key: uint32 [8], never used twice with the same stream; of zeros the numbers
      are NaN.
    stream: At least 0; streams of one key are independent.
    count: int32.
    size: Numbers of a draw.

  Returns:
    float64 [size]; a draw has parameter 1, so a variance of 2.
  """
  blocks = max(1, math.ceil(2 * size / _WORDS_PER_BLOCK))

  def draw(index):
    nonce = tf.stack([stream, index, _LAPLACE])
    words = chacha20(key, tf.cast(nonce, tf.uint32), blocks)
    words = tf.reshape(words, [2, -1])[:, :size]
    exponential = -tf.math.log(1.0 - _wide_uniforms(words))
    # The uniform numbers do not have this bit.
    sign = tf.bitwise.bitwise_and(words[0], tf.constant(1, tf.uint32))
    # In TFF's graphs == would compare objects.
    is_positive = tf.equal(sign, tf.constant(0, tf.uint32))
    return tf.where(is_positive, exponential, -exponential)

  _, total = tf.while_loop(
    lambda index, total: index < count,
    lambda index, total: (index + 1, total + draw(index)),
    (tf.constant(0), tf.zeros([size], tf.float64)),
  )
  return tf.where(is_key(key), total, math.nan)
