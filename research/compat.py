"""The one place that touches private parts of TFF.

Pinned to tensorflow-federated 0.87.0; each function says what breaks without
it.
"""

import os
import pathlib
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff
from tensorflow_federated.python.common_libs import structure
from tensorflow_federated.python.core.backends.mapreduce import (
  compiler as mapreduce_compiler,
)
from tensorflow_federated.python.core.environments.tensorflow_backend import (
  tensorflow_tree_transformations as tree_transformations,
)
from tensorflow_federated.python.core.impl.compiler import (
  building_blocks,
  transformations,
)
from tensorflow_federated.python.core.impl.context_stack import context_base
from tensorflow_federated.python.core.impl.executor_stacks import (
  executor_factory,
)
from tensorflow_federated.python.core.impl.types import type_conversions
from tensorflow_federated.python.core.impl.utils import tensorflow_utils
from tensorflow_federated.python.tensorflow_libs import serialization_utils

# What the in-process runtime reads of TFF's inside.
blocks = building_blocks
Struct = structure.Struct
SyncContext = context_base.SyncContext
to_struct = structure.from_container
dataset_of = tensorflow_utils.make_data_set_from_elements
tensor_names = tensorflow_utils.extract_tensor_names_from_binding
iter_elements = structure.iter_elements
type_to_py_container = type_conversions.type_to_py_container
type_to_tf_structure = type_conversions.type_to_tf_structure
unpack_graph_def = serialization_utils.unpack_graph_def

# Intrinsics with a body of TFF's in terms of others.
_REPLACED_INTRINSICS = (
  'federated_mean',
  'federated_weighted_mean',
  'generic_divide',
  'generic_multiply',
  'generic_plus',
)

_LAUNCHER = pathlib.Path(__file__).parent / 'runtime' / 'worker_launcher.py'
_lock = threading.Lock()
_workers: list[subprocess.Popen] = []


class _WorkerPopen(subprocess.Popen):
  """Starts TFF's `worker_binary` so that it cannot outlive this process."""

  def __init__(self, args):
    launcher = [sys.executable, '-I', '-S', str(_LAUNCHER), str(os.getpid())]
    # A session of its own: Ctrl-C reaches the run, which then ends the worker.
    super().__init__(
      [*launcher, *args], stdout=subprocess.DEVNULL, start_new_session=True
    )
    with _lock:
      _workers.append(self)


class _StartWorker:
  """What TFF calls to start a worker; no worker is an instance of it.

  TFF signals the id of each instance when its factory is collected, by when the
  worker is gone and its id may be another process's.
  """

  def __new__(cls, args, **unused_kwargs):
    return _WorkerPopen(args)

  def __class_getitem__(cls, item):
    # TFF's annotations say Popen[bytes].
    return cls


class _Subprocess:
  """Stands in for the module `subprocess` inside TFF's executor factory."""

  Popen = _StartWorker


def own_worker_processes() -> None:
  """Makes TFF start its workers through `worker_launcher.py`; idempotent.

  TFF 0.87 starts `worker_binary` as a plain child: it survives a parent that is
  killed, and keeps the parent's standard output open.
  """
  executor_factory.subprocess = _Subprocess


def worker_pids() -> list[int]:
  """Process ids of the workers that this process started and that still run."""
  with _lock:
    return [worker.pid for worker in _workers if worker.poll() is None]


def stop_workers(timeout_seconds: float = 5.0) -> None:
  """Kills every worker that this process started, by its id, and reaps it."""
  with _lock:
    workers, _workers[:] = list(_workers), []
  for worker in workers:
    if worker.poll() is None:
      worker.kill()
  for worker in workers:
    worker.wait(timeout_seconds)


def allow_nested_protobuf() -> None:
  """Lifts upb's limit of 100 nested messages, which aggregators exceed."""
  try:
    from google._upb import _message
  except ImportError:
    return
  _message.SetAllowOversizeProtos(True)


def call_dominant(computation: tff.Computation):
  """Compiles a computation to a flat tree of calls.

  Args:
    computation: Any TFF computation.

  Returns:
    A building block in call-dominant form, whose local processing is
    TensorFlow. Means and generic arithmetic are replaced by TFF's own bodies;
    sums, minima, maxima and everything else stay intrinsics.
  """
  block = computation.to_building_block()
  bodies = tree_transformations._get_intrinsic_reductions()
  for uri in _REPLACED_INTRINSICS:
    block, _ = tree_transformations.reduce_intrinsic(block, uri, bodies[uri])
  block = transformations.to_call_dominant(block)
  return mapreduce_compiler.compile_local_subcomputations_to_tensorflow(block)


def call_flat(function: Any, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
  """Calls a concrete function on flat tensors.

  The public call binds and checks each argument in Python, which for small
  models takes longer than their computation.
  """
  return function._call_flat(list(tensors), function.captured_inputs)
