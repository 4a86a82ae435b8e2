"""Asks a binary, in a process of its own, about flags before anything runs.

A process of its own because flags of the same name, as `--root_output_dir`, can
not be defined twice in one.
"""

import dataclasses
import difflib
import importlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from absl.testing import flagsaver

from research import flag_values

# What the sweep itself sets for each run.
RESERVED = ('root_output_dir', 'experiment_name', 'seed')
_INSTEAD = {
  'root_output_dir': 'the sweep sets it',
  'experiment_name': 'the sweep sets it',
  'seed': 'use --seeds',
  'dry_run': 'use --dry_run of the sweep',
  'from_config': 'give it as --extra_flag to all runs',
}
_MARK = 'PROBED '


@dataclasses.dataclass(frozen=True)
class Description:
  """What a binary makes of flags.

  Attributes:
    flag_types: absl's name of the type of each swept flag.
    decisive: Values of the other flags that decide results.
    lines: Flag-file lines of the flags that all runs are given.
    exports: Whether the binary has `--export`.
  """

  flag_types: dict[str, str]
  decisive: dict[str, Any]
  lines: list[str]
  exports: bool


def ask(
  module: str, shared: Sequence[str], swept: Mapping[str, Sequence[str]]
) -> Description:
  """Starts a process that imports a binary and parses flags; some seconds.

  Args:
    module: The binary.
    shared: Flags of all runs, as on a command line.
    swept: Values to try of each swept flag.

  Returns:
    The description.

  Raises:
    flags.IllegalFlagValueError: If the binary lacks a flag or refuses a value.
  """
  request = {'module': module, 'shared': list(shared), 'swept': dict(swept)}
  result = subprocess.run(
    [sys.executable, '-m', 'research.sweeps.probe'],
    input=json.dumps(request),
    capture_output=True,
    text=True,
  )
  marked = [x for x in result.stdout.splitlines() if x.startswith(_MARK)]
  if result.returncode or not marked:
    lines = result.stderr.strip().splitlines() or ['it says nothing']
    raise flags.IllegalFlagValueError(
      f'{module} can not be imported: {lines[-1]}'
    )
  answer = json.loads(marked[-1].removeprefix(_MARK))
  if 'error' in answer:
    raise flags.IllegalFlagValueError(answer['error'])
  return Description(**answer)


def describe(
  module: str, shared: Sequence[str], swept: Mapping[str, Sequence[str]]
) -> Description:
  """Does what `ask` says in this process, whose flags it parses."""
  importlib.import_module(module)
  known = flag_values.names()
  for name in RESERVED:
    if name not in known:
      raise flags.IllegalFlagValueError(
        f'{module} can not be swept: it has no --{name}.'
      )
  _parse(module, shared, '--extra_flag: ')
  for name in _INSTEAD:
    given = name in flags.FLAGS and flags.FLAGS[name].present
    if name != 'from_config' and given:
      raise flags.IllegalFlagValueError(
        f'--extra_flag sets --{name}: {_INSTEAD[name]}.'
      )
  for name, texts in swept.items():
    _check_swept(module, name)
    for text in texts:
      with flagsaver.flagsaver():
        _parse(module, [*shared, f'--{name}={text}'], '--grid: ')
  flag_values.apply_from_config()
  # total_rounds is free for one run; runs of a sweep are compared.
  free = flag_values.free_names() - {'total_rounds'}
  others = [n for n in known if n not in {*RESERVED, *swept}]
  values = flag_values.values()
  return Description(
    flag_types={name: flags.FLAGS[name].flag_type() for name in swept},
    decisive={n: values[n] for n in others if n in values and n not in free},
    lines=[
      line
      for name in others
      if flags.FLAGS[name].present
      for line in flags.FLAGS[name].serialize().splitlines()
    ],
    exports='export' in known,
  )


def _parse(module: str, arguments: Sequence[str], prefix: str) -> None:
  try:
    flag_values.refuse_arguments(flags.FLAGS([module, *arguments]))
  except flags.Error as error:
    raise flags.IllegalFlagValueError(f'{prefix}{error}') from error


def _check_swept(module: str, name: str) -> None:
  if name in _INSTEAD:
    raise flags.IllegalFlagValueError(
      f'--grid can not vary --{name}: {_INSTEAD[name]}.'
    )
  known = flag_values.names()
  if name not in known:
    near = difflib.get_close_matches(name, known, 3)
    hint = f'; did you mean {" or ".join(near)}?' if near else '.'
    raise flags.IllegalFlagValueError(
      f'--grid: {module} has no flag --{name}{hint}'
    )


def main() -> None:
  """Answers the request on standard input on standard output."""
  try:
    answer = dataclasses.asdict(describe(**json.load(sys.stdin)))
  except flags.Error as error:
    answer = {'error': str(error)}
  print(_MARK + json.dumps(answer))


if __name__ == '__main__':
  main()
