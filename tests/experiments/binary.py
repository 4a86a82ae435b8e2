"""Runs a binary as a user would, in a process of its own."""

import os
import pathlib
import subprocess
import sys

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
