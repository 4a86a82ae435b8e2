"""Reads the files of a BERT checkpoint: JSON, vocabulary, weights.

Weights come out under the names of Hugging Face's BertModel, whatever file they
were in; models/bert_checkpoint.py says what must be there.
"""

import json
import pathlib
import re
from collections.abc import Iterable, Mapping

import numpy as np
import tensorflow as tf

WEIGHTS = 'model.safetensors'
WEIGHTS_INDEX = 'model.safetensors.index.json'
_INDEX_SUFFIX = '.index'
_FIRST = 'embeddings.word_embeddings.weight'
_DTYPES = {'F64': '<f8', 'F32': '<f4', 'F16': '<f2', 'BF16': '<u2'}
_TENSORFLOW_NAMES = {
  'kernel': 'weight',
  'gamma': 'weight',
  'beta': 'bias',
  'word_embeddings': 'word_embeddings.weight',
  'position_embeddings': 'position_embeddings.weight',
  'token_type_embeddings': 'token_type_embeddings.weight',
  'output_bias': 'bias',
}
_TENSORFLOW_OTHERS = re.compile(
  r'/(adam_[mv]|m|v|Adam(_\d)?)$|^cls/seq_relationship/'
)


class CheckpointError(ValueError):
  """A checkpoint that can not be read, or is not one of BERT."""


def read_json(path: pathlib.Path) -> dict:
  """Reads a file that must hold one JSON object."""
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise CheckpointError(f'{path} can not be read: {error}') from error
  if not isinstance(content, dict):
    raise CheckpointError(f'{path} holds no JSON object')
  return content


def read_vocabulary(directory: pathlib.Path) -> tuple[str, ...]:
  """Reads the tokens in the order of their ids, from vocab.txt if it is there.

  Args:
    directory: Holds vocab.txt (a token a line) or tokenizer.json (WordPiece).

  Raises:
    CheckpointError: If there is neither, or it is not a WordPiece vocabulary.
  """
  plain, full = directory / 'vocab.txt', directory / 'tokenizer.json'
  if plain.exists():
    return parse_vocabulary(plain.read_bytes(), str(plain))
  if full.exists():
    return vocabulary_of_tokenizer(read_json(full), str(full))
  raise CheckpointError(
    f'{directory} has no vocabulary: neither vocab.txt nor tokenizer.json'
  )


def parse_vocabulary(content: bytes, source: str) -> tuple[str, ...]:
  """Splits a vocab.txt; `source` names it in errors."""
  try:
    text = content.decode('utf-8')
  except UnicodeDecodeError as error:
    raise CheckpointError(f'{source} is not UTF-8: {error}') from error
  # Not splitlines: a token may be one of Unicode's other line separators.
  tokens = text.replace('\r\n', '\n').split('\n')
  return tuple(tokens[:-1] if tokens[-1] == '' else tokens)


def vocabulary_of_tokenizer(content: dict, source: str) -> tuple[str, ...]:
  """Takes the tokens out of a tokenizer.json; `source` names it in errors."""
  model = content.get('model', {})
  if model.get('type', 'WordPiece') != 'WordPiece':
    raise CheckpointError(
      f'{source} is a tokenizer of type {model["type"]}, not of WordPiece'
    )
  ids = dict(model.get('vocab', {}))
  ids.update((t['content'], t['id']) for t in content.get('added_tokens', ()))
  tokens = sorted(ids, key=ids.get)
  if not tokens or [ids[token] for token in tokens] != list(range(len(tokens))):
    raise CheckpointError(
      f'{source}: the ids of its {len(tokens)} tokens are not 0, 1, 2, ...'
    )
  return tuple(tokens)


def read_case(
  directory: pathlib.Path, default: bool = True
) -> tuple[bool, bool]:
  """Says what happens to a text before it is cut into tokens.

  Args:
    directory: May hold tokenizer_config.json or tokenizer.json.
    default: Whether text becomes lower case if neither says so.

  Returns:
    Whether text becomes lower case, and whether accents are stripped: where
    that is not said, as BERT does, if and only if text becomes lower case.
  """
  lowercase = accents = chinese = None
  config, full = (
    directory / 'tokenizer_config.json',
    directory / 'tokenizer.json',
  )
  if config.exists():
    content = read_json(config)
    lowercase, accents = (
      content.get('do_lower_case'),
      content.get('strip_accents'),
    )
    chinese = content.get('tokenize_chinese_chars')
  elif full.exists():
    content = read_json(full).get('normalizer') or {}
    lowercase, accents = content.get('lowercase'), content.get('strip_accents')
    chinese = content.get('handle_chinese_chars')
  if chinese is False:
    raise CheckpointError(
      f'{directory}: its tokenizer leaves Chinese characters together; only '
      "tokenizers that separate them, as BERT's does, can be used here"
    )
  lowercase = default if lowercase is None else bool(lowercase)
  return lowercase, lowercase if accents is None else bool(accents)


