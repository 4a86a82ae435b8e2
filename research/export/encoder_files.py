"""The trained encoder of a run, in Hugging Face's form.

`--model=checkpoint --checkpoint_dir=<run>/encoder` starts another run from it.
"""

import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from models import bert_checkpoint, bert_extract
from research.export import saved_model, text_card
from research.tasks import task as task_lib
from research.training import atomic

DIRECTORY = 'encoder'


def write(
  run_directory: atomic.Path,
  task: task_lib.Task,
  model: tf.keras.Model,
  flags: Mapping[str, Any],
) -> pathlib.Path:
  """Writes a run's encoder, complete or not at all.

  Args:
    run_directory: An earlier encoder in it is replaced in one step at the end.
    task: A text task.
    model: Its trained model, which is left as it is.
    flags: Of the run.

  Returns:
    The encoder's directory.

  Raises:
    CheckpointError: If it has adapters; an earlier encoder then stays.
  """
  target = pathlib.Path(run_directory).absolute() / DIRECTORY
  found = bert_extract.checkpoint(
    task.merge(model),
    task.builder.checkpoint,
    name=target.parent.name,
    has_pooler=task.settings.pooling == 'first',
  )
  temporary = atomic.temporary_path(target)
  shutil.rmtree(temporary, ignore_errors=True)
  try:
    made = bert_checkpoint.save(found, temporary / DIRECTORY)
    # The licence of what it was made of goes with it.
    source = text_card.source(task, flags)
    source['name'] = target.parent.name
    source['title'] += f', trained further in the run {target.parent.name}'
    (made / text_card.SOURCE).write_text(json.dumps(source, indent=2) + '\n')
    saved_model.sync_tree(made)
    saved_model.put_in_place(made, target)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  return target
