"""The transformer of BERT on KerasNLP's layers.

With two changes: GELU is exact, as in the published weights (KerasNLP
approximates it), and dropout follows from a seed and the batch.
"""

import functools
from collections.abc import Mapping

import keras_nlp
import numpy as np
import tensorflow as tf

from models import bert_checkpoint, layers

# Built with a larger one, Keras' normalisation takes a less exact kernel.
_BUILT_EPSILON = 1e-12


class TokenDropout(tf.keras.layers.Layer):
  """`BatchSeededDropout` of one input; the encoder says which tokens it reads.

  Attributes:
    tokens: The batch's token ids, set before each call.
  """

  def __init__(self, rate: float, seed: int, name: str):
    super().__init__(name=name, autocast=False)
    self.rate = rate
    self._dropout = layers.BatchSeededDropout(rate, seed)
    self.tokens: tf.Tensor | None = None

  def call(self, inputs: tf.Tensor, training=None) -> tf.Tensor:
    if not training or not self.rate:
      return inputs
    kept = self._dropout([inputs, self.tokens], training=True)
    return tf.cast(kept, inputs.dtype)


class _Backbone(tf.keras.layers.Layer):
  """The layers of KerasNLP's `BertBackbone`, built.

  That is a functional model, whose graph nobody needs: making it takes longer
  than all the rest, and TFF has a model made several times.
  """

  def __init__(
    self, form: bert_checkpoint.Config, policy: tf.keras.mixed_precision.Policy
  ):
    super().__init__(name='backbone', dtype=policy)
    self.token_embedding = keras_nlp.layers.ReversibleEmbedding(
      form.vocabulary_size,
      form.hidden_size,
      dtype=policy,
      name='token_embedding',
    )
    self.position_embedding = keras_nlp.layers.PositionEmbedding(
      form.max_positions, dtype=policy, name='position_embedding'
    )
    self.segment_embedding = tf.keras.layers.Embedding(
      form.num_segments,
      form.hidden_size,
      dtype=policy,
      name='segment_embedding',
    )
    self.embeddings_layer_norm = tf.keras.layers.LayerNormalization(
      epsilon=_BUILT_EPSILON, dtype=policy, name='embeddings_layer_norm'
    )
    self.transformer_layers = [
      keras_nlp.layers.TransformerEncoder(
        form.intermediate_size,
        form.num_heads,
        layer_norm_epsilon=_BUILT_EPSILON,
        dtype=policy,
        name=f'transformer_layer_{number}',
      )
      for number in range(form.num_layers)
    ]
    self.pooled_dense = tf.keras.layers.Dense(
      form.hidden_size, activation='tanh', dtype=policy, name='pooled_dense'
    )
    shape = (None, None, form.hidden_size)
    self.token_embedding.build((None, None))
    self.position_embedding.build(shape)
    self.segment_embedding.build((None, None))
    self.embeddings_layer_norm.build(shape)
    head = form.hidden_size // form.num_heads
    for layer in self.transformer_layers:
      layer.build(shape)
      # Keras builds these only when they are called.
      attention = layer._self_attention_layer
      for dense in (
        attention._query_dense,
        attention._key_dense,
        attention._value_dense,
      ):
        dense.build(shape)
      attention._output_dense.build((None, None, form.num_heads, head))
    self.pooled_dense.build((None, form.hidden_size))


