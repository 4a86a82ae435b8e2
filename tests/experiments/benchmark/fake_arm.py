"""A measured process without TensorFlow: python fake_arm.py WEIGHT FAIL_AT."""

import sys

import numpy as np

from experiments.benchmark.peers import protocol


def main(weight: str, fail_at: str) -> None:
  """Serves rounds; each adds `weight`, and round `fail_at` ends in an error."""
  print('printed by an import', flush=True)
  out, rounds = protocol.private_stdout(), 0
  print('not an answer')
  server = protocol.Server(
    out,
    lambda: [np.full([2], float(weight) * rounds)],
    facts={'construction_seconds': 1.5},
  )
  for _ in server.rounds():
    rounds += 1
    if rounds == int(fail_at):
      raise RuntimeError('this arm fails on purpose')


if __name__ == '__main__':
  main(*sys.argv[1:])
