"""Client programs that stand in for those of the runtime: plain local SGD."""

import math
import types

import tensorflow as tf

from models import emnist
from research.runtime import pfor_rules

_RATE = 0.1


def build(loss, weights, x, y):
  """Local SGD over batches x[K, B, ...] and y[K, B], one step for each.

  With one more axis in front, the clients', the work is vectorised; all clients
  start from the same weights.
  """
  steps = y.shape[-2]

  def client(weights, x, y):
    def step(i, *current):
      with tf.GradientTape() as tape:
        tape.watch(current)
        value = loss(current, x[i], y[i])
      gradients = tape.gradient(value, current)
      return i + 1, *(
        w - _RATE * g for w, g in zip(current, gradients, strict=True)
      )

    return tf.while_loop(
      lambda i, *_: i < steps, step, (tf.constant(0), *weights)
    )[1:]

  pfor_rules.register()

  @tf.function(jit_compile=True, autograph=False)
  def function(*arguments):
    *own, data, labels = arguments
    if labels.shape.rank == 2:
      return client(own, data, labels)
    return tf.vectorized_map(
      lambda batches: client(own, *batches),
      (data, labels),
      fallback_to_while_loop=False,
    )

  names = [f'weight_{i}' for i in range(len(weights))]
  return types.SimpleNamespace(
    function=function,
    example_arguments=(*weights, x, y),
    argument_names=(*names, 'x', 'y'),
    result_names=tuple(names),
  )


def _normal(*shape, seed=0):
  return tf.random.stateless_normal(shape, [seed, len(shape)])


def linear_regression(clients=(), steps=4, batch=5, inputs=100):
  """Least squares; `clients` is () or (their number,)."""

  def loss(weights, x, y):
    with tf.name_scope('linear'):
      predicted = tf.linalg.matmul(x, weights[0])[:, 0]
    return tf.reduce_mean((predicted - y) ** 2)

  lead = (*clients, steps, batch)
  return build(
    loss,
    [_normal(inputs, 1)],
    _normal(*lead, inputs) / 10,
    _normal(*lead, seed=1),
  )


def keras(name, clients=(), steps=3, batch=10, num_classes=10):
  """A model of models.emnist on 28x28 images, by its layers' names."""
  model = emnist.build(
    name, input_shape=(28, 28, 1), num_classes=num_classes, seed=0
  )

  def call(layer, weights, hidden):
    if not weights:
      return layer(hidden)
    kernel, bias = weights
    if kernel.shape.rank == 4:
      hidden = tf.nn.conv2d(hidden, kernel, 1, layer.padding.upper())
    else:
      hidden = tf.linalg.matmul(hidden, kernel)
    return layer.activation(hidden + bias)

  def loss(weights, x, y):
    hidden, used = x, 0
    for layer in model.layers[1:]:
      count = len(layer.trainable_variables)
      with tf.name_scope(layer.name):
        hidden = call(layer, weights[used : used + count], hidden)
      used += count
    return tf.reduce_mean(
      tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=hidden)
    )

  lead = (*clients, steps, batch)
  labels = tf.random.stateless_uniform(lead, [1, 2], 0, num_classes, tf.int32)
  return build(
    loss,
    [tf.constant(variable) for variable in model.trainable_variables],
    tf.random.stateless_uniform((*lead, 28, 28, 1), [3, 4]),
    labels,
  )


def transformer(clients=(), steps=2, batch=8, length=32, width=64, layers=2):
  """A small BERT: embeddings, self-attention, feed-forward, a classifier."""
  heads, vocabulary = 4, 1000
  shapes = [(vocabulary, width), (length, width)]
  for _ in range(layers):
    shapes += [(width, 3 * width), (width, width)]
    shapes += [(width, 4 * width), (4 * width, width)]
  shapes.append((width, 2))
  weights = [
    _normal(*shape, seed=i) / math.sqrt(width) for i, shape in enumerate(shapes)
  ]

  def norm(x):
    mean, variance = tf.nn.moments(x, [-1], keepdims=True)
    return (x - mean) * tf.math.rsqrt(variance + 1e-6)

  def attention(hidden, qkv, out):
    mixed = tf.reshape(hidden @ qkv, [batch, length, 3, heads, width // heads])
    query, key, value = tf.unstack(tf.transpose(mixed, [2, 0, 3, 1, 4]))
    scores = tf.matmul(query, key, transpose_b=True) / math.sqrt(width // heads)
    mixed = tf.transpose(tf.nn.softmax(scores) @ value, [0, 2, 1, 3])
    return tf.reshape(mixed, [batch, length, width]) @ out

  def loss(weights, x, y):
    embedding, position, *rest, classifier = weights
    hidden = tf.one_hot(x, vocabulary) @ embedding + position
    for i in range(layers):
      qkv, out, up, down = rest[4 * i : 4 * i + 4]
      with tf.name_scope(f'encoder_{i}'):
        hidden = norm(hidden + attention(hidden, qkv, out))
        hidden = norm(hidden + tf.nn.gelu(hidden @ up) @ down)
    return tf.reduce_mean(
      tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=y, logits=hidden[:, 0] @ classifier
      )
    )

  lead = (*clients, steps, batch)
  x = tf.random.stateless_uniform(
    (*lead, length), [1, 2], 0, vocabulary, tf.int32
  )
  y = tf.random.stateless_uniform(lead, [3, 4], 0, 2, tf.int32)
  return build(loss, weights, x, y)


def one_operation(layer, operation, *arguments):
  """A program of one operation in the name scope of a layer."""

  @tf.function(jit_compile=True, autograph=False)
  def function(*values):
    with tf.name_scope(f'model/{layer}'):
      return [operation(*values)]

  return types.SimpleNamespace(
    function=function,
    example_arguments=arguments,
    argument_names=tuple(f'argument_{i}' for i in range(len(arguments))),
    result_names=('result',),
  )
