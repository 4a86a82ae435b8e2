"""With convolutions no runtime is farther from float64 than three times the
other: they sum products in orders of their own."""

import numpy as np
import pytest
import tensorflow as tf

from tests.research.runtime import equality, processes, small_tasks

ROUNDS = 2
RATE = 0.5
# What the last bit of a weight of size 1 is worth.
EPSILON = 2.0**-23


def _loss(weights, batch) -> tf.Tensor:
  """The network of `small_tasks` without Keras."""
  kernel, bias, dense, dense_bias = weights
  hidden = tf.nn.conv2d(tf.cast(batch['x'], tf.float64), kernel, 1, 'VALID')
  hidden = tf.nn.relu(hidden + bias)
  logits = tf.reshape(hidden, [len(hidden), -1]) @ dense + dense_bias
  return tf.reduce_mean(
    tf.nn.sparse_softmax_cross_entropy_with_logits(batch['y'], logits)
  )


def _train(weights, client) -> tuple[list[tf.Tensor], int]:
  """One client's weights, and on how many examples it trained."""
  count = 0
  for batch in small_tasks.dataset(client):
    with tf.GradientTape() as tape:
      tape.watch(weights)
      loss = _loss(weights, batch)
    gradients = tape.gradient(loss, weights)
    weights = [w - 0.1 * g for w, g in zip(weights, gradients, strict=True)]
    count += len(batch['y'])
  return weights, count


def _reference(weights, rounds) -> list[np.ndarray]:
  """The weights after rounds of FedAvg with SGD at the server, in float64."""
  weights = [tf.cast(w, tf.float64) for w in weights]
  for clients in rounds:
    trained = [_train(weights, client) for client in clients]
    examples = sum(count for _, count in trained)
    means = [
      sum(own[i] * count for own, count in trained) / examples
      for i in range(len(weights))
    ]
    weights = [w + RATE * (m - w) for w, m in zip(weights, means, strict=True)]
  return [w.numpy() for w in weights]


def _error(trace: equality.Trace, exact) -> float:
  """How far the last weights are from float64."""
  state = tf.nest.pack_sequence_as(trace.structure, trace.states[-1])
  found = trace.process.get_model_weights(state).trainable
  return max(
    np.abs(np.asarray(a) - b).max() for a, b in zip(found, exact, strict=True)
  )


@pytest.fixture(scope='module')
def references(stock_runtime):
  """Per kind of model the case, what stock TFF does with it, and float64."""
  found = {}
  for is_functional in (False, True):
    build = processes.of_algorithm('fed_avg', 'sgd', rate=RATE)
    case = processes.of_model('convnet', is_functional, build)
    trace = equality.expected(case, ROUNDS)
    start = tf.nest.pack_sequence_as(trace.structure, trace.states[0])
    weights = trace.process.get_model_weights(start).trainable
    rounds = [case.clients(number) for number in range(ROUNDS)]
    # The empty client has no part in any mean.
    filled = [[c for c in clients if len(c.lengths)] for clients in rounds]
    found[is_functional] = case, trace, _reference(weights, filled)
  return found


@pytest.mark.parametrize(
  'is_functional, plan',
  [(False, 'scan'), (False, 'vmap'), (True, 'loop'), (True, 'vmap_xla')],
)
def test_both_runtimes_are_equally_near_to_float64(
  references, is_functional, plan
):
  case, reference, exact = references[is_functional]
  start = tf.nest.pack_sequence_as(reference.structure, reference.states[0])
  clients = [case.clients(number) for number in range(ROUNDS)]
  with equality.in_process_runtime(plan):
    trace = equality.run(reference.process, start, clients)
  ours, theirs = (_error(found, exact) for found in (trace, reference))
  assert ours <= 3 * max(theirs, EPSILON)
  assert theirs <= 3 * max(ours, EPSILON)
  for mine, other in zip(trace.metrics, reference.metrics, strict=True):
    equality.assert_equal(mine, other, 'metrics')
