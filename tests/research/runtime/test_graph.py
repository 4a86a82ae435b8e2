"""Graphs in order of execution, and what of them can be replayed."""

import pytest
import tensorflow as tf

from research.runtime import graph as graph_lib


def index(build):
  """A graph that `build` adds to."""
  with tf.Graph().as_default() as graph:
    build()
  return graph_lib.Graph(graph.as_graph_def())


def placeholder(name, dtype=tf.float32):
  return tf.compat.v1.placeholder(dtype, [], name=name)


def test_order_follows_data_and_control_and_leaves_out_what_is_not_needed():
  def build():
    x = placeholder('x')
    late = tf.add(x, 1.0, name='late')
    with tf.control_dependencies([tf.multiply(x, 2.0, name='before')]):
      tf.identity(late, name='result')
    tf.exp(x, name='unused')

  body = index(build).body(['x:0'], ['result:0'])
  assert body.arguments == ['x']
  assert body.outputs == [('result', 0)]
  assert 'unused' not in body.order and 'x' not in body.order
  assert body.order.index('before') < body.order.index('result')
  assert body.order.index('late') < body.order.index('result')
  assert len(set(body.order)) == len(body.order)


def test_the_body_of_a_function_keeps_what_only_control_outputs_need():
  def build():
    variable = tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[], name='handle')

    @tf.function
    def assign(handle, value):
      tf.raw_ops.AssignVariableOp(resource=handle, value=value)

    x = placeholder('x')
    assign(variable, x)
    call = tf.compat.v1.get_default_graph().get_operations()[-1]
    with tf.control_dependencies([call]):
      tf.identity(x, name='result')

  graph = index(build)
  body = graph.body(['x:0'], ['result:0'])
  counts = graph.op_counts(body)
  assert counts['AssignVariableOp'] == 1
  (call,) = [n for n in body.nodes.values() if n.op in graph_lib.CALLS]
  assert graph.written_inputs(call) == {0}


def _writes(handle, value):
  tf.raw_ops.AssignAddVariableOp(resource=handle, value=value)
  return value


@pytest.mark.parametrize(
  'function, written',
  [
    (_writes, {0}),
    (lambda handle, value: tf.function(_writes)(handle, value), {0}),
    (lambda handle, value: _writes(tf.identity(handle), value), {0}),
    (
      lambda handle, value: tf.cond(
        value > 0, lambda: _writes(handle, value), lambda: value
      ),
      {0},
    ),
    (
      lambda handle, value: tf.while_loop(
        lambda x: x < 3.0, lambda x: _writes(handle, x + 1), [value]
      ),
      {0},
    ),
    (
      lambda handle, value: (
        value + tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.float32)
      ),
      set(),
    ),
  ],
  ids=['direct', 'nested', 'identity', 'branch', 'loop', 'read'],
)
def test_which_arguments_a_function_assigns_to(function, written):
  def build():
    handle = tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[])
    tf.identity(tf.function(function)(handle, placeholder('x')), name='result')

  graph = index(build)
  body = graph.body(['x:0'], ['result:0'])
  (call,) = [n for n in body.nodes.values() if n.op in graph_lib.CALLS]
  assert graph.written_inputs(call) == written
  assert graph.unsupported(body) == []


def test_what_keeps_state_is_named():
  def build():
    x = placeholder('x', tf.int64)
    table = tf.lookup.StaticHashTable(
      tf.lookup.KeyValueTensorInitializer(
        tf.constant([1], tf.int64), tf.constant([2], tf.int64)
      ),
      -1,
    )
    dataset = tf.data.Dataset.range(3).reduce(x, lambda a, b: a + b)
    tf.add(table.lookup(x), dataset, name='result')
    tf.add(x, 1, name='pure')

  graph = index(build)
  found = graph.unsupported(graph.body(['x:0'], ['result:0']))
  assert {'LookupTableFindV2', 'RangeDataset'} <= set(found)
  assert graph.unsupported(graph.body(['x:0'], ['pure:0'])) == []


def test_names_of_tensors_are_split():
  assert graph_lib.split('a/b:2') == ('a/b', 2)
  assert graph_lib.split('^a') == ('a', 0)
