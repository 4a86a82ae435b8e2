"""Runs a binary as a user would, in a process of its own."""

import contextlib
import importlib
import os
import pathlib
import subprocess
import sys

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


@contextlib.contextmanager
def parsed(module: str, *arguments: str):
  """Parses flags in this process, and yields the binary's module.

  Seconds faster than `run`: for what ends before a runtime starts.
  """
  imported = importlib.import_module(f'experiments.{module}')
  with flagsaver.flagsaver():
    rest = flags.FLAGS([module, *arguments])
    yield imported, rest
