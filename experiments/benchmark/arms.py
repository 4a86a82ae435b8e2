"""The systems that are measured; each runs in a process of its own.

  stock_reduce      TFF's worker with its default loop, DATASET_REDUCE
  stock_iterator    TFF's worker with DATASET_ITERATOR
  in_process_auto   the in-process runtime as it plans by itself
  in_process_loop, _scan, _vmap, _vmap_xla   with that plan forced
  in_process_no_dp  in_process_auto, of workload E without its DP
  in_process_qat    in_process_auto, with quantization-aware training
  bare_...          the loops of bare.py, without federation
  peer_...          other frameworks, in environments of their own (peers/)

The harness starts `worker.py`, which opens one of them.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from experiments.benchmark import bare, workloads
from research.aggregators import dp
from research.privacy import noise
from research.runtime import in_process, registry


@dataclasses.dataclass(frozen=True)
class Opened:
  """A system that is ready for its first round.

  Attributes:
    step: Runs a round, to the end of its computation.
    weights: Returns the global weights.
    construction_seconds: What building the process took, from the task to what
      the runtime has planned; 0 without a process.
  """

  step: Callable[[], None]
  weights: Callable[[], list[np.ndarray]]
  construction_seconds: float = 0.0


_STOCK = {
  'stock_reduce': tff.learning.LoopImplementation.DATASET_REDUCE,
  'stock_iterator': tff.learning.LoopImplementation.DATASET_ITERATOR,
}
# Plan and XLA.
_IN_PROCESS = {
  'in_process_auto': ('auto', 'auto'),
  'in_process_loop': ('loop', 'off'),
  'in_process_scan': ('scan', 'off'),
  'in_process_vmap': ('vmap', 'off'),
  'in_process_vmap_xla': ('vmap', 'on'),
  workloads.WITHOUT_PRIVACY: ('auto', 'auto'),
  workloads.WITH_QUANTIZATION: ('auto', 'auto'),
}
# Workloads that are also trained with quantization.
_QUANTIZED = ('A', 'B', 'F')
# What the planner may choose on a CPU, by model, beside `in_process_auto`.
_PLANS = {
  'cnn': ('in_process_scan',),
  'bert': ('in_process_scan',),
  'linear': ('in_process_vmap', 'in_process_vmap_xla'),
  'wide': (),
  'lora': ('in_process_scan',),
  'full': (),
}
# Beyond, stock TFF takes minutes for a round, and for all of a large encoder.
_MOST_STOCK_CLIENTS = 1000
_SLOW_IN_STOCK = ('full',)
# Without those that lost by far where they were measured.
_BARE = {
  'cnn': ('bare_one_lane', 'bare_lanes'),
  'bert': ('bare_one_lane', 'bare_lanes'),
  'linear': ('bare_lanes', 'bare_vmap', 'bare_vmap_xla'),
  'wide': ('bare_lanes', 'bare_vmap'),
  'lora': ('bare_one_lane', 'bare_lanes'),
  'full': ('bare_one_lane', 'bare_lanes'),
}


def names(workload: workloads.Workload, all_plans: bool) -> list[str]:
  """The arms of a workload, peers apart, in the order of the report.

  Unless all are asked for, stock TFF is left out where it takes minutes.

  Args:
    workload: What is trained.
    all_plans: Whether to include plans and bare loops that are known to lose.
  """
  others = [workloads.WITHOUT_PRIVACY] if workload.private else []
  if workload.name in _QUANTIZED:
    others.append(workloads.WITH_QUANTIZATION)
  if all_plans:
    loops = [f'bare_{name}' for name in bare.variants_of(workload)]
    plans = [name for name in _IN_PROCESS if name not in workloads.CHANGED]
    return [*_STOCK, *plans, *others, *loops]
  is_slow = (
    workload.clients > _MOST_STOCK_CLIENTS or workload.model in _SLOW_IN_STOCK
  )
  stock = () if is_slow else _STOCK
  plans = ('in_process_auto', *_PLANS[workload.model], *others)
  return [*stock, *plans, *_BARE[workload.model]]


@contextlib.contextmanager
def _federated(
  workload: workloads.Workload,
  config: registry.RuntimeConfig,
  loop_implementation: tff.learning.LoopImplementation | None,
) -> Iterator[Opened]:
  task = workload.task()
  # Stock TFF has noise of its own; ours has a key of each round.
  is_keyed = workload.private and config.runtime == 'in_process'
  aggregator = None
  if is_keyed:
    query = dp.FixedClipQuery(
      workloads.CLIP, workloads.NOISE_MULTIPLIER, float(workload.clients)
    )
    aggregator = dp.factory(query)
  with registry.build(config) as runtime:
    loop = loop_implementation or runtime.loop_implementation
    start = time.perf_counter()
    process = runtime.prepare(workload.process(task, loop, aggregator), task)
    seconds = time.perf_counter() - start
    split, batches = task.data.train, workload.batches()
    cohort = [
      runtime.client_data(split, client, batches) for client in split.client_ids
    ]
    # Packed beforehand, as the bare loops have their arrays.
    if isinstance(runtime, in_process.InProcessRuntime):
      cohort = runtime.cohort(cohort)
    state = process.initialize()

    def step():
      nonlocal state
      if is_keyed:
        state = dp.with_noise_key(state, noise.secure_key())
      state = process.next(state, cohort).state
      # Nothing may be left to run when the clock stops.
      tf.test.experimental.sync_devices()

    yield Opened(
      step, lambda: process.get_model_weights(state).trainable, seconds
    )


@contextlib.contextmanager
def _bare(workload: workloads.Workload, variant: str) -> Iterator[Opened]:
  bare.VARIANTS[variant].set_threads()
  round_fn = bare.build(workload, variant)
  weights = bare.initial_weights(workload)
  x, y = map(tf.constant, workload.arrays())

  def step():
    nonlocal weights
    weights = round_fn(weights, x, y)
    tf.test.experimental.sync_devices()

  yield Opened(step, lambda: weights)


def open_arm(
  name: str, workload: workloads.Workload
) -> contextlib.AbstractContextManager[Opened]:
  """Makes a system ready for its first round.

  Args:
    name: A stock, in-process or bare arm.
    workload: What is trained.

  Returns:
    A context manager of the system.

  Raises:
    ValueError: If there is no such arm.
  """
  kind, _, variant = name.partition('_')
  if name in _STOCK:
    config = registry.RuntimeConfig(runtime='stock')
    return _federated(workload, config, _STOCK[name])
  if name in _IN_PROCESS:
    plan, xla = _IN_PROCESS[name]
    if name == workloads.WITHOUT_PRIVACY:
      workload = dataclasses.replace(workload, private=False)
    elif name == workloads.WITH_QUANTIZATION:
      workload = dataclasses.replace(workload, quantized=True)
    config = registry.RuntimeConfig('in_process', client_plan=plan, xla=xla)
    return _federated(workload, config, None)
  if kind == 'bare' and variant in bare.VARIANTS:
    return _bare(workload, variant)
  raise ValueError(f'no arm {name!r}')
