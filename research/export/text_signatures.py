"""The signatures of models that read texts: text in, labels out.

`serving_default` and `embed` take `text`; `serve_token_ids` takes ids, as
`word_pieces` makes them. Below the SavedModel is a second one, `token_ids/`,
for runtimes without TensorFlow Text's operations: it has `serve_token_ids`
alone, also as its default, and shares the files of the weights.
"""

import os
import pathlib
import shutil
from collections.abc import Mapping

import tensorflow as tf

from research.export import graph_tokenizer
from research.tasks import task as task_lib

SERVING = 'serving_default'
SERVE_TOKEN_IDS = 'serve_token_ids'
EMBED = 'embed'
TEXT = 'text'
TOKEN_IDS = 'token_ids'
# Folder of the second SavedModel in the first.
WITHOUT_TEXT = 'token_ids'

Function = tf.types.experimental.ConcreteFunction


def is_text(task: task_lib.Task) -> bool:
  """Whether a task's examples are texts; see `tasks.bert.TextTask`."""
  return getattr(task, 'pieces', None) is not None


def input_names(task: task_lib.Task) -> dict[str, str]:
  """The signatures of a text task, and the input of each."""
  names = {SERVING: TEXT, SERVE_TOKEN_IDS: TOKEN_IDS}
  return names if task.kind == 'tagging' else {**names, EMBED: TEXT}


def trace(
  task: task_lib.Task, keras_model: tf.keras.Model
) -> tuple[dict[str, Function], list[tf.Variable]]:
  """Makes the functions to export.

  Args:
    task: A text task.
    keras_model: Its trained model, which is left as it is.

  Returns:
    The signatures, and the variables that they read: those of a plain BERT
    where LoRA or bias offsets could be merged.
  """
  model = task.merge(keras_model)
  tokenizer = graph_tokenizer.GraphTokenizer(task.pieces, task.max_length)

  def serve(text):
    words = first = None
    if task.kind == 'tagging':
      words, ids, first = tokenizer.encode_words(text)
    else:
      ids = tokenizer.encode(text, task.kind == 'masked_language_modelling')
    return of_text(task, model, ids, words, first)

  bodies = {
    SERVING: serve,
    SERVE_TOKEN_IDS: lambda token_ids: of_token_ids(task, model, token_ids),
    EMBED: lambda text: embed(model, tokenizer.encode(text)),
  }
  specs = {
    TEXT: tf.TensorSpec([None], tf.string, TEXT),
    TOKEN_IDS: tf.TensorSpec([None, None], tf.int32, TOKEN_IDS),
  }
  signatures = {
    name: tf.function(
      bodies[name], input_signature=[specs[given]], autograph=False
    ).get_concrete_function()
    for name, given in input_names(task).items()
  }
  read = {v.ref() for fn in signatures.values() for v in fn.variables}
  return signatures, [v for v in model.variables if v.ref() in read]


def of_token_ids(
  task: task_lib.Task, model: tf.keras.Model, token_ids: tf.Tensor
) -> dict[str, tf.Tensor]:
  """The numeric outputs.

  Args:
    task: A text task.
    model: Its model.
    token_ids: int32 [batch, length].

  Returns:
    `logits`; of classification also `probabilities` and `class`.
  """
  logits = tf.identity(model(token_ids, training=False))
  if task.kind != 'classification':
    return {'logits': logits}
  return {
    'logits': logits,
    'probabilities': tf.nn.softmax(logits),
    'class': tf.argmax(logits, axis=-1, output_type=tf.int64),
  }


