"""The benchmark's BERT models as plain TensorFlow; see `bare_models.py`."""

from collections.abc import Callable, Sequence

import tensorflow as tf

from experiments.benchmark import encoders, workloads

_EPSILON = 1e-12


class _Weights:
  """Weights that are used up in their order."""

  def __init__(self, weights: Sequence[tf.Tensor]):
    self._rest = list(weights)

  def take(self, count: int) -> list[tf.Tensor]:
    taken, self._rest = self._rest[:count], self._rest[count:]
    return taken


def tiny(weights: Sequence[tf.Tensor], x: tf.Tensor) -> tf.Tensor:
  """The model of workload D."""
  take = _Weights(weights).take
  table, positions = take(2)
  hidden = _layer_norm(tf.gather(table, x) + positions, *take(2))
  for _ in range(2):
    hidden = _layer_norm(hidden + _attention(hidden, take(8)), *take(2))
    inner = tf.nn.gelu(_dense(hidden, *take(2)), approximate=True)
    hidden = _layer_norm(hidden + _dense(inner, *take(2)), *take(2))
  pooled = tf.tanh(_dense(hidden[:, 0], *take(2)))
  return _dense(pooled, *take(2))


def full(workload: workloads.Workload) -> Callable[..., tf.Tensor]:
  """Returns the model of workload G, all of which is trained."""
  blocks = encoders.FORMS[workload.encoder].num_layers

  def forward(weights, x):
    take = _Weights(weights).take
    hidden = _embed(x, *take(5))
    for _ in range(blocks):
      hidden = _block(hidden, take(16))
    return _dense(tf.reduce_mean(hidden, 1), *take(2))

  return forward


def lora(workload: workloads.Workload) -> Callable[..., tf.Tensor]:
  """Returns the model of workload F: frozen weights with LoRA beside them."""
  tensors = encoders.builder(workload.encoder, 'lora').checkpoint.tensors
  embeddings = [tf.constant(tensors[name]) for name in _EMBEDDINGS]
  blocks = [
    _frozen(tensors, f'encoder.layer.{i}.', workload.encoder)
    for i in range(encoders.FORMS[workload.encoder].num_layers)
  ]

  def forward(weights, x):
    take = _Weights(weights).take
    hidden = _embed(x, *embeddings)
    for block in blocks:
      hidden = _block(hidden, block, {'query': take(2), 'value': take(2)})
    return _dense(tf.reduce_mean(hidden, 1), *take(2))

  return forward


_EMBEDDINGS = (
  'embeddings.word_embeddings.weight',
  'embeddings.position_embeddings.weight',
  'embeddings.token_type_embeddings.weight',
  'embeddings.LayerNorm.weight',
  'embeddings.LayerNorm.bias',
)
# Of a transformer layer, in the order of the Keras model's.
_PARTS = (
  'attention.self.query',
  'attention.self.key',
  'attention.self.value',
  'attention.output.dense',
  'attention.output.LayerNorm',
  'output.LayerNorm',
  'intermediate.dense',
  'output.dense',
)


def _frozen(tensors, prefix: str, form: str) -> list[tf.Tensor]:
  """A transformer layer's weights as `_block` takes them."""
  config, found = encoders.FORMS[form], []
  heads = (config.num_heads, config.hidden_size // config.num_heads)
  for part in _PARTS:
    weight = tensors[f'{prefix}{part}.weight']
    bias = tensors[f'{prefix}{part}.bias']
    if 'self' in part:
      weight, bias = weight.T.reshape(-1, *heads), bias.reshape(heads)
    elif 'dense' in part:
      weight = weight.T
    found += [tf.constant(weight), tf.constant(bias)]
  return found


def _embed(x, tokens, positions, segments, gamma, beta):
  """All tokens are of the first segment."""
  hidden = tf.gather(tokens, x) + (positions[: x.shape[1]] + segments[0])
  return _layer_norm(hidden, gamma, beta)


def _block(hidden, weights, changes=None):
  take = _Weights(weights).take
  attended = _attention(hidden, take(8), changes)
  norm, last_norm, inner, outer = take(2), take(2), take(2), take(2)
  hidden = _layer_norm(hidden + attended, *norm)
  inner = tf.nn.gelu(_dense(hidden, *inner))
  return _layer_norm(hidden + _dense(inner, *outer), *last_norm)


def _attention(hidden, weights, changes=None):
  """Multi-head attention over hidden [batch, positions, width].

  Args:
    hidden: float32 [batch, positions, width].
    weights: Kernels and biases of query, key, value and output.
    changes: Low-rank matrices A and B of `query` and `value`, if any.
  """
  query, bq, key, bk, value, bv, output, bo = weights
  width, heads, size = query.shape
  length = hidden.shape[1]

  def project(kernel, bias, name):
    flat = _dense(
      hidden, tf.reshape(kernel, [width, width]), tf.reshape(bias, [width])
    )
    if changes and name in changes:
      flat += _low_rank(hidden, *changes[name])
    return tf.transpose(
      tf.reshape(flat, [-1, length, heads, size]), [0, 2, 1, 3]
    )

  scaled = project(query, bq, 'query') * size**-0.5
  scores = tf.matmul(scaled, project(key, bk, 'key'), transpose_b=True)
  mixed = tf.matmul(tf.nn.softmax(scores), project(value, bv, 'value'))
  mixed = tf.reshape(tf.transpose(mixed, [0, 2, 1, 3]), [-1, length, width])
  return _dense(mixed, tf.reshape(output, [width, width]), bo)


def _low_rank(x, a, b):
  flat = tf.matmul(tf.matmul(tf.reshape(x, [-1, x.shape[-1]]), a), b)
  scale = encoders.LORA.lora_alpha / encoders.LORA.lora_rank
  return tf.reshape(flat * scale, [-1, *x.shape[1:]])


def _dense(x, kernel, bias):
  """x kernel + bias as one matrix product over all leading dimensions."""
  flat = tf.matmul(tf.reshape(x, [-1, x.shape[-1]]), kernel)
  flat = tf.nn.bias_add(flat, bias)
  return tf.reshape(flat, [-1, *x.shape[1:-1], kernel.shape[-1]])


def _layer_norm(x, gamma, beta):
  mean = tf.reduce_mean(x, -1, keepdims=True)
  centred = x - mean
  variance = tf.reduce_mean(centred**2, -1, keepdims=True)
  return centred * (tf.math.rsqrt(variance + _EPSILON) * gamma) + beta
