"""Where a run keeps its files, who may write them, and when it may go on."""

import fcntl
import json
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from absl import logging

from research.training import atomic

# Besides the flags: what decides the result, and what should not but might.
_DECISIVE = ('binary', 'seed', 'data_sha256', 'initial_weights_sha256')
_INFORMATIVE = ('device', 'versions', 'git_revision')


class ResumeError(ValueError):
  """A run directory holds a run that these flags do not continue."""


class RunLockedError(RuntimeError):
  """Another process is writing this run."""


class RunDirectory:
  """The paths of one run, and the lock that keeps a second process out.

  A context manager: entering makes the directory and takes the lock, leaving
  gives it back. Reading the paths of a run needs no lock.
  """

  def __init__(self, root_output_dir: atomic.Path, experiment_name: str):
    """Names a run directory; nothing is made yet.

    Args:
      root_output_dir: The directory of all runs.
      experiment_name: The name of this run's directory in it.

    Raises:
      ValueError: If the name is not that of a single directory.
    """
    if experiment_name in ('', '.', '..') or '/' in experiment_name:
      raise ValueError(
        f'--experiment_name={experiment_name!r} must be the name of one '
        'directory, without a slash'
      )
    self.path = pathlib.Path(root_output_dir).expanduser() / experiment_name
    self._lock: int | None = None

  @classmethod
  def existing(cls, run_dir: atomic.Path) -> 'RunDirectory':
    """Describes the finished or running run of --run_dir.

    Args:
      run_dir: A run directory.

    Returns:
      Its RunDirectory, not locked.

    Raises:
      FileNotFoundError: If no run has been started there.
    """
    path = pathlib.Path(run_dir).expanduser().absolute()
    run = cls(path.parent, path.name)
    if not run.config_json.exists():
      raise FileNotFoundError(
        f'{path} is not a run directory: it has no {run.config_json.name}'
      )
    return run

  @property
  def config_json(self) -> pathlib.Path:
    """Everything that re-creates the run."""
    return self.path / 'config.json'

  @property
  def metrics_csv(self) -> pathlib.Path:
    """One row per round, no wall-clock figures."""
    return self.path / 'metrics.csv'

  @property
  def timing_csv(self) -> pathlib.Path:
    """The wall-clock figures of each round."""
    return self.path / 'timing.csv'

  @property
  def tensorboard(self) -> pathlib.Path:
    """The directory of TensorBoard's event files."""
    return self.path / 'tensorboard'

  @property
  def checkpoints(self) -> pathlib.Path:
    """The directory of the checkpoints."""
    return self.path / 'checkpoints'

  @property
  def client_states(self) -> pathlib.Path:
    """The directory of the clients' states, where an algorithm has them."""
    return self.path / 'client_states'

  @property
  def privacy_journal(self) -> pathlib.Path:
    """The rounds that released something, under differential privacy."""
    return self.path / 'privacy_journal.txt'

  @property
  def privacy_json(self) -> pathlib.Path:
    """The guarantee so far, under differential privacy."""
    return self.path / 'privacy.json'

  @property
  def audit_json(self) -> pathlib.Path:
    """What the audit of the guarantee found, with `--audit_canaries`."""
    return self.path / 'audit.json'

  @property
  def plots(self) -> pathlib.Path:
    """The directory of the PNG files."""
    return self.path / 'plots'

  @property
  def model(self) -> pathlib.Path:
    """The exported SavedModel: version 1 in the layout of model servers."""
    return self.path / 'model' / '1'

  def export_of(self, round_num: int) -> pathlib.Path:
    """The SavedModel of a round, with `--export_every`."""
    return self.path / 'exports' / f'round_{round_num:05d}'

  @property
  def model_card_md(self) -> pathlib.Path:
    """The model card for people."""
    return self.path / 'model_card.md'

  @property
  def model_card_json(self) -> pathlib.Path:
    """The model card for programs."""
    return self.path / 'model_card.json'

  def __enter__(self) -> 'RunDirectory':
    self.lock()
    return self

  def __exit__(self, *exception) -> None:
    self.unlock()

  def lock(self) -> None:
    """Makes the directory and becomes the one process that writes in it.

    The lock ends with the process, however that ends. What processes that
    died have left half written is removed.

    Raises:
      RunLockedError: If another process has the lock; it names its pid.
    """
    self.path.mkdir(parents=True, exist_ok=True)
    # Python opens files so that programs started from here don't inherit
    # them: a worker process that survives can't hold on to the lock.
    lock = os.open(self.path / '.lock', os.O_RDWR | os.O_CREAT, 0o666)
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      holder = os.pread(lock, 32, 0).decode() or 'unknown'
      os.close(lock)
      raise RunLockedError(
        f'{self.path} is being written by the process with pid {holder}: '
        'wait for it, end it, or choose another --experiment_name'
      ) from error
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    self._lock = lock
    atomic.remove_leftovers(self.path)

  def unlock(self) -> None:
    """Lets other processes write the run; does nothing without the lock."""
    if self._lock is not None:
      os.ftruncate(self._lock, 0)
      os.close(self._lock)
      self._lock = None

  def write_config(self, config: Mapping[str, Any]) -> None:
    """Replaces config.json."""
    atomic.write_json(self.config_json, config)

  def read_config(self) -> dict[str, Any] | None:
    """Reads config.json.

    Returns:
      Its content, or None when the run has not been started.

    Raises:
      ValueError: If the file is not JSON.
    """
    try:
      return json.loads(self.config_json.read_bytes())
    except FileNotFoundError:
      return None
    except ValueError as error:
      raise ValueError(f'{self.config_json} is not JSON: {error}') from error


