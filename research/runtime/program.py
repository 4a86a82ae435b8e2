"""A TFF computation as straight-line operations on flat tensors, in stages.

A stage is work at the server, followed by one pass over the clients whose
reductions the next stage needs.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import tensorflow_federated as tff

from research.runtime import leaf as leaf_lib

SERVER, CLIENTS = 'server', 'clients'


@dataclasses.dataclass(eq=False)
class Ref:
  """One tensor or sequence that an operation makes.

  A server's tensor that an operation at the clients reads is broadcast.

  Attributes:
    op: The operation.
    type_signature: TFF type; at the clients, of one client's value.
  """

  op: 'Op'
  type_signature: tff.Type

  @property
  def placement(self) -> str:
    return self.op.placement


class Op:
  """An operation.

  Attributes:
    inputs: What it reads.
    placement: Where its results live.
    results: What it makes.
    stage: How many passes over the clients come before its results.
  """

  def __init__(
    self, inputs: Sequence[Ref], placement: str, types: Iterable[tff.Type]
  ):
    self.inputs = list(inputs)
    self.placement = placement
    self.results = [Ref(self, type_signature) for type_signature in types]

  @functools.cached_property
  def stage(self) -> int:
    return max((ref.op.stage for ref in self.inputs), default=0)


class Argument(Op):
  """A flat element of the computation's argument, by its position."""

  def __init__(self, position: int, placement: str, type_signature: tff.Type):
    super().__init__([], placement, [type_signature])
    self.position = position


class Compute(Op):
  """Local work: a leaf, or a function of this runtime on flat values.

  Attributes:
    run: From values to results, in a graph that is being traced.
    run_eagerly: The same outside of graphs; sequences are datasets' variants.
    leaves: The leaves that it runs.
  """

  def __init__(
    self,
    inputs: Sequence[Ref],
    placement: str,
    types: Iterable[tff.Type],
    run: Callable[[Sequence[Any]], Sequence[Any]],
    leaves: Sequence[leaf_lib.Leaf] = (),
  ):
    super().__init__(inputs, placement, types)
    self.run = self.run_eagerly = run
    self.leaves = list(leaves)

  @classmethod
  def of_leaf(
    cls, inputs: Sequence[Ref], placement: str, leaf: leaf_lib.Leaf
  ) -> 'Compute':
    """Calls a leaf; in eager mode it runs as TFF made it."""
    op = cls(inputs, placement, leaf.result_types, leaf.replay, [leaf])
    op.run_eagerly = leaf.run
    return op

  @property
  def unsupported(self) -> list[str]:
    """Ops for which this can't be replayed; empty if it can."""
    return sorted({op for leaf in self.leaves for op in leaf.unsupported})


class Reduce(Op):
  """The sum, min or max over the clients of one tensor."""

  def __init__(self, kind: str, value: Ref):
    super().__init__([value], SERVER, [value.type_signature])
    self.kind = kind
    self.leaves: list[leaf_lib.Leaf] = []

  @functools.cached_property
  def stage(self) -> int:
    return 1 + self.inputs[0].op.stage


class Aggregate(Op):
  """Accumulates the clients one after the other, from a zero at the server.

  Attributes:
    zeros: The zero, flat.
    values: What a client contributes, flat.
    accumulate: From an accumulator and one client's values to an accumulator.
  """

  def __init__(
    self, zeros: Sequence[Ref], values: Sequence[Ref], accumulate: 'Local'
  ):
    types = [ref.type_signature for ref in accumulate.results]
    super().__init__([*zeros, *values], SERVER, types)
    self.zeros, self.values = list(zeros), list(values)
    self.accumulate = accumulate
    self.leaves = accumulate.leaves

  @functools.cached_property
  def stage(self) -> int:
    return 1 + max(ref.op.stage for ref in self.inputs)


class Local:
  """A function without placements.

  Attributes:
    results: References to its flat results.
    leaves: The leaves that it calls.
  """

  def __init__(
    self, parameters: list[Ref], ops: list[Compute], results: list[Ref]
  ):
    self._parameters = parameters
    self._ops = ops
    self.results = results
    self.leaves = [leaf for op in ops for leaf in op.leaves]

  def __call__(self, values: Sequence[Any], eagerly: bool = False) -> list:
    """Applies the function to flat values.

    Args:
      values: The arguments.
      eagerly: Whether no graph is being traced.

    Returns:
      The flat results.
    """
    env = dict(zip(self._parameters, values, strict=True))
    run(self._ops, env, eagerly)
    return [env[ref] for ref in self.results]


def run(
  ops: Iterable[Compute], env: dict[Ref, Any], eagerly: bool = False
) -> None:
  """Runs operations in order; their results are added to `env`."""
  for op in ops:
    values = [env[ref] for ref in op.inputs]
    results = op.run_eagerly(values) if eagerly else op.run(values)
    env.update(zip(op.results, results, strict=True))


@dataclasses.dataclass
class Check:
  """A condition on the clients' values that the server tests after a pass.

  Attributes:
    violated: A scalar that is positive if some client broke it.
    message: What is then raised.
  """

  violated: Ref
  message: str


