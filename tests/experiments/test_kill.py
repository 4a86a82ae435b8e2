"""Killed runs, resumed, end with the bits of a run that was never killed."""

import os
import signal
import subprocess
import time

import psutil
import pytest

from research.training import fault_injection
from tests.experiments import binary


def is_alive(pid: int) -> bool:
  """Whether a process runs; one that is only waiting to be reaped does not."""
  try:
    return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
  except psutil.NoSuchProcess:
    return False


def contents(directory):
  """The files of a run that are promised to be the same."""
  return {
    name: (directory / name).read_bytes()
    for name in ('metrics.csv', 'checkpoints/round_000004/state.npz')
  }


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  root = tmp_path_factory.mktemp('whole')
  result = binary.run(
    'emnist', *binary.TINY, f'--root_output_dir={root}', '--noexport'
  )
  assert result.returncode == 0, result.stderr
  return root / 'emnist'


def test_a_run_killed_again_and_again_equals_a_whole_one(whole, tmp_path):
  flags = (*binary.TINY, f'--root_output_dir={tmp_path}')
  points = (
    'round:2',
    'checkpoint_write:1',
    'checkpoint_rename:2',
    # Rows of metrics.csv and timing.csv alternate: the second row of the first.
    'metrics_row:3',
    'export:1',
  )
  for point in points:
    killed = binary.run('emnist', *flags, **{fault_injection.VARIABLE: point})
    assert killed.returncode == -signal.SIGKILL, (point, killed.stderr)
  resumed = binary.run('emnist', *flags)
  assert resumed.returncode == 0, resumed.stderr
  assert 'has all of its 4 rounds' in resumed.stdout
  assert contents(tmp_path / 'emnist') == contents(whole)
  assert (tmp_path / 'emnist' / 'model' / '1' / 'saved_model.pb').is_file()
  leftovers = [p for p in (tmp_path / 'emnist').rglob('*') if '.tmp-' in p.name]
  assert not leftovers


@pytest.mark.parametrize('rounds_per_checkpoint', [1, 2])
def test_clients_states_follow_the_checkpoints(tmp_path, rounds_per_checkpoint):
  flags = (
    *binary.TINY,
    '--algorithm=scaffold',
    '--client_sampling=fixed_size',
    f'--rounds_per_checkpoint={rounds_per_checkpoint}',
    '--noexport',
  )
  for name, points in (
    ('whole', ()),
    # In the middle of a round's clients, then before and in a checkpoint.
    ('killed', ('client_state:5', 'round:2', 'checkpoint_rename:1')),
  ):
    arguments = (*flags, f'--root_output_dir={tmp_path / name}')
    for point in points:
      killed = binary.run(
        'emnist', *arguments, **{fault_injection.VARIABLE: point}
      )
      assert killed.returncode == -signal.SIGKILL, (point, killed.stderr)
    finished = binary.run('emnist', *arguments)
    assert finished.returncode == 0, finished.stderr
  whole, killed = tmp_path / 'whole/emnist', tmp_path / 'killed/emnist'
  assert contents(killed) == contents(whole)
  states = {
    path.relative_to(whole): path.read_bytes()
    for path in whole.glob('client_states/*/*')
  }
  assert len(states) >= 4
  for path, content in states.items():
    assert (killed / path).read_bytes() == content


def start_long_run(root):
  """Starts a run that would last, and waits for its worker and a round."""
  process = subprocess.Popen(
    binary.command(
      'emnist',
      *binary.TINY,
      '--runtime=stock',
      '--total_rounds=100000',
      '--noexport',
      f'--root_output_dir={root}',
    ),
    cwd=binary.ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  while 'round 2/' not in process.stderr.readline():
    assert process.poll() is None
  children = psutil.Process(process.pid).children(recursive=True)
  workers = [
    c.pid for c in children if 'worker_binary' in ' '.join(c.cmdline())
  ]
  assert len(workers) == 1
  return process, workers[0]


@pytest.mark.parametrize(
  'number, exit_code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_signal_ends_run_and_worker_and_says_how_to_resume(
  number, exit_code, tmp_path
):
  process, worker = start_long_run(tmp_path)
  process.send_signal(number)
  _, errors = process.communicate(timeout=60)
  assert process.returncode == exit_code
  assert 'The same command resumes the run' in errors
  assert not is_alive(worker)


def test_a_killed_run_takes_its_worker_with_it(tmp_path):
  process, worker = start_long_run(tmp_path)
  second = binary.run('emnist', *binary.TINY, f'--root_output_dir={tmp_path}')
  assert second.returncode == 2
  assert f'process with pid {process.pid}' in second.stderr
  os.kill(process.pid, signal.SIGKILL)
  process.communicate(timeout=60)
  deadline = time.monotonic() + 10
  while is_alive(worker) and time.monotonic() < deadline:
    time.sleep(0.1)
  assert not is_alive(worker)
