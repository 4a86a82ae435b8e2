"""Measures arms side by side: each in its own process, one round at a time.

First each arm is started alone, which is its cold start; then all of them wait,
and in each repetition every arm has one turn, in an order that rotates. So what
disturbs the machine disturbs all of them alike, and ratios are taken within a
repetition.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil

ROOT = pathlib.Path(__file__).parents[2]
_WARM_UP_ROUNDS = 2
# A turn has several rounds where they are short; its value is their median.
_TURN_SECONDS = 0.2
_MOST_ROUNDS = 9
_LONGEST_SECONDS = 1200


class ArmError(RuntimeError):
  """A measured process failed; the text has the end of what it printed."""


@dataclasses.dataclass(frozen=True)
class Launch:
  """How to start an arm.

  Attributes:
    name: The arm.
    command: Its command line; the process speaks `peers/protocol.py`.
    environment: Variables beside the harness's own.
  """

  name: str
  command: Sequence[str]
  environment: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Result:
  """What was measured of one arm.

  Attributes:
    cold_start_seconds: From the process's start to the end of round 1.
    construction_seconds: Of these, what building TFF's process took; 0 if there
      is none.
    peak_megabytes: The peak resident memory of the process and its children,
      summed over processes, in units of 10^6 bytes.
    seconds: Seconds per round: of each repetition, the rounds of its turn.
    idle_cores: Processor time used while other arms had their turn, over that
      time.
    max_difference: Of the weights after round 1 from the first arm's.
    relative_difference: The norm of that difference over the norm of the first
      arm's update.
    error: Why it could not be measured; empty if it could.
  """

  cold_start_seconds: float = 0.0
  construction_seconds: float = 0.0
  peak_megabytes: float = 0.0
  seconds: list[list[float]] = dataclasses.field(default_factory=list)
  idle_cores: float = 0.0
  max_difference: float = 0.0
  relative_difference: float = 0.0
  error: str = ''

  @property
  def turns(self) -> list[float]:
    """The median seconds per round of each repetition."""
    return [float(np.median(turn)) for turn in self.seconds]


class Arm:
  """A running process that does rounds when it is told to."""

  def __init__(self, launch: Launch, directory: pathlib.Path):
    """Starts the process; it runs round 1 at once.

    Args:
      launch: What to start.
      directory: Gets the arm's log and weights.
    """
    self.name = launch.name
    self.result = Result()
    self._log = directory / f'{launch.name}.log'
    self._weights = directory / f'{launch.name}.npz'
    self._idle_since: tuple[float, float] | None = None
    self._idle = [0.0, 0.0]
    start = time.perf_counter()
    with self._log.open('w') as log:
      self._process = subprocess.Popen(
        list(launch.command),
        cwd=ROOT,
        env={**os.environ, **launch.environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
      )
    with self._closing_on_error():
      answer = self._ask('rounds 1')
      self.result.cold_start_seconds = time.perf_counter() - start
      self.result.construction_seconds = answer.get('construction_seconds', 0.0)

  @contextlib.contextmanager
  def _closing_on_error(self):
    try:
      yield
    except BaseException:
      self.close()
      raise

  def _ask(self, command: str) -> dict[str, Any]:
    timer = threading.Timer(_LONGEST_SECONDS, self._kill)
    timer.start()
    try:
      self._process.stdin.write(command + '\n')
      self._process.stdin.flush()
      answer = self._process.stdout.readline()
      # What a library prints while it is imported, as KerasNLP does.
      while answer and not answer.startswith('{'):
        answer = self._process.stdout.readline()
    except BrokenPipeError:
      answer = ''
    finally:
      timer.cancel()
    if not answer:
      lines = self._log.read_text(errors='replace').strip().splitlines()
      raise ArmError(f'{self.name} ended: ' + ' | '.join(lines[-3:]))
    return json.loads(answer)

  def _tree(self) -> list[psutil.Process]:
    process = psutil.Process(self._process.pid)
    return [process, *process.children(recursive=True)]

  def _cpu_seconds(self) -> float:
    total = 0.0
    for process in self._tree():
      with contextlib.suppress(psutil.Error):
        times = process.cpu_times()
        total += times.user + times.system
    return total

  def weights(self) -> list[np.ndarray]:
    """The arm's global weights."""
    self._ask(f'save {self._weights}')
    with np.load(self._weights) as file:
      arrays = [file[name] for name in file.files]
    self._weights.unlink()
    return arrays

  def warm_up(self) -> None:
    """Runs rounds that don't count, and decides how many make a turn."""
    seconds = self._ask(f'rounds {_WARM_UP_ROUNDS}')['seconds'][-1]
    self._rounds_per_turn = int(
      np.clip(_TURN_SECONDS / seconds, 1, _MOST_ROUNDS)
    )
    self._idle_since = (time.perf_counter(), self._cpu_seconds())

  def turn(self) -> None:
    """Runs and records the rounds of one repetition."""
    since, used = self._idle_since
    self._idle[0] += self._cpu_seconds() - used
    self._idle[1] += time.perf_counter() - since
    answer = self._ask(f'rounds {self._rounds_per_turn}')
    self.result.seconds.append(answer['seconds'])
    self._idle_since = (time.perf_counter(), self._cpu_seconds())

  def finish(self) -> Result:
    """Reads the memory, ends the process and returns what was measured."""
    self.result.peak_megabytes = sum(map(_peak_bytes, self._tree())) / 1e6
    if self._idle[1]:
      self.result.idle_cores = self._idle[0] / self._idle[1]
    self.close()
    return self.result

  def _kill(self) -> None:
    with contextlib.suppress(psutil.Error):
      for process in reversed(self._tree()):
        with contextlib.suppress(psutil.Error):
          process.kill()

  def close(self) -> None:
    """Ends the process and its children."""
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.close()
    try:
      self._process.wait(timeout=20)
    except subprocess.TimeoutExpired:
      self._kill()
      self._process.wait()
    self._process.stdout.close()


