"""Codecs of a model update: what a client sends, and what is made of it.

A codec encodes a float32 vector [d] as a dict of tensors, the only thing that
is sent besides the round's key, which the server draws; codes of b bits are
packed, so that the tensors' sizes are the bits. The server decodes each update
and hands it to the next aggregator.

Random draws come from the round's key, which comes from the seed and the
round, and from a hash of the update, so that clients round independently of
each other. Where the server needs the hash, it is sent too.
"""

import collections
import functools
import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from research.aggregators import bits as bits_lib
from research.aggregators import rotation as rotations

Code = Mapping[str, tf.Tensor]

# The hash of an update, where the server needs it.
_SALT = 'salt'
_KEY_TYPE = tff.TensorType(np.int32)


class Codec(Protocol):
  """Encodes vectors."""

  def encode(self, vector: tf.Tensor, seed: tf.Tensor) -> Code:
    """Encodes float32 [d]; the seed is int32 [2], round's key and hash."""

  def decode(self, code: Code, key: tf.Tensor, size: int) -> tf.Tensor:
    """Decodes to float32 [size]; the key is the round's, int32."""


def pack(codes: tf.Tensor, bits: int) -> tf.Tensor:
  """Packs numbers of `bits` bits.

  Args:
    codes: int32 [n], each at least 0 and below 2 ** bits.
    bits: At most 31.

  Returns:
    uint8 [ceil(n * bits / 8)].
  """
  digits = _digits(codes, bits)
  missing = -digits.shape[0] % 8
  digits = tf.reshape(tf.pad(digits, [[0, missing]]), [-1, 8])
  return tf.cast(_number(digits, 8), tf.uint8)


def unpack(packed: tf.Tensor, bits: int, count: int) -> tf.Tensor:
  """The inverse of `pack` for `count` numbers, int32 [count]."""
  digits = _digits(tf.cast(packed, tf.int32), 8)[: count * bits]
  return _number(tf.reshape(digits, [count, bits]), bits)


def _digits(numbers: tf.Tensor, bits: int) -> tf.Tensor:
  """Binary digits [n * bits], the lowest of each number first."""
  shifted = tf.bitwise.right_shift(numbers[:, tf.newaxis], tf.range(bits))
  return tf.reshape(tf.bitwise.bitwise_and(shifted, 1), [-1])


def _number(digits: tf.Tensor, bits: int) -> tf.Tensor:
  powers = tf.constant([1 << i for i in range(bits)], tf.int32)
  return tf.reduce_sum(digits * powers, axis=1)


class Uniform:
  """Equal steps from the least to the largest coordinate.

  With stochastic rounding it is unbiased: Suresh et al. 2017, "Distributed Mean
  Estimation with Limited Communication", arXiv:1611.00429, Section 2.2. Sent
  are two float32 and `bits` bits per coordinate.
  """

  def __init__(self, bits: int, is_stochastic: bool):
    self._bits = bits
    self._is_stochastic = is_stochastic

  def encode(self, vector, seed):
    low, high = tf.reduce_min(vector), tf.reduce_max(vector)
    levels = (1 << self._bits) - 1
    position = tf.math.divide_no_nan(vector - low, high - low) * levels
    if self._is_stochastic:
      position = _round_stochastically(position, seed)
    else:
      position = tf.round(position)
    codes = tf.cast(tf.clip_by_value(position, 0.0, levels), tf.int32)
    return {'codes': pack(codes, self._bits), 'low': low, 'high': high}

  def decode(self, code, key, size):
    levels = (1 << self._bits) - 1
    codes = tf.cast(unpack(code['codes'], self._bits, size), tf.float32)
    return code['low'] + codes / levels * (code['high'] - code['low'])


