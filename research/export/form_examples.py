"""Test examples as exported forms take them, and the right answers to them."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow as tf

from datasets import federated_data
from models import quantization
from research.export import saved_model, text_signatures
from research.tasks import task as task_lib

BATCHES = (1, 32)
# Logits over a vocabulary for each token of 32 texts take gigabytes.
_FEW = (1, 8)
_SEED = 20170220
# Moves the ends of a range by a four-hundredth of a step.
WIDENING = 1e-5
_UNLABELLED = -1

# The output that is the answer to an example, by kind of task. That of tokens
# is where the largest of their logits is.
_ANSWERS: Mapping[str, str] = {
  'classification': 'class',
  'clustering': 'cluster',
  'regression': 'prediction',
  'reconstruction': 'reconstruction',
  'tagging': 'logits',
  'masked_language_modelling': 'logits',
}
_NUMBERS = ('regression', 'reconstruction')
_OF_TOKENS = ('tagging', 'masked_language_modelling')


@dataclasses.dataclass(frozen=True)
class Examples:
  """Test examples and what the trained model makes of them.

  Attributes:
    kind: Of the task.
    inputs: What `form_process` gets: `parity/1` and `parity/32` (8 of language
      models), the first test examples, and `test<number>/<size>`, all of them
      in batches of 32.
    expected: The trained model's outputs for the former.
    answers: The trained model's answers to all: labels, int64 [labels], or
      numbers, float64 [examples, numbers].
    truth: The right answers of that shape; None for clusters.
    labelled: For answers to tokens, which of them count, bool [examples,
      length]; else None.
    widened_answers: As `answers`, where training quantizes, after all ranges
      have become wider by `WIDENING`; else None.
  """

  kind: str
  inputs: dict[str, np.ndarray]
  expected: dict[str, np.ndarray]
  answers: np.ndarray
  truth: np.ndarray | None
  labelled: np.ndarray | None
  widened_answers: np.ndarray | None = None

  @property
  def has_numbers(self) -> bool:
    """Whether answers are numbers, not labels."""
    return self.kind in _NUMBERS

  @property
  def largest(self) -> list[str]:
    """Outputs of which `form_process` should keep the largest's position."""
    return [_ANSWERS[self.kind]] if self.kind in _OF_TOKENS else []

  def answers_of(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Joins a form's answers, as `answers` has them.

    Args:
      outputs: What `form_process` wrote.
    """
    name = _ANSWERS[self.kind]
    parts = [
      outputs[f'{key}/{name}'] for key in self.inputs if key.startswith('test')
    ]
    return _joined(self.kind, parts, self.labelled)


def draw(task: task_lib.Task, model: tf.keras.Model, most: int) -> Examples:
  """Takes test examples, and has the trained model answer.

  Args:
    task: The task.
    model: Its trained model; of texts, with nothing merged.
    most: How many at most: a random choice, the same in each call.
  """
  data = task.data.test.pooled()
  count = len(data['y'])
  chosen = np.arange(count)
  if count > most:
    rng = np.random.default_rng(_SEED)
    chosen = np.sort(rng.permutation(count)[:most])
  x, y = as_given(task, {key: data[key][chosen] for key in federated_data.KEYS})
  sizes = _FEW if task.kind == 'masked_language_modelling' else BATCHES
  inputs = {
    f'parity/{size}': np.resize(x, [size, *x.shape[1:]]) for size in sizes
  }
  step = BATCHES[-1]
  for number, start in enumerate(range(0, len(x), step)):
    batch = x[start : start + step]
    inputs[f'test{number:05d}/{len(batch)}'] = batch
  labelled = y != _UNLABELLED if task.kind in _OF_TOKENS else None
  truth = None
  if task.kind != 'clustering':
    truth = _joined(task.kind, [y], labelled)
  expected, widened = {}, None
  # Accelerators round differently; the forms are what is tested.
  with tf.device('/CPU:0'):
    for key, batch in inputs.items():
      if key.startswith('parity'):
        for output, value in _outputs(task, model, tf.constant(batch)).items():
          expected[f'{key}/{output}'] = value.numpy()
    answers = _joined(task.kind, _answers(task, model, inputs), labelled)
    if task.quantization is not None:
      with _wider_ranges(model):
        widened = _joined(task.kind, _answers(task, model, inputs), labelled)
  return Examples(
    task.kind, inputs, expected, answers, truth, labelled, widened
  )


def _answers(
  task: task_lib.Task, model: tf.keras.Model, inputs: Mapping[str, np.ndarray]
) -> list[np.ndarray]:
  """The model's answers to the batches of test examples."""
  parts = []
  for key, batch in inputs.items():
    if key.startswith('test'):
      outputs = _outputs(task, model, tf.constant(batch))
      answer = outputs[_ANSWERS[task.kind]]
      if task.kind in _OF_TOKENS:
        answer = tf.argmax(answer, axis=-1)
      parts.append(answer.numpy())
  return parts


@contextlib.contextmanager
def _wider_ranges(model: tf.keras.Model) -> Iterator[None]:
  """Widens the ranges of activations while it lasts."""
  ends = quantization.ranges(model)
  values = [end.numpy() for end in ends]
  try:
    for end, value in zip(ends, values, strict=True):
      end.assign(value * np.float32(1 + WIDENING))
    yield
  finally:
    for end, value in zip(ends, values, strict=True):
      end.assign(value)


def as_given(
  task: task_lib.Task, data: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
  """Turns raw examples into what the forms take, and the right answers.

  Args:
    task: The task.
    data: `x` and `y` of examples, as clients have them.

  Returns:
    Images, as uint8 (floats are rounded to 256 levels); rows of tables; or
    token ids, int32 [examples, the longest length], of language models with
    tokens masked. And the labels, numbers, or, for reconstruction, the images
    as the model takes them.
  """
  x, y = np.asarray(data['x']), np.asarray(data['y'])
  if text_signatures.is_text(task):
    batch = task.preprocess({'x': tf.constant(x), 'y': tf.constant(y)})
    ids = _padded(batch['x'].numpy(), task.max_length, 0)
    labels = batch['y'].numpy()
    if task.kind in _OF_TOKENS:
      labels = _padded(labels, task.max_length, _UNLABELLED)
    return ids, labels
  dtype = saved_model.input_dtypes(task)[saved_model.SERVING].as_numpy_dtype
  if dtype == np.uint8 and x.dtype != np.uint8:
    x = np.rint(np.clip(x, 0, 1) * 255)
  x = x.astype(dtype)
  if task.kind == 'reconstruction':
    y = task.preprocess_features(tf.constant(x)).numpy()
  return x, y


def _outputs(
  task: task_lib.Task, model: tf.keras.Model, given: tf.Tensor
) -> dict[str, tf.Tensor]:
  if text_signatures.is_text(task):
    return text_signatures.of_token_ids(task, model, given)
  return saved_model.servable_outputs(task, model, given)


def _joined(
  kind: str, parts: list[np.ndarray], labelled: np.ndarray | None
) -> np.ndarray:
  joined = np.concatenate(parts)
  if kind in _NUMBERS:
    return joined.reshape([len(joined), -1]).astype(np.float64)
  joined = joined.astype(np.int64)
  return joined if labelled is None else joined[labelled]


def _padded(array: np.ndarray, length: int, value: int) -> np.ndarray:
  """Fills rows up, or cuts them, to a length; int32."""
  result = np.full([len(array), length], value, np.int32)
  kept = min(array.shape[1], length)
  result[:, :kept] = array[:, :kept]
  return result