def check_resume(
  saved: Mapping[str, Any],
  current: Mapping[str, Any],
  free: Collection[str],
  rounds_done: int = 0,
) -> None:
  """Checks that a run can be continued and end as if it had never stopped.

  `total_rounds` may be raised, or lowered to no less than the rounds done.
  Another device, other versions or another git revision are only warned of.

  Args:
    saved: The configuration in config.json, with its flags under 'flags'.
    current: The configuration of this process.
    free: The flags that do not determine the result.
    rounds_done: How many rounds the newest checkpoint has.

  Raises:
    ResumeError: If the configurations differ in anything that determines the
      result; it names each differing flag with both values.
  """
  saved, current = (json.loads(json.dumps(dict(c))) for c in (saved, current))
  before, now = saved.get('flags', {}), current.get('flags', {})
  names = [name for name in before | now if name not in free]
  differences = [
    f'--{name}: was {_shown(before, name)}, now {_shown(now, name)}'
    for name in sorted(names)
    if name != 'total_rounds' and _shown(before, name) != _shown(now, name)
  ]
  differences += [
    f'{name}: was {_shown(saved, name)}, now {_shown(current, name)}'
    for name in _DECISIVE
    if _shown(saved, name) != _shown(current, name)
  ]
  if now.get('total_rounds', rounds_done) < rounds_done:
    differences.append(
      f'--total_rounds: was {_shown(before, "total_rounds")}, now '
      f'{now["total_rounds"]}, but {rounds_done} rounds are done'
    )
  if differences:
    raise ResumeError(
      'the run directory holds a run with other flags:\n  '
      + '\n  '.join(differences)
      + '\nUse the flags of that run to resume it, or choose another '
      '--experiment_name.'
    )
  for name in _INFORMATIVE:
    was, is_now = differing(saved.get(name), current.get(name))
    if was != is_now:
      logging.warning(
        'Resuming with another %s (was %s, now %s): the result may differ',
        name,
        was,
        is_now,
      )


def differing(was: Any, now: Any) -> tuple[Any, Any]:
  """Leaves out of two dicts what they have in common."""
  if isinstance(was, dict) and isinstance(now, dict):
    names = [k for k in was | now if was.get(k) != now.get(k)]
    return tuple({k: d.get(k) for k in names} for d in (was, now))
  return was, now


def _shown(values: Mapping[str, Any], name: str) -> str:
  if name not in values:
    return 'absent'
  return json.dumps(values[name], sort_keys=True, ensure_ascii=False)
