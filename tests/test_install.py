"""The locks, the package metadata, the Makefile and the set-up scripts."""

import hashlib
import importlib.metadata
import os
import pathlib
import re
import runpy
import shutil
import subprocess

import pytest
import setuptools

_ROOT = pathlib.Path(__file__).parents[1]
_REQUIREMENTS = _ROOT / 'requirements'
_INPUTS = sorted(path.stem for path in _REQUIREMENTS.glob('*.in'))
_PIN = re.compile(r'^([a-z0-9.-]+)==(\S+)')
_EXTRAS = ('bert', 'dev', 'gpu', 'onnx', 'ray')

# Stands in for an interpreter and, copied into the environment, for the
# environment's interpreter and uv; logs what it is asked.
_FAKE = """#!/bin/sh
echo "$(basename "$0") $*" >> "$FAKE_LOG"
case "$*" in
  --version) echo 'Python 3.11.99' ;;
  '-m venv '*)
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
    cp "$0" "$3/bin/uv"
    ;;
  *) [ "$(basename "$0")" != "$FAKE_BROKEN" ] ;;
esac
"""


def _lock(name):
  """Returns {package: [(version and marker, number of hashes), ...]}."""
  text = (_REQUIREMENTS / f'{name}.txt').read_text()
  pins = {}
  for block in re.split(r'\n(?=\S)', text):
    match = _PIN.match(block)
    assert match, f'not a pin: {block.splitlines()[0]!r}'
    head = block.splitlines()[0].removesuffix('\\').split('==', 1)[1].strip()
    pins.setdefault(match[1], []).append((head, block.count('--hash=sha256:')))
  return pins


def _stated(name):
  """Returns the package names that requirements/`name`.in states."""
  lines = (_REQUIREMENTS / f'{name}.in').read_text().splitlines()
  return [
    re.split(r'[=<>[]', line)[0].lower()
    for line in lines
    if line and not line.startswith('#')
  ]


def _script(path):
  path.write_text(_FAKE)
  path.chmod(0o755)


@pytest.fixture(name='clone')
def _clone(tmp_path):
  """Holds what set-up reads, and a fake interpreter at ./python3.11."""
  for name in ('setup.py', 'Makefile'):
    shutil.copy(_ROOT / name, tmp_path)
  shutil.copytree(_REQUIREMENTS, tmp_path / 'requirements')
  _script(tmp_path / 'python3.11')
  return tmp_path


def _set_up(clone, *arguments, **variables):
  """Runs set_up.sh; returns its result and the fakes' log lines."""
  log = clone / 'log'
  log.unlink(missing_ok=True)
  result = subprocess.run(
    [clone / 'requirements/set_up.sh', *(arguments or ('.venv', 'dev'))],
    env={
      'PATH': os.environ['PATH'],
      'PYTHON': str(clone / 'python3.11'),
      'FAKE_LOG': str(log),
      'FAKE_BROKEN': '',
      **variables,
    },
    capture_output=True,
    text=True,
    timeout=60,
  )
  return result, log.read_text().splitlines() if log.exists() else []


def _installs(log):
  return [line for line in log if ' install ' in line]


@pytest.mark.parametrize('name', _INPUTS)
def test_lock_pins_and_hashes_all_that_its_input_states(name):
  pins = _lock(name)
  assert set(_stated(name)) <= set(pins)
  for package, versions in pins.items():
    assert all(hashes for _, hashes in versions), package


@pytest.mark.parametrize('name', _EXTRAS)
def test_extra_shares_its_versions_with_base(name):
  base = _lock('base')
  for package, versions in _lock(name).items():
    if package in base:
      assert {v.split()[0] for v, _ in versions} <= {
        v.split()[0] for v, _ in base[package]
      }


def test_base_has_the_overrides_and_constraints():
  base = _lock('base')
  overrides = (_REQUIREMENTS / 'overrides.txt').read_text().split()
  assert {f'{p}=={base[p][0][0]}' for p in base} >= set(overrides)
  assert int(base['setuptools'][0][0].split('.')[0]) < 81
  assert int(base['pyarrow'][0][0].split('.')[0]) < 19


