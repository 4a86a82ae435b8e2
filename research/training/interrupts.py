"""Ends a run tidily on Ctrl-C and SIGTERM."""

import contextlib
import signal
import sys
from collections.abc import Iterator

# What shells report for a process that ended by a signal.
_EXIT_BASE = 128


class Interrupted(KeyboardInterrupt):
  """A signal asked the run to end."""

  def __init__(self, signal_number: int):
    super().__init__(signal.Signals(signal_number).name)
    self.exit_code = _EXIT_BASE + signal_number


@contextlib.contextmanager
def exit_tidily(advice: str) -> Iterator[None]:
  """Turns SIGINT and SIGTERM into an orderly end of the block.

  Cleanup in the block runs; then one line says what happened, and the process
  exits with 130 or 143. A second signal meanwhile is ignored.

  Args:
    advice: What the user can do next.

  Yields:
    Nothing.
  """

  def interrupt(signal_number, unused_frame):
    for number in handled:
      signal.signal(number, signal.SIG_IGN)
    raise Interrupted(signal_number)

  handled = (signal.SIGINT, signal.SIGTERM)
  before = {number: signal.signal(number, interrupt) for number in handled}
  try:
    yield
  except Interrupted as interrupted:
    print(f'\nStopped by {interrupted}. {advice}', file=sys.stderr, flush=True)
    sys.exit(interrupted.exit_code)
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
