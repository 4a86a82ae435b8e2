"""When a run ends early: its validation loss no longer falls."""

from collections.abc import Mapping, Sequence
from typing import Any

LOSS = 'validation_loss'


def last_round(
  rows: Sequence[Mapping[str, Any]], patience: int | None
) -> int | None:
  """The round after which a run ends early, if it has got there.

  A function of the rows alone, so that a resumed run ends where one does that
  was never interrupted.

  Args:
    rows: Of metrics.csv, in order.
    patience: The run ends when so many evaluations in a row were no new minimum
      of the validation loss; None is never.

  Returns:
    The round, or None.
  """
  if patience is None:
    return None
  least, waited = float('inf'), 0
  for row in rows:
    loss = row.get(LOSS)
    if loss is None:
      continue
    least, waited = (loss, 0) if loss < least else (least, waited + 1)
    if waited == patience:
      return row['round']
  return None
