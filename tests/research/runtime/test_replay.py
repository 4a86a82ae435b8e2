"""A replayed leaf computes what TensorFlow computes with real variables."""

import collections

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from research.runtime import graph as graph_lib
from research.runtime import replay
from tests.research.runtime import leaves

X = np.float32(3.0)


def computation(function):
  return tff.tensorflow.computation(tf.function(function), np.float32)


def build(body):
  """A computation of one number that has a variable that starts at 2."""

  @tff.tensorflow.computation(np.float32)
  def wrapped(x):
    variable = tf.Variable(2.0)
    return tf.function(body)(variable, x)

  return wrapped


def read_first(v, x):
  before = v + 0.0
  v.assign(x)
  return before, v + 0.0


def add_and_subtract(v, x):
  v.assign_add(x)
  v.assign_sub(0.5 * x)
  v.assign_add(v)
  return v + 0.0


def nested(v, x):
  @tf.function
  def double():
    v.assign(v * 2)
    return v + x

  return double() + double()


def branch(v, x):
  if x > 2.0:
    v.assign(x)
    result = v * 2
  else:
    v.assign_add(1.0)
    result = v * 3
  return result, v + 0.0


def other_branch(v, x):
  if x > 100.0:
    v.assign(x)
  return v + 0.0


def loop(v, x):
  i = 0
  while i < 4 and v < 1000.0:
    v.assign(v * x)
    x += 1.0
    i += 1
  return v + 0.0, x, i


def loop_of_branches(v, x):
  for i in tf.range(5):
    if tf.equal(i % 2, 0):
      v.assign_add(x)
    else:
      v.assign(v * 0.5)
  return v + 0.0


BODIES = [
  read_first,
  add_and_subtract,
  nested,
  branch,
  other_branch,
  loop,
  loop_of_branches,
]


@pytest.mark.parametrize('body', BODIES)
@pytest.mark.parametrize('x', [X, np.float32(1.0)])
def test_variables_are_written_and_read_in_order(body, x):
  leaf = leaves.build(build(body))
  variable = tf.Variable(2.0)
  results = tf.function(body)(variable, tf.constant(x))
  expected = [np.asarray(value) for value in tf.nest.flatten(results)]
  assert leaf.unsupported == []
  for _ in range(2):  # Variables start anew in every call.
    for results in (leaves.replayed(leaf, x), leaf.run([tf.constant(x)])):
      for result, wanted in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, wanted, rtol=1e-7)


def ops_of(leaf, *values):
  function = tf.function(lambda: leaf.replay([tf.constant(v) for v in values]))
  graph = function.get_concrete_function().graph.as_graph_def()
  return {node.op for node in graph.node}


def test_initialisers_of_variables_that_are_assigned_first_are_not_replayed():
  @tff.tensorflow.computation(np.float32)
  def overwritten(x):
    variable = tf.Variable(tf.random.normal([2]))
    with tf.control_dependencies([variable.assign([x, x])]):
      return variable.read_value()

  @tff.tensorflow.computation(np.float32)
  def kept(x):
    return tf.Variable(tf.random.normal([2])) + x

  leaf = leaves.build(overwritten)
  assert 'RandomStandardNormal' not in ops_of(leaf, X)
  np.testing.assert_array_equal(leaves.replayed(leaf, X)[0], [X, X])
  leaf = leaves.build(kept)
  assert 'RandomStandardNormal' in ops_of(leaf, X)
  drawn = [leaves.replayed(leaf, X)[0] for _ in range(2)]
  assert not np.array_equal(*drawn)


def test_what_its_author_has_xla_compile_stays_so_where_it_is_asked_for():
  @tf.function(jit_compile=True)
  def compiled(x):
    return tf.while_loop(
      lambda i, y: i < 3, lambda i, y: (i + 1, y * x), (0, x)
    )

  @tff.tensorflow.computation(np.float32)
  def twice(x):
    return compiled(x)[1] + compiled(2.0 * x)[1]

  leaf = leaves.build(twice)
  function = tf.function(lambda: leaf.replay([tf.constant(X)]))
  with replay.compiling():
    kept = function.get_concrete_function()
  calls = [
    node
    for node in kept.graph.as_graph_def().node
    if node.op in graph_lib.CALLS and node.attr['_XlaMustCompile'].b
  ]
  # One function for both calls, which XLA compiles once.
  assert len(calls) == 2
  assert len({node.attr['f'].func.name for node in calls}) == 1
  assert not ops_of(leaf, X) & set(graph_lib.CALLS)
  assert kept()[0] == leaves.replayed(leaf, X)[0] == 3.0**4 * (1 + 2.0**4)


