"""The benchmark's models as plain TensorFlow: functions of weights and inputs.

`forward(workload)` gives the function; its weights are in the order of the
Keras model's `trainable_variables`.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf

from experiments.benchmark import workloads

Forward = Callable[[Sequence[tf.Tensor], tf.Tensor], tf.Tensor]


def forward(workload: workloads.Workload) -> Forward:
  """Returns the model of a workload.

  Args:
    workload: Its `model` is one of `cnn`, `linear`, `wide` and `bert`.

  Returns:
    A function from weights and x [batch, ...] to outputs [batch, classes or 1].
  """
  return {'cnn': _cnn, 'linear': _linear, 'wide': _wide, 'bert': _bert}[
    workload.model
  ]


def loss(
  workload: workloads.Workload,
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
  """Returns the loss: targets y [batch] and outputs to a scalar."""
  if workload.model in ('linear', 'wide'):
    return lambda y, outputs: tf.reduce_mean((outputs[:, 0] - y) ** 2)
  return lambda y, logits: tf.reduce_mean(
    tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
  )


def _cnn(weights, x):
  hidden = x
  for kernel, bias in (weights[:2], weights[2:4]):
    hidden = tf.nn.conv2d(hidden, kernel, 1, 'SAME')
    hidden = tf.nn.relu(tf.nn.bias_add(hidden, bias))
    hidden = tf.nn.max_pool2d(hidden, 2, 2, 'SAME')
  hidden = tf.reshape(hidden, [-1, 7 * 7 * 64])
  hidden = tf.nn.relu(tf.matmul(hidden, weights[4]) + weights[5])
  return tf.matmul(hidden, weights[6]) + weights[7]


def _linear(weights, x):
  return tf.matmul(x, weights[0]) + weights[1]


def _wide(weights, x):
  return tf.reduce_mean(tf.matmul(x, weights[0]), -1, keepdims=True)


def _bert(weights, x):
  weights = list(weights)

  def take(count):
    taken, weights[:count] = weights[:count], []
    return taken

  table, positions = take(2)
  hidden = _layer_norm(tf.gather(table, x) + positions, *take(2))
  for _ in range(2):
    hidden = _layer_norm(hidden + _attention(hidden, *take(8)), *take(2))
    inner = _gelu(_dense(hidden, *take(2)))
    hidden = _layer_norm(hidden + _dense(inner, *take(2)), *take(2))
  pooled = tf.tanh(_dense(hidden[:, 0], *take(2)))
  return _dense(pooled, *take(2))


def _attention(hidden, query, bq, key, bk, value, bv, output, bo):
  """Multi-head attention over hidden [batch, positions, width]."""
  width, heads, size = query.shape
  length = hidden.shape[1]

  def project(kernel, bias):
    flat = _dense(
      hidden, tf.reshape(kernel, [width, width]), tf.reshape(bias, [width])
    )
    return tf.transpose(
      tf.reshape(flat, [-1, length, heads, size]), [0, 2, 1, 3]
    )

  scaled = project(query, bq) * size**-0.5
  scores = tf.matmul(scaled, project(key, bk), transpose_b=True)
  mixed = tf.matmul(tf.nn.softmax(scores), project(value, bv))
  mixed = tf.reshape(tf.transpose(mixed, [0, 2, 1, 3]), [-1, length, width])
  return _dense(mixed, tf.reshape(output, [width, width]), bo)


def _dense(x, kernel, bias):
  """x kernel + bias as one matrix product over all leading dimensions."""
  flat = tf.matmul(tf.reshape(x, [-1, x.shape[-1]]), kernel)
  flat = tf.nn.bias_add(flat, bias)
  return tf.reshape(flat, [-1, *x.shape[1:-1], kernel.shape[-1]])


def _layer_norm(x, gamma, beta, epsilon=1e-12):
  mean = tf.reduce_mean(x, -1, keepdims=True)
  centred = x - mean
  variance = tf.reduce_mean(centred**2, -1, keepdims=True)
  return centred * (tf.math.rsqrt(variance + epsilon) * gamma) + beta


def _gelu(x):
  return tf.nn.gelu(x, approximate=True)
