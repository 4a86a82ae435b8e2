"""Decides how the clients of a pass are trained, and says why."""

import dataclasses
import os
from collections.abc import Sequence

import tensorflow_federated as tff

from research.runtime import graph, pfor_rules, program, reductions
from research.runtime import leaf as leaf_lib

LOOP, SCAN, VMAP = 'loop', 'scan', 'vmap'
PLANS = (LOOP, SCAN, VMAP)

_CONVOLUTIONS = frozenset(
  op + gradient
  for op in ('Conv2D', 'Conv3D', 'DepthwiseConv2dNative')
  for gradient in ('', 'BackpropInput', 'BackpropFilter')
)
# Up to here a model's single ops on the CPU cost more to start than to compute,
# so that one op for many clients wins; beyond, the copies per client lose.
SMALL_MODEL = 200_000
# Bytes that a chunk of vectorised clients may take, and how many copies of the
# model a client has: weights, gradients, update and what comes between.
_CHUNK_BYTES = {'cpu': 2**30, 'gpu': 2**33, 'tpu': 2**32}
_COPIES = 8
# Beyond, more clients at once gain nothing, and their examples take memory too.
_MOST_CLIENTS = 1024


class PlanError(ValueError):
  """A pass can't be run as the flags say."""


class VectorizationError(PlanError):
  """Tracing or compiling shows that a pass can't be vectorised after all."""


@dataclasses.dataclass(frozen=True)
class Options:
  """What the user said; see the flags of these names.

  Attributes:
    device: cpu, gpu or tpu.
    xla: auto, on or off.
    client_plan: auto or one of `PLANS`.
    clients_per_chunk: Clients that are vectorised at once; None is automatic.
    concurrent_clients: Clients that `scan` runs at once on a CPU, and lanes of
      a chunk of `vmap`.
  """

  device: str = 'cpu'
  xla: str = 'auto'
  client_plan: str = 'auto'
  clients_per_chunk: int | None = None
  concurrent_clients: int = 1


@dataclasses.dataclass(frozen=True)
class Decision:
  """How a pass is run.

  Attributes:
    plan: One of `PLANS`.
    xla: Whether the clients' work is compiled by XLA.
    clients_per_chunk: Clients that are vectorised at once; None for others.
    reason: Why.
    map: Which pass, by what its clients do.
  """

  plan: str
  xla: bool
  clients_per_chunk: int | None
  reason: str
  map: str = ''

  def describe(self) -> dict[str, object]:
    """Values for config.json."""
    return dataclasses.asdict(self)


def decide(client_pass: program.ClientPass, options: Options) -> Decision:
  """Plans a pass.

  Args:
    client_pass: What the clients do.
    options: What the user said.

  Returns:
    The plan, XLA or not, the chunk, and the reason.

  Raises:
    PlanError: If the user asks for what the pass does not allow.
  """
  plan, reason = _plan(client_pass, options)
  xla, xla_reason = _xla(client_pass, options, plan)
  chunk = None
  if plan == VMAP:
    chunk = options.clients_per_chunk or _chunk(client_pass, options.device)
  return Decision(
    plan, xla, chunk, f'{reason}; {xla_reason}', _describe(client_pass)
  )


