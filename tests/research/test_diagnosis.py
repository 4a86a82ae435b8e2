"""The doctor's decisions, fed with machines that are not this one."""

import pathlib
import re

import pytest

from research import diagnosis

_ROOT = pathlib.Path(__file__).parents[2]
_GLIBC = ('glibc', '2.36')
_NAMES = ('datasets', 'experiments', 'models', 'research')
_OURS = {name: f'/repo/{name}' for name in _NAMES}
_EXPECTED = (
  'tensorflow-privacy 0.9.0 has requirement dp-accounting==0.4.3, but you '
  'have dp-accounting 0.6.0.\n'
  'tensorflow-federated 0.87.0 has requirement dp-accounting==0.4.3, but you '
  'have dp-accounting 0.6.0.\n'
  'tensorflow-federated 0.87.0 has requirement jax==0.4.14, but you have jax '
  '0.4.13.\n'
  'tensorflow-federated 0.87.0 has requirement jaxlib==0.4.14, but you have '
  'jaxlib 0.4.13.\n'
)


@pytest.mark.parametrize('version', [(3, 10, 0), (3, 10, 13), (3, 11, 7)])
def test_python_that_fits(version):
  row = diagnosis.python_row(version, 'cpython')
  assert row.state == diagnosis.OK
  assert row.detail == 'cpython ' + '.'.join(map(str, version))


@pytest.mark.parametrize(
  ('version', 'implementation'),
  [
    ((3, 8, 18), 'cpython'),
    ((3, 9, 18), 'cpython'),
    ((3, 12, 1), 'cpython'),
    ((4, 10, 0), 'cpython'),
    ((3, 11, 7), 'pypy'),
  ],
)
def test_python_that_does_not_fit(version, implementation):
  row = diagnosis.python_row(version, implementation)
  assert row.state == diagnosis.PROBLEM
  assert 'python3.11' in row.advice


def test_platform_that_fits():
  row = diagnosis.platform_row('Linux', 'x86_64', _GLIBC)
  assert row == ('OS', diagnosis.OK, 'Linux on x86_64, glibc 2.36', '')
  row = diagnosis.platform_row('Linux', 'x86_64', ('glibc', '2.31'))
  assert row.state == diagnosis.OK


@pytest.mark.parametrize(
  ('system', 'machine', 'libc', 'named'),
  [
    ('Darwin', 'arm64', ('', ''), 'macOS on arm64'),
    ('Darwin', 'x86_64', ('', ''), 'macOS on x86_64'),
    ('Windows', 'AMD64', ('', ''), 'Windows on AMD64'),
    ('Linux', 'aarch64', _GLIBC, 'Linux on aarch64'),
    ('Linux', 'x86_64', ('glibc', '2.28'), 'glibc 2.28'),
    ('Linux', 'x86_64', ('', ''), 'no C library'),
  ],
)
def test_platform_that_does_not_fit(system, machine, libc, named):
  row = diagnosis.platform_row(system, machine, libc)
  assert row.state == diagnosis.PROBLEM
  assert named in row.detail
  assert row.advice


def test_tensorflow():
  assert diagnosis.tensorflow_row('2.14.1').state == diagnosis.OK
  other = diagnosis.tensorflow_row('2.15.0')
  assert other.state == diagnosis.PROBLEM
  assert '2.15.0' in other.detail
  assert '2.14.1' in other.detail
  broken = diagnosis.tensorflow_row(None, 'ImportError: no libcuda')
  assert broken.state == diagnosis.PROBLEM
  assert 'no libcuda' in broken.detail


def test_federated():
  row = diagnosis.federated_row('0.87.0', '0.87.0')
  assert row.state == diagnosis.OK
  row = diagnosis.federated_row('0.87.0', None, 'ImportError: jaxlib')
  assert row.state == diagnosis.PROBLEM
  assert 'ImportError: jaxlib' in row.detail
  assert diagnosis.federated_row(None, None).detail == 'not installed'
  assert diagnosis.federated_row('0.86.0', '0.86.0').state == diagnosis.PROBLEM


def test_trap_release_is_explained_even_if_it_imports():
  row = diagnosis.federated_row('0.1.0', '0.1.0')
  assert row.state == diagnosis.PROBLEM
  assert 'falls back' in row.detail
  assert 'Linux x86-64' in row.advice


def test_gpu_is_never_a_problem():
  assert diagnosis.gpu_row(['NVIDIA H100'], True).detail == 'NVIDIA H100'
  unused = diagnosis.gpu_row([], True)
  assert unused.state == diagnosis.NOTE
  assert 'EXTRAS=gpu' in unused.advice
  assert diagnosis.gpu_row([], False).state == diagnosis.NOTE


