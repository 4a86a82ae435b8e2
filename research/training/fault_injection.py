"""Lets a test end the process with SIGKILL at a chosen point.

The environment variable `TFF_RESEARCH_KILL_AT='point:occurrence'` (for example
`checkpoint_write:2`) ends the process, as `kill -9` would, when it reaches the
named point for the second time. Without the variable nothing happens.
"""

import collections
import os
import signal

VARIABLE = 'TFF_RESEARCH_KILL_AT'
POINTS = (
  'round',
  'client_state',
  'checkpoint_write',
  'checkpoint_rename',
  'metrics_row',
  'export',
)

_occurrences = collections.Counter()


def reached(point: str) -> None:
  """Counts one visit of `point` and dies there when the variable says so.

  Args:
    point: One of `POINTS`.

  Raises:
    ValueError: If `point`, or what the environment variable holds, is unknown.
  """
  if point not in POINTS:
    raise ValueError(f'unknown point {point!r}; there are {", ".join(POINTS)}')
  wanted = os.environ.get(VARIABLE)
  if not wanted:
    return
  name, _, occurrence = wanted.partition(':')
  if name not in POINTS or not occurrence.isdecimal() or int(occurrence) < 1:
    raise ValueError(
      f'{VARIABLE}={wanted!r} is not point:occurrence with an occurrence '
      f'from 1 and a point of {", ".join(POINTS)}'
    )
  _occurrences[point] += 1
  if name == point and _occurrences[point] == int(occurrence):
    os.kill(os.getpid(), signal.SIGKILL)
