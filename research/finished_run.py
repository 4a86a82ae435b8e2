"""Loads what a run directory holds, for commands on finished runs."""

import dataclasses
import importlib
import pathlib
from typing import Any

from datasets import federated_data
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


def load(run_dir: str) -> FinishedRun:
  """Loads a run whose binary `flag_values.parse_with_run` has imported.

  Args:
    run_dir: The run directory.

  Returns:
    The run with its newest good checkpoint.

  Raises:
    FileNotFoundError: If there is no run, or no good checkpoint.
    ValueError: If the model that the flags describe has other shapes than the
      checkpoint.
  """
  directory = run_directory.RunDirectory.existing(run_dir)
  config = directory.read_config()
  saved = checkpoint.CheckpointManager(directory.checkpoints).load_latest()
  if saved is None:
    raise FileNotFoundError(f'{directory.checkpoints} has no checkpoint.')
  task = importlib.import_module(config['binary']).build_task()
  evaluator = evaluation.Evaluator(task)
  evaluator.set_leaves(saved.leaves)
  return FinishedRun(directory, config, task, evaluator, saved.round_num)


def select_split(task: task_lib.Task, name: str) -> federated_data.Split:
  """Returns the clients that `--split` names.

  Args:
    task: Has the data.
    name: train, validation, test, or unseen: the test clients whose ids are
      not those of training clients.

  Returns:
    The split.

  Raises:
    ValueError: If there are no such clients.
  """
  if name != 'unseen':
    split = getattr(task.data, name)
    if split is None:
      raise ValueError(
        f'The run has no {name} data: it was made without '
        '--validation_examples.'
      )
    return split
  known = set(task.data.train.client_ids)
  unseen = [c for c in task.data.test.client_ids if c not in known]
  if not unseen:
    raise ValueError(
      f'Every test client of {task.data.name} is also a training client.'
    )
  return task.data.test.subset(unseen)
