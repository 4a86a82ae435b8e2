"""Compiles a client program for a chip, by its vendor's compiler, without it.

The compilers are packages: libtpu for a TPU, XLA's CUDA plugin with ptxas for a
GPU. Each is in an environment of its own, which `make_environment` makes; the
chip need not be there, and nothing runs on it.
"""

import dataclasses
import json
import math
import os
import pathlib
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from research.export import xla_program
from research.training import atomic

HLO_TEXT = 'program.hlo.txt'
STABLEHLO = 'program.stablehlo.mlir'
OPTIMIZED = 'optimized.hlo.txt'
REPORT = 'report.json'

_FOLDER = pathlib.Path(__file__).absolute().parent
_ROOT = _FOLDER.parents[1]
_TIMEOUT_SECONDS = 3600
_H100 = """\
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84978434048
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100"
"""


class CompilerError(RuntimeError):
  """A compiler or its environment does not work."""


@dataclasses.dataclass(frozen=True)
class Peak:
  """What a chip computes at most.

  Attributes:
    flops: Floating-point operations per second.
    words: In which unit and precision.
  """

  flops: float
  words: str


@dataclasses.dataclass(frozen=True)
class Target:
  """A chip to compile for.

  Attributes:
    chip: Its name.
    requirements: The compiler's environment: .venv-NAME of requirements/NAME,
      with dashes for underscores.
    platform: As xla_compile_process.py calls it.
    topology: A TPU topology with the chip.
    target_config: XLA's description of a GPU.
    variables: Environment variables of the compiler's process.
    memory_bytes: The chip's memory; None for this machine's.
    bytes_per_second: Its bandwidth; None without a roofline.
    float32: Its peak for float32 programs.
    bfloat16: Its peak where all products are of bfloat16 or float16.
  """

  chip: str
  requirements: str
  platform: str
  topology: str = ''
  target_config: str = ''
  variables: Mapping[str, str] = dataclasses.field(default_factory=dict)
  memory_bytes: float | None = None
  bytes_per_second: float | None = None
  float32: Peak | None = None
  bfloat16: Peak | None = None

  @property
  def environment(self) -> pathlib.Path:
    """Directory of the compiler's environment."""
    return _ROOT / f'.venv-{self.requirements.replace("_", "-")}'

  @property
  def python(self) -> pathlib.Path:
    """The environment's interpreter, whether or not it exists."""
    return self.environment / 'bin' / 'python'


# TPU v5e: docs.cloud.google.com/tpu/docs/v5e. H100 SXM: NVIDIA's data sheet,
# whose tensor core numbers are with sparsity, that is twice the ones here.
TARGETS: Mapping[str, Target] = {
  'cpu': Target(chip='this CPU', requirements='xla_cpu', platform='cpu'),
  'tpu_v5e': Target(
    chip='TPU v5e',
    requirements='xla_tpu',
    platform='tpu',
    topology='v5e:2x2',
    # Without them libtpu asks a metadata server which chips there are.
    variables={
      'TPU_SKIP_MDS_QUERY': '1',
      'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
      'TPU_WORKER_HOSTNAMES': 'localhost',
      'TPU_WORKER_ID': '0',
      'TPU_PROCESS_BOUNDS': '1,1,1',
      'TPU_CHIPS_PER_HOST_BOUNDS': '2,2,1',
    },
    memory_bytes=16e9,
    bytes_per_second=819e9,
    float32=Peak(197e12, "bfloat16 products, XLA's default for float32 there"),
    bfloat16=Peak(197e12, 'bfloat16'),
  ),
  'h100': Target(
    chip='NVIDIA H100 SXM',
    requirements='xla_gpu',
    platform='cuda',
    target_config=_H100,
    # Autotuning would run candidates on the chip.
    variables={'XLA_FLAGS': '--xla_gpu_autotune_level=0'},
    memory_bytes=80e9,
    bytes_per_second=3.35e12,
    float32=Peak(67e12, 'float32 without tensor cores'),
    bfloat16=Peak(989e12, 'bfloat16 tensor cores, dense'),
  ),
}


def make_environment(target: Target) -> None:
  """Installs a target's compiler, or finds it up to date.

  Args:
    target: The target.

  Raises:
    CompilerError: If that does not work.
  """
  script = _ROOT / 'requirements' / 'set_up.sh'
  if not script.is_file():
    raise CompilerError(
      f'the compiler for {target.chip} is set up by {script.name} of a checkout'
    )
  # A PYTHON that suits the rest of the project may be too old here.
  environment = {k: v for k, v in os.environ.items() if k != 'PYTHON'}
  result = subprocess.run(
    [str(script), target.environment.name, target.requirements],
    env=environment,
    stderr=subprocess.PIPE,
    text=True,
  )
  if result.returncode:
    raise CompilerError(
      f'the compiler for {target.chip} could not be installed: '
      f'{result.stderr.strip()[-2000:]}'
    )


