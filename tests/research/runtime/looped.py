"""Compares vectorised functions with loops over the clients."""

import importlib

import numpy as np
import pytest
import tensorflow as tf

from research.runtime import pfor_rules

pfor = importlib.import_module('tensorflow.python.ops.parallel_for.pfor')

CLIENTS = 4
STEPS = tf.constant([0, 3, 1, 5])

both = pytest.mark.parametrize('jit', [False, True], ids=['kernels', 'xla'])


@pytest.fixture(autouse=True)
def registered():
  """Puts the rules into the registry, and takes them out again."""
  before = dict(pfor._pfor_converter_registry)
  pfor_rules.register()
  yield
  pfor._pfor_converter_registry.clear()
  pfor._pfor_converter_registry.update(before)


def normal(*shape, dtype=np.float64):
  """Normal numbers that follow from the shape."""
  rng = np.random.default_rng(list(shape))
  return tf.constant(rng.normal(size=shape).astype(dtype))


def integers(limit, *shape):
  """Integers below a limit that follow from the shape."""
  rng = np.random.default_rng([limit, *shape])
  return tf.constant(rng.integers(0, limit, shape).astype(np.int32))


def vectorised(function, jit):
  """The function of all clients, as a tf.function."""
  return tf.function(
    lambda stacked: pfor_rules.map_clients(function, stacked),
    jit_compile=jit,
    autograph=False,
  )


def compare(function, stacked, *, jit, tolerance=1e-12, reference_jit=False):
  """Asserts that the vectorised function gives what a loop gives."""
  one = tf.function(function, jit_compile=reference_jit, autograph=False)
  count = len(tf.nest.flatten(stacked)[0])
  each = [
    one(tf.nest.map_structure(lambda array: array[i], stacked))  # noqa: B023
    for i in range(count)
  ]
  expected = tf.nest.map_structure(lambda *rows: np.stack(rows), *each)
  actual = vectorised(function, jit)(stacked)
  tf.nest.assert_same_structure(actual, expected)
  for got, wanted in zip(
    tf.nest.flatten(actual), tf.nest.flatten(expected), strict=True
  ):
    scale = max(1.0, np.abs(wanted.astype(float)).max(initial=0))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * scale)


def with_gradient(function):
  """Returns the value of `function(steps, x)` and its gradient in x."""

  def both_of(stacked):
    steps, x = stacked
    with tf.GradientTape() as tape:
      tape.watch(x)
      y = function(steps, x)
    return y, tape.gradient(y, x)

  return both_of


def op_types(function, stacked, jit=False):
  """Types of all operations of the vectorised function."""
  graph = vectorised(function, jit).get_concrete_function(stacked).graph
  graph_def = graph.as_graph_def(add_shapes=False)
  nodes = [*graph_def.node]
  for inner in graph_def.library.function:
    nodes += inner.node_def
  return [node.op for node in nodes]
