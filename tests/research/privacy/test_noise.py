"""The noise: its bits by RFC 8439, its numbers by statistical tests."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from research.privacy import noise

_KEY = noise.insecure_key(0, 1)
# Each statistical test rejects a true hypothesis with this probability; keys
# are fixed, so that a test which passes once passes always.
_FALSE_ALARM_RATE = 1e-3


def _stream_bytes(key: str, nonce: str, num_blocks: int) -> bytes:
  words = noise.chacha20(
    tf.constant(np.frombuffer(bytes.fromhex(key), '<u4')),
    tf.constant(np.frombuffer(bytes.fromhex(nonce), '<u4')),
    num_blocks,
    tf.constant(0, tf.uint32),
  )
  return words.numpy().T.astype('<u4').tobytes()


def test_the_block_of_rfc_8439_section_2_3_2():
  key = bytes(range(32)).hex()
  found = _stream_bytes(key, '000000090000004a00000000', 2)
  assert found[64:].hex() == (
    '10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e'
    'd2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e'
  )


@pytest.mark.parametrize(
  ('last_byte', 'block', 'expected'),
  [
    (0, 0, '76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7'),
    (0, 1, '9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed'),
    (1, 1, '3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a'),
  ],
)
def test_the_blocks_of_rfc_8439_appendix_a_1(last_byte, block, expected):
  key = bytes([0] * 31 + [last_byte]).hex()
  found = _stream_bytes(key, '00' * 12, 2)[64 * block :]
  assert found[:32].hex() == expected


def _normals(shape=(200_000,), key=_KEY, stream=0) -> np.ndarray:
  return noise.standard_normals(key, stream, tf.TensorSpec(shape)).numpy()


def test_the_numbers_are_standard_normal():
  found = _normals().astype(np.float64)
  assert stats.kstest(found, 'norm').pvalue > _FALSE_ALARM_RATE
  # The Kolmogorov-Smirnov test says little about tails.
  beyond = int((np.abs(found) > 3).sum())
  share = 2 * stats.norm.sf(3)
  assert stats.binomtest(beyond, found.size, share).pvalue > _FALSE_ALARM_RATE


def test_neighbours_and_halves_are_uncorrelated():
  found = _normals()
  half = len(found) // 2
  for other in (found[1:], found[half:]):
    first = found[: len(other)]
    assert stats.pearsonr(first, other).pvalue > _FALSE_ALARM_RATE
    squares = stats.pearsonr(first**2, other**2)
    assert squares.pvalue > _FALSE_ALARM_RATE


def test_another_stream_or_key_gives_independent_numbers():
  found = _normals()
  for other in (_normals(stream=1), _normals(key=noise.insecure_key(0, 2))):
    assert stats.pearsonr(found, other).pvalue > _FALSE_ALARM_RATE
    assert not np.any(found[:8] == other[:8])


def test_a_structure_gets_its_shapes_and_a_common_stream():
  specs = {
    'a': tf.TensorSpec([3, 5]),
    'b': [tf.TensorSpec([]), tf.TensorSpec([0])],
  }
  found = noise.standard_normals(_KEY, 0, specs)
  assert found['a'].shape == (3, 5)
  assert found['b'][0].shape == ()
  assert found['b'][1].shape == (0,)
  together = np.concatenate([found['a'].numpy().ravel(), [found['b'][0]]])
  np.testing.assert_array_equal(together, _normals((16,)))


def test_a_forgotten_key_shows():
  assert np.isnan(_normals((9,), key=noise.no_key())).all()


def test_the_same_key_gives_the_same_bits_traced_or_not():
  traced = tf.function(
    lambda key: noise.standard_normals(key, 0, tf.TensorSpec([100]))
  )
  np.testing.assert_array_equal(traced(tf.constant(_KEY)), _normals((100,)))


def test_keys_differ_by_seed_and_round_and_secure_ones_always():
  keys = [noise.insecure_key(s, r) for s in range(3) for r in range(3)]
  keys += [noise.secure_key() for _ in range(3)]
  assert len({key.tobytes() for key in keys}) == 12
  np.testing.assert_array_equal(
    noise.insecure_key(1, 2), noise.insecure_key(1, 2)
  )
