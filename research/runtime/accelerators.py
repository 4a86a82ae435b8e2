"""Which accelerators TensorFlow can use here, and which it leaves idle."""

import dataclasses
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

DEVICES = ('auto', 'cpu', 'gpu', 'tpu')

_ADVICE = (
  '`python -m research.doctor` says what TensorFlow can use here; `make env '
  'EXTRAS=gpu` installs the CUDA libraries that it loads'
)
_HIDING_VARIABLE = 'CUDA_VISIBLE_DEVICES'
_DETERMINISTIC_VARIABLE = 'TF_DETERMINISTIC_OPS'
_DRIVER_FILES = ('/dev/nvidia0', '/proc/driver/nvidia/version')


class AcceleratorError(ValueError):
  """An accelerator is asked for that TensorFlow does not see."""


@dataclasses.dataclass(frozen=True)
class Accelerators:
  """The accelerators of this machine.

  Attributes:
    gpus: Names of the GPUs that TensorFlow sees.
    tpus: Names of the TPU cores that TensorFlow sees.
    traces: What hints at an NVIDIA GPU, whether or not TensorFlow sees it.
    hidden: Whether the environment hides the GPUs from TensorFlow.
  """

  gpus: tuple[str, ...] = ()
  tpus: tuple[str, ...] = ()
  traces: tuple[str, ...] = ()
  hidden: bool = False

  def sees(self) -> str:
    """What TensorFlow sees, in words."""
    seen = ', '.join([*self.gpus, *self.tpus])
    return f'TensorFlow sees {seen or "neither a GPU nor a TPU"}'


def _device_names(kind: str) -> list[str]:
  devices = tf.config.list_physical_devices(kind)
  return [device.name.replace('/physical_device:', '') for device in devices]


def _nvidia_smi() -> list[str]:
  """The GPUs that the driver's own tool lists, if it is there and works."""
  if not shutil.which('nvidia-smi'):
    return []
  try:
    child = subprocess.run(
      ['nvidia-smi', '-L'], capture_output=True, text=True, timeout=10
    )
  except (OSError, subprocess.TimeoutExpired):
    return []
  if child.returncode:
    return []
  return [line for line in child.stdout.splitlines() if line.startswith('GPU')]


def probe(
  device_names: Callable[[str], Sequence[str]] = _device_names,
  exists: Callable[[str], bool] = os.path.exists,
  nvidia_smi: Callable[[], Sequence[str]] = _nvidia_smi,
  environment: Mapping[str, str] = os.environ,
) -> Accelerators:
  """Looks for accelerators; TensorFlow's context is not initialised by it.

  Args:
    device_names: Names of the devices of a kind, GPU or TPU.
    exists: Whether a file exists.
    nvidia_smi: Lists the GPUs that NVIDIA's driver knows; asked only where no
      file of the driver is found.
    environment: The environment variables.

  Returns:
    What was found.
  """
  gpus = tuple(device_names('GPU'))
  traces = tuple(path for path in _DRIVER_FILES if exists(path))
  if not gpus and not traces:
    traces = tuple(nvidia_smi())
  return Accelerators(
    gpus=gpus,
    tpus=tuple(device_names('TPU')),
    traces=traces,
    hidden=environment.get(_HIDING_VARIABLE) in ('', '-1'),
  )


def resolve(device: str, found: Accelerators, require: bool = False) -> str:
  """Decides where the computations run.

  Args:
    device: One of `DEVICES`; auto takes a GPU, else a TPU, else the CPU.
    found: What `probe` returned.
    require: Whether the CPU is an error.

  Returns:
    cpu, gpu or tpu.

  Raises:
    AcceleratorError: If TensorFlow does not see what is asked for.
  """
  seen = {'gpu': found.gpus, 'tpu': found.tpus}
  if device in seen and not seen[device]:
    raise AcceleratorError(
      f'--device={device}: {found.sees()}{_why(found)}. {_ADVICE}.'
    )
  if require and device == 'cpu':
    raise AcceleratorError('--require_accelerator contradicts --device=cpu.')
  if device == 'auto':
    device = next((kind for kind, names in seen.items() if names), 'cpu')
  if require and device == 'cpu':
    raise AcceleratorError(
      f'--require_accelerator: the work would run on the CPU; {found.sees()}'
      f'{_why(found)}. {_ADVICE}.'
    )
  return device


def _why(found: Accelerators) -> str:
  if found.gpus or not found.traces:
    return ''
  if found.hidden:
    return f', since {_HIDING_VARIABLE} hides the GPU ({found.traces[0]})'
  return f', although there is {found.traces[0]}'


def idle_warning(
  found: Accelerators, device: str, reason: str = ''
) -> str | None:
  """What to tell a user whose GPU stays idle, if it does.

  A GPU that the environment hides is left alone on purpose.

  Args:
    found: What `probe` returned.
    device: Where the work runs: cpu, gpu or tpu.
    reason: Why it runs there, as a sentence; used where TensorFlow does see an
      accelerator.

  Returns:
    The text, or None if nothing is idle.
  """
  if device != 'cpu':
    return None
  if found.gpus or found.tpus:
    return f'This run is on the CPU: {found.sees()}, unused. {reason}'.strip()
  if found.traces and not found.hidden:
    return f'This run is on the CPU: {found.sees()}{_why(found)}. {_ADVICE}.'
  return None


def is_deterministic(
  device: str, environment: Mapping[str, str] = os.environ
) -> bool:
  """Whether two runs of the same work on a device give the same bits.

  Seen on an H200: without the variable two runs differ, with it they don't.

  Args:
    device: cpu, gpu or tpu.
    environment: The environment variables.
  """
  asked = environment.get(_DETERMINISTIC_VARIABLE, '').lower()
  return device == 'cpu' or asked in ('1', 'true')


def bits_warning(device: str) -> str:
  """What to tell a user whose run can't be repeated bit for bit."""
  return (
    f'Two runs on a {device} differ in their last bits. '
    f'{_DETERMINISTIC_VARIABLE}=1 makes them equal, and rounds slower.'
  )


def describe(found: Accelerators, warning: str | None) -> dict[str, object]:
  """What config.json says about them."""
  return {
    'visible': [*found.gpus, *found.tpus],
    'traces': list(found.traces),
    'hidden': found.hidden,
    'warning': warning,
  }