def safetensors_weights(directory: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads model.safetensors, or the parts that its index names.

  Args:
    directory: Holds the files.

  Returns:
    Floating-point tensors as float32, under canonical names. Integers, as the
    position_ids of old files, are left out.

  Raises:
    CheckpointError: If a file is missing, cut off or of an unknown form.
  """
  index = directory / WEIGHTS_INDEX
  if (directory / WEIGHTS).exists() or not index.exists():
    return canonical(_read_safetensors(directory / WEIGHTS), str(directory))
  parts = read_json(index).get('weight_map')
  if not isinstance(parts, dict) or not parts:
    raise CheckpointError(f'{index} has no weight_map')
  found = {}
  for file in sorted(set(parts.values())):
    if pathlib.PurePath(file).name != file:
      raise CheckpointError(f'{index} names {file}, which lies elsewhere')
    found.update(_read_safetensors(directory / file))
  lost = sorted(n for n in parts if n not in found and 'position_ids' not in n)
  if lost:
    raise CheckpointError(
      f'{directory}: {parts[lost[0]]} lacks {lost[0]}, which {index.name} '
      'says is in it'
    )
  return canonical(found, str(directory))


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  safetensors = _import_safetensors()
  try:
    stored = safetensors.deserialize(path.read_bytes())
  except FileNotFoundError as error:
    raise CheckpointError(f'{path} does not exist') from error
  except (safetensors.SafetensorError, OSError) as error:
    raise CheckpointError(
      f'{path} is damaged or was cut off: {error}'
    ) from error
  tensors = {}
  for name, tensor in stored:
    if tensor['dtype'] not in _DTYPES:
      continue
    values = np.frombuffer(tensor['data'], _DTYPES[tensor['dtype']])
    if tensor['dtype'] == 'BF16':
      # bfloat16 is the upper half of a float32.
      values = (values.astype('<u4') << 16).view('<f4')
    tensors[name] = values.reshape(tensor['shape']).astype('<f4', copy=False)
  return tensors


def write_safetensors(
  path: pathlib.Path, tensors: Mapping[str, np.ndarray]
) -> None:
  """Writes float32 tensors in the form that Hugging Face's libraries read."""
  _import_safetensors()
  import safetensors.numpy

  contiguous = {n: np.ascontiguousarray(t) for n, t in tensors.items()}
  # Without this entry transformers refuses the file.
  path.write_bytes(safetensors.numpy.save(contiguous, {'format': 'pt'}))


def _import_safetensors():
  try:
    import safetensors
  except ImportError as error:
    raise ImportError(
      'Reading and writing BERT checkpoints takes the package safetensors, '
      'which the extra `bert` installs: pip install -r requirements/bert.txt'
    ) from error
  return safetensors


def tensorflow_prefix(directory: pathlib.Path) -> str | None:
  """Finds the one TensorFlow checkpoint in a directory.

  Args:
    directory: Where to look.

  Returns:
    Its prefix, as bert_model.ckpt; None if there is none.

  Raises:
    CheckpointError: If there are several, none of them called bert_model.ckpt
      or named by a file `checkpoint`.
  """
  found = sorted(
    path.name.removesuffix(_INDEX_SUFFIX)
    for path in directory.glob('*' + _INDEX_SUFFIX)
  )
  if not found:
    return None
  if len(found) == 1 or 'bert_model.ckpt' in found:
    name = found[0] if len(found) == 1 else 'bert_model.ckpt'
    return str(directory / name)
  latest = tf.train.latest_checkpoint(str(directory))
  if latest is None:
    raise CheckpointError(
      f'{directory} holds several TensorFlow checkpoints: {", ".join(found)}; '
      'keep one of them'
    )
  return latest


def tensorflow_weights(prefix: str) -> dict[str, np.ndarray]:
  """Reads a TensorFlow checkpoint with the names of Google's BERT.

  Args:
    prefix: The checkpoint's path without .index.

  Returns:
    Float32 tensors under canonical names, kernels transposed.

  Raises:
    CheckpointError: If it is damaged or has other names.
  """
  try:
    reader = tf.train.load_checkpoint(prefix)
    names = list(reader.get_variable_to_shape_map())
    if '_CHECKPOINTABLE_OBJECT_GRAPH' in names:
      raise CheckpointError(
        f'{prefix} is an object-based checkpoint of TensorFlow 2, whose names '
        "depend on the program that wrote it; what can be read is Google's "
        'original form, with names like bert/embeddings/word_embeddings'
      )
    stored = {
      name: reader.get_tensor(name)
      for name in names
      if not _TENSORFLOW_OTHERS.search(name)
    }
  except CheckpointError:
    raise
  except (tf.errors.OpError, RuntimeError, ValueError, IndexError) as error:
    raise CheckpointError(
      f'{prefix} is damaged or was cut off: {error}'
    ) from error
  tensors = {}
  for name, value in stored.items():
    if not np.issubdtype(value.dtype, np.floating):
      continue
    kernel = name.endswith('/kernel')
    tensors[_from_tensorflow(name)] = np.ascontiguousarray(
      value.T if kernel else value, '<f4'
    )
  return canonical(tensors, prefix)


def _from_tensorflow(name: str) -> str:
  *path, last = re.sub(r'\blayer_(\d+)\b', r'layer/\1', name).split('/')
  return '.'.join([*path, _TENSORFLOW_NAMES.get(last, last)])


def canonical(
  tensors: Mapping[str, np.ndarray], source: str
) -> dict[str, np.ndarray]:
  """Renames tensors as in BertModel: no prefix, no gamma and beta.

  Args:
    tensors: By the names they were stored under.
    source: Names the checkpoint in errors.

  Raises:
    CheckpointError: If the encoder's prefix can not be told.
  """
  prefix = _prefix(tensors, source)
  renamed = {}
  for name, tensor in tensors.items():
    name = name.removeprefix(prefix)
    name = re.sub(r'(?<=LayerNorm\.)gamma$', 'weight', name)
    renamed[re.sub(r'(?<=LayerNorm\.)beta$', 'bias', name)] = tensor
  return renamed


def _prefix(names: Iterable[str], source: str) -> str:
  found = sorted(n.removesuffix(_FIRST) for n in names if n.endswith(_FIRST))
  if not found:
    raise CheckpointError(f'{source} lacks the tensor {_FIRST}')
  if len(found) > 1:
    raise CheckpointError(
      f'{source} holds {len(found)} encoders, not one: '
      + ', '.join(f'{prefix}{_FIRST}' for prefix in found)
    )
  return found[0]
