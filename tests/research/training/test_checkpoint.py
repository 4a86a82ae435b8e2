"""Exactness, equal bytes, corruption and pruning of checkpoints."""

import json
import shutil

import numpy as np
import pytest

from research.training import checkpoint

_LEAVES = [
  np.arange(6, dtype=np.float32).reshape(2, 3),
  np.array([np.nan, np.inf, -0.0, 5e-324]),
  np.array(7, np.int64),
  np.array([-1, 2**31 - 1], np.int32),
  np.array([2**64 - 1], np.uint64),
  np.array([True, False]),
  np.array([1 + 2j], np.complex64),
  np.array([1.5], np.float16),
  np.array([b'ab', b'', b'\x00c'], 'S2'),
  np.array(['µ', 'text']),
  np.zeros((0, 3), np.float32),
  np.zeros((), bool),
  np.asfortranarray(np.arange(6).reshape(2, 3)),
  np.arange(10)[::3],
  np.float32(0.1),
  np.float64(0.1),
  np.int32(-3),
  np.bool_(True),
  True,
  3,
  -(2**63),
  0.1,
  float('inf'),
  b'zero at the end\x00',
  b'',
  'naïve\x00',
  '',
]


def _saved(directory, rounds, keep=10):
  manager = checkpoint.CheckpointManager(directory, keep)
  for r in rounds:
    manager.save(r, [np.full(3, r, np.float32), r], {'round_again': r})
  return checkpoint.CheckpointManager(directory, keep)


def test_leaves_come_back_exactly(tmp_path):
  manager = checkpoint.CheckpointManager(tmp_path)
  extra = {'a': [1, None, 'µ'], 'b': {'c': 0.1}, 'd': float('inf')}
  manager.save(12, _LEAVES, extra)

  restored = checkpoint.CheckpointManager(tmp_path).load_latest()

  assert restored.round_num == 12
  assert restored.extra == extra
  assert len(restored.leaves) == len(_LEAVES)
  for got, want in zip(restored.leaves, _LEAVES, strict=True):
    assert type(got) is type(want)
    if isinstance(want, np.ndarray | np.generic):
      assert got.dtype == want.dtype
      assert got.shape == want.shape
      assert got.tobytes() == want.tobytes()
    else:
      assert got == want


def test_state_without_leaves(tmp_path):
  checkpoint.CheckpointManager(tmp_path).save(0, [])
  assert checkpoint.CheckpointManager(tmp_path).load_latest() == (
    checkpoint.Checkpoint(0, [], {})
  )


def test_state_is_readable_by_numpy_alone(tmp_path):
  path = checkpoint.CheckpointManager(tmp_path).save(1, _LEAVES[:2])
  with np.load(path / 'state.npz') as archive:
    assert archive.files == ['leaf_00000', 'leaf_00001']
    np.testing.assert_array_equal(archive['leaf_00000'], _LEAVES[0])


def test_equal_states_give_equal_bytes_at_any_time(tmp_path, monkeypatch):
  first = checkpoint.CheckpointManager(tmp_path / 'a').save(
    1, _LEAVES, {'b': 1}
  )
  monkeypatch.setattr('time.time', lambda: 2e9)
  second = checkpoint.CheckpointManager(tmp_path / 'b').save(
    1, _LEAVES, {'b': 1}
  )

  for name in ('state.npz', 'manifest.json'):
    assert (first / name).read_bytes() == (second / name).read_bytes()


@pytest.mark.parametrize(
  'leaf', [np.array([{}]), None, 2**70, np.zeros(2, [('a', 'i4')])]
)
def test_leaf_that_can_not_be_exact_is_refused(tmp_path, leaf):
  with pytest.raises(TypeError, match='can not be saved exactly'):
    checkpoint.CheckpointManager(tmp_path).save(1, [leaf])
  assert not list(tmp_path.iterdir())


def test_no_checkpoint(tmp_path):
  assert checkpoint.CheckpointManager(tmp_path / 'none').load_latest() is None
  assert not (tmp_path / 'none').exists()