@dataclasses.dataclass
class ClientPass:
  """What the clients do between two stages of the server.

  Attributes:
    ops: Local work of one client, in order.
    shared: Server's tensors that clients or accumulators read.
    inputs: Each client's own values: arguments, or kept by an earlier pass.
    reductions: What the server gets.
    kept: Each client's results that a later pass or the caller needs.
  """

  ops: list[Compute]
  shared: list[Ref]
  inputs: list[Ref]
  reductions: list[Reduce | Aggregate]
  kept: list[Ref]

  @functools.cached_property
  def leaves(self) -> list[leaf_lib.Leaf]:
    """All leaves, those of the accumulators included."""
    return [leaf for op in [*self.ops, *self.reductions] for leaf in op.leaves]

  @property
  def unsupported(self) -> list[str]:
    """Ops for which the pass can't be replayed; empty if it can."""
    return sorted({op for leaf in self.leaves for op in leaf.unsupported})

  def client(
    self, shared: Sequence[Any], inputs: Sequence[Any]
  ) -> tuple[list[list[Any]], list[Any]]:
    """One client's work, in a graph that is being traced.

    Args:
      shared: Values of `shared`.
      inputs: The client's values of `inputs`.

    Returns:
      Per reduction the values that the client contributes, and the values of
      `kept`.
    """
    env = dict(zip(self.shared, shared, strict=True))
    env |= zip(self.inputs, inputs, strict=True)
    run(self.ops, env)
    contributions = [
      [env[ref] for ref in contributed(reduction)]
      for reduction in self.reductions
    ]
    return contributions, [env[ref] for ref in self.kept]


def contributed(reduction: Reduce | Aggregate) -> list[Ref]:
  """What a client contributes to a reduction."""
  if isinstance(reduction, Aggregate):
    return reduction.values
  return reduction.inputs


@dataclasses.dataclass
class Stage:
  """Work at the server, and the pass over the clients that follows.

  Attributes:
    ops: The server's work, in order.
    given: What earlier stages made that `ops` read.
    made: What `ops` make that is needed outside of this list.
    clients: The pass; None after the last reduction.
  """

  ops: list[Compute]
  given: list[Ref]
  made: list[Ref]
  clients: ClientPass | None


class Program:
  """A computation, ready to be executed stage by stage.

  Attributes:
    arguments: Its flat arguments by position.
    results: Tree of its results.
    checks: Conditions to test.
    stages: What to do, in order.
  """

  def __init__(
    self,
    arguments: Sequence[Argument],
    ops: Sequence[Op],
    results: Any,
    flat_results: Sequence[Ref],
    checks: Sequence[Check],
  ):
    self.arguments = list(arguments)
    self.results = results
    self.checks = list(checks)
    wanted = [*flat_results, *(check.violated for check in checks)]
    needed = _needed(wanted)
    live = [op for op in ops if op in needed]
    last = max((op.stage for op in live), default=0)
    kept = _kept(live, wanted)
    self.stages = [_stage(live, wanted, kept, n) for n in range(last + 1)]


def _needed(wanted: Iterable[Ref]) -> set[Op]:
  found, stack = set(), [ref.op for ref in wanted]
  while stack:
    op = stack.pop()
    if op not in found:
      found.add(op)
      stack += [ref.op for ref in op.inputs]
  return found


def _pass_of(op: Op) -> int:
  """The pass that an operation is part of, if it is about clients."""
  return op.stage - 1 if isinstance(op, Reduce | Aggregate) else op.stage


def _is_of_clients(op: Op) -> bool:
  return isinstance(op, Reduce | Aggregate) or op.placement == CLIENTS


def _kept(ops: Sequence[Op], wanted: Sequence[Ref]) -> Mapping[Ref, None]:
  """Clients' results that are read after the pass that makes them."""
  kept = dict.fromkeys(ref for ref in wanted if _is_computed_by_clients(ref))
  for op in ops:
    if _is_of_clients(op):
      for ref in op.inputs:
        if _is_computed_by_clients(ref) and ref.op.stage < _pass_of(op):
          kept[ref] = None
  return kept


def _is_computed_by_clients(ref: Ref) -> bool:
  return ref.placement == CLIENTS and isinstance(ref.op, Compute)


def _unique(refs: Iterable[Ref]) -> list[Ref]:
  return list(dict.fromkeys(refs))


def _stage(
  ops: Sequence[Op],
  wanted: Sequence[Ref],
  kept: Mapping[Ref, None],
  number: int,
) -> Stage:
  computed = [op for op in ops if isinstance(op, Compute)]
  server = [
    op for op in computed if op.placement == SERVER and op.stage == number
  ]
  inside = set(server)
  others = [op for op in ops if op not in inside]
  read = {*wanted, *(ref for op in others for ref in op.inputs)}
  return Stage(
    ops=server,
    given=_unique(
      ref for op in server for ref in op.inputs if ref.op not in inside
    ),
    made=[ref for op in server for ref in op.results if ref in read],
    clients=_client_pass(ops, kept, number),
  )


def _client_pass(
  ops: Sequence[Op], kept: Mapping[Ref, None], number: int
) -> ClientPass | None:
  mine = [op for op in ops if _is_of_clients(op) and _pass_of(op) == number]
  mine = [op for op in mine if not isinstance(op, Argument)]
  if not mine:
    return None
  computed = [op for op in mine if isinstance(op, Compute)]
  inside = set(computed)
  read = _unique(
    ref for op in mine for ref in op.inputs if ref.op not in inside
  )
  return ClientPass(
    ops=computed,
    shared=[ref for ref in read if ref.placement == SERVER],
    inputs=[ref for ref in read if ref.placement == CLIENTS],
    reductions=[op for op in mine if isinstance(op, Reduce | Aggregate)],
    kept=[ref for ref in kept if ref.op in inside],
  )
