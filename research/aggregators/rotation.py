"""Random rotations, which spread a vector's size over its coordinates.

TFF has both as factories, but they take their seed from the clock, turn each
tensor by itself, and XLA refuses the loop of its Hadamard transform.
"""

import math
from typing import Protocol

import tensorflow as tf

# Keeps the draws of a rotation apart from a quantiser's of the same seed.
_STREAM = 0x726F74


class Rotation(Protocol):
  """An orthogonal map that a seed decides."""

  def padded_size(self, size: int) -> int:
    """The number of coordinates after the rotation of `size`."""

  def rotate(self, vector: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Turns float32 [size] into [padded_size]; the seed is int32 [2]."""

  def invert(self, vector: tf.Tensor, seed: tf.Tensor, size: int) -> tf.Tensor:
    """Turns a rotated vector back into [size]."""


def _uniform(shape: list[int], seed: tf.Tensor) -> tf.Tensor:
  return tf.random.stateless_uniform(shape, seed + [_STREAM, 0], alg='philox')


def _padded(vector: tf.Tensor, size: int) -> tf.Tensor:
  return tf.pad(vector, [[0, size - vector.shape[0]]])


def walsh_hadamard(vector: tf.Tensor) -> tf.Tensor:
  """The normalised Walsh-Hadamard transform of [d], d a power of two."""
  size, width = vector.shape[0], 1
  while width < size:
    pairs = tf.reshape(vector, [-1, 2, width])
    first, second = pairs[:, 0], pairs[:, 1]
    vector = tf.stack([first + second, first - second], axis=1)
    width *= 2
  return tf.reshape(vector, [size]) / math.sqrt(size)


class Hadamard:
  """Random signs, then the Walsh-Hadamard transform, padded to a power of two.

  Suresh et al. 2017, "Distributed Mean Estimation with Limited Communication",
  arXiv:1611.00429, Section 3.
  """

  def padded_size(self, size: int) -> int:
    return 1 << (size - 1).bit_length()

  def _signs(self, size: int, seed: tf.Tensor) -> tf.Tensor:
    return tf.where(_uniform([size], seed) < 0.5, -1.0, 1.0)

  def rotate(self, vector: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    size = self.padded_size(vector.shape[0])
    return walsh_hadamard(_padded(vector, size) * self._signs(size, seed))

  def invert(self, vector: tf.Tensor, seed: tf.Tensor, size: int) -> tf.Tensor:
    signs = self._signs(vector.shape[0], seed)
    return (walsh_hadamard(vector) * signs)[:size]


class Fourier:
  """Random phases, then the discrete Fourier transform, of pairs of numbers.

  The first half of the vector, padded to an even size, are the real parts, the
  second half the imaginary ones.
  """

  def padded_size(self, size: int) -> int:
    return size + size % 2

  def _phases(self, count: int, seed: tf.Tensor) -> tf.Tensor:
    angles = 2 * math.pi * _uniform([count], seed)
    return tf.complex(tf.cos(angles), tf.sin(angles))

  def rotate(self, vector: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    parts = tf.reshape(
      _padded(vector, self.padded_size(vector.shape[0])), [2, -1]
    )
    half = parts.shape[1]
    turned = tf.complex(parts[0], parts[1]) * self._phases(half, seed)
    result = tf.signal.fft(turned) / math.sqrt(half)
    return tf.concat([tf.math.real(result), tf.math.imag(result)], axis=0)

  def invert(self, vector: tf.Tensor, seed: tf.Tensor, size: int) -> tf.Tensor:
    parts = tf.reshape(vector, [2, -1])
    half = parts.shape[1]
    turned = tf.signal.ifft(tf.complex(parts[0], parts[1])) * math.sqrt(half)
    result = turned * tf.math.conj(self._phases(half, seed))
    parts = [tf.math.real(result), tf.math.imag(result)]
    return tf.concat(parts, axis=0)[:size]


ROTATIONS = {'hadamard': Hadamard, 'fourier': Fourier}