def _peak_bytes(process: psutil.Process) -> int:
  """The kernel's own peak of a process's resident memory."""
  with contextlib.suppress(OSError):
    status = pathlib.Path(f'/proc/{process.pid}/status').read_text()
    for line in status.splitlines():
      if line.startswith('VmHWM:'):
        return int(line.split()[1]) * 1024
  return 0


def measure(
  launches: Sequence[Launch],
  initial_weights: Sequence[np.ndarray],
  pairs: int,
  directory: pathlib.Path,
) -> dict[str, Result]:
  """Measures arms side by side.

  Args:
    launches: What to measure. The first that starts is the reference of the
      weights after round 1.
    initial_weights: Where all of them start.
    pairs: Repetitions.
    directory: Gets one log per arm.

  Returns:
    What was measured by arm, in the given order; a failed arm has an `error`.
  """
  directory.mkdir(parents=True, exist_ok=True)
  results = {launch.name: Result() for launch in launches}
  with contextlib.ExitStack() as stack:
    arms = _start(launches, initial_weights, directory, results, stack)
    for arm in list(arms):
      _guarded(arm.warm_up, arm, arms, results)
    for repetition in range(pairs):
      if arms:
        first = repetition % len(arms)
        for arm in arms[first:] + arms[:first]:
          _guarded(arm.turn, arm, arms, results)
    for arm in list(arms):
      results[arm.name] = arm.finish()
  return results


def _start(launches, initial, directory, results, stack) -> list[Arm]:
  """Starts the arms one by one and compares their weights after round 1."""
  arms, reference = [], None
  for launch in launches:
    try:
      arm = Arm(launch, directory)
      stack.callback(arm.close)
      weights = arm.weights()
    except ArmError as error:
      results[launch.name].error = str(error)
      continue
    reference = reference or weights
    arm.result.max_difference = max(
      float(np.max(np.abs(one - other)))
      for one, other in zip(weights, reference, strict=True)
    )
    difference = _distance(weights, reference)
    arm.result.relative_difference = difference / _distance(reference, initial)
    arms.append(arm)
    _say(f'{arm.name}: round 1 after {arm.result.cold_start_seconds:.1f} s')
  return arms


def _distance(
  weights: Sequence[np.ndarray], others: Sequence[np.ndarray]
) -> float:
  """The global norm of a difference of weights."""
  norms = [
    np.linalg.norm(np.subtract(one, other, dtype=np.float64))
    for one, other in zip(weights, others, strict=True)
  ]
  return float(np.linalg.norm(norms))


def _guarded(action, arm, arms, results) -> None:
  try:
    action()
  except ArmError as error:
    arms.remove(arm)
    results[arm.name].error = str(error)


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)
