"""Times the bare loops of `bare.py` by themselves, without interleaving.

python -m experiments.benchmark.bare_loops --workload=A
"""

import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from absl import flags

from experiments.benchmark import bare, workloads
from research import cli

_WORKLOAD = flags.DEFINE_string('workload', 'A', 'A name in workloads.py.')
_VARIANT = flags.DEFINE_string('variant', '', 'One of them; empty is all.')
_ROUNDS = flags.DEFINE_integer('rounds', 9, 'Rounds after two for warm-up.')


def _time(workload: workloads.Workload, name: str) -> None:
  bare.VARIANTS[name].set_threads()
  weights = bare.initial_weights(workload)
  x, y = map(tf.constant, workload.arrays())
  round_fn, seconds = bare.build(workload, name), []
  for _ in range(_ROUNDS.value + 2):
    start = time.perf_counter()
    weights = round_fn(weights, x, y)
    weights[0].numpy()
    seconds.append(time.perf_counter() - start)
  rest = seconds[2:]
  print(
    f'{workload.name} {name:9} median {np.median(rest):.4f} s  '
    f'min {min(rest):.4f}  max {max(rest):.4f}  first {seconds[0]:.1f}',
    flush=True,
  )


def main(unused_argv: Sequence[str]) -> None:
  """Times the variants, each in a process of its own."""
  workload = workloads.get(_WORKLOAD.value)
  if _VARIANT.value:
    _time(workload, _VARIANT.value)
    return
  for name in bare.variants_of(workload):
    subprocess.run(
      [
        *(sys.executable, '-m', 'experiments.benchmark.bare_loops'),
        *(f'--workload={workload.name}', f'--variant={name}'),
        f'--rounds={_ROUNDS.value}',
      ],
      check=True,
    )


if __name__ == '__main__':
  cli.run(main)
