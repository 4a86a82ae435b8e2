"""What the parity check gives to models of texts, and what it expects of them.

The texts are fixed: none is of a client. What is expected comes from the
trained Keras model and the tokeniser of training, not the one in the graph.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from research.export import text_signatures
from research.tasks import task as task_lib

BATCHES = (1, 8)
_LONGEST_IDS = 32
_SEED = 20170220
_MASK = '[MASK]'
_SENTENCES = (
  'The film is a [MASK] of its time, and I liked it!',
  'Zürich, São Paulo & Straße: no ﬁne café is “cheap”…',
  '',
  '北京 and 東京 are far apart; İstanbul, ΟΔΟΣ.',
  'EU rejects German call to boycott British lamb .',
  'x' * 101 + " doesn't count\tas a word, \x00\u200bthis does.",
  'To be, or not to [MASK], that is the [MASK]: ' * 20,
  "It's 3.5 % of $1,000 — [CLS] or e-mail@example.org?",
)


@dataclasses.dataclass(frozen=True)
class Choice:
  """What text outputs are chosen by.

  Attributes:
    names: The texts to choose from.
    scores: float32 [..., names]; the largest is chosen.
  """

  names: Sequence[str]
  scores: np.ndarray


def inputs(
  task: task_lib.Task, batches: Sequence[int]
) -> dict[str, np.ndarray]:
  """Texts and ids, the same in each call, keyed `<signature>/<batch>`."""
  found = {}
  for batch in batches:
    rng = np.random.default_rng([_SEED, batch])
    length = min(task.max_length, _LONGEST_IDS)
    ids = rng.integers(0, task.pieces.size, [batch, length], np.int32)
    ids[:, 0] = task.pieces.cls_id
    # Every second one is half padding.
    ids[1::2, length // 2 :] = task.pieces.pad_id
    given = {
      text_signatures.TEXT: np.resize(np.array(_SENTENCES), [batch]),
      text_signatures.TOKEN_IDS: ids,
    }
    for signature, name in text_signatures.input_names(task).items():
      found[f'{signature}/{batch}'] = given[name]
  return found


def expected(
  task: task_lib.Task,
  keras_model: tf.keras.Model,
  given: Mapping[str, np.ndarray],
) -> tuple[dict[str, Any], dict[str, Choice]]:
  """Computes what a SavedModel should give.

  Args:
    task: A text task.
    keras_model: Its trained model, with nothing merged.
    given: As of `inputs`.

  Returns:
    Arrays keyed `<signature>/<batch>/<output>`, and how the texts among them
    were chosen where a tie may be broken in two ways.
  """
  found, choices = {}, {}
  for key, value in given.items():
    signature = key.partition('/')[0]
    if signature == text_signatures.SERVE_TOKEN_IDS:
      ids = tf.constant(value)
      outputs = text_signatures.of_token_ids(task, keras_model, ids)
    elif signature == text_signatures.EMBED:
      ids = tf.constant(encode(task, value.tolist(), reads_masks=False))
      outputs = text_signatures.embed(keras_model, ids)
    else:
      outputs, choice = _of_text(task, keras_model, value.tolist())
      name = {'classification': 'label', 'tagging': 'tags'}.get(
        task.kind, 'tokens'
      )
      choices[f'{key}/{name}'] = choice
    for name, output in outputs.items():
      found[f'{key}/{name}'] = output.numpy()
  return found, choices


def tie(
  choice: Choice, wanted: np.ndarray, actual: np.ndarray
) -> tuple[float, float]:
  """How much less than the best those were scored that were chosen.

  Args:
    choice: What could be chosen.
    wanted: The texts that should have been.
    actual: Those that were.

  Returns:
    The largest difference of scores, infinite for a text that is no choice, and
    the largest score.
  """
  positions = {name.encode(): k for k, name in enumerate(choice.names)}
  worst = 0.0
  for place in zip(*np.nonzero(wanted != actual), strict=True):
    position = positions.get(bytes(actual[place]))
    if position is None or not wanted[place]:
      return np.inf, 1.0
    scores = choice.scores[place]
    worst = max(worst, float(scores.max() - scores[position]))
  return worst, float(np.abs(choice.scores).max(initial=0.0))


def _of_text(
  task: task_lib.Task, keras_model: tf.keras.Model, texts: list[str]
) -> tuple[dict[str, tf.Tensor], Choice]:
  words = first = None
  if task.kind == 'tagging':
    ids, words, first = _encode_words(task, texts)
  else:
    reads_masks = task.kind == 'masked_language_modelling'
    ids = tf.constant(encode(task, texts, reads_masks))
  outputs = text_signatures.of_text(task, keras_model, ids, words, first)
  scores = text_signatures.of_token_ids(task, keras_model, ids)['logits']
  if task.kind == 'tagging':
    scores = text_signatures.at_words(scores, first)
  is_lm = task.kind == 'masked_language_modelling'
  names = task.pieces.vocab if is_lm else task.class_names
  return outputs, Choice(names, scores.numpy())


def encode(
  task: task_lib.Task, texts: list[str], reads_masks: bool
) -> np.ndarray:
  """Cuts texts into ids as training does.

  Args:
    task: A text task.
    texts: Any.
    reads_masks: Whether [MASK] in a text is that token.

  Returns:
    int32 [texts, the length of the longest].
  """
  pieces, rows = task.pieces, []
  for text in texts:
    parts = pieces.pieces(text.split(_MASK) if reads_masks else [text])
    joined = [*parts[0]]
    for part in parts[1:]:
      joined += [pieces.mask_id, *part]
    rows.append(np.asarray(joined, np.int32))
  longest = min(max(len(row) for row in rows) + 2, task.max_length)
  ids = np.full([len(rows), longest], pieces.pad_id, np.int32)
  for row, joined in zip(ids, rows, strict=True):
    pieces.frame(row, joined)
  return ids


def _encode_words(
  task: task_lib.Task, texts: list[str]
) -> tuple[tf.Tensor, tf.RaggedTensor, tf.RaggedTensor]:
  words = [text.split() for text in texts]
  numbers = [list(range(len(sentence))) for sentence in words]
  encoded = task.pieces.encode_words(words, numbers, task.max_length)
  used = max(int((encoded.ids != task.pieces.pad_id).sum(axis=1).max()), 1)
  first = []
  for sentence, tags in zip(words, encoded.tags, strict=True):
    starts = np.flatnonzero(tags >= 0).tolist()
    # Words that were cut off start behind the last token.
    first.append(starts + [task.max_length] * (len(sentence) - len(starts)))
  return (
    tf.constant(encoded.ids[:, :used]),
    tf.ragged.constant(words, dtype=tf.string, ragged_rank=1),
    tf.ragged.constant(first, dtype=tf.int32, ragged_rank=1),
  )
