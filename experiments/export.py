"""Exports the newest checkpoint of a run as a SavedModel with a model card.

  python -m experiments.export --run_dir=runs/emnist
"""

from collections.abc import Sequence

from absl import app, flags

from research import finished_run, flag_values
from research.export import exporter

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
  for name, value in report.items():
    print(f'{name:<24}{value}')
  print(f'{"model":<24}{run.directory.model}')


if __name__ == '__main__':
  app.run(main, flags_parser=flag_values.parse_with_run)
