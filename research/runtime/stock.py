"""TFF's own C++ executor, as it is shipped: on the CPU, without XLA."""

import atexit
import collections
import dataclasses
import os
import subprocess
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from datasets import federated_data
from research import compat
from research.algorithms import stateful
from research.tasks import task as task_lib


def _client_type(task: task_lib.Task) -> tff.Type:
  """TFF type of what one client sends to the worker: examples and their order.

  Examples travel once however many epochs are trained; `order` lists example
  indices batch after batch and `lengths` the size of each batch.
  """
  members = [
    (name, tff.TensorType(spec.dtype.as_numpy_dtype, [None, *spec.shape]))
    for name, spec in task.data.train.element_spec.items()
  ]
  indices = tff.TensorType(np.int32, [None])
  return tff.to_type(
    collections.OrderedDict(
      examples=collections.OrderedDict(members), order=indices, lengths=indices
    )
  )


def build_dataset_computation(task: task_lib.Task) -> tff.Computation:
  """Builds the computation from one client's arrays to its batches.

  Building the dataset inside the worker keeps tf.data out of this process: no
  graph is traced per client and round, so time and memory stay flat.

  Args:
    task: What is learned; its `preprocess` becomes part of the computation.

  Returns:
    A computation from the structure that `StockRuntime.client_data` makes to a
    sequence of `task.input_spec`.
  """

  @tff.tensorflow.computation(_client_type(task))
  def to_dataset(client):
    rows = tf.RaggedTensor.from_row_lengths(client['order'], client['lengths'])

    def batch(indices):
      return task.preprocess(
        tf.nest.map_structure(
          lambda array: tf.gather(array, indices), client['examples']
        )
      )

    return tf.data.Dataset.from_tensor_slices(rows).map(batch)

  return to_dataset


class StockRuntime:
  """Runs computations in TFF's `worker_binary`, a child of this process.

  The worker is built for the CPU and ignores `jit_compile`. Use as a context
  manager: whatever ends the block ends the worker.

  Attributes:
    name: The value of `--runtime`.
    loop_implementation: How TFF iterates over a client's batches; the iterator
      is the faster of its two loops.
  """

  name = 'stock'
  loop_implementation = tff.learning.LoopImplementation.DATASET_ITERATOR
  programs = 0

  def __init__(self, max_concurrent_clients: int | None = None):
    """Prepares the runtime; the worker starts with the first computation.

    Args:
      max_concurrent_clients: How many clients the worker trains at once; None
        is one per core.
    """
    self._max_concurrent_clients = max_concurrent_clients or len(
      os.sched_getaffinity(0)
    )

  def __enter__(self) -> 'StockRuntime':
    compat.own_worker_processes()
    compat.allow_nested_protobuf()
    # TFF complains when Python ends, unless its context and module are then
    # what they were at first.
    self._before = tff.framework.get_context_stack().current
    atexit.register(setattr, compat.executor_factory, 'subprocess', subprocess)
    tff.backends.native.set_sync_local_cpp_execution_context(
      max_concurrent_computation_calls=self._max_concurrent_clients
    )
    return self

  def __exit__(self, *unused_exception) -> None:
    tff.framework.set_default_context(self._before)
    compat.stop_workers()

  def prepare(
    self, process: stateful.AnyProcess, task: task_lib.Task
  ) -> stateful.AnyProcess:
    """Returns `process` with a `next` that takes what `client_data` makes."""
    to_dataset = build_dataset_computation(task)
    if not isinstance(process, tff.learning.templates.LearningProcess):
      composed = tff.simulation.compose_dataset_computation_with_computation(
        to_dataset, process.next
      )
      return dataclasses.replace(process, next=composed)
    return tff.simulation.compose_dataset_computation_with_learning_process(
      to_dataset, process
    )

  def client_data(
    self,
    split: federated_data.Split,
    client_id: str,
    batches: list[np.ndarray],
  ) -> collections.OrderedDict:
    """One client's argument of the prepared `next`.

    Args:
      split: The split that has the client.
      client_id: One of `split.client_ids`.
      batches: int arrays of example indices, one per local step.

    Returns:
      The client's arrays, the indices of all batches end to end, and the
      batches' sizes.
    """
    return collections.OrderedDict(
      examples=split.client(client_id),
      order=np.concatenate(batches).astype(np.int32),
      lengths=np.array([len(batch) for batch in batches], np.int32),
    )

  def cohort(
    self, clients: Sequence[collections.OrderedDict]
  ) -> list[collections.OrderedDict]:
    """What `next` takes for a round's clients; see `registry.Runtime`."""
    return list(clients)

  def describe(self) -> dict[str, Any]:
    """Where computations run and why; see `registry.Runtime`."""
    return {
      'name': self.name,
      'device': 'cpu',
      'reason': "TFF's worker is built for the CPU and without XLA.",
      'xla': False,
      'max_concurrent_clients': self._max_concurrent_clients,
      'deterministic': True,
      'decisions': [],
    }
