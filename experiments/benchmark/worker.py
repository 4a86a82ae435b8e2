"""The process of one arm; the harness tells it when to run a round.

It speaks `peers/protocol.py` on its standard input and output.
"""

from collections.abc import Sequence

from absl import app, flags

from experiments.benchmark import arms, workloads
from experiments.benchmark.peers import protocol

_WORKLOAD = flags.DEFINE_string('workload', None, 'A name in workloads.py.')
_ARM = flags.DEFINE_string('arm', None, 'A name in arms.py.')


def main(unused_argv: Sequence[str]) -> None:
  """Runs rounds whenever it is told to."""
  out = protocol.private_stdout()
  workload = workloads.get(_WORKLOAD.value)
  with arms.open_arm(_ARM.value, workload) as arm:
    facts = {'construction_seconds': arm.construction_seconds}
    for _ in protocol.Server(out, arm.weights, facts=facts).rounds():
      arm.step()


if __name__ == '__main__':
  flags.mark_flags_as_required(['workload', 'arm'])
  app.run(main)
