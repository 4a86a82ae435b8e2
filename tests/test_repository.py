"""The house rules that a program can check, over every tracked file."""

import ast
import pathlib
import re
import subprocess

import pytest

_ROOT = pathlib.Path(__file__).parents[1]
_LONGEST_FILE = 450
_REGISTRY = re.compile(
  r'(https?://|\b)[^\s"\'/]*(pypi|pythonhosted|npmjs|debian)\.(org|com|net)'
  r'|--(extra-)?index-url|--find-links'
)
_MACHINE_PATH = re.compile(r'(?<![\w.$}])/(work|root|home/[a-z]+)/')
_MAY_IMPORT = {
  'models': {'models', 'datasets'},
  'datasets': {'datasets'},
  'research': {'models', 'datasets', 'research'},
  'experiments': {'models', 'datasets', 'research', 'experiments'},
}
_OURS = {*_MAY_IMPORT, 'tests'}


def _files():
  listed = subprocess.run(
    ['git', 'ls-files', '--cached', '--others', '--exclude-standard', '-z'],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=True,
  ).stdout
  return [_ROOT / name for name in sorted(set(listed.split('\0'))) if name]


_FILES = [path for path in _files() if path.is_file()]
_PYTHON = [path for path in _FILES if path.suffix == '.py']


def _imports(path):
  """Yields the dotted name of each module that a file imports."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path} imports relative to itself'
      yield node.module


def _matches(pattern):
  """Returns 'file:line: text' of each match in the tracked text files."""
  found = []
  for path in _FILES:
    if path == pathlib.Path(__file__):
      continue
    try:
      lines = path.read_text().splitlines()
    except UnicodeDecodeError:
      continue
    found += [
      f'{path.relative_to(_ROOT)}:{number}: {line.strip()[:100]}'
      for number, line in enumerate(lines, 1)
      if pattern.search(line)
    ]
  return found


def test_the_files_are_seen():
  names = {str(path.relative_to(_ROOT)) for path in _FILES}
  assert {'setup.py', 'Makefile', '.ci/run', 'research/doctor.py'} <= names


def test_no_python_file_is_long():
  lengths = {
    str(path.relative_to(_ROOT)): len(path.read_text().splitlines())
    for path in _PYTHON
  }
  assert not {n: c for n, c in lengths.items() if c > _LONGEST_FILE}


@pytest.mark.parametrize('package', sorted(_MAY_IMPORT))
def test_arrows_point_one_way(package):
  wrong = []
  for path in _PYTHON:
    if path.relative_to(_ROOT).parts[0] != package:
      continue
    for module in _imports(path):
      top = module.split('.')[0]
      if top in _OURS and top not in _MAY_IMPORT[package]:
        wrong.append(f'{path.relative_to(_ROOT)} imports {module}')
  assert not wrong


def test_every_package_folder_is_a_package():
  """A folder without __init__.py is left out of an installation silently."""
  folders = {
    path.parent for path in _PYTHON if path.relative_to(_ROOT).parts[0] in _OURS
  }
  assert not [
    str(folder.relative_to(_ROOT))
    for folder in folders
    if not (folder / '__init__.py').exists()
  ]


def test_no_registry_address_is_committed():
  # The lock script names the options that keep addresses out.
  found = [
    line
    for line in _matches(_REGISTRY)
    if not line.startswith(('requirements/lock.sh:', 'tests/test_install.py:'))
  ]
  assert not found
  assert not [path for path in _FILES if path.name == 'uv.lock']


@pytest.mark.parametrize(
  'text',
  [
    'https://files.python' + 'hosted.org/packages/x',
    'https://pypi' + '.org/simple',
    'registry.npm' + 'js.org',
    'deb.debian' + '.org',
    '--index-url=file:///x',
    '--find-links /opt',
  ],
)
def test_registry_addresses_are_recognised(text):
  assert _REGISTRY.search(text)


def test_no_machine_path_is_committed():
  assert not _matches(_MACHINE_PATH)


def test_licence():
  licence = (_ROOT / 'LICENSE').read_text()
  assert 'Apache License' in licence
  assert 'Version 2.0, January 2004' in licence
  assert 'END OF TERMS AND CONDITIONS' in licence


def test_allowed_skips_name_tests_that_exist():
  for line in (_ROOT / 'tests/allowed_skips.txt').read_text().splitlines():
    if line and not line.startswith('#'):
      module, _, name = line.split()[0].partition('::')
      path = _ROOT / (module.replace('.', '/') + '.py')
      assert path.is_file(), line
      assert name.split('[')[0] in path.read_text(), line
