"""A local queue: commands in at most N processes, none of which outlives it."""

import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from research.runtime import worker_launcher

_POLL_SECONDS = 0.1


@dataclasses.dataclass(frozen=True)
class Ended:
  """A command that has ended.

  Attributes:
    name: As it was started.
    exit_code: Negative if a signal ended it.
    seconds: How long it ran.
  """

  name: str
  exit_code: int
  seconds: float


@dataclasses.dataclass(frozen=True)
class _Running:
  process: subprocess.Popen
  slot: int
  since: float


def split_cores(cores: Sequence[int], processes: int) -> list[set[int]]:
  """Divides cores into equal parts, so that every run is alike.

  Args:
    cores: Their numbers.
    processes: How many parts. If there are more than cores, parts share cores.

  Returns:
    A set of cores for each part.
  """
  cores = sorted(cores)
  each = max(len(cores) // processes, 1)
  return [
    {cores[(part * each + i) % len(cores)] for i in range(each)}
    for part in range(processes)
  ]


class LocalQueue:
  """Runs commands side by side; a context manager that ends what still runs.

  With several processes each gets its part of the cores, which TensorFlow and
  the runtimes see as all there are, and memory of a GPU as it needs it. The
  kernel kills commands whose queue dies. Use it from one thread.
  """

  def __init__(self, processes: int, grace_seconds: float = 60.0):
    """Prepares the queue.

    Args:
      processes: How many commands run at once.
      grace_seconds: How long a command may take to end on SIGTERM before it
        and what it has started are killed.
    """
    self._all_cores = os.sched_getaffinity(0)
    self._parts = split_cores(list(self._all_cores), processes)
    self._grace_seconds = grace_seconds
    self._running: dict[str, _Running] = {}

  def __enter__(self) -> 'LocalQueue':
    return self

  def __exit__(self, *unused_exception) -> None:
    self.close()

  @property
  def processes(self) -> int:
    """How many commands run at once."""
    return len(self._parts)

  @property
  def running(self) -> tuple[str, ...]:
    """Names of what runs."""
    return tuple(self._running)

  @property
  def is_full(self) -> bool:
    """Whether as many commands run as may."""
    return len(self._running) == len(self._parts)

  def start(self, name: str, command: Sequence[str], log: pathlib.Path) -> None:
    """Starts a command; not when the queue is full.

    Args:
      name: Not that of a running command.
      command: An absolute path and its arguments.
      log: File that gets its output and errors; an old one is replaced.
    """
    used = {running.slot for running in self._running.values()}
    slot = min(set(range(len(self._parts))) - used)
    environment = dict(os.environ)
    if len(self._parts) > 1:
      environment.setdefault('TF_FORCE_GPU_ALLOW_GROWTH', 'true')
    launcher = [sys.executable, '-I', '-S', worker_launcher.__file__]
    with open(log, 'wb') as file, self._on_cores(self._parts[slot]):
      # A session of its own: Ctrl-C reaches this process, which then ends it.
      process = subprocess.Popen(
        [*launcher, str(os.getpid()), *command],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=file,
        stderr=subprocess.STDOUT,
        start_new_session=True,
      )
    self._running[name] = _Running(process, slot, time.monotonic())

  @contextlib.contextmanager
  def _on_cores(self, cores: set[int]):
    """A process that is started here inherits the cores."""
    os.sched_setaffinity(0, cores)
    try:
      yield
    finally:
      os.sched_setaffinity(0, self._all_cores)

  def wait(self, timeout_seconds: float) -> list[Ended]:
    """Waits until a command ends, and returns those that have.

    Args:
      timeout_seconds: How long to wait at most.

    Returns:
      What has ended; nothing after the time is up.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
      ended = [
        Ended(
          name, running.process.returncode, time.monotonic() - running.since
        )
        for name, running in self._running.items()
        if running.process.poll() is not None
      ]
      for one in ended:
        del self._running[one.name]
      if ended or not self._running or time.monotonic() > deadline:
        return ended
      time.sleep(_POLL_SECONDS)

  def close(self) -> None:
    """Ends what runs: asks all by SIGTERM, and kills what does not listen."""
    for running in self._running.values():
      running.process.terminate()
    deadline = time.monotonic() + self._grace_seconds
    for running in self._running.values():
      try:
        running.process.wait(max(deadline - time.monotonic(), 0))
      except subprocess.TimeoutExpired:
        os.killpg(running.process.pid, signal.SIGKILL)
        running.process.wait()
    self._running.clear()
