"""BERT tasks: classifying texts, tagging words, guessing masked tokens."""

import collections
import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from datasets import federated_data, word_pieces
from models import (
  bert,
  lora,
  masking,
  quantization,
  token_labels,
  weight_store,
)
from research.tasks import task as task_lib


@dataclasses.dataclass(frozen=True)
class Spec:
  """A task that `--task` can name.

  Attributes:
    kind: See `task.Task`.
    dataset: The dataset if no flag names one.
    model: The encoder if no flag names one.
    data_kind: What `datasets.text.KINDS` says of the sets that fit.
  """

  kind: str
  dataset: str
  model: str
  data_kind: str


TASKS: Mapping[str, Spec] = {
  'sequence_classification': Spec(
    'classification', 'movie_reviews', 'minilm_l6', 'classification'
  ),
  'token_classification': Spec('tagging', 'conll2003', 'minilm_l6', 'tagging'),
  'masked_language_modelling': Spec(
    'masked_language_modelling', 'shakespeare', 'tiny', 'language'
  ),
}
_EVALUATION_TOKENS = 8192


@dataclasses.dataclass(frozen=True)
class Settings:
  """How a model reads text and is exported; the attributes are flags.

  Attributes:
    pooling: See `bert.Builder.classifier`.
    length_bucket: Batches are cut to a multiple of so many tokens that holds
      their longest text; 0 leaves them as long as the longest of all.
    seed: Of masking.
    class_weights: Weights of the classes in the loss; empty for none.
    export_encoder: Whether an export also has the encoder as a checkpoint.
  """

  pooling: str = 'mean'
  length_bucket: int = 0
  seed: int = 0
  class_weights: tuple[float, ...] = ()
  export_encoder: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTask(task_lib.Task):
  """A task whose examples are texts, as token ids.

  Attributes:
    builder: Makes the models.
    pieces: Cuts texts into tokens.
    lengths: What is known of the texts' lengths.
    num_outputs: Classes or tags.
    settings: How the model reads text.
    compute_format: What clients compute in: float32 or bfloat16.
  """

  builder: bert.Builder
  pieces: word_pieces.WordPieces
  lengths: word_pieces.Lengths
  num_outputs: int
  settings: Settings
  compute_format: str = 'float32'

  @property
  def max_length(self) -> int:
    """Tokens of a text at most, [CLS] and [SEP] too, when it is served."""
    positions = self.builder.checkpoint.config.max_positions
    return min(self.lengths.limit, positions)

  def merge(self, trained: tf.keras.Model) -> tf.keras.Model:
    """Copies a model, and merges LoRA or bias offsets into what was frozen."""
    copy = self.build_keras_model()
    for variable, value in zip(copy.variables, trained.variables, strict=True):
      variable.assign(value)
    return lora.merge(copy)

  def build_client_keras_model(self) -> tf.keras.Model:
    if not self.initial_files:
      return _build_model(self, self.compute_format)
    with weight_store.initial_values(self.initial_files):
      return _build_model(self, self.compute_format)

  def quantized(self, settings: quantization.Settings) -> 'TextTask':
    if self.compute_format != 'float32':
      raise ValueError(
        'Quantization-aware training computes in float32: leave out '
        '--mixed_precision.'
      )
    task = dataclasses.replace(
      self,
      builder=self.builder.quantized(settings),
      quantization=settings,
      build_keras_model=lambda: _build_model(task),
    )
    return task

  def in_mixed_precision(self, compute_format: str) -> 'TextTask':
    if self.quantization is not None:
      raise ValueError(
        f'--mixed_precision={compute_format} does not go with --quantize=qat, '
        'which computes in float32.'
      )
    if compute_format != 'bfloat16':
      raise ValueError(
        f'--mixed_precision={compute_format}: BERT trains in bfloat16 or '
        'float32; float16 would need its gradients scaled.'
      )
    return dataclasses.replace(self, compute_format=compute_format)


