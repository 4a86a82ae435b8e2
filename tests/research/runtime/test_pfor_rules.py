"""Each rule gives what a loop over the clients gives, with and without XLA."""

import functools
import importlib

import numpy as np
import pytest
import tensorflow as tf

from research.runtime import pfor_rules
from tests.research.runtime import looped

registered = looped.registered


def test_importing_registers_nothing():
  looped.pfor._pfor_converter_registry.pop('L2Loss')
  before = dict(looped.pfor._pfor_converter_registry)
  importlib.reload(pfor_rules)
  assert looped.pfor._pfor_converter_registry == before


def test_registering_twice_is_registering_once():
  names = set(looped.pfor._pfor_converter_registry)
  pfor_rules.register()
  assert set(looped.pfor._pfor_converter_registry) == names


def test_missing_names_what_has_no_rule():
  names = ['MatMul', 'Where', 'L2Loss', 'Const', 'Range', 'DynamicPartition']
  assert pfor_rules.missing(names * 2) == ['DynamicPartition', 'Where']
  looped.pfor._pfor_converter_registry.pop('L2Loss')
  assert 'L2Loss' in pfor_rules.missing(names)


@looped.both
@pytest.mark.parametrize('shape', [(), (3,), (2, 3, 4)])
def test_l2_loss(shape, jit):
  function = looped.with_gradient(lambda _, x: tf.nn.l2_loss(x))
  looped.compare(
    function,
    (looped.STEPS, looped.normal(looped.CLIENTS, *shape)),
    jit=jit,
  )


@looped.both
def test_bitcast(jit):
  looped.compare(
    lambda args: tf.bitcast(args[1], tf.int64),
    (looped.STEPS, looped.normal(looped.CLIENTS, 3)),
    jit=jit,
  )


@looped.both
def test_branches_are_selected_by_client(jit):
  function = looped.with_gradient(
    lambda steps, x: tf.cond(
      steps > 1, lambda: tf.exp(x * x), lambda: tf.sin(x) + 2
    )
  )
  looped.compare(
    function,
    (looped.STEPS, looped.normal(looped.CLIENTS, 2, 3)),
    jit=jit,
  )


@looped.both
@pytest.mark.parametrize('steps', [[0, 0, 0, 0], [5, 2, 3, 4], [0, 2, 0, 2]])
def test_branches_on_which_clients_agree(jit, steps):
  function = looped.with_gradient(
    lambda steps, x: tf.cond(steps > 1, lambda: x * x, lambda: tf.zeros([2]))
  )
  x = looped.normal(looped.CLIENTS, 2, dtype=np.float32)
  looped.compare(function, (tf.constant(steps), x), jit=jit, tolerance=1e-6)


def test_where_clients_agree_nothing_is_selected():
  def function(stacked):
    steps, x = stacked
    return tf.cond(steps > 1, lambda: x * 2, lambda: tf.zeros([2], x.dtype))

  stacked = looped.STEPS, looped.normal(looped.CLIENTS, 2)
  graph = looped.vectorised(function, False).get_concrete_function(stacked)
  types = [op.type for op in graph.graph.get_operations()]
  assert types.count('StatelessCase') == 1
  # It is in one branch of the case, for clients that differ.
  assert 'Select' not in types
  assert looped.op_types(function, stacked).count('Select') == 1


def test_a_clients_own_row_is_not_gathered():
  table = looped.normal(9, 3)

  def function(stacked):
    index, x = stacked
    return x + tf.gather(table, index)

  stacked = looped.STEPS, looped.normal(looped.CLIENTS, 2, 3)
  looped.compare(function, stacked, jit=False)
  specs = tuple(tf.TensorSpec([None, *t.shape[1:]], t.dtype) for t in stacked)
  # Three in the body that pfor reads, for two rows and what the function asks
  # for, and the latter vectorised.
  assert looped.op_types(function, specs).count('GatherV2') == 3 + 1


@looped.both
def test_a_predicate_of_all_clients_runs_one_branch(jit):
  shared = tf.constant(1)
  function = looped.with_gradient(
    lambda _, x: tf.cond(shared > 0, lambda: x * x, lambda: x + 1)
  )
  looped.compare(
    function,
    (looped.STEPS, looped.normal(looped.CLIENTS, 2)),
    jit=jit,
  )


@looped.both
def test_a_branch_not_taken_does_not_poison(jit):
  def function(stacked):
    steps, x = stacked
    return tf.cond(
      steps > 0,
      lambda: x / tf.cast(steps, x.dtype),
      lambda: (tf.zeros_like(x), x)[1],
    )

  looped.compare(
    function,
    (looped.STEPS, looped.normal(looped.CLIENTS, 2)),
    jit=jit,
  )