class Qsgd:
  """QSGD: a norm, and per coordinate a sign and a random level.

  Alistarh et al. 2017, "QSGD: Communication-Efficient SGD via Gradient
  Quantization and Encoding", arXiv:1610.02132, Section 3.1, on the whole update
  with s = 2 ** (bits - 1) - 1 levels. Unbiased. Sent are one float32 and `bits`
  bits per coordinate: a code of fixed width, not the paper's Elias code.
  """

  def __init__(self, bits: int):
    self._bits = bits
    self._levels = (1 << (bits - 1)) - 1

  def encode(self, vector, seed):
    norm = tf.norm(vector)
    position = tf.math.divide_no_nan(tf.abs(vector), norm) * self._levels
    level = tf.minimum(_round_stochastically(position, seed), self._levels)
    is_negative = tf.cast(vector < 0, tf.int32)
    codes = 2 * tf.cast(level, tf.int32) + is_negative
    return {'codes': pack(codes, self._bits), 'norm': norm}

  def decode(self, code, key, size):
    codes = unpack(code['codes'], self._bits, size)
    level = tf.cast(codes // 2, tf.float32) / self._levels
    sign = 1 - 2 * tf.cast(codes % 2, tf.float32)
    return code['norm'] * sign * level


class TopK:
  """The coordinates of the largest absolute values; the others become 0.

  Biased, and without the memory of what was left out that Stich et al. 2018,
  "Sparsified SGD with Memory", arXiv:1809.07599, add: clients that are seldom
  sampled have none. Sent are per kept coordinate a float32 and an index of
  ceil(log2(d)) bits.
  """

  def __init__(self, fraction: float):
    self._fraction = fraction

  def _kept(self, size: int) -> int:
    return max(1, math.ceil(self._fraction * size - 1e-6))

  def _index_bits(self, size: int) -> int:
    return max(1, (size - 1).bit_length())

  def encode(self, vector, seed):
    size = vector.shape[0]
    kept = tf.math.top_k(tf.abs(vector), self._kept(size))
    indices = pack(kept.indices, self._index_bits(size))
    return {'indices': indices, 'values': tf.gather(vector, kept.indices)}

  def decode(self, code, key, size):
    count = self._kept(size)
    indices = unpack(code['indices'], self._index_bits(size), count)
    return tf.scatter_nd(indices[:, tf.newaxis], code['values'], [size])


@functools.cache
def gaussian_centroids(bits: int) -> np.ndarray:
  """The 2 ** bits points that quantise a standard normal number best.

  Lloyd's algorithm on the density itself (Lloyd 1982, "Least Squares
  Quantization in PCM").

  Args:
    bits: At least 1.

  Returns:
    float64 [2 ** bits], ascending.
  """
  points = np.linspace(-2, 2, 1 << bits)
  for _ in range(2000):
    edges = np.concatenate(
      [[-np.inf], (points[1:] + points[:-1]) / 2, [np.inf]]
    )
    density = np.exp(-(edges**2) / 2) / math.sqrt(2 * math.pi)
    below = np.array([(1 + math.erf(e / math.sqrt(2))) / 2 for e in edges])
    points = -np.diff(density) / np.diff(below)
  return points


class Eden:
  """EDEN; with one bit it is DRIVE.

  Vargaftik et al. 2022, "EDEN: Communication-Efficient and Robust Distributed
  Mean Estimation for Federated Learning", arXiv:2108.08842, Section 3; DRIVE
  is Vargaftik et al. 2021, arXiv:2105.08339, Algorithm 1. The vector is
  rotated by random signs and a Hadamard transform, which each client draws for
  itself, quantised to the points that suit normal numbers best, and scaled by
  ||x||^2 / <R(x), Q(R(x))>. That is unbiased for uniform rotations, and nearly
  so for this one, if d is large and no coordinate dominates. Sent are a
  float32, the hash, and `bits` bits per coordinate of the padded vector.
  """

  def __init__(self, bits: int):
    self._bits = bits
    self._rotation = rotations.Hadamard()
    self._points = gaussian_centroids(bits).astype(np.float32)

  def encode(self, vector, seed):
    rotated = self._rotation.rotate(vector, seed)
    norm = tf.norm(vector)
    normal = tf.math.divide_no_nan(rotated, norm) * math.sqrt(rotated.shape[0])
    codes = tf.zeros_like(normal, tf.int32)
    for edge in (self._points[1:] + self._points[:-1]) / 2:
      codes += tf.cast(normal > edge, tf.int32)
    product = tf.reduce_sum(rotated * tf.gather(self._points, codes))
    return {
      'codes': pack(codes, self._bits),
      'scale': tf.math.divide_no_nan(norm * norm, product),
      _SALT: seed[1],
    }

  def decode(self, code, key, size):
    padded = self._rotation.padded_size(size)
    codes = unpack(code['codes'], self._bits, padded)
    rotated = code['scale'] * tf.gather(self._points, codes)
    return self._rotation.invert(rotated, tf.stack([key, code[_SALT]]), size)


class Rotated:
  """Another codec on a randomly rotated vector.

  Besides what the other codec sends of the padded vector, the hash is sent, an
  int32, since each client draws its own rotation.
  """

  def __init__(self, codec: Codec, rotation: rotations.Rotation):
    self._codec = codec
    self._rotation = rotation

  def encode(self, vector, seed):
    code = self._codec.encode(self._rotation.rotate(vector, seed), seed)
    return {**code, _SALT: seed[1]}

  def decode(self, code, key, size):
    padded = self._rotation.padded_size(size)
    rotated = self._codec.decode(code, key, padded)
    return self._rotation.invert(rotated, tf.stack([key, code[_SALT]]), size)


def _round_stochastically(position: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
  """Rounds up with the probability of the fraction, so on average to itself."""
  uniform = tf.random.stateless_uniform(position.shape, seed, alg='philox')
  floor = tf.floor(position)
  return floor + tf.cast(uniform < position - floor, tf.float32)


def fingerprint(vector: tf.Tensor) -> tf.Tensor:
  """An int32 that differs between different float32 vectors, nearly always."""
  # A sum of integers that wraps is the same in any order.
  odd = tf.range(vector.shape[0]) * 2 * 0x27D4EB2F + 1
  return tf.reduce_sum(tf.bitcast(vector, tf.int32) * odd)


def upload_bits(codec: Codec, size: int) -> int:
  """Bits of what a codec makes of `size` coordinates."""
  vector = tff.TensorType(np.float32, [size])
  return bits_lib.of_type(_encode(codec, vector).type_signature.result)


def _encode(codec: Codec, value_type: tff.Type) -> tff.Computation:
  @tff.tensorflow.computation(value_type, _KEY_TYPE)
  def encode(vector, key):
    seed = tf.stack([key, fingerprint(vector)])
    return collections.OrderedDict(codec.encode(vector, seed))

  return encode


def _keys(seed: int) -> tuple[tff.Computation, ...]:
  """The first round's number, the next one's, and the key of a round."""

  @tff.tensorflow.computation
  def first_round():
    return tf.constant(0)

  @tff.tensorflow.computation(np.int32)
  def next_round(number):
    return number + 1

  @tff.tensorflow.computation(np.int32)
  def key_of(number):
    return tf.random.stateless_uniform(
      [],
      tf.stack([tf.constant(seed), number]),
      minval=None,
      maxval=None,
      dtype=tf.int32,
      alg='philox',
    )

  return first_round, next_round, key_of


class CompressionFactory(tff.aggregators.WeightedAggregationFactory):
  """Encodes each update at its client and decodes it at the server.

  In this simulation the decoder runs at the client as well; it sees nothing but
  the code and the round's key.
  """

  def __init__(
    self,
    codec: Codec,
    seed: int,
    inner: tff.aggregators.WeightedAggregationFactory,
  ):
    """Wraps an aggregator.

    Args:
      codec: Encodes and decodes.
      seed: What the keys of all rounds come from.
      inner: Aggregates the decoded updates.
    """
    self._codec = codec
    self._seed = seed % 2**31
    self._inner = inner

  def create(self, value_type, weight_type):
    """See base class; the value is one float32 vector."""
    (size,) = value_type.shape
    process = self._inner.create(value_type, weight_type)
    encode = _encode(self._codec, value_type)

    @tff.tensorflow.computation(encode.type_signature.result, _KEY_TYPE)
    def decode(code, key):
      return self._codec.decode(code, key, size)

    first_round, next_round, key_of = _keys(self._seed)

    @tff.federated_computation
    def init_fn():
      state = collections.OrderedDict(
        inner=process.initialize(),
        compression_round=tff.federated_eval(first_round, tff.SERVER),
      )
      return tff.federated_zip(state)

    @tff.federated_computation(
      init_fn.type_signature.result,
      tff.FederatedType(value_type, tff.CLIENTS),
      tff.FederatedType(weight_type, tff.CLIENTS),
    )
    def next_fn(state, value, weight):
      number = state['compression_round']
      key = tff.federated_broadcast(tff.federated_map(key_of, number))
      code = tff.federated_map(encode, (value, key))
      decoded = tff.federated_map(decode, (code, key))
      output = process.next(state['inner'], decoded, weight)
      new_state = collections.OrderedDict(
        inner=output.state,
        compression_round=tff.federated_map(next_round, number),
      )
      return tff.templates.MeasuredProcessOutput(
        tff.federated_zip(new_state), output.result, output.measurements
      )

    return tff.templates.AggregationProcess(init_fn, next_fn)
