"""The benchmark's models as plain TensorFlow: functions of weights and inputs.

`forward(workload)` gives the function; its weights are in the order of the
Keras model's `trainable_variables`.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf

from experiments.benchmark import bare_bert, workloads

Forward = Callable[[Sequence[tf.Tensor], tf.Tensor], tf.Tensor]


def forward(workload: workloads.Workload) -> Forward:
  """Returns the model of a workload.

  Args:
    workload: Any; of an encoder, what is frozen becomes constants.

  Returns:
    A function from weights and x [batch, ...] to outputs [batch, classes or 1].
  """
  if workload.model == 'lora':
    return bare_bert.lora(workload)
  if workload.model == 'full':
    return bare_bert.full(workload)
  models = {
    'cnn': _cnn,
    'linear': _linear,
    'wide': _wide,
    'bert': bare_bert.tiny,
  }
  return models[workload.model]


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
