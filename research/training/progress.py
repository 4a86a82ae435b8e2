"""Tells the user how a run goes: a bar on a terminal, plain lines elsewhere."""

import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

import tqdm

# Terminals in containers may report a size of 0 by 0, where tqdm shows nothing:
# the height only has to hold the one bar, and _columns falls back to 80.
_ROWS = 20


class Progress:
  """Shows round, metrics, speed and time left; a context manager."""

  def __init__(
    self,
    total_rounds: int,
    first_round: int = 0,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Starts the clock.

    Args:
      total_rounds: The number of rounds of the whole run.
      first_round: How many of them were done before this process started.
      stream: Where to write; standard error unless given.
      clock: Tells the time in seconds.
    """
    self._total = total_rounds
    self._first = first_round
    self._stream = stream or sys.stderr
    self._clock = clock
    self._start = clock()
    self._one_done: tuple[float, int] | None = None
    self._bar = None
    if self._stream.isatty():
      self._bar = tqdm.tqdm(
        total=total_rounds,
        initial=first_round,
        file=self._stream,
        ncols=_columns(),
        nrows=_ROWS,
        bar_format='{percentage:3.0f}%|{bar}| {desc}',
        desc=f'round {first_round}/{total_rounds}',
      )

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(self, *exception) -> None:
    self.close()

  def update(
    self,
    round_num: int,
    values: Mapping[str, float | None],
    examples_per_second: float | None = None,
  ) -> None:
    """Reports that a round is done.

    Args:
      round_num: The number of rounds done so far, counted from the start of
        the run.
      values: Name to number, such as loss and accuracy, shown in this order;
        None is left out.
      examples_per_second: The training speed.
    """
    parts = [f'round {round_num}/{self._total}']
    parts += [f'{k} {v:.4g}' for k, v in values.items() if v is not None]
    if examples_per_second is not None:
      parts.append(f'{examples_per_second:.0f} examples/s')
    if round_num < self._total:
      left = f'{duration(self._seconds_left(round_num))} left'
      # A bar is cut at the width of the terminal: the time left comes early.
      parts.insert(len(parts) if self._bar is None else 1, left)
    text = ' '.join(parts)
    if self._bar is None:
      print(text, file=self._stream, flush=True)
    else:
      self._bar.ncols = _columns()
      self._bar.set_description_str(text, refresh=False)
      self._bar.update(round_num - self._bar.n)

  def write(self, text: str) -> None:
    """Prints a line without breaking the bar."""
    if self._bar is None:
      print(text, file=self._stream, flush=True)
    else:
      self._bar.write(text, file=self._stream)

  def close(self) -> None:
    """Leaves the bar as it is and ends its line."""
    if self._bar is not None:
      self._bar.close()

  def _seconds_left(self, round_num: int) -> float:
    now = self._clock()
    # The first round also pays for tracing and compiling: it is left out as
    # soon as there is another one to go by.
    if self._one_done is None:
      since, before = self._start, self._first
      self._one_done = now, round_num
    else:
      since, before = self._one_done
    seconds = (now - since) / max(round_num - before, 1)
    return seconds * (self._total - round_num)


def _columns() -> int:
  return shutil.get_terminal_size().columns


def duration(seconds: float) -> str:
  """Writes a duration with its two largest units, such as 3m12s or 2d03h."""
  seconds = round(seconds)
  minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
  if days:
    return f'{days}d{hours % 24:02d}h'
  if hours:
    return f'{hours}h{minutes % 60:02d}m'
  if minutes:
    return f'{minutes}m{seconds % 60:02d}s'
  return f'{seconds}s'
