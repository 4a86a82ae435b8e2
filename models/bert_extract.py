"""Takes a trained encoder out of a model, as a checkpoint.

The inverse of what `bert.Builder` does: what it gives can be saved, shared and
trained further.
"""

from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from models import bert_checkpoint, bert_encoder, lora, quantized_encoder

_HEAD = 'cls.predictions.'


def checkpoint(
  model: tf.keras.Model,
  like: bert_checkpoint.Checkpoint,
  *,
  name: str,
  has_pooler: bool = False,
) -> bert_checkpoint.Checkpoint:
  """Makes a checkpoint of a model's encoder.

  Args:
    model: Of `bert.Builder`, with `lora.merge` done. It is of no use
      afterwards: the parts beside its layers are taken away.
    like: What the model started from; has configuration and vocabulary.
    name: What to call the result.
    has_pooler: Whether the pooler was trained; that of `like` is kept, too.

  Returns:
    The encoder, with the head for masked tokens if the model has it.

  Raises:
    CheckpointError: If the model has adapters, which no BERT has, or weights
      that are no numbers.
  """
  encoder = model.get_layer('encoder')
  quantized_encoder.remove(encoder)
  for part in list(lora.parts(encoder)):
    if not hasattr(part, 'merge'):
      raise bert_checkpoint.CheckpointError(
        'adapters are layers of their own: an encoder with them is no BERT and '
        'can not be written as one. LoRA, biases and whole layers can.'
      )
  _take_parts_away(encoder)
  tensors = dict(_named(encoder, like.config))
  if not (has_pooler or like.has_pooler):
    tensors = {k: v for k, v in tensors.items() if 'pooler' not in k}
  tensors.update(_head(model))
  return bert_checkpoint.assemble(
    like.config,
    tensors,
    like.vocabulary,
    lowercase=like.lowercase,
    strip_accents=like.strip_accents,
    name=name,
  )


def _take_parts_away(encoder: bert_encoder.Encoder) -> None:
  for owner in list(encoder._flatten_layers()):
    for attribute, value in list(vars(owner).items()):
      if isinstance(value, lora.Part):
        setattr(owner, attribute, value.base)


def _named(
  encoder: bert_encoder.Encoder, config: bert_checkpoint.Config
) -> Iterator[tuple[str, np.ndarray]]:
  """Yields the encoder's tensors under their names in a checkpoint."""
  shapes = bert_checkpoint.expected_shapes(config)
  names = list(shapes)
  # Each tensor says its name by its number, through all transpositions.
  numbered = {
    name: np.broadcast_to(np.float32(number), shapes[name])
    for number, name in enumerate(names)
  }
  for variable, number in bert_encoder.assignments(encoder, numbered):
    name = names[int(number.flat[0])]
    value, shape = variable.numpy(), shapes[name]
    is_kernel = len(shape) == 2 and not name.startswith('embeddings.')
    value = value.reshape(shape[::-1] if is_kernel else shape)
    yield name, value.T if is_kernel else value


def _head(model: tf.keras.Model) -> Iterator[tuple[str, np.ndarray]]:
  for layer in model.layers:
    if layer.name == 'masked_language_head':
      transform, dense = _HEAD + 'transform.', layer._dense
      if isinstance(dense, quantized_encoder.QuantizedDense):
        dense = dense.base
      yield f'{transform}dense.weight', dense.kernel.numpy().T
      yield f'{transform}dense.bias', dense.bias.numpy()
      yield f'{transform}LayerNorm.weight', layer._norm.gamma.numpy()
      yield f'{transform}LayerNorm.bias', layer._norm.beta.numpy()
      yield f'{_HEAD}bias', layer._bias.numpy()
