"""The plain line, the bar, and the arithmetic of the time left."""

import contextlib
import io
import os
import pty
import sys
from unittest import mock

import pytest

from research.training import progress


class _Clock:
  def __init__(self):
    self.now = 1000.0

  def __call__(self):
    return self.now


class _Terminal(io.StringIO):
  def isatty(self):
    return True


def test_plain_line_per_round():
  clock, stream = _Clock(), io.StringIO()
  with progress.Progress(100, 10, stream, clock) as shown:
    clock.now += 20
    shown.update(11, {'loss': 0.5, 'accuracy': None}, 300.4)
    clock.now += 2
    shown.update(12, {'loss': 0.3123456, 'accuracy': 0.911}, 1523.2)
    shown.write('evaluated')

  # 20 s for one round of this process, then 2 s once the first is left out.
  assert stream.getvalue() == (
    'round 11/100 loss 0.5 300 examples/s 29m40s left\n'
    'round 12/100 loss 0.3123 accuracy 0.911 1523 examples/s 2m56s left\n'
    'evaluated\n'
  )


def test_time_left_is_the_mean_of_all_rounds_but_the_first():
  clock, stream = _Clock(), io.StringIO()
  shown = progress.Progress(10, stream=stream, clock=clock)
  for r, seconds in enumerate([50, 1, 3, 8], start=1):
    clock.now += seconds
    shown.update(r, {})
  assert stream.getvalue().splitlines()[-1] == 'round 4/10 24s left'


def test_last_round_has_no_time_left():
  stream = io.StringIO()
  progress.Progress(3, 2, stream).update(3, {'loss': 1.0})
  assert stream.getvalue() == 'round 3/3 loss 1\n'


def test_bar_on_a_terminal(monkeypatch):
  monkeypatch.setenv('COLUMNS', '80')
  clock, stream = _Clock(), _Terminal()
  with progress.Progress(4, 2, stream, clock) as shown:
    clock.now += 5
    shown.update(3, {'loss': 0.25}, 10.0)
    shown.write('a line')
    clock.now += 1
    shown.update(4, {'loss': 0.125}, 10.0)

  text = stream.getvalue()
  assert 'round 3/4 5s left loss 0.25 10 examples/s' in text
  assert '\n' not in text.split('a line')[0]
  assert 'a line\n' in text
  last = text.rstrip('\n').split('\r')[-1]
  assert last.startswith('100%|')
  assert last.rstrip().endswith('round 4/4 loss 0.125 10 examples/s')


def test_bar_on_a_terminal_of_unknown_size(monkeypatch):
  monkeypatch.delenv('COLUMNS', raising=False)
  master, slave = pty.openpty()
  with (
    os.fdopen(slave, 'w') as stream,
    mock.patch.object(sys, 'stderr', stream),
    mock.patch.object(sys, '__stdout__', stream),
  ):
    assert os.get_terminal_size(slave).columns == 0
    with progress.Progress(4) as shown:
      shown.update(4, {'loss': 0.25}, 10.0)
  text = b''
  # Linux ends the reading of a terminal that was closed with an error.
  with contextlib.suppress(OSError):
    while chunk := os.read(master, 10_000):
      text += chunk
  os.close(master)
  text = text.decode()
  assert 'round 4/4 loss 0.25 10 examples/s' in text


@pytest.mark.parametrize(
  'seconds, text',
  [
    (0, '0s'),
    (59.4, '59s'),
    (59.6, '1m00s'),
    (192, '3m12s'),
    (3600 + 4 * 60 + 50, '1h04m'),
    (2 * 86400 + 3 * 3600, '2d03h'),
  ],
)
def test_duration(seconds, text):
  assert progress.duration(seconds) == text
