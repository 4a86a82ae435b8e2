"""BERT encoders and their heads as Keras models.

Devlin et al. 2019 (arXiv:1810.04805). Initial weights come from a checkpoint by
way of files (`weight_store`), whether it was trained or drawn at random. Every
model takes token ids, int32 [batch, length] with 0 as padding.
"""

import copy
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from models import (
  bert_checkpoint,
  bert_encoder,
  layers,
  lora,
  quantization,
  quantized_encoder,
  weight_store,
)

# Layers, hidden size; heads of 64, four times as wide inside. Turc et al. 2019
# (arXiv:1908.08962), Table 1; base is that of Devlin et al.
SIZES: Mapping[str, tuple[int, int]] = {
  'tiny': (2, 128),
  'mini': (4, 256),
  'small': (4, 512),
  'medium': (8, 512),
  'base': (12, 768),
}
POOLINGS = ('mean', 'first')
# What is trained of the encoder; heads always are.
FINE_TUNINGS: Mapping[str, str] = {
  'full': 'everything',
  'head': 'nothing of the encoder',
  'lora': 'low-rank changes of dense layers',
  'adapters': 'bottlenecks behind dense layers, and normalisations',
  'last_layers': 'the last transformer layers',
  'bias': 'biases alone (BitFit)',
}
# What each way to fine-tune has for settings, attributes of `FineTuning`.
SETTINGS: Mapping[str, tuple[str, ...]] = {
  'lora': ('lora_rank', 'lora_alpha', 'lora_targets'),
  'adapters': ('adapter_size',),
  'last_layers': ('last_layers',),
}
# Dense layers of a transformer layer, by the names that flags have for them.
LORA_TARGETS = (
  'query',
  'key',
  'value',
  'attention_output',
  'intermediate',
  'output',
)
_STDDEV = 0.02


@dataclasses.dataclass(frozen=True)
class FineTuning:
  """What is trained of an encoder; the attributes are flags.

  Attributes:
    fine_tuning: A key of `FINE_TUNINGS`.
    lora_rank: Rank of LoRA's matrices.
    lora_alpha: LoRA's scale is this by the rank.
    lora_targets: Of `LORA_TARGETS`.
    adapter_size: Width of an adapter's bottleneck.
    last_layers: How many transformer layers are trained.
  """

  fine_tuning: str = 'full'
  lora_rank: int = 4
  lora_alpha: float = 8.0
  lora_targets: tuple[str, ...] = ('query', 'value')
  adapter_size: int = 16
  last_layers: int = 1


def config(
  size: str, vocabulary_size: int, **changes
) -> bert_checkpoint.Config:
  """The form of an encoder by its name.

  Args:
    size: A key of `SIZES`.
    vocabulary_size: How many tokens there are.
    **changes: Other fields of the result.
  """
  num_layers, hidden = SIZES[size]
  values = {
    'vocabulary_size': vocabulary_size,
    'num_layers': num_layers,
    'num_heads': hidden // 64,
    'hidden_size': hidden,
    'intermediate_size': 4 * hidden,
  }
  return bert_checkpoint.Config(**{**values, **changes})


def initialise(
  form: bert_checkpoint.Config, vocabulary: Sequence[str], seed: int
) -> bert_checkpoint.Checkpoint:
  """Draws the weights of an untrained encoder.

  As BERT's: normal with standard deviation 0.02, cut at two of them; biases 0,
  scales of normalisations 1.

  Args:
    form: Its sizes.
    vocabulary: Its tokens.
    seed: Each tensor derives its own from it.
  """
  tensors = {
    name: _draw(name, shape, seed)
    for name, shape in bert_checkpoint.expected_shapes(form).items()
  }
  return bert_checkpoint.Checkpoint(
    config=form,
    tensors=tensors,
    vocabulary=tuple(vocabulary),
    lowercase=True,
    strip_accents=True,
    name='random',
  )


def _draw(name: str, shape: Sequence[int], seed: int) -> np.ndarray:
  if name.endswith('bias'):
    return np.zeros(shape, np.float32)
  if 'LayerNorm' in name:
    return np.ones(shape, np.float32)
  key = tf.constant([layers.derive_seed(seed, name), 0])
  return tf.random.stateless_truncated_normal(shape, key, 0.0, _STDDEV).numpy()


