"""An optimizer's step on an embedding touches the rows of the batch only."""

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from research.runtime import leaf as leaf_lib

TABLE = np.arange(14, dtype=np.float32).reshape(7, 2)
IDS = np.array([5, 0, 5, 5], np.int32)


def replayed(computation):
  """The results of a computation's replay, and the types of its ops."""
  leaf = leaf_lib.Leaf(computation.to_compiled_building_block())
  specs = [tf.TensorSpec([7, 2], tf.float32), tf.TensorSpec([None], tf.int32)]
  function = tf.function(
    lambda *values: leaf.replay(values), specs, autograph=False
  ).get_concrete_function()
  ops = {op.type for op in function.graph.get_operations()}
  results = function(tf.constant(TABLE), tf.constant(IDS))
  expected = leaf.run([tf.constant(TABLE), tf.constant(IDS)])
  for result, value in zip(results, expected, strict=True):
    np.testing.assert_allclose(result, value, rtol=1e-6)
  return results, ops


def gradient_of_squares(table, ids):
  with tf.GradientTape() as tape:
    tape.watch(table)
    loss = tf.reduce_sum(tf.square(tf.gather(table, ids)))
  return tf.convert_to_tensor(tape.gradient(loss, table))


TYPES = (
  tff.TensorType(np.float32, [7, 2]),
  tff.TensorType(np.int32, [None]),
)


def test_a_step_changes_the_rows_that_were_looked_up():
  @tff.tensorflow.computation(*TYPES)
  def step(table, ids):
    return table - 0.25 * gradient_of_squares(table, ids)

  (result,), ops = replayed(step)
  expected = TABLE.copy()
  # The gradient of a row's square is twice the row, for each look-up.
  expected[0] -= 0.25 * 2 * TABLE[0]
  expected[5] -= 0.25 * 3 * 2 * TABLE[5]
  np.testing.assert_allclose(result, expected)
  assert 'TensorScatterSub' in ops
  assert 'UnsortedSegmentSum' not in ops


def test_everything_else_gets_the_table():
  @tff.tensorflow.computation(*TYPES)
  def norm_and_gradient(table, ids):
    gradient = gradient_of_squares(table, ids)
    clipped = tf.where(tf.norm(gradient) > 1, gradient, 2 * gradient)
    return table - clipped, gradient

  (_, gradient), ops = replayed(norm_and_gradient)
  np.testing.assert_allclose(gradient[5], 3 * 2 * TABLE[5])
  np.testing.assert_allclose(gradient[1], [0, 0])
  assert 'UnsortedSegmentSum' in ops


def test_a_step_inside_of_a_branch():
  @tff.tensorflow.computation(*TYPES)
  def step(table, ids):
    gradient = gradient_of_squares(table, ids)
    return tf.cond(
      tf.size(ids) > 3,
      lambda: table - 0.5 * gradient,
      lambda: table - gradient,
    )

  (result,), _ = replayed(step)
  np.testing.assert_allclose(result[5], TABLE[5] * (1 - 0.5 * 6))


def test_what_is_broadcast_or_dropped_stays_so():
  @tff.tensorflow.computation(*TYPES)
  def sums(table, ids):
    ids = tf.concat([ids, [-1]], axis=0)
    rows = tf.gather(table, tf.maximum(ids, 0))
    summed = tf.math.unsorted_segment_sum(rows, ids, 7)
    return 1.0 - summed, table - summed, table[:1] - summed

  (_, difference, _), _ = replayed(sums)
  np.testing.assert_allclose(difference[0], [0, 0])
  np.testing.assert_allclose(difference[5], -2 * TABLE[5])
