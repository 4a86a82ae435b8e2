"""Kills a run with SIGKILL everywhere and compares it with an unkilled one."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from research.training import checkpoint, fault_injection, metrics
from tests.research.training import toy_run

_REPOSITORY = pathlib.Path(__file__).parents[3]
_ROUNDS = 4


def _run(root, rounds=_ROUNDS, kill_at=None, program=None):
  environment = dict(os.environ)
  environment.pop(fault_injection.VARIABLE, None)
  if kill_at:
    environment[fault_injection.VARIABLE] = kill_at
  what = ['-c', program] if program else ['-m', toy_run.__name__]
  return subprocess.run(
    [sys.executable, *what, str(root), str(rounds)],
    cwd=_REPOSITORY,
    env=environment,
    capture_output=True,
    text=True,
  )


@pytest.fixture(scope='module')
def unkilled(tmp_path_factory):
  """The files of an unkilled run after each number of rounds."""
  root = tmp_path_factory.mktemp('unkilled')
  contents = []
  for rounds in range(_ROUNDS + 1):
    toy_run.run(root, rounds)
    contents.append(toy_run.content(root))
  return contents


@pytest.mark.parametrize(
  'point', ['checkpoint_write', 'checkpoint_rename', 'metrics_row']
)
@pytest.mark.parametrize('occurrence', [1, 3])
def test_run_killed_at_a_named_point_ends_the_same(
  tmp_path, unkilled, point, occurrence
):
  killed = _run(tmp_path, kill_at=f'{point}:{occurrence}')
  assert killed.returncode == -signal.SIGKILL, killed.stderr

  directory = tmp_path / 'toy'
  if point == 'metrics_row':
    last_line = (directory / 'metrics.csv').read_bytes().splitlines(True)[-1]
    assert last_line.startswith(b'%d,' % occurrence)
    assert not last_line.endswith(b'\n')
  else:
    assert list((directory / 'checkpoints').glob('.*'))
  rows = metrics.read(directory / 'metrics.csv')
  assert len(rows) == occurrence - (point == 'metrics_row')
  restored = checkpoint.CheckpointManager(
    directory / 'checkpoints', toy_run.KEEP
  ).load_latest()
  done = restored.round_num if restored else 0
  assert done == occurrence - 1
  metrics.MetricsCsv(directory / 'metrics.csv', toy_run.COLUMNS).truncate_after(
    done
  )
  files = toy_run.content(tmp_path)
  assert files['toy/metrics.csv'] == unkilled[done]['toy/metrics.csv']

  resumed = _run(tmp_path)
  assert resumed.returncode == 0, resumed.stderr
  assert toy_run.content(tmp_path) == unkilled[_ROUNDS]


# Kills a child before every line of research/training, and every change of the
# file system, that the third round brings; resumes, and compares each time.
_EVERY_STEP = """
import os, pathlib, shutil, signal, sys
from research import training
from tests.research.training import toy_run

folder = os.path.dirname(training.__file__)
base = pathlib.Path(sys.argv[1], 'base')
work = pathlib.Path(sys.argv[1], 'work')
rounds = int(sys.argv[2])
os.fsync = lambda descriptor: None  # Only a power cut would tell.
toy_run.run(base, 2)
# What an earlier kill left: a whole row too many, a torn one, half a directory.
with open(base / 'toy/metrics.csv', 'ab') as file:
  file.write(b'3,1.5,x\\n4,0.2')
(base / 'toy/checkpoints/.round_000003.tmp-1').mkdir()
expected = pathlib.Path(sys.argv[1], 'expected')
toy_run.run(expected, rounds)
expected = toy_run.content(expected)


def kill_before_step(count):
  left = [count]
  def step():
    left[0] -= 1
    if not left[0]:
      os.kill(os.getpid(), signal.SIGKILL)
  def trace(frame, event, argument):
    if not frame.f_code.co_filename.startswith(folder):
      return None
    if event == 'line':
      step()
    return trace
  def audit(event, arguments):
    if event == 'open' or event.startswith('os.'):
      step()
  sys.addaudithook(audit)
  sys.settrace(trace)


count = 0
finished = False
while not finished:
  count += 1
  shutil.rmtree(work, ignore_errors=True)
  shutil.copytree(base, work)
  pid = os.fork()
  if not pid:
    kill_before_step(count)
    toy_run.run(work, 3)
    os._exit(0)
  status = os.waitpid(pid, 0)[1]
  finished = os.WIFEXITED(status)
  assert finished or os.WTERMSIG(status) == signal.SIGKILL, status
  for path in work.glob('toy/checkpoints/round_*'):
    names = sorted(file.name for file in path.iterdir())
    assert names == ['manifest.json', 'state.npz'], (count, path, names)
  toy_run.run(work, rounds)
  assert toy_run.content(work) == expected, count
print(count)
"""


def test_run_killed_before_every_step_ends_the_same(tmp_path):
  result = _run(tmp_path, program=_EVERY_STEP)

  assert result.returncode == 0, result.stderr
  assert int(result.stdout) > 200
  assert 'Skipped checkpoint' not in result.stderr
  shutil.rmtree(tmp_path)


def test_without_the_variable_nothing_is_killed(tmp_path, unkilled):
  assert _run(tmp_path).returncode == 0
  assert toy_run.content(tmp_path) == unkilled[_ROUNDS]


@pytest.mark.parametrize(
  'value', ['round', 'round:0', 'nowhere:1', 'round:-1', 'round:one']
)
def test_wrong_variable_is_an_error_that_names_the_points(monkeypatch, value):
  monkeypatch.setenv(fault_injection.VARIABLE, value)

  with pytest.raises(ValueError, match='checkpoint_rename'):
    fault_injection.reached('round')


def test_unknown_point_is_an_error():
  with pytest.raises(ValueError, match='unknown point'):
    fault_injection.reached('nowhere')
