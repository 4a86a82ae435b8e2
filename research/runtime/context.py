"""Runs TFF computations in this process's own TensorFlow."""

import collections
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff
from absl import logging

from research import compat
from research.runtime import (
  loop,
  planner,
  program,
  reductions,
  replay,
  scan,
  tree,
  values,
  vmap,
)

_COMPUTATIONS_KEPT = 64


class InProcessContext(compat.SyncContext):
  """A TFF context: `tff.framework.set_default_context` takes it.

  Results are NumPy, as those of TFF's own contexts, but for a part named
  `state`, which stays on the device as tensors.
  """

  def __init__(self, options: planner.Options):
    """Prepares the context.

    Args:
      options: On which device, and how the clients of a round are trained.
    """
    self._options = options
    self._device = f'/{options.device.upper()}:0'
    self._executables: collections.OrderedDict = collections.OrderedDict()

  def invoke(self, comp: tff.Computation, arg: Any) -> Any:
    """Runs a computation; called by TFF."""
    with tf.device(self._device):
      return self.executable(comp).run(arg)

  def executable(self, computation: tff.Computation) -> 'Executable':
    """Returns the compiled computation, from a cache if it is there."""
    key = id(computation)
    if key not in self._executables:
      # It keeps the computation, or its id could be another's.
      self._executables[key] = Executable(computation, self._options)
      if len(self._executables) > _COMPUTATIONS_KEPT:
        self._executables.popitem(last=False)
    self._executables.move_to_end(key)
    return self._executables[key]

  @property
  def programs(self) -> int:
    """Functions of clients' work that the plans in use were traced to."""
    return sum(found.programs for found in self._executables.values())


class Executable:
  """A compiled computation."""

  def __init__(self, computation: tff.Computation, options: planner.Options):
    """Compiles a computation; nothing is traced yet.

    Args:
      computation: What to run.
      options: How the clients of a round are trained.

    Raises:
      tree.UnknownIntrinsicError: If it has an unknown intrinsic.
      planner.PlanError: If the options don't fit.
    """
    self._computation = computation
    self._signature = computation.type_signature
    self._program = tree.build(computation)
    self._export = values.exporter(
      self._program.results, self._signature.result
    )
    self._servers = [_Server(stage) for stage in self._program.stages]
    self._passes = [
      _Clients(stage.clients, options) if stage.clients else None
      for stage in self._program.stages
    ]

  @property
  def decisions(self) -> list[planner.Decision]:
    """How each pass over the clients is run."""
    return [clients.decision for clients in self._passes if clients]

  @property
  def programs(self) -> int:
    """How many functions its passes were traced to, by XLA compiled."""
    return sum(clients.programs for clients in self._passes if clients)

  def run(self, argument: Any) -> Any:
    """Runs the computation on Python values."""
    env: dict[program.Ref, Any] = {}
    clients = None
    if self._signature.parameter is not None:
      flat, clients = values.flatten(argument, self._signature.parameter)
      for op, value in zip(self._program.arguments, flat, strict=True):
        env[op.results[0]] = value
    for server, client_pass in zip(self._servers, self._passes, strict=True):
      server.run(env)
      if client_pass is not None:
        client_pass.run(env, clients)
    for check in self._program.checks:
      if int(env[check.violated]) > 0:
        raise tree.SecureSumBoundError(check.message)
    return self._export(env, clients)


class _Server:
  """A stage's work at the server, as one function."""

  def __init__(self, stage: program.Stage):
    self._stage = stage
    types = [ref.type_signature for ref in stage.given]
    self._eagerly = any(op.unsupported for op in stage.ops) or any(
      isinstance(t, tff.SequenceType) for t in types
    )
    self._function = None

  def _traced(self, *given: tf.Tensor) -> list[tf.Tensor]:
    env = dict(zip(self._stage.given, given, strict=True))
    with replay.compiling():
      program.run(self._stage.ops, env)
    return [env[ref] for ref in self._stage.made]

  def run(self, env: dict[program.Ref, Any]) -> None:
    """Runs the work; its results are added to `env`."""
    if not self._stage.ops:
      return
    if self._eagerly:
      program.run(self._stage.ops, env, eagerly=True)
      return
    if self._function is None:
      specs = [reductions.spec(ref) for ref in self._stage.given]
      traced = tf.function(self._traced, specs, autograph=False)
      self._function = traced.get_concrete_function()
    given = [env[ref] for ref in self._stage.given]
    made = compat.call_flat(self._function, given)
    env.update(zip(self._stage.made, made, strict=True))


class _Clients:
  """A pass over the clients with its plan."""

  def __init__(self, client_pass: program.ClientPass, options: planner.Options):
    self._pass = client_pass
    self._options = options
    self.decision = planner.decide(client_pass, options)
    self._plan = self._build(self.decision)
    self._loop = loop.Loop(client_pass)

  def _build(self, decision: planner.Decision):
    if decision.plan == planner.SCAN:
      return scan.Scan(self._pass, self._options.concurrent_clients)
    if decision.plan == planner.VMAP:
      on_cpu = self._options.device == 'cpu'
      return vmap.Vmap(
        self._pass,
        decision.clients_per_chunk,
        decision.xla,
        lanes=self._options.concurrent_clients if on_cpu else 1,
      )
    return loop.Loop(self._pass)

  @property
  def programs(self) -> int:
    return self._plan.programs

  def run(self, env: dict[program.Ref, Any], clients: int | None) -> None:
    """Runs all clients; what the server gets and is kept goes into `env`."""
    if clients is None:
      raise ValueError(
        'The computation has clients, but no argument says how many there are.'
      )
    shared = [env[ref] for ref in self._pass.shared]
    inputs = [env[ref] for ref in self._pass.inputs]
    accumulators, kept = self._run(shared, inputs, clients)
    reduced = [ref for op in self._pass.reductions for ref in op.results]
    env.update(zip(reduced, accumulators, strict=True))
    env.update(zip(self._pass.kept, map(values.stacked, kept), strict=True))

  def _run(self, shared: list, inputs: list, clients: int):
    if any(isinstance(value, list) for value in inputs):
      text = 'The clients have tensors of different shapes: one by one, then.'
      logging.log_first_n(logging.WARNING, text, 1)
      return self._loop.run(shared, inputs, clients)
    try:
      return self._plan.run(shared, inputs, clients)
    except planner.VectorizationError as error:
      if self._options.client_plan != 'auto' or self._options.xla == 'on':
        raise
      # What pfor refuses shows only when it is traced.
      logging.warning('%s Using the plan scan.', error)
      self._plan = scan.Scan(self._pass, self._options.concurrent_clients)
      return self._plan.run(shared, inputs, clients)
