"""Where a run's numbers come from: software, revision and machine."""

import importlib.metadata
import json
import pathlib
import platform
import subprocess
import sys
from typing import Any

import tensorflow as tf
from absl import flags, logging

from research.runtime import accelerators
from research.runtime import registry as runtimes
from research.training import run_directory

_PACKAGES = (
  'tensorflow',
  'tensorflow-federated',
  'tensorflow-privacy',
  'tensorflow-model-optimization',
  'numpy',
)
# What decides how texts become tokens, where any are read.
_OF_TEXTS = ('keras-nlp', 'tensorflow-text', 'tokenizers')


def versions() -> dict[str, str]:
  """Versions of Python and of the packages that decide results."""
  names = [*_PACKAGES, *(_OF_TEXTS if 'tokenizers' in sys.modules else ())]
  found = {name: importlib.metadata.version(name) for name in names}
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


def runtime_entries(
  runtime: runtimes.Runtime, saved: dict[str, Any] | None, done: int
) -> dict[str, Any]:
  """Describes a prepared runtime, on stderr what its user must know.

  A run may go on in another runtime, which can change the last bits of its
  results: `earlier_runtimes` keeps what the first rounds ran on.

  Args:
    runtime: The runtime, after `prepare`.
    saved: The config.json of the run so far.
    done: Rounds of the run so far.

  Returns:
    Entries of config.json.
  """
  now = runtime.describe()
  found = accelerators.probe()
  warning = None
  # Whoever names the CPU knows that it is the CPU.
  if flags.FLAGS.device != 'cpu':
    warning = accelerators.idle_warning(found, now['device'], now['reason'])
  if warning:
    print(f'WARNING: {warning}', file=sys.stderr, flush=True)
  if not now['deterministic']:
    print(accelerators.bits_warning(now['device']), file=sys.stderr, flush=True)
  now['accelerators'] = accelerators.describe(found, warning)
  now = json.loads(json.dumps(now))
  earlier = list((saved or {}).get('earlier_runtimes', []))
  before = (saved or {}).get('runtime', now)
  if done and before != now:
    earlier.append({'up_to_round': done, **before})
    logging.warning(
      'Resuming in another runtime (was %s, now %s): the last bits of results '
      'may differ',
      *run_directory.differing(before, now),
    )
  return {'runtime': now} | ({'earlier_runtimes': earlier} if earlier else {})
