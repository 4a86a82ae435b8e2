"""Runs a binary as a user would, in a process of its own."""

import contextlib
import importlib
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence

from absl import flags
from absl.testing import flagsaver

ROOT = pathlib.Path(__file__).parents[2]

# Small enough for a second of training; everything else is as it is for users.
TINY = (
  '--dataset=synthetic_digits',
  '--model=logistic_regression',
  '--clients_per_round=3',
  '--total_rounds=4',
  '--rounds_per_evaluation=2',
)


def command(module: str, *flags: str) -> list[str]:
  """The command line of a binary."""
  return [sys.executable, '-m', f'experiments.{module}', *flags]


def environment(**variables: str) -> dict[str, str]:
  """This process's environment with changes."""
  return {**os.environ, **variables}


def run(module: str, *flags: str, **variables: str):
  """Runs a binary to its end; returns it with `stdout` and `stderr`."""
  return subprocess.run(
    command(module, *flags),
    cwd=ROOT,
    env=environment(**variables),
    capture_output=True,
    text=True,
    timeout=300,
  )


_TRY_ALL = """
import contextlib, importlib, io, json, sys
from absl import flags
from absl.testing import flagsaver
module = importlib.import_module('experiments.' + sys.argv[1])
results = []
for line in json.loads(sys.argv[2]):
  error, printed = None, io.StringIO()
  with flagsaver.flagsaver(), contextlib.redirect_stdout(printed):
    try:
      module.main(flags.FLAGS([sys.argv[1], *line.split()]))
    except flags.Error as found:
      error = str(found)
  results.append([error, printed.getvalue()])
print(json.dumps(results))
"""


def refusals(
  module: str, lines: Sequence[str], **variables: str
) -> list[str | None]:
  """What a binary says to wrong command lines; None where nothing is wrong.

  See `attempts`.
  """
  return [error for error, _ in attempts(module, lines, **variables)]


def attempts(
  module: str, lines: Sequence[str], **variables: str
) -> list[tuple[str | None, str]]:
  """What a binary refuses, or None, and prints, by command line.

  All in one process of its own, which can't have another binary's flags.

  Args:
    module: The binary's.
    lines: Its arguments.
    **variables: Changes of the environment.
  """
  result = subprocess.run(
    [sys.executable, '-c', _TRY_ALL, module, json.dumps(list(lines))],
    cwd=ROOT,
    env=environment(**variables),
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr
  # Imports may print, too.
  return [tuple(found) for found in json.loads(result.stdout.splitlines()[-1])]


@contextlib.contextmanager
def parsed(module: str, *arguments: str):
  """Parses flags in this process, and yields the binary's module.

  Seconds faster than `run`: for what ends before a runtime starts.
  """
  imported = importlib.import_module(f'experiments.{module}')
  with flagsaver.flagsaver():
    rest = flags.FLAGS([module, *arguments])
    yield imported, rest
