"""Measures a server of `experiments.serve` on this machine under load.

python -m experiments.serve_load --model_name=first --concurrency=4

The requests, the seconds and the connections are bounded, and addresses of
other machines are refused. The client takes a share of the same processors.
"""

import json
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import app, flags

from research.serving import load

_TEXT = 'A charming film, funny and warm from its first minute to its last.'
_TIMEOUT_SECONDS = 10
_EXIT_CODE = 2

_URL = flags.DEFINE_string('url', 'http://127.0.0.1:8501', 'The server.')
_MODEL_NAME = flags.DEFINE_string(
  'model_name', None, 'Name of the model in paths.', required=True
)
_REQUESTS = flags.DEFINE_integer(
  'requests', 2000, 'Requests at most.', lower_bound=1, upper_bound=1_000_000
)
_SECONDS = flags.DEFINE_float(
  'seconds', 10, 'Seconds at most.', lower_bound=0.1, upper_bound=600
)
_CONCURRENCY = flags.DEFINE_integer(
  'concurrency', 4, 'Connections.', lower_bound=1, upper_bound=64
)
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', 1, 'Examples of a request.', lower_bound=1
)


def instance(inputs: Mapping[str, Any]) -> Any:
  """Makes an example for a signature, in the row format.

  Args:
    inputs: As the metadata of the REST API has them.
  """
  ((_, described),) = inputs.items()
  if described['dtype'] == 'DT_STRING':
    return _TEXT
  shape = [int(dim['size']) for dim in described['tensor_shape']['dim']][1:]
  rng = np.random.default_rng(0)
  if described['dtype'] == 'DT_FLOAT':
    return rng.random(shape).round(3).tolist()
  return rng.integers(0, 256, shape).tolist()


def main(argv: Sequence[str]) -> None:
  """Prints one line: requests per second, p50, p99 and errors."""
  if len(argv) > 1:
    raise app.UsageError(f'not a flag: {" ".join(argv[1:])}')
  base = f'{_URL.value.rstrip("/")}/v1/models/{_MODEL_NAME.value}'
  try:
    load.check_loopback(base)
    # A proxy that the environment names is not for this machine.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f'{base}/metadata', timeout=_TIMEOUT_SECONDS) as answer:
      metadata = json.load(answer)['metadata']
    signatures = metadata['signature_def']['signature_def']
    example = instance(signatures['serving_default']['inputs'])
    body = json.dumps({'instances': [example] * _BATCH_SIZE.value}).encode()
    bounds = load.Load(_REQUESTS.value, _SECONDS.value, _CONCURRENCY.value)
    outcome = load.run(f'{base}:predict', body, bounds)
  except (OSError, ValueError) as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(_EXIT_CODE)
  print(outcome.summary(_BATCH_SIZE.value))


if __name__ == '__main__':
  app.run(main)
