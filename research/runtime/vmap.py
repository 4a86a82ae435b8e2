"""The plan `vmap`: one program for a chunk of clients, with or without XLA.

Clients whose batches have the same sizes, up to how many there are of each,
form a group; a group is cut into chunks, and the sums run over all chunks. No
batch is padded, so metrics and clipping see what they would see in a loop.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from research import compat
from research.runtime import cohort as cohort_lib
from research.runtime import (
  grouping,
  pfor_rules,
  planner,
  program,
  reductions,
  scan,
  sequences,
)

_FEWEST_CLIENTS = 8
# What pfor and XLA raise for what they do not know.
_REFUSALS = (
  ValueError,
  TypeError,
  NotImplementedError,
  tf.errors.InvalidArgumentError,
  tf.errors.UnimplementedError,
)


class Vmap:
  """Runs a pass over clients chunk by chunk, each vectorised.

  Attributes:
    programs: How many functions were traced and, with XLA, compiled.
  """

  def __init__(
    self,
    client_pass: program.ClientPass,
    clients_per_chunk: int,
    xla: bool,
    fixed_counts: bool = False,
    lanes: int = 1,
  ):
    """Prepares the pass.

    Args:
      client_pass: What the clients do; it must be replayable.
      clients_per_chunk: Clients that are vectorised at once.
      xla: Whether XLA compiles the clients' work.
      fixed_counts: Whether to trace for the very numbers of batches, so that
        the compiler knows how long its loops are.
      lanes: Parts of a chunk that are computed side by side, where each
        operation has one thread. XLA takes a chunk whole.
    """
    self._pass = client_pass
    self._chunk = clients_per_chunk
    self._xla = xla
    self._lanes = 1 if xla else lanes
    self._fixed = fixed_counts
    self._longest = 0, 0
    self._functions: dict[Any, Any] = {}
    self._zero: Any = None

  @property
  def programs(self) -> int:
    return len(self._functions)

  def start(self, shared: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """The accumulators of no clients.

    Args:
      shared: Values of the pass's `shared`.
    """
    if self._zero is None:
      specs = [reductions.spec(ref) for ref in self._pass.shared]
      zero = tf.function(self._zeros, specs, autograph=False)
      self._zero = zero.get_concrete_function()
    return compat.call_flat(self._zero, shared)

  def _zeros(self, *shared: tf.Tensor) -> list[tf.Tensor]:
    known = dict(zip(self._pass.shared, shared, strict=True))
    return reductions.zeros(self._pass.reductions, known)

  def run(
    self, shared: Sequence[tf.Tensor], inputs: scan.Inputs, clients: int
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
    state = self.start(shared)
    order, kept = [], []
    for members, segments in self.chunks(inputs, clients):
      state, keep = self._run_chunk(shared, inputs, members, segments, state)
      order.append(members)
      kept.append(keep)
    if not order:
      specs = [reductions.spec(ref) for ref in self._pass.kept]
      return state, [
        tf.zeros([0, *(size or 0 for size in spec.shape)], spec.dtype)
        for spec in specs
      ]
    back = np.argsort(np.concatenate(order))
    return state, [
      tf.gather(tf.concat(parts, axis=0), back)
      for parts in zip(*kept, strict=True)
    ]

  def chunks(
    self, inputs: scan.Inputs, clients: int
  ) -> Iterator[tuple[np.ndarray, list[grouping.Segments]]]:
    """Yields the clients of each chunk and their segments per sequence."""
    groups = [(np.arange(clients), [])]
    for value in inputs:
      if isinstance(value, cohort_lib.Cohort):
        groups = list(grouping.refine(groups, value))
    for members, segments in groups:
      for first in range(0, len(members), self._chunk):
        part = np.arange(first, min(first + self._chunk, len(members)))
        yield members[part], [s.take(part) for s in segments]

  def _run_chunk(self, shared, inputs, members, segments, state):
    key, flat = self.arguments(shared, inputs, members, segments, state)
    try:
      if key not in self._functions:
        results = self._run_first(key, flat)
      else:
        results = compat.call_flat(self._functions[key], flat)
    except _REFUSALS as error:
      raise planner.VectorizationError(
        'The clients can not be vectorised: '
        f'{(str(error).strip() or type(error).__name__).splitlines()[-1]}'
      ) from error
    count = len(state)
    return results[:count], [value[: len(members)] for value in results[count:]]

  def _run_first(self, key: Any, flat: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Traces and runs a function, and says how long that took."""
    begin = time.monotonic()
    function = self.trace(key, flat).get_concrete_function()
    results = compat.call_flat(function, flat)
    self._functions[key] = function
    logging.info(
      '%s program %d for %d clients in %.1f s',
      'Compiled (XLA)' if self._xla else 'Traced',
      self.programs,
      int(flat[0]),
      time.monotonic() - begin,
    )
    return results

  def arguments(
    self,
    shared: Sequence[tf.Tensor],
    inputs: scan.Inputs,
    members: np.ndarray,
    segments: Sequence[grouping.Segments],
    state: Sequence[tf.Tensor],
  ) -> tuple[Any, list[tf.Tensor]]:
    """What a chunk's function is traced for, and its flat arguments.

    Args:
      shared: Values of the pass's `shared`.
      inputs: Values of its `inputs`, of all clients.
      members: Positions of the chunk's clients.
      segments: Their batches, per sequence.
      state: The accumulators.

    Returns:
      A key of functions, and the arguments.
    """
    size = self._size(len(members))
    is_full = len(members) == size
    padded = cohort_lib.pad(members, size)
    blocks = [
      value.block_shape is not None and len(members) == len(value)
      for value in inputs
      if isinstance(value, cohort_lib.Cohort)
    ]
    arrays, own = self._arrays(inputs, padded, iter(blocks))
    forms = tuple(
      None if is_block else s.form(self._xla, self._fixed)
      for s, is_block in zip(segments, blocks, strict=True)
    )
    dynamic = [tensor for s in segments for tensor in _tensors(s, size)]
    flat = [tf.constant(len(members)), *shared, *state, *arrays, *own, *dynamic]
    # XLA and blocks are traced for the very shapes.
    exact = flat if self._xla else [a for a in arrays if any(blocks)]
    shapes = tuple(tuple(tensor.shape)[not self._xla :] for tensor in exact)
    key = scan.layouts(inputs), forms, is_full, self._lanes_of(size), shapes
    return key, flat

  def _lanes_of(self, clients: int) -> int:
    """How many lanes a chunk has: all, or a power of two that leaves enough."""
    most = max(clients // _FEWEST_CLIENTS, 1)
    return min(self._lanes, 1 << (most.bit_length() - 1))

  def _size(self, clients: int) -> int:
    """How many clients a chunk is computed for."""
    if self._fixed or not self._xla:
      return clients
    # XLA compiles each size for seconds.
    return max(cohort_lib.bucket(clients), _FEWEST_CLIENTS)

  def _padded(self, value: cohort_lib.Cohort) -> list[tf.Tensor]:
    """A cohort's arrays, at least as long as those of earlier rounds."""
    tensors = value.padded_tensors(self._longest)
    self._longest = tensors[0].shape[0], tensors[-1].shape[0]
    return tensors

  def _arrays(self, inputs, members, blocks):
    """The cohorts' shared arrays, and the tensors of the chunk's clients."""
    arrays, own = [], []
    for value in inputs:
      if isinstance(value, cohort_lib.Cohort):
        if next(blocks):
          arrays += value.blocks(len(members))
        else:
          arrays += self._padded(value) if self._xla else value.tensors[:-2]
      elif len(members) == len(value) and (np.diff(members) == 1).all():
        own.append(value)
      else:
        own.append(tf.gather(value, members))
    return arrays, own

  def trace(self, key: Any, flat: Sequence[tf.Tensor]) -> Any:
    """Traces the function of a chunk; see `arguments`."""
    layout, forms, is_full, lanes = key[:4]

    def function(clients: tf.Tensor, *flat: tf.Tensor) -> list[tf.Tensor]:
      return self._traced(clients, flat, layout, forms, is_full, lanes)

    fixed = (
      1 + len(self._pass.shared) + len(reductions.specs(self._pass.reductions))
    )
    specs = [
      tf.TensorSpec(tensor.shape, tensor.dtype)
      if self._xla or index < fixed or not tensor.shape.rank
      else tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype)
      for index, tensor in enumerate(flat)
    ]
    return tf.function(
      function, specs, autograph=False, jit_compile=self._xla or None
    )

  def _traced(self, clients, flat, layout, forms, is_full, lanes):
    flat = iter(flat)
    shared = [next(flat) for _ in self._pass.shared]
    state = [next(flat) for _ in reductions.specs(self._pass.reductions)]
    cohorts = [part for part in layout if isinstance(part, cohort_lib.Layout)]
    arrays = [
      [next(flat) for _ in range(len(part.components) + (form is not None))]
      for part, form in zip(cohorts, forms, strict=True)
    ]
    own = [next(flat) for part in layout if part not in cohorts]
    dynamic = [[next(flat) for _ in range(5)] for _ in cohorts]
    rows = [d[0] for d in dynamic] or own
    elements = (
      tf.range(pfor_rules.count(rows[0]) if rows else clients),
      tuple(own),
      tuple(
        (begin, counts, () if form else tuple(blocks))
        for (begin, counts, *_), form, blocks in zip(
          dynamic, forms, arrays, strict=True
        )
      ),
    )

    def one(element: Any) -> tuple[tf.Tensor, ...]:
      _, own, mine = element
      values = _inputs(layout, own, mine, arrays, dynamic, forms)
      contributions, keep = self._pass.client(shared, values)
      return tuple(
        tf.identity(value)
        for value in [*(v for c in contributions for v in c), *keep]
      )

    results, count = [], None if is_full else clients
    for outputs in map(iter, _map_in_lanes(one, elements, lanes)):
      contributions = [
        [next(outputs) for _ in program.contributed(reduction)]
        for reduction in self._pass.reductions
      ]
      state = reductions.add_clients(
        self._pass.reductions, state, contributions, count
      )
      results.append(list(outputs))
    if lanes == 1:
      return [*state, *results[0]]
    return [*state, *(tf.concat(p, axis=0) for p in zip(*results, strict=True))]