def test_gpu_wheels_are_those_that_tensorflow_names():
  wanted = {
    re.sub(r'[() ]', '', requirement.split(';')[0])
    for requirement in importlib.metadata.requires('tensorflow')
    if 'and-cuda' in requirement
  }
  stated = (_REQUIREMENTS / 'gpu.in').read_text().splitlines()
  assert {line for line in stated if not line.startswith('#')} == {
    line for line in wanted if not line.startswith('tensorrt')
  }


def test_metadata(monkeypatch):
  given = {}
  monkeypatch.setattr(
    setuptools, 'setup', lambda **kwargs: given.update(kwargs)
  )
  monkeypatch.chdir(_ROOT)
  runpy.run_path(str(_ROOT / 'setup.py'))
  assert given['python_requires'] == '>=3.10,<3.12'
  assert given['license'] == 'Apache-2.0'
  assert {name.split('.')[0] for name in given['packages']} == {
    'datasets',
    'experiments',
    'models',
    'research',
  }
  assert 'tensorflow-federated==0.87.0' in given['install_requires']
  assert sorted(given['extras_require']) == sorted(_EXTRAS)
  assert given['extras_require']['ray'] == ['ray==2.52.1']


def test_set_up_installs_hashed_locks_without_dependencies(clone):
  result, log = _set_up(clone)
  assert result.returncode == 0, result.stderr
  bootstrap, uv, editable = _installs(log)
  for line in (bootstrap, uv):
    assert '--no-deps' in line
    assert '--require-hashes' in line
  assert 'requirements/bootstrap.txt' in bootstrap
  assert uv.startswith('uv ')
  assert 'requirements/dev.txt' in uv
  assert 'requirements/base.txt' in uv
  assert '--no-deps --no-build-isolation --editable .' in editable
  assert '.venv is ready' in result.stdout


def test_second_set_up_does_nothing(clone):
  _set_up(clone)
  result, log = _set_up(clone)
  assert (result.returncode, result.stdout) == (0, '')
  assert [line for line in log if '--version' not in line] == []


@pytest.mark.parametrize(
  'name', ['setup.py', 'requirements/base.txt', 'requirements/bootstrap.txt']
)
def test_changed_input_is_installed(clone, name):
  _set_up(clone)
  with open(clone / name, 'a') as file:
    file.write('# changed\n')
  result, log = _set_up(clone)
  assert result.returncode == 0
  assert len(_installs(log)) == 3
  assert not any('venv' in line.split()[2:3] for line in log)


def test_interrupted_set_up_is_redone(clone):
  result, _ = _set_up(clone, FAKE_BROKEN='python')
  assert result.returncode != 0
  (clone / '.venv/half-installed').touch()
  result, log = _set_up(clone)
  assert result.returncode == 0
  assert any(line.endswith('-m venv .venv') for line in log)
  assert not (clone / '.venv/half-installed').exists()


def test_interrupted_update_is_not_taken_for_the_old_state(clone):
  _set_up(clone)
  lock = clone / 'requirements/base.txt'
  text = lock.read_text()
  lock.write_text(f'{text}# changed\n')
  result, _ = _set_up(clone, FAKE_BROKEN='python')
  assert result.returncode != 0
  lock.write_text(text)
  result, log = _set_up(clone)
  assert result.returncode == 0
  assert len(_installs(log)) == 3


def test_pip_takes_over_where_uv_fails(clone):
  result, log = _set_up(clone, FAKE_BROKEN='uv')
  assert result.returncode == 0, result.stderr
  _, uv, pip, _ = _installs(log)
  assert pip.startswith('python -m pip install')
  assert '--require-hashes' in pip
  assert uv.split('--requirement')[1:] == pip.split('--requirement')[1:]


def test_serving_environment_holds_its_own_lock_alone(clone):
  result, log = _set_up(clone, '.venv-serving', 'serving')
  assert result.returncode == 0
  _, uv = _installs(log)
  assert uv.count('--requirement') == 1
  assert 'requirements/serving.txt' in uv


def test_other_python_than_the_environments_is_refused(clone):
  _set_up(clone)
  other = clone / 'python3.10'
  other.write_text('#!/bin/sh\necho Python 3.10.1\n')
  other.chmod(0o755)
  result, _ = _set_up(clone, PYTHON=str(other))
  assert result.returncode == 1
  assert 'Python 3.11.99' in result.stderr
  assert 'Python 3.10.1' in result.stderr
  assert 'make clean' in result.stderr


