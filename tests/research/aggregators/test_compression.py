"""Codecs: references, bits, and unbiasedness as tests of hypotheses."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import tensorflow as tf

from research.aggregators import compression, rotation

# Of a whole test, over all of its coordinates.
FALSE_ALARMS = 1e-6
THREE = np.array([0.3, -1.7, 0.9], np.float32)
LONG = np.random.default_rng(1).normal(size=256).astype(np.float32)
KEY = 12345


def through(codec, vector, key=KEY):
  """What the server makes of a vector."""
  vector = tf.constant(vector)
  seed = tf.stack([key, compression.fingerprint(vector)])
  code = codec.encode(vector, seed)
  return codec.decode(code, tf.convert_to_tensor(key), vector.shape[0])


def samples(codec, vector, count):
  """What the server makes of a vector in many rounds, [count, d]."""

  @tf.function
  def draw():
    return tf.map_fn(
      lambda key: through(codec, vector, key),
      tf.range(count),
      fn_output_signature=tf.float32,
    )

  return draw().numpy().astype(np.float64)


def is_unbiased(drawn, vector):
  """A z-test per coordinate, all together at the level `FALSE_ALARMS`."""
  error = drawn.std(axis=0, ddof=1) / math.sqrt(len(drawn))
  deviation = np.abs(drawn.mean(axis=0) - vector)
  limit = scipy.stats.norm.isf(FALSE_ALARMS / (2 * len(vector)))
  # Coordinates without variance must be right but for rounding.
  return bool((deviation <= limit * error + 1e-6 * np.abs(vector).max()).all())


@pytest.mark.parametrize('bits', [1, 2, 3, 7, 8, 11, 31])
def test_packing_keeps_every_number_in_its_bits(bits):
  numbers = np.random.default_rng(bits).integers(0, 1 << bits, 13)
  numbers[:2] = 0, (1 << bits) - 1
  packed = compression.pack(tf.constant(numbers, tf.int32), bits)
  assert packed.dtype == tf.uint8
  assert packed.shape == [math.ceil(13 * bits / 8)]
  found = compression.unpack(packed, bits, 13).numpy()
  np.testing.assert_array_equal(found, numbers)


# Bits of three weights: codes are packed into whole bytes.
@pytest.mark.parametrize(
  'codec, bits',
  [
    (compression.Uniform(8, is_stochastic=False), 3 * 8 + 2 * 32),
    (compression.Uniform(3, is_stochastic=True), 16 + 2 * 32),
    (compression.Qsgd(4), 16 + 32),
    (compression.TopK(0.5), 8 + 2 * 32),
    (compression.TopK(0.01), 8 + 32),
    # Padded to four coordinates; a scale and the hash.
    (compression.Eden(1), 8 + 2 * 32),
    (compression.Eden(4), 16 + 2 * 32),
    (
      compression.Rotated(
        compression.Uniform(8, is_stochastic=False), rotation.Hadamard()
      ),
      4 * 8 + 2 * 32 + 32,
    ),
  ],
)
def test_bits_of_three_weights(codec, bits):
  assert compression.upload_bits(codec, 3) == bits


def test_uniform_rounds_to_the_nearest_of_four_levels():
  # Levels of 2 bits from -1 to 2: -1, 0, 1, 2.
  codec = compression.Uniform(2, is_stochastic=False)
  vector = np.array([-1, 2, 0.4, 0.6, 1.45], np.float32)
  np.testing.assert_allclose(
    through(codec, vector), [-1, 2, 0, 1, 1], atol=1e-6
  )


def test_qsgd_is_its_reference():
  found = through(compression.Qsgd(4), THREE).numpy()
  seed = [KEY, compression.fingerprint(tf.constant(THREE)).numpy()]
  uniform = tf.random.stateless_uniform([3], seed, alg='philox').numpy()
  norm, expected = np.linalg.norm(THREE), []
  for x, u in zip(THREE, uniform, strict=True):
    # The paper's Q_s: level l or l + 1 of s.
    position = abs(x) / norm * 7
    level = math.floor(position)
    level += u < position - level
    expected.append(norm * np.sign(x) * level / 7)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
  'codec',
  [
    compression.Uniform(1, is_stochastic=True),
    compression.Uniform(3, is_stochastic=True),
    compression.Qsgd(2),
    compression.Qsgd(4),
    compression.Rotated(
      compression.Uniform(2, is_stochastic=True), rotation.Hadamard()
    ),
    compression.Rotated(compression.Qsgd(2), rotation.Fourier()),
  ],
)
def test_random_codecs_are_unbiased(codec):
  drawn = samples(codec, THREE, 4000)
  assert is_unbiased(drawn, THREE)
  assert drawn.std(axis=0).max() > 0.01
  # A bias of a sixteenth of the largest weight would be found.
  assert not is_unbiased(drawn + 0.1, THREE)


def test_a_biased_codec_is_found():
  assert not is_unbiased(samples(compression.TopK(0.5), THREE, 100), THREE)


def test_qsgd_varies_no_more_than_its_lemma_allows():
  # Lemma 3.1 (ii), with s = 1 and d = 256: at most sqrt(d) / s.
  drawn = samples(compression.Qsgd(2), LONG, 400)
  variance = np.square(drawn - LONG).sum(axis=1).mean()
  norm = np.square(LONG).sum()
  assert 0.5 * math.sqrt(256) < variance / norm < math.sqrt(256)


@pytest.mark.parametrize('vector', [THREE, LONG])
def test_top_k_keeps_the_largest(vector):
  found = through(compression.TopK(0.3), vector).numpy()
  kept = math.ceil(0.3 * len(vector))
  largest = np.argsort(-np.abs(vector))[:kept]
  expected = np.zeros_like(vector)
  expected[largest] = vector[largest]
  np.testing.assert_array_equal(found, expected)


def test_the_transform_is_the_hadamard_matrix():
  matrix = scipy.linalg.hadamard(8) / math.sqrt(8)
  found = [rotation.walsh_hadamard(tf.constant(row)) for row in np.eye(8)]
  np.testing.assert_allclose(np.array(found), matrix, atol=1e-6)


def matrix_of(turn, size, seed):
  """A rotation's matrix [padded, size]."""
  rows = np.eye(size, dtype=np.float32)
  return np.array([turn.rotate(tf.constant(row), seed) for row in rows]).T


