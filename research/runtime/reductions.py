"""Running reductions over clients: memory for one accumulator, not a cohort."""

from collections.abc import Sequence

import tensorflow as tf

from research.runtime import program

Accumulator = list[tf.Tensor]
_COMBINE = {'sum': tf.add, 'min': tf.minimum, 'max': tf.maximum}
_REDUCE = {
  'sum': tf.reduce_sum,
  'min': tf.reduce_min,
  'max': tf.reduce_max,
}


def _neutral(kind: str, dtype: tf.DType):
  if kind == 'sum':
    return 0
  if dtype.is_floating:
    return float('inf') if kind == 'min' else float('-inf')
  return dtype.max if kind == 'min' else dtype.min


def specs(
  reductions: Sequence[program.Reduce | program.Aggregate],
) -> list[tf.TensorSpec]:
  """Specs of all accumulators, end to end."""
  return [spec(ref) for reduction in reductions for ref in reduction.results]


def spec(ref: program.Ref) -> tf.TensorSpec:
  """The spec of a tensor of one client or of the server."""
  dtype = tf.dtypes.as_dtype(ref.type_signature.dtype)
  return tf.TensorSpec(ref.type_signature.shape, dtype)


def zeros(
  reductions: Sequence[program.Reduce | program.Aggregate],
  shared: dict[program.Ref, tf.Tensor],
) -> Accumulator:
  """The accumulators of no clients.

  Args:
    reductions: What is reduced.
    shared: Values of the server's tensors, with the zeros of aggregations.

  Returns:
    All accumulators, end to end.
  """
  flat = []
  for reduction in reductions:
    if isinstance(reduction, program.Aggregate):
      flat += [shared[ref] for ref in reduction.zeros]
      continue
    kind = spec(reduction.results[0])
    # Broadcasting gives an unknown dimension its size with the first client.
    shape = _sizes(kind)
    neutral = tf.constant(_neutral(reduction.kind, kind.dtype), kind.dtype)
    flat.append(tf.fill(shape, neutral))
  return flat


def _sizes(tensor_spec: tf.TensorSpec) -> list[int]:
  # A known dimension of size 0 stays 0.
  return [1 if size is None else size for size in tensor_spec.shape.as_list()]


def add_client(
  reductions: Sequence[program.Reduce | program.Aggregate],
  accumulators: Sequence[tf.Tensor],
  contributions: Sequence[Sequence[tf.Tensor]],
) -> Accumulator:
  """Adds one client.

  Args:
    reductions: What is reduced.
    accumulators: All accumulators, end to end.
    contributions: Per reduction the client's values.

  Returns:
    The new accumulators.
  """
  flat, rest = [], list(accumulators)
  for reduction, values in zip(reductions, contributions, strict=True):
    count = len(reduction.results)
    mine, rest = rest[:count], rest[count:]
    if isinstance(reduction, program.Aggregate):
      flat += _ensure(reduction, reduction.accumulate([*mine, *values]))
    else:
      flat.append(_COMBINE[reduction.kind](mine[0], values[0]))
  return flat


def add_clients(
  reductions: Sequence[program.Reduce | program.Aggregate],
  accumulators: Sequence[tf.Tensor],
  contributions: Sequence[Sequence[tf.Tensor]],
  count: tf.Tensor | None,
) -> Accumulator:
  """Adds a chunk of clients.

  Args:
    reductions: What is reduced.
    accumulators: All accumulators, end to end.
    contributions: Per reduction the values, stacked [clients, ...].
    count: How many of the stacked clients count, the first ones; None is all.

  Returns:
    The new accumulators.
  """
  flat, rest = [], list(accumulators)
  for reduction, values in zip(reductions, contributions, strict=True):
    width = len(reduction.results)
    mine, rest = rest[:width], rest[width:]
    if isinstance(reduction, program.Aggregate):
      flat += _accumulate_stacked(reduction, mine, values, count)
      continue
    value = values[0]
    if count is not None:
      neutral = tf.constant(_neutral(reduction.kind, value.dtype), value.dtype)
      valid = tf.range(tf.shape(value)[0]) < count
      valid = tf.reshape(valid, [-1] + [1] * (value.shape.rank - 1))
      value = tf.where(valid, value, neutral)
    reduced = _REDUCE[reduction.kind](value, axis=0)
    flat.append(_COMBINE[reduction.kind](mine[0], reduced))
  return flat


def _ensure(
  reduction: program.Aggregate, values: Sequence[tf.Tensor]
) -> Accumulator:
  return [
    tf.ensure_shape(value, spec(ref).shape)
    for value, ref in zip(values, reduction.results, strict=True)
  ]


def _accumulate_stacked(
  reduction: program.Aggregate,
  accumulator: Sequence[tf.Tensor],
  values: Sequence[tf.Tensor],
  count: tf.Tensor | None,
) -> Accumulator:
  clients = tf.shape(values[0])[0] if count is None else count

  def body(i: tf.Tensor, *state: tf.Tensor) -> list:
    new = reduction.accumulate([*state, *(value[i] for value in values)])
    return [i + 1, *_ensure(reduction, new)]

  shapes = [spec(ref).shape for ref in reduction.results]
  final = tf.while_loop(
    lambda i, *state: i < clients,
    body,
    [tf.constant(0), *accumulator],
    shape_invariants=[tf.TensorShape([]), *shapes],
  )
  return list(final[1:])
