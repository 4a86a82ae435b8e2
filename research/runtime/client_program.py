"""What the clients of a round compute, as one program for XLA."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from research.algorithms import stateful
from research.runtime import (
  cohort,
  context,
  planner,
  program,
  reductions,
  tree,
  values,
  vmap,
)
from research.tasks import task as task_lib


@dataclasses.dataclass(frozen=True)
class ClientProgram:
  """A chunk of clients' work in a round, with what is summed over them.

  Attributes:
    function: From flat tensors of fixed shapes to flat tensors, by XLA.
    example_arguments: Arguments for it: the initial state, random examples.
    argument_names: What each argument is.
    result_names: What each result is.
  """

  function: Callable[..., Sequence[tf.Tensor]]
  example_arguments: tuple[tf.Tensor, ...]
  argument_names: tuple[str, ...]
  result_names: tuple[str, ...]


def build(
  task: task_lib.Task,
  process: stateful.AnyProcess,
  *,
  num_clients: int,
  batches: Sequence[int],
  seed: int = 0,
) -> ClientProgram:
  """Builds the program of the first pass over the clients.

  Args:
    task: What is learned.
    process: What learns it.
    num_clients: Clients of the chunk; 1 is a program that is not vectorised.
    batches: Sizes of a client's batches, one per local step.
    seed: Of the random examples.

  Returns:
    The program.

  Raises:
    planner.PlanError: If the clients' work can't be compiled.
  """
  compiled = tree.build(process.next)
  stage = compiled.stages[0]
  if stage.clients is None:
    raise planner.PlanError('The computation has no work of clients.')
  options = planner.Options(client_plan=planner.VMAP, xla='on')
  planner.decide(stage.clients, options)
  state = context.Executable(process.initialize, options).run(None)
  shared = _shared_values(compiled, process, state)
  data = cohort.pack(_examples(task, num_clients, batches, seed))
  plan = vmap.Vmap(stage.clients, num_clients, xla=True, fixed_counts=True)
  inputs = [
    data
    if isinstance(ref.type_signature, tff.SequenceType)
    else _zeros(ref.type_signature, num_clients)
    for ref in stage.clients.inputs
  ]
  members, segments = next(plan.chunks(inputs, num_clients))
  start = plan.start(shared)
  key, flat = plan.arguments(shared, inputs, members, segments, start)
  return ClientProgram(
    function=plan.trace(key, flat),
    example_arguments=tuple(flat),
    argument_names=_argument_names(stage.clients, task, data),
    result_names=tuple(
      f'{getattr(op, "kind", "aggregate")}_{number}/{part}'
      for number, op in enumerate(stage.clients.reductions)
      for part in range(len(op.results))
    )
    + tuple(f'client_{i}' for i in range(len(stage.clients.kept))),
  )


def _zeros(signature: tff.TensorType, num_clients: int) -> tf.Tensor:
  """What a client has besides its examples: the state of an algorithm."""
  dtype = tf.dtypes.as_dtype(signature.dtype)
  return tf.zeros([num_clients, *signature.shape], dtype)


def _shared_values(
  compiled: program.Program,
  process: stateful.AnyProcess,
  state: object,
) -> list[tf.Tensor]:
  """What the server sends to the clients of the first pass."""
  leaves, _ = values.flatten(state, process.next.type_signature.parameter[0])
  server = [op for op in compiled.arguments if op.placement == program.SERVER]
  env = {
    op.results[0]: tf.convert_to_tensor(
      leaf, tf.dtypes.as_dtype(op.results[0].type_signature.dtype)
    )
    for op, leaf in zip(server, leaves, strict=True)
  }
  stage = compiled.stages[0]

  @tf.function(autograph=False)
  def run(given: list[tf.Tensor]) -> list[tf.Tensor]:
    inner = dict(zip(stage.given, given, strict=True))
    program.run(stage.ops, inner)
    return [inner[ref] for ref in stage.made]

  made = run([env[ref] for ref in stage.given])
  env |= zip(stage.made, made, strict=True)
  return [env[ref] for ref in stage.clients.shared]


def _examples(
  task: task_lib.Task, num_clients: int, batches: Sequence[int], seed: int
) -> list[cohort.ClientBatches]:
  """Clients with random examples of the task's form."""
  rng = np.random.default_rng(seed)
  count = sum(batches)

  def draw(spec: tf.TensorSpec) -> np.ndarray:
    shape, dtype = [count, *spec.shape], spec.dtype.as_numpy_dtype
    if spec.dtype.is_integer:
      top = 256 if spec.dtype == tf.uint8 else max(task.data.num_classes, 2)
      return rng.integers(0, top, shape).astype(dtype)
    return rng.random(shape).astype(dtype)

  return [
    cohort.ClientBatches(
      {name: draw(s) for name, s in task.data.train.element_spec.items()},
      np.arange(count, dtype=np.int32),
      np.array(batches, np.int32),
      task.preprocess,
    )
    for _ in range(num_clients)
  ]


def _argument_names(
  client_pass: program.ClientPass, task: task_lib.Task, data: cohort.Cohort
) -> tuple[str, ...]:
  names = ['clients']
  names += [f'server_{i}' for i in range(len(client_pass.shared))]
  specs = reductions.specs(client_pass.reductions)
  names += [f'sum_so_far_{i}' for i in range(len(specs))]
  sequences = [
    isinstance(ref.type_signature, tff.SequenceType)
    for ref in client_pass.inputs
  ]
  for _ in range(sum(sequences)):
    names += [f'examples/{name}' for name in task.data.train.element_spec]
    # Batches that lie one after the other need no order.
    names += [] if data.block_shape else ['examples/order']
  names += [f'client_state_{i}' for i in range(sequences.count(False))]
  for _ in range(sum(sequences)):
    names += [
      f'batches/{name}'
      for name in ('begin', 'counts', 'lengths', 'longest', 'repeats')
    ]
  return tuple(names)