def test_branches_of_unequal_shapes_are_refused():
  def function(stacked):
    steps, x = stacked
    return tf.cond(steps > 1, lambda: x[:1], lambda: x)

  with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
    looped.vectorised(function, False)(
      (looped.STEPS, looped.normal(looped.CLIENTS, 3))
    )


@looped.both
def test_each_client_leaves_its_loop_alone(jit):
  def function(stacked):
    steps, x = stacked
    return tf.while_loop(
      lambda i, *_: i < steps,
      lambda i, x, total: (
        i + 1,
        x * 1.5 + tf.cast(i, x.dtype),
        total + 1,
      ),
      (0, x, tf.constant(0.0)),
    )

  looped.compare(
    function,
    (looped.STEPS, looped.normal(looped.CLIENTS, 2, 3)),
    jit=jit,
  )


@looped.both
def test_a_shared_counter_slices_each_clients_batches(jit):
  def function(stacked):
    steps, batches = stacked
    weights = tf.zeros([3], batches.dtype)
    return tf.while_loop(
      lambda i, _: i < steps,
      lambda i, w: (i + 1, w - 0.1 * (w - tf.reduce_mean(batches[i], axis=0))),
      (0, weights),
    )

  # pfor can't slice by a counter that differs between clients.
  looped.compare(
    function,
    (looped.STEPS, looped.normal(looped.CLIENTS, 5, 2, 3)),
    jit=jit,
  )


def test_data_in_the_state_of_a_loop_is_not_selected():
  def function(stacked):
    steps, data = stacked
    return tf.while_loop(
      lambda i, *_: i < steps,
      lambda i, data, total: (i + 1, data, total + data[i]),
      (0, data, data[0]),
    )

  stacked = (
    looped.STEPS,
    looped.normal(looped.CLIENTS, 5, 3),
  )
  looped.compare(function, stacked, jit=False)
  # Of `i`, `total` and the loop's own counter.
  assert looped.op_types(function, stacked).count('Select') == 3


@looped.both
def test_nested_loops(jit):
  def function(stacked):
    steps, x = stacked

    def outer(i, x):
      _, x = tf.while_loop(
        lambda j, _: j < i + steps,
        lambda j, x: (j + 1, x * 0.9 + 1),
        (0, x),
      )
      return i + 1, x

    return tf.while_loop(
      lambda i, x: (i < steps) & (tf.reduce_sum(x) < 30), outer, (0, x)
    )

  looped.compare(
    function,
    (looped.STEPS, looped.normal(looped.CLIENTS, 2, 3)),
    jit=jit,
  )


@looped.both
def test_equal_initial_values_that_part_make_the_condition_part(jit):
  def function(stacked):
    _, x = stacked
    return tf.while_loop(
      lambda i, total, _: tf.reduce_sum(total) < 20.0,
      lambda i, total, last: (i + 1, total + last, tf.abs(x) + 0.1),
      (0, tf.zeros([3], x.dtype), tf.ones([3], x.dtype)),
    )

  looped.compare(
    function,
    (looped.STEPS, looped.normal(looped.CLIENTS, 3)),
    jit=jit,
  )


@looped.both
def test_a_client_that_left_does_not_come_back(jit):
  def function(stacked):
    steps, x = stacked
    # True again from the step after a client's last one.
    return tf.while_loop(
      lambda i, _: (i != steps) & (i < 7),
      lambda i, x: (i + 1, x * 1.5),
      (0, x),
    )

  looped.compare(
    function,
    (looped.STEPS, looped.normal(looped.CLIENTS, 3)),
    jit=jit,
  )


@looped.both
def test_a_client_that_left_does_not_poison(jit):
  def function(stacked):
    steps, x = stacked
    # One step more than a client's own divides by zero.
    return tf.while_loop(
      lambda i, _: i < steps,
      lambda i, x: (i + 1, x / tf.cast(steps - i, x.dtype)),
      (0, x),
    )

  looped.compare(
    function,
    (looped.STEPS, looped.normal(looped.CLIENTS, 3)),
    jit=jit,
  )


def test_a_shape_that_grows_is_refused_where_clients_stop_alone():
  def function(stacked):
    steps, x = stacked
    return tf.while_loop(
      lambda i, _: i < steps,
      lambda i, x: (i + 1, tf.concat([x, x], axis=0)),
      (0, x),
      shape_invariants=(tf.TensorShape([]), tf.TensorShape([None])),
    )

  with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
    looped.vectorised(function, False)(
      (looped.STEPS, looped.normal(looped.CLIENTS, 1))
    )