def test_no_fitting_python_is_one_clear_line(clone):
  result, _ = _set_up(clone, PYTHON='false')
  assert result.returncode == 1
  assert len(result.stderr.splitlines()) == 1
  assert 'No CPython 3.10 or 3.11' in result.stderr
  assert 'python3.11-venv' in result.stderr
  assert not (clone / '.venv').exists()


@pytest.mark.parametrize('machine', ['Darwin arm64', 'Linux aarch64'])
def test_machine_that_cannot_work_is_one_clear_line(clone, machine):
  system, processor = machine.split()
  (clone / 'bin').mkdir()
  uname = clone / 'bin/uname'
  uname.write_text(
    f'#!/bin/sh\n[ "$1" = -s ] && echo {system} || echo {processor}\n'
  )
  uname.chmod(0o755)
  path = f'{clone / "bin"}:{os.environ["PATH"]}'
  result, _ = _set_up(clone, PATH=path)
  assert result.returncode == 1
  assert len(result.stderr.splitlines()) == 1
  assert f'{system} on {processor}' in result.stderr


def _lock_check(clone, compiler):
  uv = clone / '.venv/bin/uv'
  uv.parent.mkdir(parents=True)
  uv.write_text(f'#!/bin/sh\necho "$*" >> "{clone}/log"\n{compiler}\n')
  uv.chmod(0o755)
  result = subprocess.run(
    [clone / 'requirements/lock.sh', '--check'],
    capture_output=True,
    text=True,
    timeout=60,
  )
  return result, (clone / 'log').read_text().splitlines()


def _digests(clone):
  return {
    path.name: hashlib.sha256(path.read_bytes()).hexdigest()
    for path in (clone / 'requirements').glob('*.txt')
  }


def test_lock_check_covers_every_input_and_leaks_no_address(clone):
  result, log = _lock_check(clone, 'exit 0')
  assert result.returncode == 0, result.stderr
  for name in _INPUTS:
    (line,) = [x for x in log if f'requirements/{name}.in ' in f'{x} ']
    for option in (
      '--universal',
      '--generate-hashes',
      '--no-emit-index-url',
      '--no-emit-find-links',
    ):
      assert option in line


def test_lock_check_names_a_stale_lock_and_changes_nothing(clone):
  before = _digests(clone)
  # The last argument is the output file.
  result, _ = _lock_check(
    clone,
    'for last; do :; done\n'
    'case "$last" in */ray.txt) echo extra==1 >> "$last" ;; esac',
  )
  assert result.returncode == 1
  assert result.stderr.startswith('Out of step with their inputs: ')
  assert 'requirements/ray.txt. Run: make lock' in result.stderr
  assert '+extra==1' in result.stdout
  assert _digests(clone) == before


def _make(*arguments):
  """Returns what make prints, unmoved by a make that runs these tests."""
  inherited = ('ARGS', 'DATASET', 'MAKEFLAGS', 'MFLAGS', 'PARTITION', 'ROUNDS')
  return subprocess.run(
    ['make', *arguments],
    cwd=_ROOT,
    env={k: v for k, v in os.environ.items() if k not in inherited},
    capture_output=True,
    text=True,
    check=True,
  ).stdout


def test_help_lists_every_target():
  makefile = (_ROOT / 'Makefile').read_text()
  phony = re.search(r'^\.PHONY: ((?:.*\\\n)*.*)$', makefile, re.MULTILINE)[1]
  shown = _make()
  for target in phony.replace('\\', ' ').split():
    assert re.search(rf'^make {target} ', shown, re.MULTILINE), target


@pytest.mark.parametrize(
  ('arguments', 'flags'),
  [
    ([], ['--dataset=mnist', '--partition=shards', '--total_rounds=20']),
    (['DATASET=digits'], ['--dataset=digits', '--partition=natural']),
    (
      ['PARTITION=writer', 'ROUNDS=3', 'ARGS=--seed=1'],
      ['--partition=writer', '--total_rounds=3', '--seed=1'],
    ),
  ],
)
def test_make_emnist_passes_its_arguments_on(arguments, flags):
  printed = _make('--dry-run', 'emnist', *arguments)
  assert '-m experiments.emnist --flagfile=' in printed
  for flag in flags:
    assert flag in printed.split()
