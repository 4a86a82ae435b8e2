"""The lock against real processes, config.json, and the rule of resuming."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from research.training import run_directory

_REPOSITORY = pathlib.Path(__file__).parents[3]
# Takes the lock, starts a program that outlives it, says so, and waits.
_HOLDER = """
import subprocess, sys
from research.training import run_directory
run_directory.RunDirectory(sys.argv[1], 'run').lock()
child = subprocess.Popen(
  ['sleep', '60'], stdout=subprocess.DEVNULL, close_fds=False
)
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_second_process_is_refused_until_the_holder_dies(tmp_path):
  holder = subprocess.Popen(
    [sys.executable, '-c', _HOLDER, str(tmp_path)],
    cwd=_REPOSITORY,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  try:
    grandchild = int(holder.stdout.readline())
    run = run_directory.RunDirectory(tmp_path, 'run')
    with pytest.raises(
      run_directory.RunLockedError, match=f'pid {holder.pid}:'
    ) as caught:
      run.lock()
    assert str(tmp_path / 'run') in str(caught.value)
    assert '--experiment_name' in str(caught.value)
  finally:
    holder.kill()
    holder.communicate()
  try:
    os.kill(grandchild, 0)
    with run:
      pass
  finally:
    os.kill(grandchild, signal.SIGKILL)


def test_lock_is_given_back_and_cleans_up(tmp_path):
  leftover = tmp_path / 'run' / 'plots' / '.loss.png.tmp-1'
  leftover.parent.mkdir(parents=True)
  leftover.write_bytes(b'half')
  with (
    run_directory.RunDirectory(tmp_path, 'run'),
    pytest.raises(run_directory.RunLockedError, match=f'pid {os.getpid()}:'),
  ):
    run_directory.RunDirectory(tmp_path, 'run').lock()
  assert not leftover.exists()
  with run_directory.RunDirectory(tmp_path, 'run'):
    pass


def test_refused_process_removes_nothing(tmp_path):
  with run_directory.RunDirectory(tmp_path, 'run') as run:
    in_progress = run.path / '.metrics.csv.tmp-1'
    in_progress.write_bytes(b'')
    with pytest.raises(run_directory.RunLockedError):
      run_directory.RunDirectory(tmp_path, 'run').lock()
    assert in_progress.exists()


def test_layout(tmp_path):
  run = run_directory.RunDirectory(tmp_path, 'run')
  assert not run.path.exists()
  assert [
    path.relative_to(tmp_path).as_posix()
    for path in (
      run.config_json,
      run.metrics_csv,
      run.timing_csv,
      run.tensorboard,
      run.checkpoints,
      run.plots,
      run.model,
      run.model_card_md,
      run.model_card_json,
    )
  ] == [
    'run/config.json',
    'run/metrics.csv',
    'run/timing.csv',
    'run/tensorboard',
    'run/checkpoints',
    'run/plots',
    'run/model/1',
    'run/model_card.md',
    'run/model_card.json',
  ]


@pytest.mark.parametrize('name', ['', '.', '..', 'a/b', '/a'])
def test_name_that_leaves_the_root_is_refused(tmp_path, name):
  with pytest.raises(ValueError, match='--experiment_name'):
    run_directory.RunDirectory(tmp_path, name)


def test_config_comes_back(tmp_path):
  run = run_directory.RunDirectory(tmp_path, 'run')
  assert run.read_config() is None
  with run:
    run.write_config({'flags': {'b': 0.1, 'a': None}})
  assert run.read_config() == {'flags': {'b': 0.1, 'a': None}}
  again = run_directory.RunDirectory.existing(run.path)
  assert again.read_config() == run.read_config()


def test_broken_config_is_named(tmp_path):
  run = run_directory.RunDirectory(tmp_path, 'run')
  run.path.mkdir()
  run.config_json.write_text('{"flags"')
  with pytest.raises(ValueError, match=r'config\.json is not JSON'):
    run.read_config()


def test_directory_without_a_run_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match='is not a run directory'):
    run_directory.RunDirectory.existing(tmp_path)


_FLAGS = {'model': 'cnn', 'seed': 1, 'total_rounds': 10, 'device': 'cpu'}
_CONFIG = {
  'flags': _FLAGS,
  'seed': 1,
  'binary': 'emnist',
  'data_sha256': 'ab',
  'device': 'cpu',
  'versions': {'tensorflow': '2.14.1', 'numpy': '1.25.2'},
  'git_revision': 'abc',
}
_FREE = ('device', 'root_output_dir')


def _with_flags(**flags):
  return {**_CONFIG, 'flags': {**_FLAGS, **flags}}


@pytest.mark.parametrize(
  'current, rounds_done',
  [
    (_CONFIG, 10),
    (_with_flags(total_rounds=20), 10),
    (_with_flags(total_rounds=7), 7),
    (_with_flags(device='gpu', root_output_dir='/elsewhere'), 3),
  ],
)
def test_run_that_may_go_on(warnings, current, rounds_done):
  run_directory.check_resume(_CONFIG, current, _FREE, rounds_done)
  assert not warnings


def test_values_are_compared_as_json_stores_them(warnings):
  saved = json.loads(json.dumps(_with_flags(layers=(1, 2), rate=0.1)))
  run_directory.check_resume(saved, _with_flags(layers=(1, 2), rate=0.1), _FREE)


def test_every_differing_flag_is_named_with_both_values():
  current = _with_flags(model='mlp', seed=2, batch=8, device='gpu')
  with pytest.raises(run_directory.ResumeError) as caught:
    run_directory.check_resume(_CONFIG, {**current, 'data_sha256': 'cd'}, _FREE)

  assert str(caught.value).splitlines()[1:-1] == [
    '  --batch: was absent, now 8',
    '  --model: was "cnn", now "mlp"',
    '  --seed: was 1, now 2',
    '  data_sha256: was "ab", now "cd"',
  ]


def test_true_and_one_differ():
  with pytest.raises(run_directory.ResumeError, match='was 1, now true'):
    run_directory.check_resume(_CONFIG, _with_flags(seed=True), _FREE)


def test_fewer_rounds_than_are_done():
  with pytest.raises(
    run_directory.ResumeError,
    match='--total_rounds: was 10, now 7, but 8 rounds are done',
  ):
    run_directory.check_resume(_CONFIG, _with_flags(total_rounds=7), _FREE, 8)


def test_other_device_versions_and_revision_only_warn(warnings):
  current = {
    **_CONFIG,
    'device': 'gpu',
    'versions': {'tensorflow': '2.15', 'numpy': '1.25.2'},
    'git_revision': 'def',
  }
  run_directory.check_resume(_CONFIG, current, _FREE)

  assert len(warnings) == 3
  assert 'was cpu, now gpu' in warnings[0]
  assert (
    "was {'tensorflow': '2.14.1'}, now {'tensorflow': '2.15'}" in (warnings[1])
  )