def _flip_bit(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def _truncate(path):
  path.write_bytes(path.read_bytes()[:-1])


def _change_hash(path):
  manifest = json.loads(path.read_text())
  manifest['state_sha256'] = '0' * 64
  path.write_text(json.dumps(manifest))


def _other_round(path):
  shutil.copy(path.parents[1] / 'round_000002' / path.name, path)


def _all_of_another_round(path):
  shutil.rmtree(path.parent)
  shutil.copytree(path.parents[1] / 'round_000002', path.parent)


@pytest.mark.parametrize(
  'name, damage',
  [
    ('state.npz', _flip_bit),
    ('state.npz', _truncate),
    ('state.npz', lambda path: path.unlink()),
    ('state.npz', lambda path: path.write_bytes(b'')),
    ('state.npz', _other_round),
    ('manifest.json', _flip_bit),
    ('manifest.json', lambda path: path.write_bytes(path.read_bytes()[:-2])),
    ('manifest.json', lambda path: path.unlink()),
    ('manifest.json', lambda path: path.write_text('[]')),
    ('manifest.json', _change_hash),
    ('manifest.json', _other_round),
    ('manifest.json', _all_of_another_round),
  ],
)
def test_damaged_newest_is_skipped_and_named(tmp_path, warnings, name, damage):
  manager = _saved(tmp_path, [1, 2, 3])
  damage(tmp_path / 'round_000003' / name)

  restored = manager.load_latest()

  assert restored.round_num == 2
  np.testing.assert_array_equal(restored.leaves[0], np.full(3, 2, np.float32))
  (message,) = warnings
  assert str(tmp_path / 'round_000003') in message


def test_no_byte_of_a_checkpoint_can_change_unnoticed(tmp_path, warnings):
  manager = _saved(tmp_path, [1])
  good = manager.load_latest()
  harmless = 0
  for name in ('state.npz', 'manifest.json'):
    path = tmp_path / 'round_000001' / name
    data = path.read_bytes()
    for i in range(len(data)):
      path.write_bytes(data[:i] + bytes([data[i] ^ 4]) + data[i + 1 :])
      restored = checkpoint.CheckpointManager(tmp_path).load_latest()
      if restored is not None:
        # JSON has bytes without a meaning: white space and such.
        assert name == 'manifest.json'
        assert repr(restored) == repr(good)
        harmless += 1
    path.write_bytes(data)
  assert harmless < 100
  assert warnings


def test_all_damaged_says_so_and_gives_none(tmp_path, warnings):
  manager = _saved(tmp_path, [1, 2])
  for r in (1, 2):
    _flip_bit(manager.path(r) / 'state.npz')

  assert manager.load_latest() is None
  assert 'starting at round 0' in warnings[-1]


def test_pruning_keeps_the_newest(tmp_path):
  assert _saved(tmp_path, range(1, 8), keep=3).rounds() == [5, 6, 7]


def test_saving_over_a_damaged_newest_goes_on(tmp_path, warnings):
  manager = _saved(tmp_path, [1, 2, 3])
  _flip_bit(tmp_path / 'round_000003' / 'state.npz')
  restored = manager.load_latest()
  manager.save(3, [np.full(3, 3, np.float32)])

  assert restored.round_num == 2
  assert checkpoint.CheckpointManager(tmp_path).load_latest().round_num == 3


def test_damaged_ones_do_not_push_out_the_good_one(tmp_path, warnings):
  _saved(tmp_path, [1, 2, 3, 4])
  manager = checkpoint.CheckpointManager(tmp_path, keep=2)
  for r in (3, 4):
    _flip_bit(tmp_path / f'round_{r:06d}' / 'state.npz')
  assert manager.load_latest().round_num == 2

  manager.save(3, [np.zeros(1)])

  assert manager.rounds() == [2, 3]
  _flip_bit(tmp_path / 'round_000003' / 'state.npz')
  assert checkpoint.CheckpointManager(tmp_path).load_latest().round_num == 2


def test_failed_save_leaves_the_good_one_and_no_leftover(tmp_path, monkeypatch):
  manager = _saved(tmp_path, [1], keep=1)

  def fail(point):
    raise OSError(f'disk full at {point}')

  monkeypatch.setattr(checkpoint, '_reached', fail)
  with pytest.raises(OSError, match='disk full'):
    manager.save(2, [np.zeros(3)])

  assert [path.name for path in tmp_path.iterdir()] == ['round_000001']


def test_leftovers_are_removed_by_the_next_save_only(tmp_path):
  manager = _saved(tmp_path, [1])
  leftover = tmp_path / '.round_000002.tmp-123'
  leftover.mkdir()
  (leftover / 'state.npz').write_bytes(b'half')

  assert manager.load_latest().round_num == 1
  assert leftover.exists()
  manager.save(2, [np.zeros(3)])
  assert not leftover.exists()


def test_saving_the_same_again_writes_nothing(tmp_path):
  manager = _saved(tmp_path, [1])
  before = (tmp_path / 'round_000001').stat().st_ino
  manager.save(1, [np.full(3, 1, np.float32), 1], {'round_again': 1})
  assert (tmp_path / 'round_000001').stat().st_ino == before


@pytest.mark.parametrize('round_num', [1, 2])
def test_other_state_of_a_saved_round_is_refused(tmp_path, round_num):
  manager = _saved(tmp_path, [1, 2])
  with pytest.raises(ValueError, match='call load_latest first'):
    manager.save(round_num, [np.zeros(3)])


def test_keep_must_be_positive(tmp_path):
  with pytest.raises(ValueError, match='keep=0'):
    checkpoint.CheckpointManager(tmp_path, keep=0)
