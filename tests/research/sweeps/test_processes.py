import os
import pathlib
import signal
import subprocess
import sys
import time

import psutil
import pytest

from research.sweeps import processes

ROOT = pathlib.Path(__file__).parents[3]


def python(code):
  return [sys.executable, '-S', '-c', code]


def wait_all(queue):
  ended = []
  while queue.running:
    ended += queue.wait(60)
  return ended


def wait_for(condition, seconds=60):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)


def is_alive(pid):
  try:
    return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
  except psutil.NoSuchProcess:
    return False


@pytest.mark.parametrize(
  'cores, parts, expected',
  [
    (4, 1, [{0, 1, 2, 3}]),
    (4, 2, [{0, 1}, {2, 3}]),
    # All parts are alike: a core is left over.
    (5, 2, [{0, 1}, {2, 3}]),
    (2, 3, [{0}, {1}, {0}]),
  ],
)
def test_cores_are_divided(cores, parts, expected):
  assert processes.split_cores(range(cores), parts) == expected


def test_exit_codes_and_output_are_kept(tmp_path):
  with processes.LocalQueue(2) as queue:
    queue.start('good', python('print("said")'), tmp_path / 'good')
    assert not queue.is_full
    queue.start('bad', python('raise SystemExit(3)'), tmp_path / 'bad')
    assert queue.is_full
    ended = wait_all(queue)
  assert {e.name: e.exit_code for e in ended} == {'good': 0, 'bad': 3}
  assert (tmp_path / 'good').read_text() == 'said\n'


def test_processes_share_out_the_cores_of_this_one(tmp_path):
  mine = os.sched_getaffinity(0)
  code = 'import os; print(sorted(os.sched_getaffinity(0)))'
  with processes.LocalQueue(2) as queue:
    for name in 'ab':
      queue.start(name, python(code), tmp_path / name)
    wait_all(queue)
  assert os.sched_getaffinity(0) == mine
  parts = [eval((tmp_path / name).read_text()) for name in 'ab']
  assert parts == [sorted(p) for p in processes.split_cores(list(mine), 2)]


def test_closing_ends_a_command_tidily(tmp_path):
  code = (
    'import signal, sys, time\n'
    'signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("tidy")))\n'
    'print("up", flush=True)\n'
    'while True: time.sleep(0.01)'
  )
  with processes.LocalQueue(1) as queue:
    queue.start('a', python(code), tmp_path / 'log')
    wait_for(lambda: 'up' in (tmp_path / 'log').read_text())
  assert (tmp_path / 'log').read_text() == 'up\ntidy\n'


# Ignores SIGTERM, as does the child that it starts.
_STUBBORN = (
  'import os, signal, time\n'
  'signal.signal(signal.SIGTERM, signal.SIG_IGN)\n'
  'child = os.fork()\n'
  'if child: print(os.getpid(), child, flush=True)\n'
  'while True: time.sleep(0.01)'
)


def pids(log):
  wait_for(lambda: log.exists() and log.read_text().endswith('\n'))
  return [int(word) for word in log.read_text().split()]


def test_what_ignores_the_request_is_killed_with_its_children(tmp_path):
  with processes.LocalQueue(1, grace_seconds=0.1) as queue:
    queue.start('a', python(_STUBBORN), tmp_path / 'log')
    family = pids(tmp_path / 'log')
    assert len(family) == 2 and all(map(is_alive, family))
  wait_for(lambda: not any(map(is_alive, family)))


# Starts two commands and waits for ever.
_OWNER = (
  'import pathlib, sys\n'
  'from research.sweeps import processes\n'
  'from research.training import interrupts\n'
  'sleeper = "import os, time; print(os.getpid(), flush=True);"\n'
  'sleeper += "time.sleep(999)"\n'
  'with interrupts.exit_tidily("Go on."), processes.LocalQueue(2) as queue:\n'
  '  for name in "ab":\n'
  '    command = [sys.executable, "-S", "-c", sleeper]\n'
  '    queue.start(name, command, pathlib.Path(sys.argv[1], name))\n'
  '  while True: queue.wait(60)'
)


@pytest.mark.parametrize(
  'number, exit_code',
  [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)],
)
def test_no_command_outlives_its_owner(number, exit_code, tmp_path):
  owner = subprocess.Popen(
    [sys.executable, '-c', _OWNER, str(tmp_path)],
    cwd=ROOT,
    stderr=subprocess.PIPE,
    text=True,
  )
  family = [pid for name in 'ab' for pid in pids(tmp_path / name)]
  assert len(family) == 2 and all(map(is_alive, family))
  owner.send_signal(number)
  _, errors = owner.communicate(timeout=60)
  assert owner.returncode == exit_code
  assert number == signal.SIGKILL or 'Go on.' in errors
  wait_for(lambda: not any(map(is_alive, family)))