@pytest.mark.parametrize('name', rotation.ROTATIONS)
@pytest.mark.parametrize('size', [1, 2, 3, 8])
def test_rotations_are_orthogonal_and_inverted(name, size):
  turn, seed = rotation.ROTATIONS[name](), tf.constant([KEY, 7])
  matrix = matrix_of(turn, size, seed)
  assert len(matrix) == turn.padded_size(size)
  np.testing.assert_allclose(matrix.T @ matrix, np.eye(size), atol=1e-5)
  vector = LONG[:size]
  back = turn.invert(turn.rotate(tf.constant(vector), seed), seed, size)
  np.testing.assert_allclose(back, vector, atol=1e-5)
  if size > 2:
    other = matrix_of(turn, size, tf.constant([KEY + 1, 7]))
    assert np.abs(matrix - other).max() > 0.1


# Lloyd-Max quantisers of a standard normal number: positive points, and the
# mean squared error, by bits (Max 1960, Table I).
LLOYD = {
  1: ([0.7980], 0.3634),
  2: ([0.4528, 1.510], 0.1175),
  3: ([0.2451, 0.7560, 1.344, 2.152], 0.03454),
  4: (
    [0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733],
    0.009497,
  ),
}


@pytest.mark.parametrize('bits', LLOYD)
def test_centroids_are_those_of_the_table(bits):
  points = compression.gaussian_centroids(bits)
  np.testing.assert_allclose(points, -points[::-1], atol=1e-9)
  half = points[len(points) // 2 :]
  np.testing.assert_allclose(half, LLOYD[bits][0], rtol=6e-4)


@pytest.mark.parametrize('bits', LLOYD)
@pytest.mark.parametrize('vector', [THREE, LONG])
def test_eden_is_its_reference(bits, vector):
  found = through(compression.Eden(bits), vector).numpy()
  seed = tf.stack([KEY, compression.fingerprint(tf.constant(vector))])
  matrix = matrix_of(rotation.Hadamard(), len(vector), seed).astype(float)
  rotated = matrix @ vector
  normal = rotated * math.sqrt(len(rotated)) / np.linalg.norm(vector)
  points = compression.gaussian_centroids(bits)
  nearest = points[np.abs(normal[:, None] - points).argmin(axis=1)]
  scale = vector @ vector / (rotated @ nearest)
  expected = matrix.T @ (scale * nearest)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
  # The scale makes the part along the vector exact.
  np.testing.assert_allclose(found @ vector, vector @ vector, rtol=1e-4)


def test_eden_with_one_bit_is_drive():
  found = through(compression.Eden(1), LONG).numpy()
  seed = tf.stack([KEY, compression.fingerprint(tf.constant(LONG))])
  matrix = matrix_of(rotation.Hadamard(), len(LONG), seed)
  rotated = matrix @ LONG
  # Algorithm 1 of DRIVE with the scale of its Theorem on unbiasedness.
  scale = LONG @ LONG / np.abs(rotated).sum()
  expected = matrix.T @ (scale * np.sign(rotated))
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('bits', [1, 2])
def test_eden_is_unbiased_with_the_error_of_the_paper(bits):
  drawn = samples(compression.Eden(bits), LONG, 1500)
  norm = np.square(LONG).sum()
  # The papers' error for long vectors: pi / 2 - 1 with one bit.
  error = 1 / (1 - LLOYD[bits][1]) - 1
  found = np.square(drawn - LONG).sum(axis=1).mean() / norm
  np.testing.assert_allclose(found, error, rtol=0.05)
  # The error of the mean is a sum of about d squares of normal numbers.
  squares = scipy.stats.chi2.isf(FALSE_ALARMS, len(LONG)) / len(LONG)
  off = np.square(drawn.mean(axis=0) - LONG).sum() / norm
  assert off * len(drawn) < 1.1 * squares * error
  # The scale of the least error shrinks the vector, which would be found.
  shrunk = drawn.mean(axis=0) * (1 - LLOYD[bits][1])
  off = np.square(shrunk - LONG).sum() / norm
  assert off * len(drawn) > 1.1 * squares * error


ALL = [
  compression.Uniform(8, is_stochastic=False),
  compression.Uniform(8, is_stochastic=True),
  compression.Qsgd(8),
  compression.TopK(0.1),
  compression.Eden(4),
  compression.Rotated(compression.Qsgd(8), rotation.Fourier()),
]


@pytest.mark.parametrize('codec', ALL)
def test_zeros_and_constants_stay(codec):
  np.testing.assert_array_equal(through(codec, np.zeros(3, np.float32)), 0)
  ones = through(compression.Uniform(8, False), np.ones(3, np.float32))
  np.testing.assert_array_equal(ones, 1)


def test_clients_round_independently_and_by_seed():
  codec = compression.Uniform(1, is_stochastic=True)
  first, second = LONG, np.nextafter(LONG, np.float32(9))
  base = through(codec, first).numpy()
  np.testing.assert_array_equal(base, through(codec, first).numpy())
  for other in (through(codec, second), through(codec, first, KEY + 1)):
    # A third of the coordinates would differ by chance.
    assert np.mean(np.abs(other.numpy() - base) > 1) > 0.1
