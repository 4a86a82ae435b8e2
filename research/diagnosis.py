"""What the doctor concludes from what it found: pure functions, no probes.

Each `*_row` function turns findings into one line of the doctor's table. Like
the doctor this starts on Python 3.8 with nothing installed.
"""

from __future__ import annotations

import os
import re
import typing

OK = 'ok'
NOTE = 'note'
PROBLEM = 'PROBLEM'

TENSORFLOW_VERSION = '2.14.1'
TFF_VERSION = '0.87.0'
# Releases that pip takes for tensorflow-federated where no real one fits.
TFF_TRAP_VERSION = '0.1.0'
QMNIST_VARIABLE = 'TFF_RESEARCH_QMNIST_DIR'

# What `pip check` says of a sound environment, as (who, wants, has), and why
# requirements/overrides.txt overrules the wish.
EXPECTED_COMPLAINTS = {
  ('tensorflow-federated', 'jax==0.4.14', 'jax 0.4.13'): (
    'goes with jaxlib 0.4.13'
  ),
  ('tensorflow-federated', 'jaxlib==0.4.14', 'jaxlib 0.4.13'): (
    'no registry has jaxlib 0.4.14'
  ),
  ('tensorflow-federated', 'dp-accounting==0.4.3', 'dp-accounting 0.6.0'): (
    '0.6.0 accounts for replace-one neighbours correctly'
  ),
  ('tensorflow-privacy', 'dp-accounting==0.4.3', 'dp-accounting 0.6.0'): (
    'as above'
  ),
}
WHY_NOT_PIP_INSTALL = f"""\
A plain `pip install .` finds no solution: tensorflow-federated {TFF_VERSION}
requires jaxlib==0.4.14, which no registry has. `make env` installs the locked
versions, then this package with `pip install --no-deps -e .`. `pip check`
therefore complains, as expected, that:"""

_SET_UP_AGAIN = 'run: make clean env'
_COMPLAINT = re.compile(
  r'^(\S+) \S+ has requirement (.+), but you have (\S+ \S+)\.$'
)


class Row(typing.NamedTuple):
  """One line of the table.

  Attributes:
    subject: What was looked at.
    state: OK, NOTE (works, but worth knowing) or PROBLEM (cannot work).
    detail: What was found.
    advice: What to do about it; every problem has one.
  """

  subject: str
  state: str
  detail: str
  advice: str = ''


def python_row(version: typing.Sequence[int], implementation: str) -> Row:
  """Judges the interpreter by sys.version_info and its implementation."""
  detail = f'{implementation} {".".join(str(part) for part in version[:3])}'
  if implementation == 'cpython' and tuple(version[:2]) in ((3, 10), (3, 11)):
    return Row('Python', OK, detail)
  return Row(
    'Python',
    PROBLEM,
    f'{detail}; TensorFlow {TENSORFLOW_VERSION} and TensorFlow Federated '
    f'{TFF_VERSION} share only CPython 3.10 and 3.11',
    'install CPython 3.11 and run: make clean env PYTHON=python3.11',
  )


def platform_row(system: str, machine: str, libc: tuple[str, str]) -> Row:
  """Judges the operating system.

  Args:
    system: As platform.system() gives it: 'Linux', 'Darwin', 'Windows'.
    machine: As platform.machine() gives it: 'x86_64', 'arm64', ...
    libc: As platform.libc_ver() gives it: name and version.
  """
  detail = f'{system} on {machine}'
  if system != 'Linux' or machine not in ('x86_64', 'AMD64'):
    names = {'Darwin': 'macOS'}
    return Row(
      'OS',
      PROBLEM,
      f'{names.get(system, system)} on {machine}; TensorFlow Federated '
      f'{TFF_VERSION} has packages for Linux on x86-64 only',
      'use a Linux x86-64 machine, container or WSL 2',
    )
  name, version = libc
  digits = [int(part) for part in re.findall(r'\d+', version)[:2]]
  if name != 'glibc' or digits < [2, 31]:
    return Row(
      'OS',
      PROBLEM,
      f'{detail} with {" ".join(libc).strip() or "no"} C library; TensorFlow '
      'Federated needs glibc 2.31 or newer',
      'use a distribution with glibc 2.31 or newer, such as Debian 11 or '
      'Ubuntu 20.04',
    )
  return Row('OS', OK, f'{detail}, {name} {version}')


def tensorflow_row(version: str | None, error: str = '') -> Row:
  """Judges the TensorFlow that could be imported, or the error that it gave."""
  if version == TENSORFLOW_VERSION:
    return Row('TensorFlow', OK, version)
  found = version or error or 'not installed'
  return Row(
    'TensorFlow',
    PROBLEM,
    f'{found}; {TENSORFLOW_VERSION} is needed',
    _SET_UP_AGAIN,
  )


def federated_row(
  installed: str | None,
  imported: str | None,
  error: str = '',
) -> Row:
  """Judges TensorFlow Federated.

  Args:
    installed: Version that the package metadata states, or None.
    imported: Version that the imported module states, or None.
    error: What importing it raised.
  """
  subject = 'TF Federated'
  if installed == TFF_TRAP_VERSION:
    return Row(
      subject,
      PROBLEM,
      f'{installed}, which is what pip falls back to where no real release '
      'fits this Python or machine',
      'run on Linux x86-64 with CPython 3.10 or 3.11: make clean env',
    )
  if installed is None:
    return Row(subject, PROBLEM, 'not installed', _SET_UP_AGAIN)
  if installed != TFF_VERSION:
    return Row(
      subject,
      PROBLEM,
      f'{installed}; {TFF_VERSION} is needed',
      _SET_UP_AGAIN,
    )
  if imported is None:
    return Row(
      subject,
      PROBLEM,
      f'{installed} is installed but does not start: {error}',
      _SET_UP_AGAIN,
    )
  return Row(subject, OK, installed)