@looped.both
def test_a_loop_of_equal_length_selects_nothing(jit):
  def function(stacked):
    _, x = stacked
    return tf.while_loop(
      lambda i, _: i < 4, lambda i, y: (i + 1, y + x[i % 2]), (0, x[0] * 0)
    )

  stacked = (
    looped.STEPS,
    looped.normal(looped.CLIENTS, 2, 3),
  )
  looped.compare(function, stacked, jit=jit)
  assert 'Select' not in looped.op_types(function, stacked)


def test_a_loop_of_equal_length_has_a_gradient():
  function = looped.with_gradient(
    lambda _, x: tf.while_loop(
      lambda i, _: i < 3,
      lambda i, x: (i + 1, tf.sin(x * 1.5)),
      (0, x),
    )[1]
  )
  looped.compare(
    function,
    (looped.STEPS, looped.normal(looped.CLIENTS, 2)),
    jit=False,
  )


def test_lists_in_a_loop_that_clients_leave_alone_go_to_tensorflow(monkeypatch):
  def refuse(pfor_input):
    raise NotImplementedError('the rule of TensorFlow')

  monkeypatch.setattr(looped.pfor, '_convert_while', refuse)
  function = looped.with_gradient(
    lambda steps, x: tf.while_loop(
      lambda i, _: i < steps, lambda i, x: (i + 1, tf.sin(x)), (0, x)
    )[1]
  )
  with pytest.raises(NotImplementedError, match='the rule of TensorFlow'):
    looped.vectorised(function, False)(
      (looped.STEPS, looped.normal(looped.CLIENTS, 2))
    )


ROWS = looped.integers(8, looped.CLIENTS, 5)
TABLE = looped.normal(looped.CLIENTS, 8, 3)
ELEMENTWISE = {
  'ones_like': lambda rows, table: tf.ones_like(table),
  'top_k': lambda rows, table: tf.math.top_k(table, 2),
  'in_top_k': lambda rows, table: tf.math.in_top_k(
    rows % 3, tf.cast(table[:5], tf.float32), 2
  ),
  'scatter_nd': lambda rows, table: tf.scatter_nd(
    rows[:, None], table[:5], [8, 3]
  ),
  'scatter_nd_int64': lambda rows, table: tf.scatter_nd(
    tf.cast(rows, tf.int64)[:, None], table[:5], [8, 3]
  ),
  'scatter_shared': lambda rows, table: tf.scatter_nd(
    [[1], [1], [4]], table[:3], [8, 3]
  ),
  'scatter_add': lambda rows, table: tf.tensor_scatter_nd_add(
    table, rows[:, None], table[:5]
  ),
  'scatter_sub': lambda rows, table: tf.tensor_scatter_nd_sub(
    tf.ones([8, 3], table.dtype), rows[:, None], table[:5]
  ),
}


@looped.both
@pytest.mark.parametrize('name', ELEMENTWISE)
def test_other_operations(name, jit):
  looped.compare(lambda own: ELEMENTWISE[name](*own), (ROWS, TABLE), jit=jit)


@pytest.mark.parametrize('clients', [1, 3])
@pytest.mark.parametrize(
  'function',
  [
    tf.squeeze,
    lambda x: tf.squeeze(x, [-1]),
    lambda x: tf.norm(x, ord=float('inf')),
  ],
)
def test_squeezing_leaves_the_clients_apart(function, clients):
  values = looped.normal(clients, 2, 1, 1)
  # Where the number of clients is known, a single one is not vectorised.
  anew = tf.TensorSpec([None, 2, 1, 1], values.dtype)
  of_all = tf.function(
    lambda stacked: tf.vectorized_map(function, stacked), [anew]
  )
  expected = np.stack([function(value) for value in values])
  np.testing.assert_allclose(of_all(values), expected)


@pytest.mark.parametrize(
  'draw',
  [
    tf.random.stateless_uniform,
    tf.random.stateless_normal,
    tf.random.stateless_truncated_normal,
    functools.partial(
      tf.random.stateless_uniform, minval=0, maxval=9, dtype=tf.int32
    ),
    functools.partial(
      tf.random.stateless_uniform, minval=None, maxval=None, dtype=tf.int32
    ),
  ],
)
def test_random_numbers_follow_from_each_clients_seed(draw):
  looped.compare(
    lambda own: draw([6], tf.stack([own[0], 7])),
    (looped.STEPS, looped.STEPS),
    jit=False,
  )
