"""Whose examples tell int8 the ranges of activations.

They leave their largest values in the exported file, so it matters whose they
are: never test examples, on which the form is judged, and no client's where a
guarantee of differential privacy says what may be told of clients.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import flags

from research.export import form_examples, text_parity, text_signatures
from research.tasks import task as task_lib
from research.training import atomic

NUM_EXAMPLES = 200
# Of one client at most, but where there are few.
_PER_CLIENT = 20


@dataclasses.dataclass(frozen=True)
class Calibration:
  """Representative examples.

  Attributes:
    examples: As forms take them, [examples, ...].
    source: Whose they are, for the report.
  """

  examples: np.ndarray
  source: str


def choose(
  task: task_lib.Task, config: Mapping[str, Any], file: atomic.Path | None
) -> Calibration:
  """Takes a file's examples, or those of training clients.

  Args:
    task: The task.
    config: The run's config.json.
    file: Of --calibration_file: .npy, or .npz with an array `x`, of raw
      examples; .txt with a text per line where texts are learned. None is
      training clients.

  Returns:
    At most `NUM_EXAMPLES` examples.

  Raises:
    flags.IllegalFlagValueError: If the run is private and there is no file, or
      the file does not fit.
  """
  if file is not None:
    return _of_file(task, pathlib.Path(file).expanduser())
  if 'privacy' in config:
    raise flags.IllegalFlagValueError(
      '--forms=tflite_int8: the ranges of activations are taken from examples, '
      "and this run's guarantee of differential privacy does not cover another "
      "look at training clients'. Give public ones by --calibration_file."
    )
  return _of_clients(task, config['seed'])


def _of_clients(task: task_lib.Task, seed: int) -> Calibration:
  split, rng = task.data.train, np.random.default_rng([seed, NUM_EXAMPLES])
  each = max(_PER_CLIENT, -(-NUM_EXAMPLES // len(split.client_ids)))
  parts, count = [], 0
  for position in rng.permutation(len(split.client_ids)):
    if count == NUM_EXAMPLES:
      break
    data = split.client(split.client_ids[position])
    size = min(len(data['y']), each, NUM_EXAMPLES - count)
    rows = rng.permutation(len(data['y']))[:size]
    if size:
      given = {key: array[rows] for key, array in data.items()}
      parts.append(form_examples.as_given(task, given)[0])
      count += size
  source = f'{count} examples of {len(parts)} training clients'
  return Calibration(np.concatenate(parts), source)


def _of_file(task: task_lib.Task, file: pathlib.Path) -> Calibration:
  is_text = text_signatures.is_text(task)
  try:
    if file.suffix == '.txt':
      found = np.array(file.read_text().splitlines())
    else:
      found = np.load(file, allow_pickle=False)
      found = found['x'] if file.suffix == '.npz' else found
  except (OSError, ValueError, KeyError) as error:
    raise flags.IllegalFlagValueError(
      f'--calibration_file={file} is no .npy, .npz with an array x, or .txt '
      f'that can be read: {error}'
    ) from error
  found = found[:NUM_EXAMPLES]
  source = f'{len(found)} examples of {file.name}'
  if is_text and found.dtype.kind == 'U' and len(found):
    reads_masks = task.kind == 'masked_language_modelling'
    ids = text_parity.encode(task, found.tolist(), reads_masks)
    padding = [[0, 0], [0, task.max_length - ids.shape[1]]]
    return Calibration(np.pad(ids, padding), source)
  if is_text or not len(found) or found.shape[1:] != task.example_shape:
    wanted = 'a .txt of texts' if is_text else f'[n, *{task.example_shape}]'
    raise flags.IllegalFlagValueError(
      f'--calibration_file={file} has {found.dtype} of shape {found.shape}; '
      f'task {task.name} needs {wanted}.'
    )
  data = {'x': found, 'y': np.zeros(len(found), np.int32)}
  return Calibration(form_examples.as_given(task, data)[0], source)
