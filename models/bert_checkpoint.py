"""BERT's weights, vocabulary and configuration, from files and into files.

Two forms are read, neither with torch nor with transformers: a directory of
Hugging Face (config.json, model.safetensors, vocab.txt) and a TensorFlow
checkpoint of Google's BERT (bert_config.json, bert_model.ckpt.*, vocab.txt).
models/bert_checkpoint_onnx.py reads a third.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import secrets
import shutil
from collections.abc import Mapping

import numpy as np

from models import bert_checkpoint_checks as checks
from models import bert_checkpoint_files as files

CheckpointError = files.CheckpointError

# Their names in Hugging Face's config.json, and ours.
_ACTIVATIONS = {
  'gelu': 'gelu',
  'gelu_python': 'gelu',
  'gelu_new': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh',
}
_FIELDS = {
  'vocab_size': 'vocabulary_size',
  'num_hidden_layers': 'num_layers',
  'num_attention_heads': 'num_heads',
  'hidden_size': 'hidden_size',
  'intermediate_size': 'intermediate_size',
  'max_position_embeddings': 'max_positions',
  'type_vocab_size': 'num_segments',
}
_HEAD = checks.HEAD


@dataclasses.dataclass(frozen=True)
class Config:
  """The shape of a BERT encoder.

  Attributes:
    vocabulary_size: Rows of the token embedding.
    num_layers: Transformer layers.
    num_heads: Attention heads of a layer.
    hidden_size: Width of the encoder.
    intermediate_size: Width inside the feed-forward part.
    max_positions: The longest sequence.
    num_segments: Rows of the segment embedding.
    dropout: Probability of dropout, of attention too.
    layer_norm_epsilon: Added to the variance.
    activation: 'gelu' (exact) or 'gelu_tanh' (its approximation).
  """

  vocabulary_size: int
  num_layers: int
  num_heads: int
  hidden_size: int
  intermediate_size: int
  max_positions: int = 512
  num_segments: int = 2
  dropout: float = 0.1
  layer_norm_epsilon: float = 1e-12
  activation: str = 'gelu'

  def __post_init__(self):
    for field in _FIELDS.values():
      value = getattr(self, field)
      if not isinstance(value, int) or value < 1:
        raise CheckpointError(f'{field} is {value!r}, not a positive number')
    if self.hidden_size % self.num_heads:
      raise CheckpointError(
        f'hidden_size {self.hidden_size} is no multiple of num_heads '
        f'{self.num_heads}'
      )
    if self.activation not in _ACTIVATIONS.values():
      raise CheckpointError(
        f'the activation is {self.activation}; known are '
        + ' and '.join(dict.fromkeys(_ACTIVATIONS.values()))
      )


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A pre-trained BERT encoder.

  Attributes:
    config: Its shape.
    tensors: Float32, by Hugging Face's names without 'bert.': weights of dense
      layers are [out, in]. See `expected_shapes`.
    vocabulary: WordPiece tokens, in the order of their ids.
    lowercase: Whether text becomes lower case before it is cut into tokens.
    strip_accents: Whether accents are stripped then.
    name: What to call it.
  """

  config: Config
  tensors: Mapping[str, np.ndarray]
  vocabulary: tuple[str, ...]
  lowercase: bool
  strip_accents: bool
  name: str

  @functools.cached_property
  def sha256(self) -> str:
    """Of all of it but its name; the same whatever files it was read from."""
    settings = dataclasses.asdict(self.config) | {
      'vocabulary': self.vocabulary,
      'lowercase': self.lowercase,
      'strip_accents': self.strip_accents,
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(self.tensors):
      digest.update(f'{name}{self.tensors[name].shape}'.encode())
      digest.update(np.ascontiguousarray(self.tensors[name], '<f4').data)
    return digest.hexdigest()

  @property
  def parameters(self) -> int:
    """How many weights it has."""
    return sum(tensor.size for tensor in self.tensors.values())

  @property
  def has_pooler(self) -> bool:
    """Whether the dense layer above the first token is there."""
    return 'pooler.dense.weight' in self.tensors

  @property
  def has_masked_lm_head(self) -> bool:
    """Whether the head that guesses masked tokens is there."""
    return _HEAD + 'bias' in self.tensors


def read(directory: str | os.PathLike) -> Checkpoint:
  """Reads a checkpoint; finds out its form by itself.

  Args:
    directory: Where it is: a directory of Hugging Face or of Google's BERT.

  Returns:
    The checkpoint, complete and checked.

  Raises:
    CheckpointError: If it is of another architecture, incomplete or damaged.
  """
  path = pathlib.Path(directory).expanduser()
  if not path.is_dir():
    what = 'is a file, not a directory' if path.exists() else 'does not exist'
    raise CheckpointError(f'{path} {what}: no BERT checkpoint is there')
  lowercase = 'cased' not in path.name.lower() or 'uncased' in path.name.lower()
  prefix = None
  if any((path / n).exists() for n in (files.WEIGHTS, files.WEIGHTS_INDEX)):
    lowercase, settings = True, path / 'config.json'
  else:
    prefix = files.tensorflow_prefix(path)
    if prefix is None:
      raise CheckpointError(_what_is_missing(path))
    settings = path / 'bert_config.json'
    settings = settings if settings.exists() else path / 'config.json'
  config = parse_config(files.read_json(settings), str(settings))
  tensors = (
    files.tensorflow_weights(prefix)
    if prefix
    else files.safetensors_weights(path)
  )
  lowercase, strip_accents = files.read_case(path, lowercase)
  return assemble(
    config,
    tensors,
    files.read_vocabulary(path),
    lowercase=lowercase,
    strip_accents=strip_accents,
    name=path.resolve().name,
    source=str(path),
  )


def _what_is_missing(path: pathlib.Path) -> str:
  torch = sorted(f.name for f in path.glob('*.bin')) + sorted(
    f.name for f in path.glob('*.pt')
  )
  if torch:
    return (
      f"{path} has its weights in torch's form ({torch[0]}), a pickle that is "
      f'not read here; convert it to {files.WEIGHTS} where torch is installed: '
      'transformers.AutoModel.from_pretrained(...).save_pretrained(..., '
      'safe_serialization=True)'
    )
  found = ', '.join(sorted(f.name for f in path.iterdir())[:10]) or 'nothing'
  return (
    f'{path} holds no BERT checkpoint. Looked for: {files.WEIGHTS} or '
    f'{files.WEIGHTS_INDEX} with config.json and vocab.txt (Hugging Face); '
    'bert_model.ckpt.index with bert_config.json and vocab.txt (TensorFlow). '
    f'Found: {found}'
  )


def parse_config(content: Mapping, source: str) -> Config:
  """Reads the content of a config.json.

  Args:
    content: Hugging Face's or Google's names and values.
    source: Names the file in errors.

  Raises:
    CheckpointError: If it is not of a plain BERT encoder.
  """
  others = [
    name
    for name in content.get('architectures') or ()
    if not name.startswith('Bert')
  ]
  kind = content.get('model_type', 'bert')
  refused = {
    f'is of the architecture {kind}': kind != 'bert',
    f'is of the architecture {", ".join(others)}': bool(others),
    'is a decoder': bool(
      content.get('is_decoder') or content.get('add_cross_attention')
    ),
    'has pruned_heads': bool(content.get('pruned_heads')),
  }
  position = content.get('position_embedding_type', 'absolute')
  refused[f'has position_embedding_type {position}'] = position != 'absolute'
  activation = content.get('hidden_act', 'gelu')
  refused[f'has the activation {activation}'] = activation not in _ACTIVATIONS
  for what, true in refused.items():
    if true:
      raise CheckpointError(
        f'{source} {what}; what can be read is bert: an encoder with absolute '
        f'positions and one of the activations {", ".join(_ACTIVATIONS)}'
      )
  lost = [name for name in _FIELDS if name not in content]
  if lost:
    raise CheckpointError(f'{source} lacks {", ".join(lost)}')
  try:
    return Config(
      **{field: content[name] for name, field in _FIELDS.items()},
      dropout=content.get('hidden_dropout_prob', 0.1),
      layer_norm_epsilon=content.get('layer_norm_eps', 1e-12),
      activation=_ACTIVATIONS[activation],
    )
  except CheckpointError as error:
    raise CheckpointError(f'{source}: {error}') from error


def expected_shapes(
  config: Config, *, pooler: bool = True, masked_lm_head: bool = False
) -> dict[str, tuple[int, ...]]:
  """Returns each tensor's canonical name and its shape.

  Args:
    config: The encoder's shape.
    pooler: Whether to include the pooler.
    masked_lm_head: Whether to include the head for masked tokens; its output
      matrix is the token embedding.
  """
  hidden, inner = config.hidden_size, config.intermediate_size
  shapes = {
    'embeddings.word_embeddings.weight': (config.vocabulary_size, hidden),
    'embeddings.position_embeddings.weight': (config.max_positions, hidden),
    'embeddings.token_type_embeddings.weight': (config.num_segments, hidden),
  }

  def dense(name, size_in=hidden, size_out=hidden):
    shapes[f'{name}.weight'] = (size_out, size_in)
    shapes[f'{name}.bias'] = (size_out,)

  def norm(name):
    shapes[f'{name}.weight'] = shapes[f'{name}.bias'] = (hidden,)

  norm('embeddings.LayerNorm')
  for index in range(config.num_layers):
    layer = f'encoder.layer.{index}'
    for part in ('self.query', 'self.key', 'self.value', 'output.dense'):
      dense(f'{layer}.attention.{part}')
    norm(f'{layer}.attention.output.LayerNorm')
    dense(f'{layer}.intermediate.dense', hidden, inner)
    dense(f'{layer}.output.dense', inner, hidden)
    norm(f'{layer}.output.LayerNorm')
  if pooler:
    dense('pooler.dense')
  if masked_lm_head:
    dense(_HEAD + 'transform.dense')
    norm(_HEAD + 'transform.LayerNorm')
    shapes[_HEAD + 'bias'] = (config.vocabulary_size,)
  return shapes


def assemble(
  config: Config,
  tensors: Mapping[str, np.ndarray],
  vocabulary: tuple[str, ...],
  *,
  lowercase: bool = True,
  strip_accents: bool | None = None,
  name: str,
  source: str | None = None,
) -> Checkpoint:
  """Checks the parts of a checkpoint and puts them together.

  Args:
    config: The shape that the tensors must have.
    tensors: By canonical names; heads for other purposes are left out.
    vocabulary: Tokens in the order of their ids.
    lowercase: See `Checkpoint`.
    strip_accents: See `Checkpoint`; None means as `lowercase`.
    name: What to call it.
    source: Names it in errors; else `name` does.

  Returns:
    The checkpoint.

  Raises:
    CheckpointError: If a tensor is missing, unknown, of another shape or not
      finite, or if the vocabulary does not fit.
  """
  source = source or name
  tensors = checks.tie_decoder(dict(tensors), source)
  shapes = expected_shapes(
    config,
    pooler=any(key.startswith('pooler.') for key in tensors),
    masked_lm_head=any(key.startswith(_HEAD) for key in tensors),
  )
  checks.check_tensors(tensors, shapes, source)
  checks.check_vocabulary(vocabulary, config.vocabulary_size, source)
  return Checkpoint(
    config=config,
    tensors={key: np.asarray(tensors[key], '<f4') for key in shapes},
    vocabulary=tuple(vocabulary),
    lowercase=lowercase,
    strip_accents=lowercase if strip_accents is None else strip_accents,
    name=name,
  )


def save(checkpoint: Checkpoint, directory: str | os.PathLike) -> pathlib.Path:
  """Writes a checkpoint as a directory of Hugging Face, whole or not at all.

  Args:
    checkpoint: What to write.
    directory: Where; must not exist yet.

  Returns:
    The directory.

  Raises:
    CheckpointError: If the directory exists.
  """
  target = pathlib.Path(directory).expanduser()
  if target.exists():
    raise CheckpointError(f'{target} exists already; nothing was written')
  target.parent.mkdir(parents=True, exist_ok=True)
  temporary = target.with_name(f'.{target.name}.{secrets.token_hex(4)}.part')
  temporary.mkdir()
  try:
    _write(checkpoint, temporary)
    for file in temporary.iterdir():
      with open(file, 'rb+') as opened:
        os.fsync(opened.fileno())
    os.rename(temporary, target)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  return target


def _write(checkpoint: Checkpoint, directory: pathlib.Path) -> None:
  config, head = checkpoint.config, checkpoint.has_masked_lm_head
  settings = {
    'model_type': 'bert',
    'architectures': ['BertForMaskedLM' if head else 'BertModel'],
    'position_embedding_type': 'absolute',
    **{name: getattr(config, field) for name, field in _FIELDS.items()},
    'hidden_act': 'gelu' if config.activation == 'gelu' else 'gelu_new',
    'hidden_dropout_prob': config.dropout,
    'attention_probs_dropout_prob': config.dropout,
    'layer_norm_eps': config.layer_norm_epsilon,
    'pad_token_id': checkpoint.vocabulary.index('[PAD]'),
  }
  tokenizer = {
    'tokenizer_class': 'BertTokenizer',
    'do_lower_case': checkpoint.lowercase,
    'strip_accents': checkpoint.strip_accents,
    'tokenize_chinese_chars': True,
    'model_max_length': config.max_positions,
  }
  for name, content in (
    ('config.json', settings),
    ('tokenizer_config.json', tokenizer),
  ):
    (directory / name).write_text(json.dumps(content, indent=2) + '\n')
  (directory / 'vocab.txt').write_bytes(
    ''.join(f'{token}\n' for token in checkpoint.vocabulary).encode()
  )
  # BertForMaskedLM has the encoder as its part `bert`, beside `cls`.
  tensors = {
    f'bert.{name}' if head and not name.startswith(_HEAD) else name: tensor
    for name, tensor in checkpoint.tensors.items()
  }
  files.write_safetensors(directory / files.WEIGHTS, tensors)