def _map_in_lanes(
  one: Callable, elements: Any, lanes: int
) -> list[Sequence[tf.Tensor]]:
  """Vectorises a function lane by lane; pure lanes run side by side."""
  if lanes == 1:
    return [_map(one, elements)]
  mapped = tf.function(lambda *part: _map(one, part), autograph=False)
  clients = tf.shape(elements[0])[0]
  ends = [clients * lane // lanes for lane in range(lanes + 1)]
  return [
    mapped(*tf.nest.map_structure(lambda t: t[first:last], elements))  # noqa: B023
    for first, last in itertools.pairwise(ends)
  ]


def _map(one: Callable, elements: Any) -> Sequence[tf.Tensor]:
  """Vectorises a function, unless there is just one client."""
  if elements[0].shape[0] != 1:
    return pfor_rules.map_clients(one, elements)
  first = tf.nest.map_structure(lambda tensor: tensor[0], elements)
  return [tf.expand_dims(tensor, 0) for tensor in one(first)]


def _tensors(segments: grouping.Segments, size: int) -> list[tf.Tensor]:
  """What changes of a chunk's segments, for `size` clients."""
  return [
    tf.constant(array, tf.int32)
    for array in (
      cohort_lib.pad(segments.begin, size),
      cohort_lib.pad(segments.counts, size),
      np.array(segments.lengths, np.int32),
      segments.counts.max(axis=0),
      segments.repeats,
    )
  ]


def _inputs(layout, own, mine, arrays, dynamic, forms) -> list[Any]:
  """One client's tensors and batches, inside of the vectorised function."""
  own, sequence = iter(own), 0
  values = []
  for part in layout:
    if not isinstance(part, cohort_lib.Layout):
      values.append(next(own))
      continue
    begin, counts, blocks = mine[sequence]
    if forms[sequence] is None:
      values.append(sequences.Blocks(part.finish, blocks, begin))
      sequence += 1
      continue
    *components, rows = arrays[sequence]
    _, _, lengths, longest, repeats = dynamic[sequence]
    values.append(
      sequences.Regular(
        lambda indices, part=part, c=components: part.fetch(c, indices),
        rows,
        begin,
        counts,
        lengths,
        longest,
        repeats,
        forms[sequence],
      )
    )
    sequence += 1
  return values
