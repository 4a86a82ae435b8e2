"""Training steps of whole models, vectorised."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from models import emnist
from research.runtime import pfor_rules
from tests.research.runtime import looped

registered = looped.registered


def build_step(name, side, channels, batch_size=4):
  """A training step of a Keras model as a function of weights and batch.

  Traced in a graph of its own, with placeholders in place of the variables, and
  imported wherever it is called.
  """
  model = functools.partial(
    emnist.build, name, input_shape=(side, side, channels), num_classes=5
  )
  weights = [variable.numpy() for variable in model(seed=1).variables]
  with tf.Graph().as_default() as graph:
    placeholder = tf.compat.v1.placeholder
    variables = [placeholder(tf.float32, value.shape) for value in weights]
    x = placeholder(tf.float32, [batch_size, side, side, channels])
    y = placeholder(tf.int32, [batch_size])
    pending = iter(variables)
    with tf.variable_creator_scope(lambda _, **kwargs: next(pending)):
      keras_model = model(seed=1)
      with tf.GradientTape() as tape:
        tape.watch(variables)
        logits = keras_model(x, training=True)
        if name == 'autoencoder':
          loss = tf.reduce_mean(tf.keras.losses.mean_squared_error(x, logits))
        else:
          loss = tf.reduce_mean(
            tf.keras.losses.sparse_categorical_crossentropy(
              y, logits, from_logits=True
            )
          )
    clipped, norm = tf.clip_by_global_norm(tape.gradient(loss, variables), 1.0)
    updated = [v - 0.1 * g for v, g in zip(variables, clipped, strict=True)]
    correct = tf.keras.metrics.sparse_categorical_accuracy(
      y, tf.reshape(logits, [batch_size, -1])
    )
    fetches = [loss, norm, correct, *updated]
  graph_def = graph.as_graph_def()
  feeds = [*variables, x, y]
  values = [
    np.stack([value + 0.02 * looped.normal(*value.shape) * i for i in range(3)])
    for value in weights
  ]
  batches = looped.normal(3, *x.shape, dtype=np.float32)
  stacked = [*values, batches, looped.integers(5, 3, batch_size)]
  stacked = [tf.cast(v, f.dtype) for v, f in zip(stacked, feeds, strict=True)]

  def step(arguments):
    return tf.graph_util.import_graph_def(
      graph_def,
      input_map={f.name: v for f, v in zip(feeds, arguments, strict=True)},
      return_elements=[fetch.name for fetch in fetches],
    )

  return step, stacked, {node.op for node in graph_def.node}


SIDES = {'lenet5': 12, 'niid_bench_cnn': 16, 'resnet_gn': 4}
SLOW = ('resnet_gn', 'resnet18_gn')


@pytest.mark.parametrize(
  'name, jit',
  [
    pytest.param(name, jit, marks=[pytest.mark.slow] if name in SLOW else [])
    for name in emnist.MODELS
    # Its forward pass assigns to variables: see test_equality.
    if name != 'batch_norm_cnn'
    for jit in (False, True)
  ],
)
def test_a_training_step_of_every_model(name, jit):
  channels = 3 if name.startswith('resnet') else 1
  step, stacked, types = build_step(name, SIDES.get(name, 8), channels)
  assert pfor_rules.missing(types) == []
  looped.compare(step, stacked, jit=jit, tolerance=3e-6)


def normalise(layer, x, *weights):
  """Calls a fresh layer of Keras with tensors in place of its variables."""
  pending = iter(weights)
  with tf.variable_creator_scope(lambda _, **kwargs: next(pending)):
    layer.build(x.shape)
  return layer.call(x)


@looped.both
@pytest.mark.parametrize(
  'build_layer',
  [
    tf.keras.layers.LayerNormalization,
    functools.partial(tf.keras.layers.GroupNormalization, 2),
  ],
)
def test_normalisation(build_layer, jit):
  def function(stacked):
    with tf.GradientTape() as tape:
      tape.watch(stacked)
      loss = tf.nn.l2_loss(tf.sin(normalise(build_layer(), *stacked)))
    return loss, tape.gradient(loss, stacked)

  stacked = [
    looped.normal(looped.CLIENTS, *shape, dtype=np.float32)
    for shape in [(3, 5, 4), (4,)]
  ]
  looped.compare(function, (*stacked, stacked[1] + 1), jit=jit, tolerance=3e-6)


def transformer_step(stacked):
  """One step of SGD on a transformer block with an embedding."""
  weights, tokens, mask, labels = stacked
  visible = tf.cast(mask, tf.float32)

  def norm_of(x):
    layer = tf.keras.layers.LayerNormalization()
    return normalise(layer, x, weights['gain'], weights['bias'])

  with tf.GradientTape() as tape:
    tape.watch(weights)
    x = tf.gather(weights['tokens'], tokens) + weights['positions']
    x = norm_of(x)
    q, k, v = tf.unstack(tf.einsum('btd,dchk->cbthk', x, weights['qkv']))
    scores = tf.einsum('bthk,bshk->bhts', q, k) / 2
    scores += tf.where(mask, 0.0, -1e9)[:, None, None, :]
    heads = tf.einsum('bhts,bshk->bthk', tf.nn.softmax(scores), v)
    x += tf.einsum('bthk,hkd->btd', heads, weights['out'])
    hidden = tf.nn.gelu(tf.tensordot(x, weights['up'], 1))
    x += tf.matmul(hidden, weights['down'])
    x = tf.cumsum(norm_of(x), axis=1)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
      labels, tf.matmul(x, weights['head'])
    )
    loss = tf.reduce_sum(visible * losses) / tf.reduce_sum(visible)
  gradients = tape.gradient(loss, weights)
  assert isinstance(gradients['tokens'], tf.IndexedSlices)
  dense = {name: tf.convert_to_tensor(g) for name, g in gradients.items()}
  clipped, norm = tf.clip_by_global_norm(tf.nest.flatten(dense), 0.5)
  finite = tf.math.is_finite(norm)
  updates = tf.cond(
    finite, lambda: clipped, lambda: [tf.zeros_like(g) for g in clipped]
  )
  return (
    loss,
    norm,
    [
      w - 0.1 * u
      for w, u in zip(tf.nest.flatten(weights), updates, strict=True)
    ],
  )


@looped.both
def test_a_training_step_of_a_transformer(jit):
  shapes = {
    'tokens': (11, 8),
    'positions': (5, 8),
    'gain': (8,),
    'bias': (8,),
    'qkv': (8, 3, 2, 4),
    'out': (2, 4, 8),
    'up': (8, 16),
    'down': (16, 8),
    'head': (8, 11),
  }
  weights = {
    name: looped.normal(looped.CLIENTS, *shape, dtype=np.float32) * 0.3
    for name, shape in shapes.items()
  }
  tokens, labels = (
    looped.integers(11, looped.CLIENTS, 2, 5),
    looped.integers(11, looped.CLIENTS, 2, 5),
  )
  stacked = (weights, tokens, tokens > 2, labels)
  looped.compare(transformer_step, stacked, jit=jit, tolerance=3e-6)