def gpu_row(devices: typing.Sequence[str], has_driver: bool) -> Row:
  """Judges the GPUs that TensorFlow can use; doing without is fine."""
  if devices:
    return Row('GPU', OK, ', '.join(devices))
  if has_driver:
    return Row(
      'GPU',
      NOTE,
      'a driver is there, but TensorFlow finds no device; CPU it is',
      'run: make env EXTRAS=gpu',
    )
  return Row('GPU', NOTE, 'none found; TensorFlow runs on the CPU')


def xla_row(works: bool, error: str = '') -> Row:
  """Judges whether a small function could be compiled and gave its value."""
  if works:
    return Row('XLA', OK, 'compiles and runs')
  return Row('XLA', PROBLEM, error or 'gave a wrong value', _SET_UP_AGAIN)


def names_row(
  root: str,
  here: typing.Mapping[str, str | None],
  elsewhere: typing.Mapping[str, str | None],
  hugging_face: str | None,
) -> Row:
  """Judges which packages our top-level names import.

  Args:
    root: The repository's root.
    here: Directory that each name reads in this process, or None.
    elsewhere: The same for a process that starts in another directory.
    hugging_face: Version of Hugging Face's `datasets`, where installed.
  """
  owner = {}
  if hugging_face:
    owner['datasets'] = f" (Hugging Face's datasets {hugging_face})"

  def strangers(found: typing.Mapping[str, str | None]) -> str:
    return '; '.join(
      f'{name} is {path or "not found"}{owner.get(name, "")}'
      for name, path in found.items()
      if path != os.path.join(root, name)
    )

  if strangers(here):
    return Row(
      'imports',
      PROBLEM,
      strangers(here),
      f'run from {root}, with nothing before it on PYTHONPATH',
    )
  if not any(elsewhere.values()):
    return Row(
      'imports',
      NOTE,
      'ours, but only in this directory',
      'run: pip install --no-deps --no-build-isolation -e .',
    )
  if strangers(elsewhere):
    return Row(
      'imports',
      NOTE,
      f'ours here; in other directories {strangers(elsewhere)}',
      f'run from {root}, or uninstall the other package',
    )
  return Row('imports', OK, f'{", ".join(here)} are ours')


def split_complaints(
  output: str,
) -> tuple[list[str], list[str]]:
  """Returns the expected and the unexpected lines of `pip check`'s output."""
  expected, unexpected = [], []
  for line in output.splitlines():
    match = _COMPLAINT.match(line)
    if match and match.groups() in EXPECTED_COMPLAINTS:
      expected.append(line)
    elif line and line != 'No broken requirements found.':
      unexpected.append(line)
  return expected, unexpected


def requirements_row(output: str | None) -> Row:
  """Judges what `pip check` printed; None where it could not be run."""
  if output is None:
    return Row('pip check', NOTE, 'could not be run')
  expected, unexpected = split_complaints(output)
  if unexpected:
    return Row(
      'pip check', NOTE, 'unexpected: ' + ' '.join(unexpected), _SET_UP_AGAIN
    )
  return Row('pip check', OK, f'{len(expected)} complaints, all expected')


def data_row(cache: str, names: typing.Sequence[str]) -> Row:
  """Says which data sets lie in the cache directory."""
  if names:
    return Row('data', OK, f'{", ".join(sorted(names))} in {cache}')
  return Row(
    'data',
    NOTE,
    f'none in {cache}; fetched when first asked for (digits needs none)',
  )


def writers_row(directory: str, found: bool) -> Row:
  """Says whether the files that name MNIST's writers are given.

  Args:
    directory: Value of TFF_RESEARCH_QMNIST_DIR, empty where it is not set.
    found: Whether that directory holds the label files.
  """
  if not directory:
    return Row('MNIST writers', NOTE, f'{QMNIST_VARIABLE} is not set')
  if found:
    return Row('MNIST writers', OK, directory)
  return Row(
    'MNIST writers',
    NOTE,
    f'no qmnist-*-labels.tsv.gz in {directory}',
    f'correct or unset {QMNIST_VARIABLE}',
  )


def report(rows: typing.Sequence[Row]) -> tuple[str, int]:
  """Returns the text to print and the exit status.

  The last line is the verdict: the first problem's advice, or that all works.
  """
  width = max(len(row.subject) for row in rows)
  lines = []
  for row in rows:
    advice = f' -> {row.advice}' if row.state == NOTE and row.advice else ''
    lines.append(
      f'{row.subject:<{width}}  {row.state:<{len(PROBLEM)}}  '
      f'{row.detail}{advice}'
    )
  lines += ['', WHY_NOT_PIP_INSTALL]
  lines += [
    f'  {who} wants {wants}, has {has} ({reason})'
    for (who, wants, has), reason in EXPECTED_COMPLAINTS.items()
  ]
  problems = [row for row in rows if row.state == PROBLEM]
  if problems:
    first = problems[0]
    lines += ['', f'{first.subject} cannot work: {first.advice}']
    return '\n'.join(lines), 1
  return '\n'.join([*lines, '', 'All that is needed works.']), 0
