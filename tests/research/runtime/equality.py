"""Runs a process on two runtimes and compares what comes out."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from research.algorithms import stateful
from research.runtime import in_process
from tests.research.runtime import small_tasks

# Without convolutions; relative to values above 1, absolute below.
TOLERANCE = 1e-6

PLANS = {
  'loop': {'client_plan': 'loop', 'xla': 'off'},
  'scan': {'client_plan': 'scan', 'xla': 'off'},
  'vmap': {'client_plan': 'vmap', 'xla': 'off'},
  'vmap_xla': {'client_plan': 'vmap', 'xla': 'on'},
}


@dataclasses.dataclass(frozen=True)
class Case:
  """What is run on both runtimes.

  Attributes:
    build: Builds the process: `initialize` and `next(state, clients)`.
    clients: The clients of a round, by its number.
    plans: Names of the plans that can run it.
    oracle: stock, or test for TFF's test context, which has secure sums.
  """

  build: Callable[[], Any]
  clients: Callable[[int], Sequence[Any]]
  plans: tuple[str, ...] = tuple(PLANS)
  oracle: str = 'stock'


@dataclasses.dataclass(frozen=True)
class Trace:
  """What a process did.

  Attributes:
    process: The process.
    states: Flat NumPy state before each round and after the last one.
    metrics: Flat NumPy metrics of each round.
    structure: A state, for its structure.
  """

  process: Any
  states: list[list[np.ndarray]]
  metrics: list[list[np.ndarray]]
  structure: Any


def flat(structure: Any) -> list[np.ndarray]:
  """The leaves of a structure as arrays."""
  return [np.asarray(leaf) for leaf in tf.nest.flatten(structure)]


def difference(
  actual: Sequence[np.ndarray], expected: Sequence[np.ndarray]
) -> float:
  """The largest difference of two lists of leaves, as `TOLERANCE` counts.

  Args:
    actual: Flat leaves.
    expected: Leaves of the same shapes and data types.

  Returns:
    It; infinite where only one of them is a number.
  """
  largest = 0.0
  for a, b in zip(actual, expected, strict=True):
    assert a.shape == b.shape
    if not np.issubdtype(b.dtype, np.number):
      # Strings: an event's name, of which TFF makes an array of its own type.
      assert a.tolist() == b.tolist()
      continue
    assert a.dtype == b.dtype
    a, b = a.astype(np.float64), b.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid='ignore'):
      off = np.where(same, 0, abs(a - b) / np.maximum(1, abs(b)))
    largest = max(largest, np.nan_to_num(off, nan=np.inf).max(initial=0))
  return largest


def assert_equal(
  actual: Sequence[np.ndarray],
  expected: Sequence[np.ndarray],
  what: str = 'result',
) -> float:
  """Asserts that two lists of leaves are equal; returns their difference."""
  largest = difference(actual, expected)
  assert largest <= TOLERANCE, f'{what} differs by {largest}'
  return largest


def run(process: Any, state: Any, rounds: Sequence[Sequence[Any]]) -> Trace:
  """Runs rounds in the runtime that is installed."""
  states, metrics = [flat(state)], []
  for clients in rounds:
    output = process.next(state, clients)
    state = output.state
    states.append(flat(state))
    metrics.append(flat(output.metrics))
  return Trace(process, states, metrics, state)


def expected(case: Case, rounds: int) -> Trace:
  """Runs a case in TFF's own runtime, which must be installed."""
  process = case.build()
  clients = [
    [_for_tff(client) for client in case.clients(number)]
    for number in range(rounds)
  ]
  return run(process, process.initialize(), clients)


def _for_tff(client: Any) -> Any:
  if hasattr(client, 'lengths'):
    return small_tasks.dataset(client)
  return client


@contextlib.contextmanager
def in_process_runtime(
  plan: str, **kwargs
) -> Iterator[in_process.InProcessRuntime]:
  """The in-process runtime with a plan forced."""
  options = {**PLANS[plan], **kwargs}
  with in_process.InProcessRuntime(device='cpu', **options) as runtime:
    yield runtime


def check(case: Case, reference: Trace, plan: str, **kwargs) -> float:
  """Asserts that a plan does what TFF's own runtime did.

  Rounds follow each other from the same first state, and the last round is run
  again from the reference's state before it.

  Args:
    case: What is run.
    reference: What `expected` returned for it.
    plan: A key of `PLANS`.
    **kwargs: Of `InProcessRuntime`.

  Returns:
    The largest difference.
  """
  rounds = len(reference.metrics)
  clients = [case.clients(number) for number in range(rounds)]
  first, before = (
    tf.nest.pack_sequence_as(reference.structure, reference.states[number])
    for number in (0, -2)
  )
  with in_process_runtime(plan, **kwargs) as runtime:
    trace = run(reference.process, first, clients)
    last = run(reference.process, before, clients[-1:])
    process = reference.process
    computation = getattr(process, 'computation', process.next)
    for decision in decisions(runtime, computation):
      assert decision.plan == PLANS[plan]['client_plan']
      assert decision.xla == (PLANS[plan]['xla'] == 'on')
  pairs = [
    *zip(trace.states[1:], reference.states[1:], strict=True),
    (last.states[1], reference.states[-1]),
  ]
  found = [assert_equal(*pair, 'state') for pair in pairs]
  pairs = [
    *zip(trace.metrics, reference.metrics, strict=True),
    (last.metrics[0], reference.metrics[-1]),
  ]
  return max(found + [assert_equal(*pair, 'metrics') for pair in pairs])


class WithClients:
  """A stateful process whose clients' states are a part of its own.

  The cohort is the same in each round.
  """

  def __init__(self, process: stateful.StatefulProcess, clients: int):
    self.process = process
    self._clients = clients
    self.computation = process.next

  def initialize(self) -> tuple[Any, list]:
    own = [self.process.initial_client_state() for _ in range(self._clients)]
    return self.process.initialize(), own

  def next(self, state: tuple[Any, list], clients: Sequence[Any]):
    server, own = state
    output = self.process.next(server, clients, own)
    both = output.state, list(output.client_states)
    return stateful.Output(both, output.metrics, None)


def decisions(
  runtime: in_process.InProcessRuntime, computation: tff.Computation
) -> list:
  """How the runtime runs each pass over the clients of a computation."""
  return runtime._context.executable(computation).decisions
