"""Serves a run's SavedModel over HTTP, with the REST API of TensorFlow Serving.

python -m experiments.serve --run_dir=runs/first

The page at / draws digits or takes a sentence. Only the SavedModel is loaded,
and RUN/forms/tflite_int8.tflite beside it where there is one. SIGTERM and
Ctrl-C end it, after the requests in work. docs/serving.md has examples.
"""

import pathlib
import re
import sys
import time
from collections.abc import Sequence

from absl import app, flags

from research.serving import rest, servable, server, tflite_form

_LIMITS = rest.Limits()
_INT8 = pathlib.Path('forms', 'tflite_int8.tflite')
_EXIT_CODE = 2

_RUN_DIR = flags.DEFINE_string(
  'run_dir', None, 'The run directory.', required=True
)
_HOST = flags.DEFINE_string(
  'host',
  '127.0.0.1',
  'Address to listen at; 0.0.0.0 is all, without a password.',
)
_PORT = flags.DEFINE_integer(
  'port', 8501, 'Port; 0 is any free one.', lower_bound=0, upper_bound=65535
)
_MODEL_NAME = flags.DEFINE_string(
  'model_name', None, "Name in paths; that of the run's directory by default."
)
_MAX_BODY_BYTES = flags.DEFINE_integer(
  'max_body_bytes',
  _LIMITS.body_bytes,
  'Larger requests are refused.',
  lower_bound=1,
)
_MAX_BATCH_SIZE = flags.DEFINE_integer(
  'max_batch_size',
  _LIMITS.batch_size,
  'Requests with more examples are refused.',
  lower_bound=1,
)
_THREADS = flags.DEFINE_integer(
  'threads', 4, 'Requests that are worked on at a time.', lower_bound=1
)


def main(argv: Sequence[str]) -> None:
  """Loads, says where it listens, and serves until it is told to end."""
  if len(argv) > 1:
    raise app.UsageError(f'not a flag: {" ".join(argv[1:])}')
  try:
    application = load()
    server.serve(
      application,
      _HOST.value,
      _PORT.value,
      _MAX_BODY_BYTES.value,
      _THREADS.value,
      lambda url: print(f'{application.name} at {url}', flush=True),
    )
  except (OSError, ValueError, ImportError) as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(_EXIT_CODE)


def load() -> rest.Application:
  """Makes the application that the flags describe.

  Raises:
    FileNotFoundError: If the run has no model.
    ValueError: If its name can't be part of a path.
  """
  run = pathlib.Path(_RUN_DIR.value).expanduser().absolute()
  name = _MODEL_NAME.value or run.name
  if not re.fullmatch(r'[\w.~-]+', name, re.ASCII):
    raise ValueError(
      f'{name!r} has characters that paths of URLs lack: give a --model_name '
      'of letters, digits, "-", "_", "." and "~"'
    )
  found, start = servable.versions(run / 'model'), time.monotonic()
  versions = {
    number: servable.Servable(directory) for number, directory in found.items()
  }
  forms = {}
  if (run / _INT8).is_file():
    forms['int8'] = tflite_form.TfliteForm(run / _INT8)
  parts = [f'version {", ".join(map(str, versions))}', *forms]
  print(f'{" and ".join(parts)} loaded in {time.monotonic() - start:.1f} s')
  limits = rest.Limits(_MAX_BODY_BYTES.value, _MAX_BATCH_SIZE.value)
  return rest.Application(name, versions, forms, limits)


if __name__ == '__main__':
  app.run(main)
