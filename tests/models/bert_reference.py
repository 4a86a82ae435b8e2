"""BERT's forward pass in NumPy and float64: an independent reference.

Written from the paper and Hugging Face's tensor names, it shares no code with
models/.
"""

import math

import numpy as np

_erf = np.vectorize(math.erf, otypes=[np.float64])


def sequence_output(config, tensors, ids, mask=None, segments=None):
  """Returns the last layer, [batch, length, hidden].

  Args:
    config: A `bert_checkpoint.Config`.
    tensors: By canonical names.
    ids: Token ids, [batch, length].
    mask: 1 for tokens that are attended to, 0 for padding, [batch, length].
    segments: Segment ids, [batch, length]; zeros if None.
  """
  ids = np.asarray(ids)
  batch, length = ids.shape
  mask = np.ones_like(ids) if mask is None else np.asarray(mask)
  segments = np.zeros_like(ids) if segments is None else np.asarray(segments)
  x = _tensor(tensors, 'embeddings.word_embeddings.weight')[ids]
  x = x + _tensor(tensors, 'embeddings.position_embeddings.weight')[:length]
  x = x + _tensor(tensors, 'embeddings.token_type_embeddings.weight')[segments]
  x = _norm(config, tensors, x, 'embeddings.LayerNorm')
  heads = (batch, length, config.num_heads, -1)
  for index in range(config.num_layers):
    layer = f'encoder.layer.{index}'
    query, key, value = (
      _dense(tensors, x, f'{layer}.attention.self.{part}')
      .reshape(heads)
      .transpose(0, 2, 1, 3)
      for part in ('query', 'key', 'value')
    )
    scores = query @ key.transpose(0, 1, 3, 2) / math.sqrt(query.shape[-1])
    scores = np.where(mask[:, None, None, :] > 0, scores, -1e30)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    scores /= scores.sum(-1, keepdims=True)
    mixed = (scores @ value).transpose(0, 2, 1, 3).reshape(x.shape)
    mixed = _dense(tensors, mixed, f'{layer}.attention.output.dense')
    name = f'{layer}.attention.output.LayerNorm'
    x = _norm(config, tensors, x + mixed, name)
    inner = _dense(tensors, x, f'{layer}.intermediate.dense')
    inner = _dense(tensors, _gelu(config, inner), f'{layer}.output.dense')
    x = _norm(config, tensors, x + inner, f'{layer}.output.LayerNorm')
  return x


def pooled_output(config, tensors, ids, mask=None, segments=None):
  """Returns what the pooler makes of the first token, [batch, hidden]."""
  x = sequence_output(config, tensors, ids, mask, segments)
  return np.tanh(_dense(tensors, x[:, 0], 'pooler.dense'))


def masked_lm_logits(config, tensors, ids, mask=None, segments=None):
  """Returns the head's logits at all positions, [batch, length, vocabulary]."""
  x = sequence_output(config, tensors, ids, mask, segments)
  head = 'cls.predictions'
  x = _gelu(config, _dense(tensors, x, f'{head}.transform.dense'))
  x = _norm(config, tensors, x, f'{head}.transform.LayerNorm')
  embedding = _tensor(tensors, 'embeddings.word_embeddings.weight')
  return x @ embedding.T + _tensor(tensors, f'{head}.bias')


def sentence_embedding(config, tensors, ids, mask=None):
  """Returns the mean over a sentence's tokens, of length 1."""
  x = sequence_output(config, tensors, ids, mask)
  weights = np.ones(x.shape[:2]) if mask is None else np.asarray(mask)
  mean = (x * weights[..., None]).sum(1) / weights.sum(1, keepdims=True)
  return mean / np.linalg.norm(mean, axis=-1, keepdims=True)


def _tensor(tensors, name):
  return np.asarray(tensors[name], np.float64)


def _dense(tensors, x, name):
  weight = _tensor(tensors, f'{name}.weight')
  return x @ weight.T + _tensor(tensors, f'{name}.bias')


def _norm(config, tensors, x, name):
  centred = x - x.mean(-1, keepdims=True)
  variance = (centred**2).mean(-1, keepdims=True)
  scaled = centred / np.sqrt(variance + config.layer_norm_epsilon)
  scale = _tensor(tensors, f'{name}.weight')
  return scaled * scale + _tensor(tensors, f'{name}.bias')


def _gelu(config, x):
  if config.activation == 'gelu':
    return x * 0.5 * (1 + _erf(x / math.sqrt(2)))
  inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
  return x * 0.5 * (1 + np.tanh(inner))
