"""Loads what a run directory holds, for commands on finished runs."""

import dataclasses
import importlib
import pathlib
from typing import Any

from absl import flags

from datasets import federated_data
from datasets import load as load_data
from research import flag_values, initial_model
from research.tasks import task as task_lib
from research.training import checkpoint, evaluation, run_directory


@dataclasses.dataclass(frozen=True)
class FinishedRun:
  """A run as far as it got.

  Attributes:
    directory: Its paths.
    config: Its config.json.
    task: What it learned, built from the flags as they are now.
    evaluator: Carries the weights of the newest checkpoint.
    round_num: The round of that checkpoint.
  """

  directory: run_directory.RunDirectory
  config: dict[str, Any]
  task: task_lib.Task
  evaluator: evaluation.Evaluator
  round_num: int

  @property
  def path(self) -> pathlib.Path:
    """The run directory."""
    return self.directory.path


def load(directory: run_directory.RunDirectory) -> FinishedRun:
  """Loads a run whose binary `flag_values.parse_with_run` has imported.

  Args:
    directory: The run directory.

  Returns:
    The run with its newest good checkpoint.

  Raises:
    FileNotFoundError: If there is no good checkpoint.
    flags.IllegalFlagValueError: If the data is no longer that of the run and no
      flag asks for other data, or the flags describe a model of other shapes
      than the checkpoint's.
  """
  config = directory.read_config()
  saved = checkpoint.CheckpointManager(directory.checkpoints).load_latest()
  if saved is None:
    raise FileNotFoundError(f'{directory.checkpoints} has no checkpoint.')
  try:
    task = importlib.import_module(config['binary']).build_task()
    if task.has_frozen_weights:
      task = initial_model.apply(task, flags.FLAGS.initial_model)
    evaluator = evaluation.Evaluator(task)
    evaluator.set_leaves(saved.leaves)
  except ValueError as error:
    raise flags.IllegalFlagValueError(str(error)) from error
  flag_values.check_same_data(config, task.data.content_sha256)
  _check_same_start(config, task)
  return FinishedRun(directory, config, task, evaluator, saved.round_num)


def _check_same_start(config: dict[str, Any], task: task_lib.Task) -> None:
  """Raises if what was frozen, or the vocabulary, is not that of the run."""
  # What a checkpoint has whole does not depend on its start.
  if not task.has_frozen_weights:
    return
  expected = config.get('initial_weights_sha256', '')
  found = task.initial_weights_sha256
  if expected and found != expected:
    raise flags.IllegalFlagValueError(
      'The encoder is not the one that the run started from: the SHA-256 of '
      f'its weights and vocabulary is {found}, that of the run {expected}. '
      'Restore the files that --checkpoint_dir, --vocabulary_file or '
      "--initial_model name, and leave the run's flags of the model as they "
      'are.'
    )


def select_split(task: task_lib.Task, name: str) -> federated_data.Split:
  """Returns the clients that `--split` names.

  Args:
    task: Has the data.
    name: train, validation, test, or unseen: the test clients whose ids are
      not those of training clients.

  Returns:
    The split.

  Raises:
    flags.IllegalFlagValueError: If there are no such clients.
  """
  if name != 'unseen':
    split = getattr(task.data, name)
    if split is None:
      raise flags.IllegalFlagValueError(
        f'--split={name}: there is no such data without --validation_examples.'
      )
    return split
  if task.data.partition not in load_data.NATURAL_PARTITIONS:
    raise flags.IllegalFlagValueError(
      f'--split=unseen: with --partition={task.data.partition} every client of '
      'the data may have trained. --validation_by=clients holds clients out.'
    )
  known = set(task.data.train.client_ids)
  unseen = [c for c in task.data.test.client_ids if c not in known]
  if not unseen:
    raise flags.IllegalFlagValueError(
      f'--split=unseen: every test client of {task.data.name} also trains.'
    )
  return task.data.test.subset(unseen)