def test_xla():
  assert diagnosis.xla_row(True).state == diagnosis.OK
  assert diagnosis.xla_row(False, 'NotFoundError: jit').detail.endswith('jit')
  assert diagnosis.xla_row(False).state == diagnosis.PROBLEM


def test_names_that_are_ours():
  row = diagnosis.names_row('/repo', _OURS, _OURS, None)
  assert row.state == diagnosis.OK


def test_shadowed_name_is_a_problem_and_names_hugging_face():
  here = {**_OURS, 'datasets': '/site-packages/datasets'}
  row = diagnosis.names_row('/repo', here, here, '2.19.0')
  assert row.state == diagnosis.PROBLEM
  assert row.detail == (
    "datasets is /site-packages/datasets (Hugging Face's datasets 2.19.0)"
  )
  assert '/repo' in row.advice


def test_shadowing_elsewhere_only_is_a_note():
  elsewhere = {**_OURS, 'datasets': '/site-packages/datasets'}
  row = diagnosis.names_row('/repo', _OURS, elsewhere, '2.19.0')
  assert row.state == diagnosis.NOTE
  assert "Hugging Face's datasets 2.19.0" in row.detail
  missing = diagnosis.names_row('/repo', _OURS, dict.fromkeys(_NAMES), None)
  assert missing.state == diagnosis.NOTE
  assert 'pip install --no-deps' in missing.advice


def test_expected_complaints_are_told_from_others():
  other = 'foo 1.0 requires bar, which is not installed.'
  newer = (
    'tensorflow-federated 0.87.0 has requirement jax==0.4.14, but you have '
    'jax 0.5.0.'
  )
  expected, unexpected = diagnosis.split_complaints(
    f'{_EXPECTED}{other}\n{newer}\n'
  )
  assert expected == _EXPECTED.splitlines()
  assert unexpected == [other, newer]


def test_requirements():
  row = diagnosis.requirements_row(_EXPECTED)
  assert (row.state, row.detail) == ('ok', '4 complaints, all expected')
  row = diagnosis.requirements_row('No broken requirements found.\n')
  assert row.detail == '0 complaints, all expected'
  row = diagnosis.requirements_row('a 1 requires b, which is not installed.\n')
  assert row.state == diagnosis.NOTE
  assert 'a 1 requires b' in row.detail
  assert diagnosis.requirements_row(None).state == diagnosis.NOTE


def test_expected_complaints_are_the_committed_overrides():
  overrides = (_ROOT / 'requirements/overrides.txt').read_text()
  pins = dict(re.findall(r'^(\S+)==(\S+)$', overrides, re.MULTILINE))
  had = dict(has.split() for _, _, has in diagnosis.EXPECTED_COMPLAINTS)
  assert had == pins


def test_data():
  row = diagnosis.data_row('/cache', ['mnist', 'cifar10'])
  assert row.detail == 'cifar10, mnist in /cache'
  assert diagnosis.data_row('/cache', []).state == diagnosis.NOTE
  assert diagnosis.writers_row('', False).state == diagnosis.NOTE
  assert diagnosis.writers_row('/labels', True).state == diagnosis.OK
  missing = diagnosis.writers_row('/labels', False)
  assert diagnosis.QMNIST_VARIABLE in missing.advice


def test_report_ends_with_the_first_problems_advice():
  rows = [
    diagnosis.Row('Python', diagnosis.OK, 'cpython 3.11.7'),
    diagnosis.platform_row('Darwin', 'arm64', ('', '')),
    diagnosis.Row('TensorFlow', diagnosis.PROBLEM, 'gone', 'run: make'),
  ]
  text, status = diagnosis.report(rows)
  assert status == 1
  assert text.splitlines()[-1] == (
    'OS cannot work: use a Linux x86-64 machine, container or WSL 2'
  )


def test_report_of_a_sound_machine():
  text, status = diagnosis.report(
    [
      diagnosis.Row('Python', diagnosis.OK, 'cpython 3.11.7'),
      diagnosis.gpu_row([], True),
    ]
  )
  assert status == 0
  lines = text.splitlines()
  assert lines[0].split() == ['Python', 'ok', 'cpython', '3.11.7']
  assert lines[1].endswith('-> run: make env EXTRAS=gpu')
  assert 'jaxlib==0.4.14, which no registry has' in text
  assert lines[-1] == 'All that is needed works.'
