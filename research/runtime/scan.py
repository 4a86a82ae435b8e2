"""The plan `scan`: clients in a while-loop of one graph, several at a time.

Each client's ops run on one thread, and as many clients run at once as there
are cores. On CPUs nothing is faster for models whose single ops are large, as
convolutions are. Clients are added in their order, so the sum has the same bits
however many run at once.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from research import compat
from research.runtime import cohort as cohort_lib
from research.runtime import program, reductions

Inputs = Sequence['tf.Tensor | cohort_lib.Cohort']


@dataclasses.dataclass(frozen=True)
class TensorLayout:
  """A tensor with one row per client, as an input of a traced function."""

  dtype: str
  shape: tuple[int | None, ...]
  width = 1

  def batches(
    self, arrays: Sequence[tf.Tensor], client: tf.Tensor
  ) -> tf.Tensor:
    """The client's row."""
    return arrays[0][client]


Layouts = tuple['TensorLayout | cohort_lib.Layout', ...]


def layouts(inputs: Inputs) -> Layouts:
  """What a function must have been traced for to take these inputs."""
  return tuple(
    value.layout
    if isinstance(value, cohort_lib.Cohort)
    else TensorLayout(value.dtype.name, tuple(value.shape[1:]))
    for value in inputs
  )


def flatten(inputs: Inputs) -> list[tf.Tensor]:
  """All arrays of the clients' inputs, end to end."""
  flat = []
  for value in inputs:
    is_cohort = isinstance(value, cohort_lib.Cohort)
    flat += value.tensors if is_cohort else [value]
  return flat


def at(
  arrays: Sequence[tf.Tensor], layout: Layouts, client: tf.Tensor
) -> list[Any]:
  """One client's inputs, in a graph that is being traced.

  Args:
    arrays: What `flatten` of the inputs has become in the graph.
    layout: What `layouts` says of the inputs.
    client: The client's position.

  Returns:
    Its tensors and batches.
  """
  values, rest = [], list(arrays)
  for part in layout:
    mine, rest = rest[: part.width], rest[part.width :]
    values.append(part.batches(mine, client))
  return values


def signature(
  client_pass: program.ClientPass, arrays: Sequence[tf.Tensor]
) -> list[tf.TensorSpec]:
  """Specs of a pass's shared tensors and its clients' arrays.

  The first dimension of the arrays may change from round to round.
  """
  return [
    *(reductions.spec(ref) for ref in client_pass.shared),
    *(tf.TensorSpec([None, *a.shape[1:]], a.dtype) for a in arrays),
  ]


class Scan:
  """Runs a pass over clients inside of one graph.

  Attributes:
    programs: How many functions were traced.
  """

  def __init__(self, client_pass: program.ClientPass, concurrent: int):
    """Prepares the pass.

    Args:
      client_pass: What the clients do; it must be replayable.
      concurrent: How many clients run at once.
    """
    self._pass = client_pass
    self._concurrent = concurrent
    self._functions: dict[Any, Any] = {}

  @property
  def programs(self) -> int:
    return len(self._functions)

  def run(
    self, shared: Sequence[tf.Tensor], inputs: Inputs, clients: int
  ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """Runs all clients.

    Args:
      shared: Values of the pass's `shared`.
      inputs: Values of its `inputs`: tensors [clients, ...] and cohorts.
      clients: How many there are.

    Returns:
      The accumulators of all reductions end to end, and the kept values
      [clients, ...].
    """
    layout, arrays = layouts(inputs), flatten(inputs)
    if layout not in self._functions:
      self._functions[layout] = self._trace(layout, arrays)
    results = compat.call_flat(
      self._functions[layout], [tf.constant(clients), *shared, *arrays]
    )
    count = len(results) - len(self._pass.kept)
    return list(results[:count]), list(results[count:])

  def _trace(self, layout: Layouts, arrays: Sequence[tf.Tensor]):
    specs = [
      tf.TensorSpec([], tf.int32),
      *signature(self._pass, arrays),
    ]

    def function(clients: tf.Tensor, *flat: tf.Tensor) -> list[tf.Tensor]:
      count = len(self._pass.shared)
      return self._loop(clients, flat[:count], flat[count:], layout)

    traced = tf.function(function, input_signature=specs, autograph=False)
    return traced.get_concrete_function()

  def _loop(self, clients, shared, arrays, layout) -> list[tf.Tensor]:
    reduced = self._pass.reductions
    kept = self._pass.kept
    start = reductions.zeros(
      reduced, dict(zip(self._pass.shared, shared, strict=True))
    )

    def body(i: tf.Tensor, *state: Any) -> list:
      values = at(arrays, layout, i)
      contributions, keep = self._pass.client(shared, values)
      new = reductions.add_client(reduced, state[: len(start)], contributions)
      stacks = [
        stack.write(i, value)
        for stack, value in zip(state[len(start) :], keep, strict=True)
      ]
      return [i + 1, *new, *stacks]

    stacks = [
      tf.TensorArray(
        reductions.spec(ref).dtype,
        clients,
        element_shape=reductions.spec(ref).shape,
      )
      for ref in kept
    ]
    shapes = [s.shape for s in reductions.specs(reduced)]
    final = tf.while_loop(
      lambda i, *state: i < clients,
      body,
      [tf.constant(0), *start, *stacks],
      shape_invariants=[
        tf.TensorShape([]),
        *shapes,
        *(tf.TensorShape(None) for _ in stacks),
      ],
      parallel_iterations=self._concurrent,
    )
    end = 1 + len(start)
    return [*final[1:end], *(stack.stack() for stack in final[end:])]
