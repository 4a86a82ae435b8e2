"""Runs a sweep: cells by seeds in a local queue, then table and plot."""

import math
import pathlib
import sys
from collections.abc import Iterable, Sequence

from research.sweeps import plot, processes, results, search
from research.sweeps import record as record_lib
from research.sweeps import space as space_lib
from research.training import atomic, metrics, progress

# How often the metrics of new runs are looked for.
_LOOK_SECONDS = 1.0


def words(cell: space_lib.Cell) -> str:
  """A cell as text of one line."""
  return ' '.join(f'{name}={text}' for name, text in cell.items())


def run_name(index: int, seed: int) -> str:
  """The name of the run of a cell and a seed."""
  return f'cell_{index:03d}_seed{seed}'


class Sweep:
  """One sweep in one directory, which the caller has locked.

  The directory has sweep.json, results.csv, sweep.png, best.flags, `runs/` with
  a run directory per cell and seed, and `logs/` with what each run printed.
  """

  def __init__(
    self,
    directory: pathlib.Path,
    record: record_lib.Record,
    space: space_lib.Space,
    shared: Sequence[str],
    lines: Sequence[str],
  ):
    """Prepares the sweep; nothing runs yet.

    Args:
      directory: Of the sweep.
      record: Its cells and what has been run of them.
      space: All cells.
      shared: Flags of every run.
      lines: The same as lines of a flag file.
    """
    self.directory = directory
    self._record = record
    self._space = space
    self._shared = list(shared)
    self._lines = list(lines)
    self._scores: dict[str, float] = {}
    self._started: set[str] = set()
    self._ended: set[str] = set()
    self._looked: set[str] = set()

  def run(self, queue: processes.LocalQueue) -> None:
    """Runs what has not finished yet, and says how each run has ended.

    Args:
      queue: Where; the caller ends it.

    Raises:
      flags.IllegalFlagValueError: If metrics.csv lacks the metric.
    """
    for run in self._runs():
      finished = self._record.state(run) == record_lib.FINISHED
      if finished and self._metrics_csv(run).exists():
        self._read_score(run)
    self._record.save()
    (self.directory / 'logs').mkdir(exist_ok=True)
    while True:
      while not queue.is_full and (run := self._next(queue)):
        self._started.add(run)
        queue.start(run, self._command(run), self._log(run))
      if not queue.running:
        return
      for ended in queue.wait(_LOOK_SECONDS):
        self._note(ended)
      self._look(queue.running)

  def results(self) -> list[results.Result]:
    """What there is of each cell."""
    found = []
    for index, cell in enumerate(self._record.cells):
      runs = {s: run_name(index, s) for s in self._record.settings.seeds}
      failed = [
        seed
        for seed, run in runs.items()
        if self._record.state(run) == record_lib.FAILED
      ]
      scores = {seed: self._scores.get(run) for seed, run in runs.items()}
      found.append(results.Result(cell, scores, tuple(failed)))
    return found

  def finish(self) -> str:
    """Writes the table, the plot and the best flags.

    Returns:
      The table and the paths as text.
    """
    found, criterion = self.results(), self._record.criterion
    if not self._scores:
      return 'No run has a result.'
    frame = self._write_table()
    picture = plot.draw(
      self._space, found, criterion, self.directory / 'sweep.png'
    )
    text = [results.ranking(frame, criterion), '']
    text += [f'table   {self.directory / "results.csv"}', f'plot    {picture}']
    best = results.best_index(found, criterion)
    if best is not None:
      path = self.directory / 'best.flags'
      atomic.write_text(
        path,
        results.flag_file(
          self._record.settings.binary, found[best], criterion, self._lines
        ),
      )
      text.append(f'best    {path}: {words(found[best].cell)}')
    if criterion.metric.startswith('test_'):
      text.append(
        f'Chosen by {criterion.metric}: a result on the same test data is too '
        'good; --extra_flag=--validation_examples=N holds examples out.'
      )
    return '\n'.join(text)

  def failed(self) -> list[str]:
    """The runs that failed, with the place of their output."""
    return [
      str(self._log(run))
      for run in self._runs()
      if self._record.state(run) == record_lib.FAILED
    ]

  def _runs(self) -> dict[str, tuple[int, int]]:
    """Cell and seed of each run that is known, by its name."""
    return {
      run_name(index, seed): (index, seed)
      for index in range(len(self._record.cells))
      for seed in self._record.settings.seeds
    }

  def _metrics_csv(self, run: str) -> pathlib.Path:
    return self.directory / 'runs' / run / 'metrics.csv'

  def _log(self, run: str) -> pathlib.Path:
    return self.directory / 'logs' / f'{run}.log'

  def _command(self, run: str) -> list[str]:
    index, seed = self._runs()[run]
    swept = [f'--{n}={text}' for n, text in self._record.cells[index].items()]
    return [
      *(sys.executable, '-m', self._record.settings.binary),
      *(*self._shared, *swept, f'--seed={seed}'),
      f'--root_output_dir={self.directory / "runs"}',
      f'--experiment_name={run}',
    ]

  def _next(self, queue: processes.LocalQueue) -> str | None:
    """The run to start now, if there is one."""
    waiting = (
      run
      for run in self._runs()
      if run not in self._scores and run not in self._started
    )
    run = next(waiting, None)
    if run is None and self._propose(queue.processes):
      return self._next(queue)
    return run

  def _propose(self, parallel: int) -> bool:
    """Adds a cell to a Bayesian search, if it is time for one.

    The model knows the cells up to a fixed distance behind the new one, and no
    others even if they have ended: a sweep does not depend on which of its runs
    is faster.
    """
    settings, cells = self._record.settings, self._record.cells
    if settings.search != search.BAYESIAN or len(cells) >= settings.trials:
      return False
    # Two cells at least must be known.
    most = search.random_start(self._space) - 1
    ahead = min(math.ceil(parallel / len(settings.seeds)), most)
    known = len(cells) - ahead + 1
    needed = [run for run, (index, _) in self._runs().items() if index < known]
    if not all(run in self._scores or run in self._ended for run in needed):
      return False
    criterion = self._record.criterion
    done = [
      (result.cell, criterion.gain(result.mean))
      for result in self.results()[:known]
    ]
    cell = search.propose(
      self._space, done, cells[known:], settings.search_seed
    )
    if cell is not None:
      cells.append(cell)
      self._record.save()
    return cell is not None

  def _read_score(self, run: str) -> None:
    rows = metrics.read(self._metrics_csv(run))
    criterion = self._record.criterion.resolve(list(rows[0]))
    self._record.criterion = criterion
    self._scores[run] = criterion.of(rows)

  def _look(self, running: Iterable[str]) -> None:
    """Refuses a metric that a run lacks before hours have passed."""
    for run in set(running) - self._looked:
      if self._metrics_csv(run).exists():
        rows = metrics.read(self._metrics_csv(run))
        if rows:
          self._looked.add(run)
          self._record.criterion = self._record.criterion.resolve(list(rows[0]))

  def _note(self, ended: processes.Ended) -> None:
    """Records, and prints a line about, a run that has ended."""
    run = ended.name
    self._ended.add(run)
    outcome = self._failure(ended)
    if outcome:
      self._record.set_state(run, record_lib.FAILED)
    else:
      self._read_score(run)
      self._record.set_state(run, record_lib.FINISHED)
      outcome = self._outcome(run)
    index, seed = self._runs()[run]
    trials = self._record.settings.trials or 0
    total = max(trials, len(self._record.cells))
    total *= len(self._record.settings.seeds)
    count = len(self._ended | set(self._scores))
    print(
      f'[{count}/{total}] cell {index} seed {seed}: '
      f'{words(self._record.cells[index])}: {outcome} '
      f'({progress.duration(ended.seconds)})',
      flush=True,
    )
    if self._scores:
      self._write_table()

  def _write_table(self):
    frame = results.table(self.results(), self._record.criterion)
    atomic.write_text(self.directory / 'results.csv', frame.to_csv(index=False))
    return frame

  def _failure(self, ended: processes.Ended) -> str | None:
    if ended.exit_code:
      log = self._log(ended.name)
      said = log.read_text(errors='replace').strip().splitlines() or ['']
      return f'FAILED, exit code {ended.exit_code}: {said[-1]} (see {log})'
    path = self._metrics_csv(ended.name)
    if not path.exists() or not metrics.read(path):
      return f'FAILED, {path} has no rows'
    return None

  def _outcome(self, run: str) -> str:
    criterion, score = self._record.criterion, self._scores[run]
    if math.isnan(score):
      return f'{criterion.metric} diverged'
    found = self.results()
    best = results.best_index(found, criterion)
    text = f'{criterion.metric} {score:.4g}'
    if best is not None:
      text += f', best so far cell {best} with {found[best].mean:.4g}'
    return text
