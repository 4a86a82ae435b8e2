"""Exports the newest checkpoint of a run as a SavedModel with a model card.

python -m experiments.export --run_dir=runs/emnist
"""

from collections.abc import Sequence

from absl import flags

from research import cli, finished_run, flag_values
from research.export import exporter, parity

_RUN_DIR = flags.DEFINE_string(
  'run_dir', None, 'The run directory.', required=True
)


def main(argv: Sequence[str]) -> None:
  """Replaces the run's `model` directory and model card."""
  flag_values.refuse_arguments(argv)
  run = finished_run.load(_RUN_DIR.value)
  with run.directory:
    report = exporter.export_run(
      run.directory, run.task, run.evaluator.model, run.config
    )
  print(f'model of round {run.round_num}: {run.directory.model}')
  print(parity.summary(report))


if __name__ == '__main__':
  cli.run(main, flag_values.parse_with_run)
