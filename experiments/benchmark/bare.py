"""The bare loop: a round's arithmetic in one tf.function, without federation.

The same model takes the same steps on the same data as under TFF, and the
updates are averaged; nothing else happens. What a runtime adds is its time over
the fastest of these:

  one_lane   one client after another, both cores on each operation
  lanes      a while-loop per core over its share of the clients, in one
             function; each operation has one thread
  vmap       tf.vectorized_map over all clients
  vmap_xla   the same, compiled by XLA

`bare_loops.py` times them by themselves.
"""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from experiments.benchmark import bare_models, workloads

Weights = tuple[tf.Tensor, ...]
_LEARNING_RATE = workloads.CLIENT_LEARNING_RATE
# Bytes of weights that one vectorised chunk of clients may hold.
_CHUNK_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class Variant:
  """How a bare loop runs.

  Attributes:
    lanes: While-loops side by side; 0 vectorises.
    xla: Whether XLA compiles it.
    intra_op: Threads of one operation.
    inter_op: Operations at once.
  """

  lanes: int
  xla: bool
  intra_op: int
  inter_op: int

  def set_threads(self) -> None:
    """Sets TensorFlow's threads; call it before anything runs."""
    tf.config.threading.set_intra_op_parallelism_threads(self.intra_op)
    tf.config.threading.set_inter_op_parallelism_threads(self.inter_op)


VARIANTS = {
  'one_lane': Variant(1, False, 2, 1),
  'lanes': Variant(2, False, 1, 2),
  'vmap': Variant(0, False, 2, 2),
  'vmap_xla': Variant(0, True, 2, 2),
}


def variants_of(workload: workloads.Workload) -> tuple[str, ...]:
  """Names of the variants that can run a workload.

  TensorFlow 2.14 can't vectorise a convolution over clients' own kernels. The
  activations of all clients of an encoder would take gigabytes.
  """
  if workload.model == 'cnn' or workload.encoder:
    return ('one_lane', 'lanes')
  return tuple(VARIANTS)


def build(
  workload: workloads.Workload, name: str
) -> Callable[[Weights, tf.Tensor, tf.Tensor], Weights]:
  """Builds a round.

  Args:
    workload: What is trained.
    name: A key of `VARIANTS`.

  Returns:
    A tf.function of the global weights, x [clients, examples, ...] and
    y [clients, examples] to the new global weights.
  """
  variant = VARIANTS[name]
  train = _make_train(workload)

  @tf.function(jit_compile=variant.xla, autograph=False)
  def round_fn(weights, x, y):
    if variant.lanes:
      total = _sum_in_lanes(workload, train, variant.lanes, weights, x, y)
    else:
      total = _sum_vectorized(workload, train, weights, x, y)
    return _serve(workload, weights, total)

  return round_fn


def initial_weights(workload: workloads.Workload) -> Weights:
  """The weights of the workload's Keras model."""
  variables = workload.build_keras_model().trainable_variables
  return tuple(tf.constant(variable.numpy()) for variable in variables)


def _serve(workload, weights, total) -> Weights:
  """Applies the sum of the clients' (weighted) updates."""
  if not workload.private:
    count = float(workload.clients * workload.examples)
    return tuple(w - t / count for w, t in zip(weights, total, strict=True))
  stddev = workloads.NOISE_MULTIPLIER * workloads.CLIP
  return tuple(
    w - (t + tf.random.normal(t.shape, stddev=stddev)) / workload.clients
    for w, t in zip(weights, total, strict=True)
  )


def _make_train(workload: workloads.Workload):
  """Returns one client's training.

  It takes the global weights and the client's x [examples, ...] and
  y [examples] and returns its update, times its examples if not private: a list
  with one list of summands per weight. A summand is a tensor, or
  tf.IndexedSlices for an embedding, whose untouched rows cost nothing.
  """
  forward = bare_models.forward(workload)
  loss_fn = bare_models.loss(workload)
  scale = 1.0 if workload.private else float(workload.examples)

  def gradients(weights, x, y):
    with tf.GradientTape() as tape:
      tape.watch(weights)
      loss = loss_fn(y, forward(weights, x))
    return tape.gradient(loss, weights)

  def train(weights, x, y):
    local, sparse = list(weights), [[] for _ in weights]
    for step in range(workload.steps):
      batch = slice(
        step * workload.batch_size, (step + 1) * workload.batch_size
      )
      grads = gradients(local, x[batch], y[batch])
      for i, grad in enumerate(grads):
        if isinstance(grad, tf.IndexedSlices):
          values = _LEARNING_RATE * grad.values
          sparse[i].append(tf.IndexedSlices(scale * values, grad.indices))
          local[i] = tf.tensor_scatter_nd_sub(
            local[i], grad.indices[:, tf.newaxis], values
          )
        else:
          local[i] -= _LEARNING_RATE * grad
    dense = [w - new for w, new in zip(weights, local, strict=True)]
    if workload.private:
      dense, _ = tf.clip_by_global_norm(dense, workloads.CLIP)
    return [
      summands or [scale * update]
      for summands, update in zip(sparse, dense, strict=True)
    ]

  return train


def _add(total: tf.Tensor, summands) -> tf.Tensor:
  for summand in summands:
    if isinstance(summand, tf.IndexedSlices):
      total = tf.tensor_scatter_nd_add(
        total, summand.indices[:, tf.newaxis], summand.values
      )
    else:
      total += summand
  return total


def _sum_in_lanes(workload, train, lanes, weights, x, y) -> list[tf.Tensor]:
  """Sums the updates; lane l of n has the clients l, l + n, l + 2 n, ..."""

  def lane(first):
    def body(client, *total):
      summands = train(weights, x[client], y[client])
      added = [_add(t, s) for t, s in zip(total, summands, strict=True)]
      return (client + lanes, *added)

    zeros = [tf.zeros_like(w) for w in weights]
    return tf.while_loop(
      lambda client, *_: client < workload.clients,
      body,
      (tf.constant(first), *zeros),
      parallel_iterations=1,
    )[1:]

  return [tf.add_n(parts) for parts in zip(*map(lane, range(lanes)))]  # noqa: B905


def _sum_vectorized(workload, train, weights, x, y) -> list[tf.Tensor]:
  """Sums the updates of chunks of clients that step together."""

  def one_client(data):
    summands = train(weights, *data)
    return [
      _add(tf.zeros_like(w), s) for w, s in zip(weights, summands, strict=True)
    ]

  def summed(x, y):
    updates = tf.vectorized_map(one_client, (x, y), warn=False)
    return [tf.reduce_sum(update, 0) for update in updates]

  size = sum(w.shape.num_elements() for w in weights) * 4
  chunk = max(1, min(workload.clients, _CHUNK_BYTES // size))
  while workload.clients % chunk:
    chunk -= 1
  if chunk == workload.clients:
    return summed(x, y)

  def body(start, *total):
    parts = summed(x[start : start + chunk], y[start : start + chunk])
    return (start + chunk, *map(tf.add, total, parts))

  zeros = [tf.zeros_like(w) for w in weights]
  return tf.while_loop(
    lambda start, *_: start < workload.clients,
    body,
    (tf.constant(0), *zeros),
    parallel_iterations=1,
  )[1:]