def compile_program(
  target: Target,
  directory: atomic.Path,
  layers: Sequence[str],
  steps: int,
  execute: bool,
) -> dict[str, Any]:
  """Compiles the HLO module that `xla_program.write` put into a directory.

  Args:
    target: The chip.
    directory: Has the program; its text, its StableHLO, the optimised HLO and
      `report.json` are put beside it.
    layers: The names of the model's layers, for errors.
    steps: Local steps of a client: how often a loop of unknown length runs.
    execute: Whether to run the program on `arguments.npz`, on the CPU target.

  Returns:
    The report: see xla_compile_process.py.

  Raises:
    xla_program.UnsupportedOperationError: If the chip's compiler refuses the
      program; the message has the Keras layer or TFF leaf that it is about.
    CompilerError: If the compiler does not start, or ends without a report.
  """
  folder = pathlib.Path(directory).absolute()
  request = {
    'platform': target.platform,
    'topology': target.topology,
    'target_config': target.target_config,
    'hlo': str(folder / xla_program.HLO),
    'steps': steps,
    'arguments': str(folder / xla_program.ARGUMENTS) if execute else None,
    'results': str(folder / xla_program.RESULTS),
    'hlo_text': str(folder / HLO_TEXT),
    'stablehlo': str(folder / STABLEHLO),
    'optimized_hlo': str(folder / OPTIMIZED),
    'report': str(folder / REPORT),
  }
  (folder / REPORT).unlink(missing_ok=True)
  _run(target, request)
  report = json.loads((folder / REPORT).read_text())
  if 'error' in report:
    raise _refused(target, report, layers)
  return report


def roofline(
  target: Target, report: Mapping[str, Any]
) -> dict[str, Any] | None:
  """The time that a chip's peaks allow (Williams et al. 2009, the roofline).

  The bytes are what every fused operation reads and writes. Where some of them
  stay in a cache or on-chip memory, a memory-bound program can be faster; where
  a chip's units are not kept busy, as by small batches, it is slower.

  Args:
    target: The chip.
    report: Of `compile_program`.

  Returns:
    `seconds`, the larger of operations / peak and bytes / bandwidth; `bound`,
    `compute` or `memory`; `peak`, the unit in words. None for the CPU target.
  """
  if not target.bytes_per_second:
    return None
  types = set(report['product_types'])
  half = types and types <= {'bf16', 'f16'}
  peak = target.bfloat16 if half else target.float32
  compute = report['flops'] / peak.flops
  memory = report['bytes_accessed'] / target.bytes_per_second
  return {
    'seconds': max(compute, memory),
    'bound': 'compute' if compute > memory else 'memory',
    'peak': f'{peak.flops / 1e12:.0f} TFLOP/s: {peak.words}',
  }


def describe(
  target: Target,
  report: Mapping[str, Any],
  num_clients: int,
  clients_per_round: int,
) -> list[str]:
  """Lines for people about a compiled program.

  Args:
    target: The chip.
    report: Of `compile_program`.
    num_clients: Clients whose work the program is.
    clients_per_round: Clients of a round.

  Returns:
    The lines.
  """
  memory = report['memory']
  parts = ('arguments', 'outputs', 'temporaries')
  sizes = ', '.join(f'{part} {_size(memory[part])}' for part in parts)
  needed = sum(memory[part] for part in parts)
  if target.memory_bytes and needed > target.memory_bytes:
    sizes += f': does not fit into {_size(target.memory_bytes)}'
  lines = [
    f'compile time    {report["compile_seconds"]:.1f} s',
    f'executable      {_size(report["executable_bytes"])}',
    f'memory          {sizes}',
    f'operations      {report["flops"]:.3g} flop',
    f'bytes accessed  {report["bytes_accessed"]:.3g}',
  ]
  if not report['loops_counted']:
    lines.append(
      "                a loop of unknown length counts as a client's steps"
    )
  if limit := roofline(target, report):
    programs = math.ceil(clients_per_round / num_clients)
    lines += [
      f'roofline        {programs * limit["seconds"]:.3g} s per round of '
      f'{clients_per_round} client(s), {limit["seconds"]:.3g} s per program; '
      f'{limit["bound"]}-bound',
      f'                ({limit["peak"]}; '
      f'{target.bytes_per_second / 1e9:.0f} GB/s)',
    ]
  return lines


def _run(target: Target, request: Mapping[str, Any]) -> None:
  """Runs the compiler's process, which writes the report."""
  folder = pathlib.Path(request['report']).parent
  request_file = folder / 'request.json'
  atomic.write_json(request_file, request)
  environment = {**os.environ, **target.variables}
  environment |= {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': ''}
  # ptxas comes with the GPU's compiler.
  tools = target.environment.glob('lib/*/site-packages/nvidia/*/bin')
  environment['PATH'] = os.pathsep.join(
    [*map(str, tools), environment.get('PATH', '')]
  )
  script = _FOLDER / 'xla_compile_process.py'
  try:
    result = subprocess.run(
      [str(target.python), str(script), str(request_file)],
      env=environment,
      capture_output=True,
      text=True,
      timeout=_TIMEOUT_SECONDS,
    )
  except OSError as error:
    raise CompilerError(
      f'the compiler for {target.chip} does not start: {error}'
    ) from error
  except subprocess.TimeoutExpired as error:
    raise CompilerError(
      f'the compiler for {target.chip} did not end within {_TIMEOUT_SECONDS} s'
    ) from error
  finally:
    request_file.unlink()
  if result.returncode or not pathlib.Path(request['report']).exists():
    raise CompilerError(
      f'the compiler for {target.chip} ended with status {result.returncode}: '
      f'{result.stderr.strip()[-2000:]}'
    )


def _refused(
  target: Target, report: Mapping[str, Any], layers: Sequence[str]
) -> xla_program.UnsupportedOperationError:
  """The error of a program that a compiler refuses."""
  message = f'the compiler for {target.chip} refuses the program'
  found = {
    f'{i["opcode"]} of {xla_program.origin(i["op_name"], layers)}': None
    for i in report['instructions']
  }
  if found:
    message += f': {"; ".join(found)}'
  return xla_program.UnsupportedOperationError(
    f'{message}. Its words: {report["error"].strip()}'
  )


def _size(count: float) -> str:
  """A number of bytes in decimal units."""
  for unit in ('B', 'kB', 'MB'):
    if count < 1000:
      return f'{count:.3g} {unit}'
    count /= 1000
  return f'{count:.3g} GB'
