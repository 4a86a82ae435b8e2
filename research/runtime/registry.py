"""The runtimes by name, and what each of them offers to a training loop."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow_federated as tff

from datasets import federated_data
from research.algorithms import stateful
from research.runtime import stock
from research.tasks import task as task_lib

DEFAULT = 'in_process'
XLA = ('auto', 'on', 'off')
CLIENT_PLANS = ('auto', 'loop', 'scan', 'vmap')


@dataclasses.dataclass(frozen=True)
class RuntimeConfig:
  """Where and how computations run; the attributes are flags.

  Attributes:
    runtime: A key of `RUNTIMES`.
    device: One of `accelerators.DEVICES`.
    xla: One of `XLA`: whether XLA compiles the clients' work.
    client_plan: One of `CLIENT_PLANS`: how the clients of a round are trained.
    clients_per_chunk: Clients that are vectorised together; None is automatic.
    max_concurrent_clients: Clients that are trained at once; None is one per
      core.
    require_accelerator: Whether running on the CPU is an error.
  """

  runtime: str = DEFAULT
  device: str = 'auto'
  xla: str = 'auto'
  client_plan: str = 'auto'
  clients_per_chunk: int | None = None
  max_concurrent_clients: int | None = None
  require_accelerator: bool = False


class Runtime(Protocol):
  """What a training loop needs of a runtime; a context manager.

  Attributes:
    name: A key of `RUNTIMES`.
    loop_implementation: How TFF is to iterate over a client's batches.
  """

  name: str
  loop_implementation: tff.learning.LoopImplementation

  @property
  def programs(self) -> int:
    """How many programs for clients' work the plans in use have made.

    A program is a function that was traced and, where XLA is used, compiled:
    what makes a round slow that brings new shapes.
    """

  def __enter__(self) -> 'Runtime':
    """Starts it: TFF's computations run there until the block is left."""

  def __exit__(self, *exception) -> None:
    """Ends whatever it started."""

  def prepare(
    self, process: stateful.AnyProcess, task: task_lib.Task
  ) -> stateful.AnyProcess:
    """Returns `process` with a `next` that takes what `client_data` makes."""

  def client_data(
    self,
    split: federated_data.Split,
    client_id: str,
    batches: Sequence[np.ndarray],
  ) -> Any:
    """One client's argument of the prepared `next`.

    Args:
      split: The split that has the client.
      client_id: One of `split.client_ids`.
      batches: Integer arrays of example indices, one per local step.
    """

  def cohort(self, clients: Sequence[Any]) -> Any:
    """Packs what `client_data` made of a round's clients.

    Args:
      clients: One value per client, at least one.

    Returns:
      An argument of the prepared `next`; it may be made in another thread.
    """

  def describe(self) -> dict[str, Any]:
    """What was decided, complete once `prepare` was called.

    Returns:
      Values that JSON can hold, among them `name`, `device` (cpu, gpu or tpu),
      `reason` (why that device, a sentence), `deterministic` (whether the same
      flags give the same bits there) and `decisions`: a list with a dict
      of strings per federated map, at least `map`, `plan` and `reason`.
    """


def _stock(config: RuntimeConfig) -> stock.StockRuntime:
  return stock.StockRuntime(config.max_concurrent_clients)


def _in_process(config: RuntimeConfig) -> Runtime:
  # Its compiler is not loaded where another runtime was chosen.
  from research.runtime import in_process

  return in_process.InProcessRuntime(
    device=config.device,
    xla=config.xla,
    client_plan=config.client_plan,
    clients_per_chunk=config.clients_per_chunk,
    max_concurrent_clients=config.max_concurrent_clients,
    require_accelerator=config.require_accelerator,
  )


RUNTIMES: Mapping[str, Callable[[RuntimeConfig], Runtime]] = {
  'stock': _stock,
  'in_process': _in_process,
}


def build(config: RuntimeConfig) -> Runtime:
  """Builds the runtime that a configuration describes, not yet started."""
  return RUNTIMES[config.runtime](config)