def build(
  name: str,
  data: federated_data.FederatedData,
  builder: bert.Builder,
  pieces: word_pieces.WordPieces,
  lengths: word_pieces.Lengths,
  settings: Settings = Settings(),
) -> TextTask:
  """Builds a task.

  Args:
    name: A key of `TASKS`.
    data: Clients with token ids `x` [n, length], as `word_pieces.tokenise`
      makes them.
    builder: Makes the models.
    pieces: What cut the texts into tokens.
    lengths: What `tokenise` found.
    settings: How the model reads text.

  Returns:
    The task.

  Raises:
    ValueError: If task and data do not fit together.
  """
  spec = TASKS[name]
  length = data.train.element_spec['x'].shape[0]
  most = builder.checkpoint.config.max_positions
  if length > most:
    raise ValueError(
      f'--max_length={length}: the encoder has {most} positions.'
    )
  if spec.kind != 'masked_language_modelling' and data.num_classes < 2:
    raise ValueError(f'--dataset={data.name} has a single class.')
  is_classes = spec.kind == 'classification'
  task = TextTask(
    name=name,
    data=data,
    kind=spec.kind,
    class_names=data.class_names,
    build_keras_model=lambda: _build_model(task),
    build_loss=functools.partial(_build_loss, spec.kind, settings),
    build_metrics=functools.partial(_build_metrics, is_classes),
    preprocess_features=functools.partial(trim, bucket=settings.length_bucket),
    preprocess=lambda batch: _preprocess(task, batch),
    example_shape=(length,),
    has_frozen_weights=True,
    trains_part=not builder.trains_all,
    initial_weights_sha256=builder.checkpoint.sha256,
    evaluation_batch_size=max(1, _EVALUATION_TOKENS // length),
    builder=builder,
    pieces=pieces,
    lengths=lengths,
    num_outputs=data.num_classes,
    settings=settings,
  )
  return task


def trim(tokens: tf.Tensor, bucket: int) -> tf.Tensor:
  """Cuts a batch's common padding.

  Args:
    tokens: int32 [batch, length].
    bucket: The result's length is a multiple of it; 0 leaves the batch.

  Returns:
    int32 [batch, at most length].
  """
  if not bucket:
    return tokens
  used = tf.reduce_sum(tf.cast(tf.not_equal(tokens, 0), tf.int32), axis=1)
  longest = tf.maximum(tf.reduce_max(used), 1)
  return tokens[:, : (longest + bucket - 1) // bucket * bucket]


def balanced_class_weights(
  split: federated_data.Split, num_classes: int
) -> tuple[float, ...]:
  """Weights with which each class counts the same: n / (classes * n_c).

  It counts the labels of all clients, which tells something of them.
  """
  counts = np.zeros(num_classes)
  for client_id in split.client_ids:
    labels = split.client(client_id)['y']
    counts += np.bincount(labels, minlength=num_classes)
  # A class without examples has no loss to weigh.
  present = np.maximum(counts, 1)
  return tuple((counts.sum() / (num_classes * present)).tolist())


def _preprocess(task: TextTask, batch: task_lib.Batch) -> task_lib.Batch:
  tokens, labels = task.preprocess_features(batch['x']), batch['y']
  if task.kind == 'tagging':
    labels = labels[:, : tf.shape(tokens)[1]]
  elif task.kind == 'masked_language_modelling':
    pieces = task.pieces
    tokens, labels = masking.mask(
      tokens,
      mask_id=pieces.mask_id,
      special_ids=(pieces.pad_id, pieces.cls_id, pieces.sep_id),
      vocabulary_size=pieces.size,
      seed=task.settings.seed,
    )
  return collections.OrderedDict(x=tokens, y=labels)


def _build_model(
  task: TextTask, compute_format: str = 'float32'
) -> tf.keras.Model:
  builder = task.builder
  if task.kind == 'classification':
    return builder.classifier(
      task.num_outputs, task.settings.pooling, compute_format
    )
  if task.kind == 'tagging':
    return builder.tagger(task.num_outputs, compute_format)
  return builder.masked_language_model(compute_format)


def _build_loss(kind: str, settings: Settings) -> tf.keras.losses.Loss:
  if kind != 'classification':
    return token_labels.TokenCrossentropy()
  if settings.class_weights:
    return token_labels.WeightedCrossentropy(settings.class_weights)
  return tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _build_metrics(is_classes: bool) -> Sequence[tf.keras.metrics.Metric]:
  if is_classes:
    return [tf.keras.metrics.SparseCategoricalAccuracy('accuracy')]
  return [token_labels.TokenAccuracy('accuracy')]