def test_nothing_of_a_replay_is_a_resource():
  leaf = leaves.build(build(loop_of_branches))
  assert not {op for op in ops_of(leaf, X) if 'Variable' in op}


@tff.tensorflow.computation(
  tff.SequenceType(
    collections.OrderedDict(
      b=tff.TensorType(np.float32, [None]), a=tff.TensorType(np.int32, [None])
    )
  ),
  np.float32,
)
def train(dataset, rate):
  weight, steps = tf.Variable(1.0), tf.Variable(0)

  @tf.function
  def step(total, batch):
    weight.assign_sub(rate * weight * tf.reduce_mean(batch['b']))
    steps.assign_add(tf.size(batch['a']))
    return total + tf.reduce_sum(batch['a'])

  @tf.function
  def run():
    total = dataset.reduce(0, step)
    return weight + 0.0, steps + 0, total

  return run()


def test_the_reduction_of_a_dataset_steps_over_batches():
  batches = [([2, 4], [1.0, 0.5]), ([7], [0.25])]
  leaf = leaves.build(train)
  # tf.nest sorts the names of a batch, TFF does not: a comes first here.
  elements = [
    [np.array(a, np.int32), np.array(b, np.float32)] for a, b in batches
  ]
  results = leaves.replayed(leaf, leaves.Elements(elements), np.float32(0.1))
  weight = (1 - 0.1 * 0.75) * (1 - 0.1 * 0.25)
  np.testing.assert_allclose(results, [weight, 3, 13], rtol=1e-6)
  dataset = tf.data.Dataset.from_generator(
    lambda: (
      collections.OrderedDict(b=np.float32(b), a=np.int32(a))
      for a, b in batches
    ),
    output_signature=collections.OrderedDict(
      b=tf.TensorSpec([None]), a=tf.TensorSpec([None], tf.int32)
    ),
  )
  variant = tf.data.experimental.to_variant(dataset)
  by_tf = leaf.run([variant, tf.constant(0.1)])
  np.testing.assert_allclose(by_tf, [weight, 3, 13], rtol=1e-6)


def test_no_batches_leave_variables_as_they_were():
  leaf = leaves.build(train)
  results = leaves.replayed(leaf, leaves.Elements([]), np.float32(0.1))
  np.testing.assert_array_equal(results, [1, 0, 0])


def test_a_variable_without_a_value_is_an_error():
  with tf.Graph().as_default() as graph:
    handle = tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[])
    value = tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.float32)
  indexed = graph_lib.Graph(graph.as_graph_def())
  with (
    pytest.raises(replay.UnsupportedGraphError, match='before it has'),
    tf.Graph().as_default(),
  ):
    replay.replay(indexed, {}, [value.name])


def test_a_needed_argument_that_is_not_given_is_an_error():
  with tf.Graph().as_default() as graph:
    x = tf.compat.v1.placeholder(tf.float32, [], name='x')
    y = tf.add(x, 1.0)
  indexed = graph_lib.Graph(graph.as_graph_def())
  with (
    pytest.raises(replay.UnsupportedGraphError, match='x is needed'),
    tf.Graph().as_default(),
  ):
    replay.replay(indexed, {}, [y.name])


def test_leaves_of_equal_names_do_not_share_variables():
  @tff.tensorflow.computation(np.int32)
  def of_integers(x):
    return tf.function(lambda v: v.assign_add([x, x]))(tf.Variable([1, 2]))

  numbers, integers = (
    leaves.build(build(add_and_subtract)),
    leaves.build(of_integers),
  )
  first = numbers.run([tf.constant(X)])
  np.testing.assert_array_equal(integers.run([tf.constant(5)]), [[6, 7]])
  np.testing.assert_array_equal(numbers.run([tf.constant(X)]), first)


def _draws(seed):
  return (
    tf.random.stateless_uniform([501], seed),
    tf.random.stateless_uniform([501], seed, 2.0, 3.0, alg='philox'),
    tf.random.stateless_uniform([501], seed, 0, 9, dtype=tf.int32),
  )


@pytest.mark.parametrize('xla', [False, True])
@pytest.mark.parametrize('dtype', [np.int32, np.int64])
def test_random_numbers_are_those_of_the_kernels(dtype, xla):
  """XLA's own differ: a rotation by clients would not be undone."""
  draw = tff.tensorflow.computation(_draws, tff.TensorType(dtype, [2]))
  large = 0 if dtype == np.int32 else 1_732_630_000_000_000
  for seed in ([5, 7], [-3, 7], [large + 9, -1]):
    seed = np.array(seed, dtype)
    found = leaves.replayed(leaves.build(draw), seed, xla=xla)
    for actual, expected in zip(found, _draws(seed), strict=True):
      np.testing.assert_array_equal(actual, expected)
