"""Exports the newest checkpoint of a run as a SavedModel with a model card.

python -m experiments.export --run_dir=runs/emnist
"""

from collections.abc import Sequence

from absl import flags

from research import cli, finished_run, flag_values
from research.export import exporter, parity
from research.training import run_directory

_RUN_DIR = flags.DEFINE_string(
  'run_dir', None, 'The run directory.', required=True
)


def main(argv: Sequence[str]) -> None:
  """Replaces the run's `model` directory and model card."""
  flag_values.refuse_arguments(argv)
  # Locked before it is read: a run in progress would overtake what is exported.
  with run_directory.RunDirectory.existing(_RUN_DIR.value) as directory:
    run = finished_run.load(directory)
    report = exporter.export_run(
      directory, run.task, run.evaluator.model, run.config, run.round_num
    )
  print(f'model of round {run.round_num}: {run.directory.model}')
  print(parity.summary(report))


if __name__ == '__main__':
  cli.run(main, flag_values.parse_with_run)