def of_text(
  task: task_lib.Task,
  model: tf.keras.Model,
  token_ids: tf.Tensor,
  words: tf.RaggedTensor | None = None,
  first: tf.RaggedTensor | None = None,
) -> dict[str, tf.Tensor]:
  """The outputs for texts that were made ids.

  Args:
    task: A text task.
    model: Its model.
    token_ids: int32 [batch, length].
    words: For tagging, string [batch, (words)].
    first: For tagging, where each word's first piece is.

  Returns:
    Classification: the numeric outputs, `label` and its `probability`.
    Tagging: `words`, `tags` and their `probability`, [batch, words]; padding,
    and words that were cut off, have the tag '' and the probability 0.
    Masked tokens: `pieces` of the text, at each position the most probable of
    `tokens`, and its `probability`, [batch, length].
  """
  outputs = of_token_ids(task, model, token_ids)
  if task.kind == 'classification':
    return {
      **outputs,
      'label': tf.gather(tf.constant(task.class_names), outputs['class']),
      'probability': tf.reduce_max(outputs['probabilities'], axis=-1),
    }
  if task.kind == 'tagging':
    return _tags(task, outputs['logits'], words, first)
  pieces = tf.constant(task.pieces.vocab)
  likely = tf.argmax(outputs['logits'], axis=-1)
  return {
    'pieces': tf.gather(pieces, token_ids),
    'tokens': tf.gather(pieces, likely),
    'probability': _largest_probability(outputs['logits']),
  }


def at_words(logits: tf.Tensor, first: tf.RaggedTensor) -> tf.Tensor:
  """The logits at each word's first piece: [batch, words, tags]."""
  last = tf.shape(logits)[1] - 1
  positions = tf.minimum(first.to_tensor(), last)
  return tf.gather(logits, positions, batch_dims=1)


def embed(model: tf.keras.Model, token_ids: tf.Tensor) -> dict[str, tf.Tensor]:
  """The mean of the tokens' vectors, of norm 1: [batch, hidden size]."""
  hidden = model.get_layer('encoder')(token_ids, training=False)
  mask = tf.cast(tf.not_equal(token_ids, 0), hidden.dtype)[:, :, tf.newaxis]
  total = tf.reduce_sum(hidden * mask, axis=1)
  return {'embedding': tf.math.l2_normalize(total, axis=-1)}


def logits_shape(task: task_lib.Task) -> list[int | None]:
  """The shape of the logits on token ids, None where a batch decides."""
  if task.kind == 'classification':
    return [None, len(task.class_names)]
  if task.kind == 'tagging':
    return [None, None, len(task.class_names)]
  return [None, None, task.pieces.size]


def save_without_text(
  module: tf.Module,
  signatures: Mapping[str, Function],
  directory: pathlib.Path,
) -> None:
  """Writes the SavedModel that has no operation on texts.

  Args:
    module: What was saved in `directory`.
    signatures: Those that were saved.
    directory: Of the SavedModel with them.
  """
  below = directory / WITHOUT_TEXT
  serve = signatures[SERVE_TOKEN_IDS]
  both = {SERVING: serve, SERVE_TOKEN_IDS: serve}
  tf.saved_model.save(module, os.fspath(below), signatures=both)
  # Weights are most of it; those of the larger graph have all that it reads.
  for file in (directory / 'variables').iterdir():
    link = below / 'variables' / file.name
    link.unlink(missing_ok=True)
    try:
      os.link(file, link)
    except OSError:
      # Some file systems have no hard links.
      shutil.copyfile(file, link)


def _tags(
  task: task_lib.Task,
  logits: tf.Tensor,
  words: tf.RaggedTensor,
  first: tf.RaggedTensor,
) -> dict[str, tf.Tensor]:
  chosen = at_words(logits, first)
  # Position 0 is that of [CLS]: no word starts there.
  starts = first.to_tensor()
  is_read = (starts > 0) & (starts < task.max_length - 1)
  names = tf.gather(tf.constant(task.class_names), tf.argmax(chosen, axis=-1))
  return {
    'words': words.to_tensor(''),
    'tags': tf.where(is_read, names, ''),
    'probability': tf.where(is_read, _largest_probability(chosen), 0.0),
  }


def _largest_probability(logits: tf.Tensor) -> tf.Tensor:
  return tf.reduce_max(tf.nn.softmax(logits), axis=-1)
