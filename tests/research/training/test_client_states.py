"""States of clients on disk: which version is read, kept and dropped."""

import numpy as np
import pytest

from research.training import client_states


def make(path):
  return client_states.ClientStates(path, [np.zeros(2, np.float32)])


def state(number):
  return [np.full(2, number, np.float32)]


def value(states, client):
  (leaf,) = states.read(client)
  return float(leaf[0])


def test_a_client_that_was_never_asked_has_the_initial_state(tmp_path):
  states = make(tmp_path / 'none')
  assert value(states, 7) == 0
  assert not (tmp_path / 'none').exists()


def test_only_the_clients_of_a_round_are_rewritten(tmp_path):
  states = make(tmp_path)
  states.write(1, {3: state(13), 4: state(14)}, [])
  untouched = tmp_path / '000004/round_000001.npz'
  before = untouched.stat().st_ino
  states.write(2, {3: state(23)}, [1])
  assert (value(states, 3), value(states, 4)) == (23, 14)
  assert untouched.stat().st_ino == before


def test_going_back_drops_later_rounds_and_half_written_files(tmp_path):
  states = make(tmp_path)
  for number in (1, 2, 3):
    states.write(number, {0: state(number)}, [1, 2])
  (tmp_path / '000000/.round_000004.npz.tmp-1').write_bytes(b'half')
  states.go_back_to(2)
  assert value(states, 0) == 2
  assert sorted(path.name for path in (tmp_path / '000000').iterdir()) == [
    'round_000001.npz',
    'round_000002.npz',
  ]
  states.go_back_to(0)
  assert value(states, 0) == 0


def test_each_checkpoint_keeps_the_state_that_goes_with_it(tmp_path):
  states = make(tmp_path)
  for number in (2, 3, 5, 8):
    states.write(number, {0: state(number)}, [])
    assert states.rounds(0) == [number]
  states.write(9, {0: state(9)}, [4, 8])
  assert states.rounds(0) == [8, 9]
  states.write(11, {0: state(11)}, [8, 9, 10])
  states.write(12, {0: state(12)}, [9, 10, 11])
  assert states.rounds(0) == [9, 11, 12]
  for checkpoint, expected in ((11, 11), (10, 9)):
    states.go_back_to(checkpoint)
    assert value(states, 0) == expected


@pytest.mark.parametrize(
  'content, message',
  [(b'torn', 'is no state of a client'), (None, 'this model has')],
)
def test_what_is_no_state_is_named(tmp_path, content, message):
  states = make(tmp_path)
  states.write(1, {0: [np.zeros(5, np.float32)]}, [])
  if content:
    (tmp_path / '000000/round_000001.npz').write_bytes(content)
  with pytest.raises(ValueError, match=f'round_000001.npz.*{message}'):
    states.read(0)
