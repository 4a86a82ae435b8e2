"""CI's count of outcomes, over reports that a real pytest run wrote."""

import os
import pathlib
import subprocess
import sys

import pytest

_SCRIPT = pathlib.Path(__file__).parents[1] / '.ci/check_skips.py'
_PASSING = 'def test_good():\n  assert 1 + 1 == 2\n'
_SKIPPED = (
  'import pytest\n\n\n@pytest.mark.skip(reason="no GPU")\n'
  'def test_gpu():\n  raise AssertionError\n'
)
_SKIPPED_MODULE = 'import pytest\n\npytest.importorskip("no_such_module")\n'
_FAILING = 'def test_bad():\n  assert 1 + 1 == 3\n'
_BROKEN = 'import no_such_module\n'


@pytest.fixture(name='check')
def _check(tmp_path):
  def check(files, allowed):
    for name, text in files.items():
      (tmp_path / name).write_text(text)
    (tmp_path / 'allowed.txt').write_text(allowed)
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider']
    subprocess.run(
      [*command, '--junitxml=report.xml', '-c/dev/null', '--rootdir=.', '.'],
      cwd=tmp_path,
      env={**os.environ, 'PYTEST_DISABLE_PLUGIN_AUTOLOAD': '1'},
      capture_output=True,
    )
    result = subprocess.run(
      [sys.executable, _SCRIPT, 'report.xml', 'allowed.txt'],
      cwd=tmp_path,
      capture_output=True,
      text=True,
    )
    return result.returncode, result.stdout.splitlines(), result.stderr

  return check


def test_all_passed(check):
  status, lines, _ = check({'test_a.py': _PASSING}, '# none\n')
  assert (status, lines) == (0, ['1 passed, 0 failed, 0 skipped'])


def test_stray_skip_fails_and_is_named(check):
  status, lines, _ = check({'test_a.py': _PASSING, 'test_b.py': _SKIPPED}, '')
  assert status == 1
  assert 'SKIP NOT ALLOWED: test_b::test_gpu: no GPU' in lines
  assert lines[-1] == '1 passed, 0 failed, 1 skipped'


def test_allowed_skip_passes(check):
  files = {'test_a.py': _PASSING, 'test_b.py': _SKIPPED}
  status, lines, _ = check(files, 'test_b::test_gpu  no GPU in CI\n')
  assert status == 0
  assert lines[-1] == '1 passed, 0 failed, 1 skipped'


def test_module_that_skips_itself_is_seen(check):
  files = {'test_a.py': _PASSING, 'test_b.py': _SKIPPED_MODULE}
  status, lines, _ = check(files, '')
  assert status == 1
  assert any(line.startswith('SKIP NOT ALLOWED: test_b:') for line in lines)


def test_failure_and_collection_error_fail(check):
  files = {
    'test_a.py': _PASSING,
    'test_b.py': _FAILING,
    'test_c.py': _BROKEN,
  }
  status, lines, _ = check(files, '')
  assert status == 1
  assert lines[-1].split(', ')[1] != '0 failed'


def test_run_without_a_passed_test_fails(check):
  status, lines, _ = check(
    {'test_b.py': _SKIPPED}, 'test_b::test_gpu  no GPU in CI\n'
  )
  assert (status, lines[-1]) == (1, '0 passed, 0 failed, 1 skipped')


def test_allowed_skip_needs_a_reason(check):
  status, _, error = check({'test_a.py': _PASSING}, 'test_b::test_gpu\n')
  assert status == 1
  assert 'without a reason' in error
