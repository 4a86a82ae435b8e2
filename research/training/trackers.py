"""Sends each round's values to TensorBoard, Weights & Biases or MLflow.

metrics.csv is the record of a run; trackers are views of it. All of them are
given the round as the step and go on in the same place after a resume. Rounds
that a killed process had sent beyond its last checkpoint are sent again, with
equal values: TensorBoard forgets the first ones, W&B ignores the second ones,
MLflow keeps both.
"""

import importlib
import os
import pathlib
import types
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import tensorflow as tf

from research.training import atomic

NAMES = ('tensorboard', 'wandb', 'mlflow')


class Tracker(Protocol):
  """Where values go besides metrics.csv."""

  def write(self, round_num: int, values: Mapping[str, float | None]) -> None:
    """Sends the values of a round; None is left out."""

  def close(self) -> None:
    """Sends what is still held back."""


def create(
  names: Sequence[str],
  directory: atomic.Path,
  run_name: str,
  config: Mapping[str, Any],
  restored_round: int,
) -> list[Tracker]:
  """Makes the trackers that a flag asks for.

  Args:
    names: Which of `NAMES`.
    directory: The run directory.
    run_name: The name that the run gets in W&B and MLflow.
    config: Flag names to values, shown there beside the curves.
    restored_round: The round of the checkpoint that the run goes on from, -1
      without one.

  Returns:
    The trackers in the order of `names`.

  Raises:
    ImportError: If the package of a tracker is not installed.
    ValueError: If a name is unknown.
  """
  unknown = [name for name in names if name not in NAMES]
  if unknown:
    raise ValueError(f'unknown trackers {unknown}; there are {NAMES}')
  directory = pathlib.Path(directory)
  trackers = []
  for name in names:
    if name == 'tensorboard':
      tracker = TensorBoard(directory / 'tensorboard', restored_round)
    elif name == 'wandb':
      tracker = WeightsAndBiases(directory, run_name, config)
    else:
      tracker = MLflow(directory, run_name, config)
    trackers.append(tracker)
  return trackers


class TensorBoard:
  """Writes event files.

  On a resume the events after the restored round are removed from the files. A
  TensorBoard that is running meanwhile has to be started again to see that.
  """

  def __init__(self, directory: atomic.Path, restored_round: int):
    """Opens a new event file.

    Args:
      directory: Where the event files lie.
      restored_round: Events of later rounds are removed; -1 removes all.
    """
    directory = pathlib.Path(directory)
    for path in sorted(directory.glob('events.out.tfevents.*')):
      _purge(path, restored_round)
    self._writer = tf.summary.create_file_writer(str(directory))

  def write(self, round_num: int, values: Mapping[str, float | None]) -> None:
    """Writes the values of a round; it is in the file when this returns."""
    with self._writer.as_default(step=round_num):
      for name, value in _present(values).items():
        tf.summary.scalar(name, value)

  def close(self) -> None:
    """Closes the file."""
    self._writer.close()


class WeightsAndBiases:
  """Logs to W&B; `WANDB_PROJECT`, `WANDB_MODE` and so on apply."""

  def __init__(
    self, directory: atomic.Path, run_name: str, config: Mapping[str, Any]
  ):
    """Starts the run, or goes on with the one that this directory began.

    Args:
      directory: The run directory.
      run_name: The name to show.
      config: What to show beside the curves.

    Raises:
      ImportError: If wandb is not installed.
    """
    wandb = _load('wandb')
    id_file = pathlib.Path(directory) / 'wandb_id.txt'
    self._run = wandb.init(
      id=_read_id(id_file),
      name=run_name,
      config=dict(config),
      dir=str(directory),
      resume='allow',
    )
    atomic.write_text(id_file, self._run.id)

  def write(self, round_num: int, values: Mapping[str, float | None]) -> None:
    """Logs the values of a round."""
    self._run.log(_present(values), step=round_num)

  def close(self) -> None:
    """Ends the run."""
    self._run.finish()


class MLflow:
  """Logs to MLflow; `MLFLOW_TRACKING_URI` and so on apply."""

  def __init__(
    self, directory: atomic.Path, run_name: str, config: Mapping[str, Any]
  ):
    """Starts the run, or goes on with the one that this directory began.

    Args:
      directory: The run directory.
      run_name: The name to show.
      config: The parameters to show; those of the first start stay.

    Raises:
      ImportError: If mlflow is not installed.
    """
    self._mlflow = _load('mlflow')
    id_file = pathlib.Path(directory) / 'mlflow_id.txt'
    run_id = _read_id(id_file)
    run = self._mlflow.start_run(run_id=run_id, run_name=run_name)
    if run_id is None:
      # MLflow refuses to change a parameter, and a resume may raise the number
      # of rounds.
      self._mlflow.log_params(dict(config))
    atomic.write_text(id_file, run.info.run_id)

  def write(self, round_num: int, values: Mapping[str, float | None]) -> None:
    """Logs the values of a round."""
    self._mlflow.log_metrics(_present(values), step=round_num)

  def close(self) -> None:
    """Ends the run."""
    self._mlflow.end_run()


def _present(values: Mapping[str, float | None]) -> dict[str, float]:
  return {k: float(v) for k, v in values.items() if v is not None}


def _load(package: str) -> types.ModuleType:
  try:
    return importlib.import_module(package)
  except ImportError as error:
    raise ImportError(
      f'the tracker {package} was asked for, but its package can not be '
      f'imported ({error}): install it with `pip install {package}`, or '
      f'leave {package} out'
    ) from error


def _read_id(path: pathlib.Path) -> str | None:
  return path.read_text().strip() if path.exists() else None


def _purge(path: pathlib.Path, last_round: int) -> None:
  """Drops the events after `last_round`, and a last one torn by a kill."""
  kept = []
  total = 0
  try:
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
      total += 1
      event = tf.compat.v1.Event.FromString(record)
      if event.step <= last_round or event.HasField('file_version'):
        kept.append(record)
  except tf.errors.DataLossError:
    total += 1
  if len(kept) == total:
    return
  temporary = atomic.temporary_path(path)
  with tf.io.TFRecordWriter(str(temporary)) as writer:
    for record in kept:
      writer.write(record)
  os.replace(temporary, path)
