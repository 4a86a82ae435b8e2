"""The releases of a run: written before a round, never taken back.

A round that is killed may have released something, and is drawn again with
other noise when the run goes on. The journal then has it twice, and accounting
counts both.
"""

import collections
import os
import pathlib
from collections.abc import Collection

from research.training import atomic, run_directory


class JournalError(run_directory.ResumeError):
  """The journal does not fit to the run."""


class Journal:
  """One line per release: its round, counted from 1."""

  def __init__(self, path: atomic.Path):
    """Reads the journal; there is no file until the first release.

    Args:
      path: The file.

    Raises:
      JournalError: If the file has a line that is no round.
    """
    self._path = pathlib.Path(path)
    self._rounds: list[int] = []
    if not self._path.exists():
      return
    content = self._path.read_text()
    # A line without its end was torn before anything could be released.
    lines = content.splitlines(keepends=True)
    try:
      self._rounds = [int(line) for line in lines if line.endswith('\n')]
    except ValueError as error:
      raise JournalError(f'{self._path} is damaged: {error}') from error
    if lines and not lines[-1].endswith('\n'):
      atomic.write_text(self._path, ''.join(lines[:-1]))

  @property
  def releases(self) -> int:
    """Releases of the run so far, those of rounds drawn again included."""
    return len(self._rounds)

  @property
  def rounds(self) -> int:
    """Different rounds among the releases."""
    return len(set(self._rounds))

  def repeated(self, again: Collection[int] = ()) -> list[int]:
    """How often each round was released that was released more than once.

    Args:
      again: Rounds that will be drawn now; those that were released before
        count once more.
    """
    counts = collections.Counter(self._rounds)
    counts.update(set(self._rounds).intersection(again))
    return [times for times in counts.values() if times > 1]

  def check(self, rounds_done: int) -> None:
    """Raises if it lacks a round of those that a run has done.

    Args:
      rounds_done: To which the run has come, by a checkpoint or metrics.csv.

    Raises:
      JournalError: If so.
    """
    missing = set(range(1, rounds_done + 1)) - set(self._rounds)
    if missing:
      raise JournalError(
        f'{self._path} lacks round {min(missing)}, but the run has come to '
        f'round {rounds_done}: without it the privacy that was spent is '
        'unknown. Restore the file, or start anew under another '
        '--experiment_name.'
      )

  def append(self, round_num: int) -> None:
    """Adds a release; it is on disk when this returns."""
    is_new = not self._path.exists()
    with open(self._path, 'ab', buffering=0) as file:
      file.write(f'{round_num}\n'.encode())
      os.fsync(file.fileno())
    if is_new:
      atomic.sync_directory(self._path.parent)
    self._rounds.append(round_num)
