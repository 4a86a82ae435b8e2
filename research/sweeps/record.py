"""A sweep's own record, sweep.json: what it varies, and which runs are done."""

import dataclasses
import json
import pathlib
from typing import Any

from research.sweeps import results, search
from research.sweeps import space as space_lib
from research.training import atomic, run_directory

FINISHED, FAILED = 'finished', 'failed'
_ADVICE = (
  '\nUse the settings of that sweep to go on with it, or choose another '
  '--experiment_name.'
)


@dataclasses.dataclass(frozen=True)
class Settings:
  """What decides which runs a sweep makes.

  Attributes:
    binary: Module of the runs' binary.
    search: One of `search.KINDS`.
    grid: Per swept flag its values, or its range as the user wrote it.
    trials: Number of cells; None for a grid.
    search_seed: Decides random draws of cells.
    seeds: Of the runs of each cell.
    flags: Values of all other flags that decide results.
  """

  binary: str
  search: str
  grid: dict[str, list[str] | str]
  trials: int | None
  search_seed: int
  seeds: tuple[int, ...]
  flags: dict[str, Any]


def grid_of(space: space_lib.Space) -> dict[str, list[str] | str]:
  """What `Settings.grid` keeps of a space."""
  return {
    d.name: d.spec if d.texts is None else list(d.texts)
    for d in space.dimensions
  }


class Record:
  """The cells of a sweep and the state of their runs, kept in sweep.json.

  Attributes:
    settings: What decides the runs.
    criterion: What makes a run good; resolved once a run has metrics.
    cells: In the order in which they were thought of.
  """

  def __init__(
    self,
    path: pathlib.Path,
    settings: Settings,
    criterion: results.Criterion,
    planned: list[space_lib.Cell],
  ):
    """Starts a record, or goes on with the one in the file.

    Args:
      path: sweep.json; it need not exist.
      settings: Of this command.
      criterion: Of this command.
      planned: The cells that are known before any has run.

    Raises:
      run_directory.ResumeError: If the file has a sweep that these settings
        neither continue nor extend.
    """
    self._path = path
    self.settings = settings
    self.criterion = criterion
    self.cells = list(planned)
    self.extended_by = 0
    self._runs: dict[str, str] = {}
    if path.exists():
      self._go_on(json.loads(path.read_text()))

  def _go_on(self, saved: dict[str, Any]) -> None:
    given = json.loads(json.dumps(dataclasses.asdict(self.settings)))
    differences = _differences(saved['settings'], given)
    old = results.Criterion(**saved['criterion'])
    if self.settings.search == search.BAYESIAN:
      differences += [
        f'--{name}: was {was}, now {now}'
        for name, was in dataclasses.asdict(old).items()
        if was and (now := getattr(self.criterion, name)) not in (None, was)
      ]
    cells = saved['cells']
    missing = [cell for cell in cells if cell not in self.cells]
    if self.settings.search != search.BAYESIAN and missing:
      differences.append(f'--grid has no longer {_words(missing[0])}')
    if differences:
      raise run_directory.ResumeError(
        f'{self._path.parent} holds another sweep:\n  '
        + '\n  '.join(differences)
        + _ADVICE
      )
    new = [cell for cell in self.cells if cell not in cells]
    self.extended_by = len(new)
    self.cells = [*cells, *new]
    self._runs = saved['runs']
    if self.settings.search == search.BAYESIAN and old.metric:
      self.criterion = old

  def save(self) -> None:
    """Writes the file."""
    content = {
      'settings': dataclasses.asdict(self.settings),
      'criterion': dataclasses.asdict(self.criterion),
      'cells': self.cells,
      'runs': self._runs,
    }
    atomic.write_json(self._path, content)

  def state(self, run: str) -> str | None:
    """`FINISHED`, `FAILED`, or None for a run that has not ended."""
    return self._runs.get(run)

  def set_state(self, run: str, state: str) -> None:
    """Notes how a run has ended, and writes the file."""
    self._runs[run] = state
    self.save()


def _differences(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
  """What keeps `now` from continuing or extending `was`, in words."""
  found = [
    f'--{name}: was {was[name]}, now {now[name]}'
    for name in ('binary', 'search', 'search_seed')
    if was[name] != now[name]
  ]
  bayesian = was['search'] == search.BAYESIAN
  if now['search'] != search.GRID and was['grid'] != now['grid']:
    found.append(f'--grid: was {was["grid"]}, now {now["grid"]}')
  if was['trials'] and now['trials'] and now['trials'] < was['trials']:
    found.append(f'--trials: was {was["trials"]}, now {now["trials"]}')
  lost = set(was['seeds']) - set(now['seeds'])
  if lost or (bayesian and was['seeds'] != now['seeds']):
    found.append(f'--seeds: was {was["seeds"]}, now {now["seeds"]}')
  before, after = was['flags'], now['flags']
  # A flag that is now swept, or no longer, is said of the grid.
  for name in sorted({*before, *after} - {*was['grid'], *now['grid']}):
    if before.get(name) != after.get(name):
      found.append(
        f'--extra_flag=--{name}: was {before.get(name)}, now {after.get(name)}'
      )
  return found


def _words(cell: space_lib.Cell) -> str:
  return ' '.join(f'--{name}={text}' for name, text in cell.items())
