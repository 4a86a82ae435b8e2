"""Says what works on this machine: `python -m research.doctor`.

Prints a short table and ends non-zero, with one line that says what to do,
where something cannot work. Only the standard library is imported here, and no
syntax newer than Python 3.8 is used, so that the doctor can speak where the
rest cannot start. What it finds is judged in `research.diagnosis`.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import typing

from research import diagnosis

TOP_LEVEL_NAMES = ('datasets', 'experiments', 'models', 'research')
CACHE_VARIABLE = 'TFF_RESEARCH_CACHE'

_ROOT = pathlib.Path(__file__).resolve().parent.parent


def _installed_version(distribution: str) -> str | None:
  try:
    return importlib.metadata.version(distribution)
  except importlib.metadata.PackageNotFoundError:
    return None


def find_names(path: list[str]) -> dict[str, str | None]:
  """Returns the directory that each of our names imports from a sys.path."""
  found: dict[str, str | None] = {}
  kept, sys.path = sys.path, path
  try:
    for name in TOP_LEVEL_NAMES:
      # importlib.util.find_spec would answer from sys.modules.
      specs = (finder.find_spec(name, None) for finder in sys.meta_path)
      spec = next((spec for spec in specs if spec), None)
      places = spec.submodule_search_locations if spec else None
      found[name] = os.path.realpath(next(iter(places))) if places else None
  finally:
    sys.path = kept
  return found


def _tensorflow_version() -> str:
  import tensorflow as tf

  return tf.__version__


def _gpu_names() -> list[str]:
  import tensorflow as tf

  return [
    tf.config.experimental.get_device_details(device).get(
      'device_name', device.name
    )
    for device in tf.config.list_physical_devices('GPU')
  ]


def _xla_works() -> bool:
  import tensorflow as tf

  squares = tf.function(lambda x: tf.reduce_sum(x * x), jit_compile=True)
  return float(squares(tf.constant([1.0, 2.0, 3.0]))) == 14.0


def _federated_version() -> str:
  import tensorflow_federated as tff

  return tff.__version__


def print_probe() -> None:
  """Prints as JSON what TensorFlow can do here, or what each attempt raised."""
  found: dict[str, typing.Any] = {}
  for name, attempt in (
    ('tensorflow', _tensorflow_version),
    ('gpus', _gpu_names),
    ('xla', _xla_works),
    ('tff', _federated_version),
  ):
    try:
      found[name] = attempt()
    except Exception as error:  # A broken install raises anything at all.
      lines = str(error).splitlines() or ['']
      found[f'{name}_error'] = f'{type(error).__name__}: {lines[0][:200]}'
  print(json.dumps(found))


def _probe() -> dict[str, typing.Any]:
  """Runs print_probe in another process: importing TensorFlow may crash."""
  child = subprocess.run(
    [sys.executable, '-c', 'from research import doctor; doctor.print_probe()'],
    cwd=_ROOT,
    env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '3'},
    capture_output=True,
    text=True,
  )
  if child.returncode == 0:
    return json.loads(child.stdout.splitlines()[-1])
  if child.returncode < 0:
    error = (
      f'import killed by signal {-child.returncode} (4, illegal instruction, '
      'means a processor without AVX)'
    )
  else:
    error = (child.stderr.splitlines() or ['import failed'])[-1]
  return {'tensorflow_error': error, 'tff_error': error}


def _tensorflow_rows() -> list[diagnosis.Row]:
  found = _probe()
  rows = [
    diagnosis.tensorflow_row(
      found.get('tensorflow'), found.get('tensorflow_error', '')
    ),
    diagnosis.federated_row(
      _installed_version('tensorflow-federated'),
      found.get('tff'),
      found.get('tff_error', ''),
    ),
  ]
  if 'tensorflow' in found:
    has_driver = os.path.exists('/proc/driver/nvidia/version')
    rows.append(diagnosis.gpu_row(found.get('gpus', []), has_driver))
    rows.append(
      diagnosis.xla_row(found.get('xla', False), found.get('xla_error', ''))
    )
  return rows


def _names_row() -> diagnosis.Row:
  # `python -m` puts the current directory first.
  return diagnosis.names_row(
    str(_ROOT),
    find_names(sys.path),
    find_names(sys.path[1:]),
    _installed_version('datasets'),
  )


def _requirements_row() -> diagnosis.Row:
  child = subprocess.run(
    [sys.executable, '-m', 'pip', 'check', '--disable-pip-version-check'],
    capture_output=True,
    text=True,
  )
  return diagnosis.requirements_row(
    child.stdout if child.stdout.strip() else None
  )


def _data_rows() -> list[diagnosis.Row]:
  cache = os.path.expanduser(
    os.environ.get(CACHE_VARIABLE) or '~/.cache/tff_research'
  )
  names = {
    path.stem
    for pattern in ('*.npz', '*.sqlite')
    for path in pathlib.Path(cache).glob(pattern)
  }
  writers = os.environ.get(diagnosis.QMNIST_VARIABLE, '')
  found = all(
    os.path.exists(os.path.join(writers, f'qmnist-{part}-labels.tsv.gz'))
    for part in ('train', 'test')
  )
  return [
    diagnosis.data_row(cache, sorted(names)),
    diagnosis.writers_row(writers, found),
  ]


def main() -> int:
  """Prints the table; returns 0 where all that is needed works, else 1."""
  rows = [
    diagnosis.python_row(sys.version_info, sys.implementation.name),
    diagnosis.platform_row(
      platform.system(), platform.machine(), platform.libc_ver()
    ),
    *_tensorflow_rows(),
    _names_row(),
    _requirements_row(),
    *_data_rows(),
  ]
  text, status = diagnosis.report(rows)
  print(text)
  return status


if __name__ == '__main__':
  sys.exit(main())
