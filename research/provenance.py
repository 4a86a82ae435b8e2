"""Where a run's numbers come from: software, revision and machine."""

import importlib.metadata
import pathlib
import platform
import subprocess

import tensorflow as tf

_PACKAGES = (
  'tensorflow',
  'tensorflow-federated',
  'tensorflow-privacy',
  'tensorflow-model-optimization',
  'numpy',
)


def versions() -> dict[str, str]:
  """Versions of Python and of the packages that decide results."""
  found = {name: importlib.metadata.version(name) for name in _PACKAGES}
  return {'python': platform.python_version(), **found}


def git_revision() -> str | None:
  """The checkout's commit, `-dirty` when changed; None outside of git."""
  command = ['git', 'describe', '--always', '--dirty', '--abbrev=40']
  try:
    result = subprocess.run(
      command,
      cwd=pathlib.Path(__file__).parent,
      capture_output=True,
      text=True,
      check=True,
    )
  except (OSError, subprocess.CalledProcessError):
    return None
  return result.stdout.strip()


def device() -> str:
  """The processor and the GPUs that TensorFlow sees, in words."""
  lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  names = [line.partition(':')[2] for line in lines if 'model name' in line]
  cpu = names[0].strip() if names else platform.machine()
  gpus = len(tf.config.list_physical_devices('GPU'))
  return f'{cpu}, {len(names)} threads, {gpus} GPUs'