class Encoder(tf.keras.layers.Layer):
  """From token ids to a vector for each: the transformer of BERT.

  Attributes:
    backbone: The layers that have weights.
    activation: Of the dense layers inside.
  """

  def __init__(
    self,
    form: bert_checkpoint.Config,
    dropout: float,
    seed: int,
    compute_format: str = 'float32',
  ):
    """Makes an encoder whose weights are still to be set.

    Args:
      form: Its sizes.
      dropout: Rate behind embeddings, attention and dense layers, in [0, 1).
      seed: Each dropout derives its own from it.
      compute_format: What it computes in; weights are float32.
    """
    super().__init__(name='encoder')
    self.backbone = _Backbone(form, _policy(compute_format))
    self.activation = functools.partial(
      tf.keras.activations.gelu, approximate=form.activation == 'gelu_tanh'
    )

    def make(name: str) -> TokenDropout:
      return TokenDropout(dropout, layers.derive_seed(seed, name), name)

    self._dropouts = [make('embeddings_dropout')]
    self.backbone.embeddings_layer_norm.epsilon = form.layer_norm_epsilon
    for number, layer in enumerate(self.transformer_layers):
      layer._self_attention_layer_norm.epsilon = form.layer_norm_epsilon
      layer._feedforward_layer_norm.epsilon = form.layer_norm_epsilon
      layer._feedforward_intermediate_dense.activation = self.activation
      attention = layer._self_attention_layer
      for owner, attribute in (
        (attention, '_dropout_layer'),
        (layer, '_self_attention_dropout'),
        (layer, '_feedforward_dropout'),
      ):
        setattr(owner, attribute, make(f'layer_{number}{attribute}'))
        self._dropouts.append(getattr(owner, attribute))

  @property
  def transformer_layers(self) -> list[tf.keras.layers.Layer]:
    """KerasNLP's layers, from the embeddings up."""
    return self.backbone.transformer_layers

  def call(self, token_ids: tf.Tensor, training=None) -> tf.Tensor:
    """Encodes.

    Args:
      token_ids: int32 [batch, length].
      training: Whether there is dropout.

    Returns:
      float32 [batch, length, hidden size].
    """
    return self._encode(token_ids, training)

  # Autograph would take seconds to convert KerasNLP's code, of no use here:
  # nothing branches on tensors.
  @tf.autograph.experimental.do_not_convert
  def _encode(self, token_ids: tf.Tensor, training) -> tf.Tensor:
    for dropout in self._dropouts:
      dropout.tokens = token_ids
    backbone = self.backbone
    mask = tf.cast(tf.not_equal(token_ids, 0), tf.int32)
    tokens = backbone.token_embedding(token_ids)
    hidden = (
      tokens
      + backbone.position_embedding(tokens)
      + backbone.segment_embedding(tf.zeros_like(token_ids))
    )
    hidden = backbone.embeddings_layer_norm(hidden)
    hidden = self._dropouts[0](hidden, training=training)
    for layer in self.transformer_layers:
      # Without the mark of Keras' own masks, of which KerasNLP would warn.
      hidden = tf.identity(hidden)
      hidden = layer(hidden, padding_mask=mask, training=training)
    return tf.cast(hidden, tf.float32)


def _policy(compute_format: str) -> tf.keras.mixed_precision.Policy:
  prefix = '' if compute_format == 'float32' else 'mixed_'
  return tf.keras.mixed_precision.Policy(prefix + compute_format)


def assignments(
  encoder: Encoder, tensors: Mapping[str, np.ndarray]
) -> list[tuple[tf.Variable, np.ndarray]]:
  """Pairs each of an encoder's variables with its value in a checkpoint.

  Args:
    encoder: The encoder, not yet changed for fine-tuning.
    tensors: Of `bert_checkpoint.Checkpoint`, with a pooler.
  """
  backbone = encoder.backbone
  pairs: list[tuple[tf.Variable, np.ndarray]] = []

  def embedding(variable: tf.Variable, name: str) -> None:
    pairs.append((variable, tensors[f'embeddings.{name}.weight']))

  def norm(layer: tf.keras.layers.Layer, name: str) -> None:
    pairs.append((layer.gamma, tensors[f'{name}.weight']))
    pairs.append((layer.beta, tensors[f'{name}.bias']))

  def dense(layer: tf.keras.layers.Layer, name: str) -> None:
    for variable, value in (
      (layer.kernel, tensors[f'{name}.weight'].T),
      (layer.bias, tensors[f'{name}.bias']),
    ):
      pairs.append((variable, value.reshape(variable.shape)))

  embedding(backbone.token_embedding.embeddings, 'word_embeddings')
  embedding(
    backbone.position_embedding.position_embeddings, 'position_embeddings'
  )
  embedding(backbone.segment_embedding.embeddings, 'token_type_embeddings')
  norm(backbone.embeddings_layer_norm, 'embeddings.LayerNorm')
  for number, block in enumerate(encoder.transformer_layers):
    prefix, attention = f'encoder.layer.{number}.', block._self_attention_layer
    for name in ('query', 'key', 'value'):
      dense(
        getattr(attention, f'_{name}_dense'), f'{prefix}attention.self.{name}'
      )
    dense(attention._output_dense, f'{prefix}attention.output.dense')
    norm(
      block._self_attention_layer_norm, f'{prefix}attention.output.LayerNorm'
    )
    dense(block._feedforward_intermediate_dense, f'{prefix}intermediate.dense')
    dense(block._feedforward_output_dense, f'{prefix}output.dense')
    norm(block._feedforward_layer_norm, f'{prefix}output.LayerNorm')
  dense(backbone.pooled_dense, 'pooler.dense')
  return pairs
