"""Counts a test run's outcomes; fails on a skip that nobody allowed.

  python .ci/check_skips.py tests.xml tests/allowed_skips.txt

The first file is pytest's JUnit report. The second lists one allowed skip a
line, as `tests.research.test_doctor::test_gpu  why`; `#` starts a comment.
The last line printed is `N passed, N failed, N skipped`.
"""

import pathlib
import sys
import xml.etree.ElementTree


def allowed_skips(text: str) -> dict[str, str]:
  """Returns reasons by test; raises ValueError for a test without a reason."""
  allowed = {}
  for line in text.splitlines():
    if not line.strip() or line.startswith('#'):
      continue
    test, _, reason = line.partition(' ')
    if not reason.strip():
      raise ValueError(f'allowed skip without a reason: {line!r}')
    allowed[test] = reason.strip()
  return allowed


def outcomes(report: str) -> dict[str, list[tuple[str, str]]]:
  """Returns (test, message) pairs by 'passed', 'failed' and 'skipped'.

  Args:
    report: JUnit XML as pytest writes it. A module that is skipped whole
      counts as one test of the module's name.
  """
  found: dict[str, list[tuple[str, str]]] = {
    'passed': [],
    'failed': [],
    'skipped': [],
  }
  for case in xml.etree.ElementTree.fromstring(report).iter('testcase'):
    names = (case.get('classname'), case.get('name'))
    test = '::'.join(name for name in names if name)
    skip = case.find('skipped')
    if case.find('failure') is not None or case.find('error') is not None:
      found['failed'].append((test, ''))
    elif skip is not None:
      found['skipped'].append((test, skip.get('message', '')))
    else:
      found['passed'].append((test, ''))
  return found


def main(arguments: list[str]) -> int:
  """Prints the counts; returns 1 on a failure, a stray skip or no test."""
  report, allow_list = (pathlib.Path(name).read_text() for name in arguments)
  allowed = allowed_skips(allow_list)
  found = outcomes(report)
  stray = [(t, why) for t, why in found['skipped'] if t not in allowed]
  for test, why in found['skipped']:
    word = 'allowed skip' if test in allowed else 'SKIP NOT ALLOWED'
    print(f'{word}: {test}: {why}')
  if stray:
    print(f'{len(stray)} skipped outside the list of allowed skips.')
  print(', '.join(f'{len(tests)} {name}' for name, tests in found.items()))
  return int(bool(stray or found['failed'] or not found['passed']))


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
