"""What the model card says of a model that reads texts."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from models import bert, pretrained, quantization
from research.export import graph_tokenizer
from research.tasks import task as task_lib

# Beside the weights of an encoder.
SOURCE = 'source.json'
_FIELDS = ('name', 'title', 'licence', 'citation', 'url', 'notes')


def source(task: task_lib.Task, flags: Mapping[str, Any]) -> dict[str, str]:
  """Describes the encoder that training started from.

  Args:
    task: A text task.
    flags: Of the run.

  Returns:
    As source.json of `models.pretrained`: title, licence, notes and such. Of
    --checkpoint_dir what its own source.json says.
  """
  given = task.builder.checkpoint
  known = pretrained.ENCODERS.get(given.name)
  if known and known.sha256 == given.sha256:
    return {field: getattr(known, field) for field in _FIELDS}
  if given.name == 'random':
    return {'title': 'random initial weights, not pre-trained'}
  file = pathlib.Path(flags['checkpoint_dir']).expanduser() / SOURCE
  if file.exists():
    return json.loads(file.read_text())
  return {
    'title': f'{given.name}, from --checkpoint_dir, SHA-256 {given.sha256}',
    'licence': 'that of the checkpoint, unknown here',
  }


def entries(
  task: task_lib.Task,
  model: tf.keras.Model,
  metrics: Mapping[str, Any],
  flags: Mapping[str, Any],
) -> dict[str, str]:
  """Entries of the card.

  Args:
    task: A text task.
    model: Its trained model, with nothing merged.
    metrics: The last row of metrics.csv.
    flags: Of the run.
  """
  form = task.builder.checkpoint.config
  trained = sum(v.shape.num_elements() for v in model.trainable_variables)
  total = quantization.count_parameters(model)
  start = source(task, flags)
  found = {
    'encoder': start['title'],
    **{
      f'encoder {field}': start[field]
      for field in ('licence', 'notes', 'citation', 'url')
      if field in start
    },
    'encoder form': f'{form.num_layers} layers of width {form.hidden_size}, '
    f'{form.num_heads} heads, {form.vocabulary_size:,} tokens',
    'fine-tuning': _fine_tuning(flags),
    'parameters trained': f'{trained:,} of {total:,} '
    f'({100 * trained / total:.3g} %)',
  }
  sent = [
    metrics.get(f'{way}_bits_per_client') for way in ('upload', 'download')
  ]
  if all(isinstance(bits, int | float) for bits in sent):
    up, down = (round(bits / 8) for bits in sent)
    found['bytes per client and round'] = f'{up:,} up, {down:,} down'
  if _may_tell_of_clients(flags):
    found['lengths'] = task.lengths.line()
  return {
    **found,
    'longest text': f'{task.max_length} tokens, [CLS] and [SEP] among them; '
    'what is longer is cut at its end',
    'tokeniser': graph_tokenizer.DIFFERENCES,
  }


def _fine_tuning(flags: Mapping[str, Any]) -> str:
  how = flags['fine_tuning']
  settings = [
    f'--{name}={_shown(flags[name])}' for name in bert.SETTINGS.get(how, ())
  ]
  return ', '.join([f'{how}: {bert.FINE_TUNINGS[how]}', *settings])


def _shown(value: Any) -> str:
  return ','.join(value) if isinstance(value, list) else str(value)


def _may_tell_of_clients(flags: Mapping[str, Any]) -> bool:
  """Lengths of clients' texts are told without noise."""
  is_private = flags.get('dp_mechanism', 'none') != 'none'
  return not is_private or bool(flags.get('allow_unaccounted_release'))
