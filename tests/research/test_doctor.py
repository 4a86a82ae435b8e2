"""The doctor's probes, here and in an interpreter that has nothing."""

import ast
import os
import pathlib
import subprocess
import sys
import venv

import pytest

from research import doctor

_ROOT = pathlib.Path(__file__).parents[2]
_FILES = ['research/__init__.py', 'research/diagnosis.py', 'research/doctor.py']


def _doctor(python, **variables):
  return subprocess.run(
    [python, '-m', 'research.doctor'],
    cwd=_ROOT,
    env={**os.environ, **variables},
    capture_output=True,
    text=True,
    timeout=300,
  )


@pytest.mark.parametrize('name', _FILES)
def test_starts_on_python_38_with_the_standard_library_alone(name):
  source = (_ROOT / name).read_text()
  tree = ast.parse(source, feature_version=(3, 8))
  for node in tree.body:
    if isinstance(node, ast.Import):
      modules = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      modules = [node.module]
    else:
      continue
    for module in modules:
      top = module.split('.')[0]
      assert top in sys.stdlib_module_names or top == 'research'


def test_bare_interpreter_is_told_what_to_do(tmp_path):
  venv.create(tmp_path / 'bare', with_pip=False)
  result = _doctor(tmp_path / 'bare/bin/python')
  assert result.returncode == 1, result.stderr
  lines = result.stdout.splitlines()
  assert lines[-1] == 'TensorFlow cannot work: run: make clean env'
  assert any(
    line.startswith('TF Federated   PROBLEM  not installed') for line in lines
  )


def test_this_environment_works(tmp_path):
  (tmp_path / 'mnist.npz').touch()
  result = _doctor(sys.executable, TFF_RESEARCH_CACHE=str(tmp_path))
  assert result.returncode == 0, result.stdout + result.stderr
  states = {
    line[:15].strip(): line[15:].split(maxsplit=1)
    for line in result.stdout.splitlines()
    if line[15:].startswith(('ok', 'note', 'PROBLEM'))
  }
  for subject in ('Python', 'OS', 'TensorFlow', 'TF Federated', 'XLA'):
    assert states[subject][0] == 'ok', result.stdout
  assert states['pip check'] == ['ok', '4 complaints, all expected']
  assert states['data'] == ['ok', f'mnist in {tmp_path}']


def test_names_are_looked_up_afresh_on_the_given_path(tmp_path):
  (tmp_path / 'datasets').mkdir()
  (tmp_path / 'datasets/__init__.py').touch()
  before = list(sys.path)
  found = doctor.find_names([str(tmp_path), str(_ROOT), *sys.path])
  assert sys.path == before
  assert found['datasets'] == str(tmp_path / 'datasets')
  assert found['research'] == str(_ROOT / 'research')


def test_crash_at_import_is_reported(monkeypatch):
  def killed(*unused_args, **unused_kwargs):
    return subprocess.CompletedProcess([], -4, stdout='', stderr='')

  monkeypatch.setattr(subprocess, 'run', killed)
  rows = doctor._tensorflow_rows()
  assert rows[0].state == 'PROBLEM'
  assert 'signal 4' in rows[0].detail