def _plan(client_pass: program.ClientPass, options: Options) -> tuple[str, str]:
  unsupported = client_pass.unsupported
  wanted = options.client_plan
  if unsupported:
    reason = f'a leaf keeps state: {", ".join(unsupported[:4])}'
    if wanted in (SCAN, VMAP) or options.xla == 'on':
      raise PlanError(
        f'The clients can only be trained one by one ({reason}): use '
        '--client_plan=auto and --xla=auto, or build the process with '
        'LoopImplementation.DATASET_REDUCE.'
      )
    return LOOP, reason
  if (
    wanted == 'auto'
    and options.xla != 'on'
    and not all(
      reductions.spec(ref).shape.is_fully_defined() for ref in client_pass.kept
    )
  ):
    return LOOP, 'the clients return tensors whose shapes may differ'
  ops = leaf_lib.total_ops(client_pass.leaves)
  missing = _without_rule(ops, options.device)
  must = wanted == VMAP or (wanted == 'auto' and options.xla == 'on')
  if must and missing:
    raise PlanError(
      'The clients can not be vectorised, as --client_plan=vmap and --xla=on '
      f'need: there is no vectorised form of {", ".join(missing)}. Use '
      '--client_plan=auto and --xla=auto.'
    )
  if wanted != 'auto':
    return wanted, f'--client_plan={wanted}'
  if must:
    return VMAP, 'XLA compiles chunks of clients'
  if missing:
    return SCAN, f'no vectorised form of {", ".join(missing[:4])}'
  if options.device != 'cpu':
    return VMAP, f'one program for many clients fills a {options.device}'
  if _convolves_on_cpu(ops, options):
    return SCAN, 'convolutions on the CPU: oneDNN kernels, a client per core'
  size = parameters(client_pass)
  constants = _values_in_files(client_pass)
  if max(size, constants) > SMALL_MODEL:
    return SCAN, f'{max(size, constants)} values per client fill a core'
  return VMAP, f'{size} values per client: one op for many clients'


def _xla(
  client_pass: program.ClientPass, options: Options, plan: str
) -> tuple[bool, str]:
  if options.xla == 'off':
    return False, '--xla=off'
  if plan != VMAP:
    if options.xla == 'on':
      raise PlanError(
        'XLA compiles chunks of clients: --xla=on needs --client_plan=vmap or '
        f'auto, not {plan}.'
      )
    return False, f'XLA has no part in the plan {plan}'
  if options.xla == 'on':
    ops = leaf_lib.total_ops(client_pass.leaves)
    slow = _convolves_on_cpu(ops, options)
    warning = ", although XLA's convolutions on CPUs are slow" if slow else ''
    return True, f'--xla=on{warning}'
  if options.device == 'cpu':
    return False, 'no XLA: on the CPU compiling takes longer than it saves'
  return True, f'XLA for the {options.device}'


def _describe(client_pass: program.ClientPass) -> str:
  ops = leaf_lib.total_ops(client_pass.leaves)
  work = sorted(_CONVOLUTIONS & set(ops)) or ['no convolutions']
  return (
    f'{len(client_pass.ops)} local functions and '
    f'{len(client_pass.reductions)} reductions with {", ".join(work)}'
  )


def _without_rule(ops: Sequence[str], device: str) -> list[str]:
  """Ops that can't be vectorised."""
  # TensorFlow's CPU kernels have no gradients of grouped convolutions.
  pfor_rules.register(None if device == 'cpu' else True)
  return pfor_rules.missing(op for op in ops if op not in graph.REPLAYED)


def _convolves_on_cpu(ops: Sequence[str], options: Options) -> bool:
  return options.device == 'cpu' and bool(_CONVOLUTIONS & set(ops))


def parameters(client_pass: program.ClientPass) -> int:
  """How many values the server sends to each client."""
  # Where accumulators start is not sent.
  zeros = {
    ref
    for reduction in client_pass.reductions
    if isinstance(reduction, program.Aggregate)
    for ref in reduction.zeros
  }
  return sum(
    _size(ref.type_signature)
    for ref in client_pass.shared
    if isinstance(ref.type_signature, tff.TensorType) and ref not in zeros
  )


def _values_in_files(client_pass: program.ClientPass) -> int:
  """How many weights each client reads from files, which nobody sends."""
  files = set().union(*(leaf.files for leaf in client_pass.leaves))
  return sum(os.path.getsize(file) for file in files) // 4


def _size(type_signature: tff.TensorType) -> int:
  size = 1
  for dimension in type_signature.shape or ():
    size *= dimension or 1
  return size


def _chunk(client_pass: program.ClientPass, device: str) -> int:
  """Clients whose copies of the model fit into the chunk's memory."""
  per_client = 4 * _COPIES * max(parameters(client_pass), 1)
  return min(max(1, _CHUNK_BYTES[device] // per_client), _MOST_CLIENTS)
