"""TFF in this process's own TensorFlow: on CPU, GPU or TPU, with XLA."""

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
from absl import logging

from datasets import federated_data
from research import compat
from research.algorithms import stateful
from research.runtime import (
  accelerators,
  cohort,
  context,
  planner,
  registry,
)
from research.tasks import task as task_lib


class InProcessRuntime:
  """Runs computations in this process; use it as a context manager.

  Attributes:
    name: The value of `--runtime`.
    loop_implementation: The loop over batches that can be vectorised; one over
      an iterator would be run client by client.
  """

  name = 'in_process'
  loop_implementation = tff.learning.LoopImplementation.DATASET_REDUCE

  def __init__(
    self,
    device: str = 'auto',
    xla: str = 'auto',
    client_plan: str = 'auto',
    clients_per_chunk: int | None = None,
    max_concurrent_clients: int | None = None,
    require_accelerator: bool = False,
  ):
    """Prepares the runtime; see the flags of these names.

    Args:
      device: auto, cpu, gpu or tpu.
      xla: auto, on or off.
      client_plan: auto, loop, scan or vmap.
      clients_per_chunk: Clients that are vectorised at once; None is as many as
        fit into a fixed amount of memory.
      max_concurrent_clients: Clients that are trained at once on a CPU; None is
        one per core.
      require_accelerator: Whether running on the CPU is an error.

    Raises:
      ValueError: If an argument is none of these.
    """
    choices = {
      'device': (device, accelerators.DEVICES),
      'xla': (xla, registry.XLA),
      'client_plan': (client_plan, registry.CLIENT_PLANS),
    }
    for name, (value, known) in choices.items():
      if value not in known:
        raise ValueError(f'{name}={value!r} is none of {", ".join(known)}.')
    for name, value in (
      ('clients_per_chunk', clients_per_chunk),
      ('max_concurrent_clients', max_concurrent_clients),
    ):
      if value is not None and value < 1:
        raise ValueError(f'{name}={value} must be at least 1.')
    cores = max_concurrent_clients or len(os.sched_getaffinity(0))
    self._wanted, self._required = device, require_accelerator
    self._options = planner.Options(
      xla=xla,
      client_plan=client_plan,
      clients_per_chunk=clients_per_chunk,
      concurrent_clients=cores,
    )
    self._stack = contextlib.ExitStack()
    self._context: context.InProcessContext | None = None
    self._preprocess = None
    self._decisions: list[dict[str, Any]] = []

  def __enter__(self) -> 'InProcessRuntime':
    self._stack.enter_context(
      tff.framework.get_context_stack().install(self.start())
    )
    return self

  def start(self) -> context.InProcessContext:
    """Chooses the device and returns a context that TFF can install.

    Raises:
      accelerators.AcceleratorError: If the device is not there.
    """
    compat.allow_nested_protobuf()
    _one_thread_per_client(self._options.concurrent_clients)
    found = accelerators.probe()
    device = accelerators.resolve(self._wanted, found, self._required)
    self._options = dataclasses.replace(self._options, device=device)
    self._context = context.InProcessContext(self._options)
    return self._context

  def __exit__(self, *exception) -> None:
    self._stack.__exit__(*exception)

  def prepare(
    self, process: stateful.AnyProcess, task: task_lib.Task
  ) -> stateful.AnyProcess:
    """Plans the rounds of a process, whose `next` takes `client_data`'s result.

    Args:
      process: What learns.
      task: What is learned; its `preprocess` maps each batch.

    Returns:
      The process.

    Raises:
      planner.PlanError: If the process can't be run as the flags say.
    """
    self._preprocess = task.preprocess
    executable = self._context.executable(process.next)
    self._decisions = [decision.describe() for decision in executable.decisions]
    for decision in self._decisions:
      logging.info('Training clients: %s', decision)
    return process

  def client_data(
    self,
    split: federated_data.Split,
    client_id: str,
    batches: list[np.ndarray],
  ) -> cohort.ClientBatches:
    """One client's argument of `next`.

    Args:
      split: The split that has the client.
      client_id: One of `split.client_ids`.
      batches: int arrays of example indices, one per local step.

    Returns:
      The client's arrays and the order of its examples.
    """
    return cohort.ClientBatches(
      examples=split.client(client_id),
      order=np.concatenate(batches).astype(np.int32),
      lengths=np.array([len(batch) for batch in batches], np.int32),
      preprocess=self._preprocess,
    )

  def cohort(self, clients: Sequence[cohort.ClientBatches]) -> cohort.Cohort:
    """Packs what `client_data` made of the clients of a round.

    `next` takes the list as well, and packs it then.
    """
    return cohort.pack(clients)

  @property
  def programs(self) -> int:
    """See `registry.Runtime`."""
    return self._context.programs if self._context else 0

  def describe(self) -> dict[str, Any]:
    """Where computations run and why; see `registry.Runtime`."""
    if self._wanted == 'auto':
      reason = (
        f'TensorFlow sees no better device than the {self._options.device}.'
      )
    else:
      reason = f'--device={self._wanted}'
    return {
      'name': self.name,
      'device': self._options.device,
      'reason': reason,
      'max_concurrent_clients': self._options.concurrent_clients,
      'deterministic': accelerators.is_deterministic(self._options.device),
      'decisions': self._decisions,
    }


def set_execution_context(**options: Any) -> InProcessRuntime:
  """Makes this runtime TFF's default, for the rest of the process.

  In a program of your own it takes the place of TFF's
  `tff.backends.native.set_sync_local_cpp_execution_context`; clients may be
  `tf.data` datasets.

  Args:
    **options: Of `InProcessRuntime`.

  Returns:
    The runtime.
  """
  runtime = InProcessRuntime(**options)
  tff.framework.set_default_context(runtime.start())
  return runtime


def _one_thread_per_client(cores: int) -> None:
  """Gives each op one thread, so that as many clients run as there are cores.

  TensorFlow takes this only before its first op.
  """
  try:
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(cores)
  except RuntimeError:
    logging.info('TensorFlow runs already: its threads stay as they are.')