class Builder:
  """Makes fresh models of one encoder, in whatever graph they are needed.

  Attributes:
    checkpoint: The encoder's weights at first.
  """

  def __init__(
    self,
    checkpoint: bert_checkpoint.Checkpoint,
    *,
    fine_tuning: FineTuning = FineTuning(),
    dropout: float | None = None,
    seed: int = 0,
    store: weight_store.WeightStore | None = None,
  ):
    """Stores the checkpoint's weights.

    Args:
      checkpoint: The encoder.
      fine_tuning: What of it is trained.
      dropout: Rate of dropout; None is the checkpoint's.
      seed: Of the heads, of what is trained beside frozen layers, of dropout.
      store: Where the weights are kept.

    Raises:
      ValueError: If more layers are to be trained than there are.
    """
    count = checkpoint.config.num_layers
    if fine_tuning.fine_tuning == 'last_layers' and not (
      0 < fine_tuning.last_layers <= count
    ):
      raise ValueError(
        f'--last_layers={fine_tuning.last_layers}: the encoder has {count} '
        'transformer layers.'
      )
    self.checkpoint = checkpoint
    self._tuning = fine_tuning
    self._dropout = checkpoint.config.dropout if dropout is None else dropout
    self._seed = seed
    self._quantization: quantization.Settings | None = None
    store = store or weight_store.WeightStore()
    with weight_store.creation_order() as made:
      encoder = self._bare_encoder()
    # Some checkpoints have no pooler.
    lacking = {
      name: _draw(name, shape, seed)
      for name, shape in bert_checkpoint.expected_shapes(
        checkpoint.config
      ).items()
      if name not in checkpoint.tensors
    }
    tensors = {**lacking, **checkpoint.tensors}
    values = {
      variable.ref(): value
      for variable, value in bert_encoder.assignments(encoder, tensors)
    }
    self._files: list[pathlib.Path] = [
      store.put(values[variable.ref()]) for variable in made
    ]

  @property
  def trains_all(self) -> bool:
    """Whether everything is trained that an output depends on."""
    return self._tuning.fine_tuning == 'full'

  def quantized(self, settings: quantization.Settings) -> 'Builder':
    """Returns a builder of models whose dense layers are quantized."""
    builder = copy.copy(self)
    builder._quantization = settings
    return builder

  def classifier(
    self,
    num_classes: int,
    pooling: str = 'mean',
    compute_format: str = 'float32',
  ) -> tf.keras.Model:
    """A model to logits [batch, classes].

    Args:
      num_classes: How many.
      pooling: Of `POOLINGS`: the mean over the tokens, or a dense layer with
        tanh on the first one (Devlin et al. 2019, section 3.1).
      compute_format: What the encoder computes in: float32 or bfloat16.
    """
    tokens, encoder = self._start(compute_format, pooling == 'first')
    hidden = encoder(tokens)
    if pooling == 'first':
      pooled = encoder.backbone.pooled_dense(hidden[:, 0])
    else:
      pooled = _MeanOfTokens(name='mean')([hidden, tokens])
    pooled = self._head_dropout(pooled, tokens)
    logits = self._dense(num_classes, 'logits')(pooled)
    return tf.keras.Model(tokens, logits, name='bert_classifier')

  def tagger(
    self, num_tags: int, compute_format: str = 'float32'
  ) -> tf.keras.Model:
    """A model to logits [batch, length, tags]."""
    tokens, encoder = self._start(compute_format)
    hidden = self._head_dropout(encoder(tokens), tokens)
    logits = self._dense(num_tags, 'logits')(hidden)
    return tf.keras.Model(tokens, logits, name='bert_tagger')

  def masked_language_model(
    self, compute_format: str = 'float32'
  ) -> tf.keras.Model:
    """A model to logits [batch, length, tokens]; its embeddings are tied.

    The head of Devlin et al. 2019, section 3.1: dense, GELU, normalisation,
    the product with the embeddings, a bias.
    """
    tokens, encoder = self._start(compute_format)
    head = _MaskedLanguageHead(encoder, self.checkpoint, self._seed)
    if self._quantization is not None:
      head.quantize(self._quantization)
    return tf.keras.Model(
      tokens, head(encoder(tokens)), name='bert_masked_language_model'
    )

  def sentence_encoder(self) -> tf.keras.Model:
    """A model to the tokens' mean vector, of norm 1: [batch, hidden size]."""
    tokens, encoder = self._start()
    mean = _MeanOfTokens(name='mean')([encoder(tokens), tokens])
    unit = tf.keras.layers.UnitNormalization(name='unit')(mean)
    return tf.keras.Model(tokens, unit, name='bert_sentence_encoder')

  def _start(
    self, compute_format: str = 'float32', has_pooler: bool = False
  ) -> tuple[tf.Tensor, bert_encoder.Encoder]:
    """The input, and an encoder with what is trained of it."""
    with weight_store.initial_values(self._files):
      encoder = self._bare_encoder(compute_format)
    _choose_trained(encoder, self._tuning, self._seed)
    # Part of a head, not of what is fine-tuned; frozen where it is not used.
    encoder.backbone.pooled_dense.trainable = has_pooler
    if self._quantization is not None:
      quantized_encoder.quantize(encoder, self._quantization)
    return tf.keras.Input([None], dtype=tf.int32, name='token_ids'), encoder

  def _bare_encoder(
    self, compute_format: str = 'float32'
  ) -> bert_encoder.Encoder:
    form = self.checkpoint.config
    return bert_encoder.Encoder(form, self._dropout, self._seed, compute_format)

  def _head_dropout(self, hidden: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
    seed = layers.derive_seed(self._seed, 'head_dropout')
    dropout = layers.BatchSeededDropout(self._dropout, seed, name='dropout')
    return dropout([hidden, tokens]) if self._dropout else hidden

  def _dense(self, units: int, name: str) -> tf.keras.layers.Layer:
    initializer = tf.keras.initializers.TruncatedNormal(
      0.0, _STDDEV, layers.derive_seed(self._seed, name)
    )
    dense = tf.keras.layers.Dense(
      units, kernel_initializer=initializer, name=name
    )
    if self._quantization is None:
      return dense
    dense.build([None, self.checkpoint.config.hidden_size])
    return quantized_encoder.QuantizedDense(
      dense, self._quantization, one_scale=True
    )


class _MeanOfTokens(tf.keras.layers.Layer):
  """The mean of the vectors [batch, length, hidden] of all but padding."""

  def call(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
    hidden, tokens = inputs
    mask = tf.cast(tf.not_equal(tokens, 0), hidden.dtype)[:, :, tf.newaxis]
    count = tf.maximum(tf.reduce_sum(mask, axis=1), 1)
    return tf.reduce_sum(hidden * mask, axis=1) / count


class _MaskedLanguageHead(tf.keras.layers.Layer):
  """From vectors [batch, length, hidden] to logits over the vocabulary."""

  def __init__(
    self,
    encoder: bert_encoder.Encoder,
    checkpoint: bert_checkpoint.Checkpoint,
    seed: int,
  ):
    super().__init__(name='masked_language_head')
    form = checkpoint.config
    prefix, given = 'cls.predictions.', checkpoint.tensors

    def start(name: str, default, transpose: bool = False):
      if prefix + name not in given:
        return default
      value = given[prefix + name]
      return tf.keras.initializers.Constant(value.T if transpose else value)

    normal = tf.keras.initializers.TruncatedNormal(
      0.0, _STDDEV, layers.derive_seed(seed, 'transform')
    )
    self._dense = tf.keras.layers.Dense(
      form.hidden_size,
      encoder.activation,
      kernel_initializer=start('transform.dense.weight', normal, True),
      bias_initializer=start('transform.dense.bias', 'zeros'),
      name='transform',
    )
    self._norm = tf.keras.layers.LayerNormalization(
      epsilon=form.layer_norm_epsilon,
      gamma_initializer=start('transform.LayerNorm.weight', 'ones'),
      beta_initializer=start('transform.LayerNorm.bias', 'zeros'),
      name='norm',
    )
    self._dense.build([None, None, form.hidden_size])
    self._norm.build([None, None, form.hidden_size])
    self._bias = self.add_weight(
      'bias', [form.vocabulary_size], initializer=start('bias', 'zeros')
    )
    self._embedding = encoder.backbone.token_embedding
    self._logits = None

  def quantize(self, settings: quantization.Settings) -> None:
    """Quantizes the dense layer and the product with the embeddings."""
    self._dense = quantized_encoder.QuantizedDense(self._dense, settings)
    self._logits = quantized_encoder.QuantizedLogits(settings)

  def call(self, hidden: tf.Tensor) -> tf.Tensor:
    hidden = self._norm(self._dense(hidden))
    if self._logits is not None:
      table = self._embedding.embeddings.read_value()
      return self._logits(hidden, table, self._bias.read_value())
    return self._embedding(hidden, reverse=True) + self._bias


def _choose_trained(
  encoder: bert_encoder.Encoder, tuning: FineTuning, seed: int
) -> None:
  """Freezes what is not trained and adds what is trained beside it."""
  kind = tuning.fine_tuning
  if kind == 'full':
    return
  lora.freeze(encoder)
  blocks = encoder.transformer_layers
  if kind == 'last_layers':
    for block in blocks[-tuning.last_layers :]:
      for layer in block._flatten_layers():
        layer.trainable = True
  elif kind == 'lora':
    owners = [
      _owner(b, target) for b in blocks for target in tuning.lora_targets
    ]
    lora.add_lora(owners, tuning.lora_rank, tuning.lora_alpha, seed)
  elif kind == 'adapters':
    for number, block in enumerate(blocks):
      for target in ('attention_output', 'output'):
        owner, attribute = _owner(block, target)
        derived = layers.derive_seed(seed, f'adapter_{number}_{target}')
        part = lora.Adapter(
          getattr(owner, attribute), tuning.adapter_size, derived
        )
        setattr(owner, attribute, part)
      block._self_attention_layer_norm.trainable = True
      block._feedforward_layer_norm.trainable = True
  elif kind == 'bias':
    owners = [(encoder.backbone, 'embeddings_layer_norm')]
    for block in blocks:
      owners += [_owner(block, target) for target in LORA_TARGETS]
      owners += [
        (block, '_self_attention_layer_norm'),
        (block, '_feedforward_layer_norm'),
      ]
    for owner, attribute in owners:
      setattr(owner, attribute, lora.BiasOffset(getattr(owner, attribute)))


def _owner(
  block: tf.keras.layers.Layer, target: str
) -> tuple[tf.keras.layers.Layer, str]:
  """Which layer has a dense layer of `LORA_TARGETS`, and as which attribute."""
  if target in ('intermediate', 'output'):
    return block, f'_feedforward_{target}_dense'
  return block._self_attention_layer, f'_{target.split("_")[-1]}_dense'
