"""Exports the newest checkpoint of a run, with a model card.

A SavedModel:

  python -m experiments.export --run_dir=runs/emnist

and other forms beside it, each judged on test examples (docs/export.md):

  python -m experiments.export --run_dir=runs/emnist \
    --forms=saved_model,tflite,tflite_dynamic,tflite_float16,tflite_int8,onnx
"""

import sys
from collections.abc import Sequence

from absl import flags

from research import cli, finished_run, flag_values
from research.export import (
  calibration,
  exporter,
  form_exporter,
  form_parity,
  forms,
  parity,
)
from research.training import run_directory

# Of the process, if a form fails its check.
FAILED_EXIT_CODE = 4

_RUN_DIR = flags.DEFINE_string(
  'run_dir', None, 'The run directory.', required=True
)
_FORMS = flags.DEFINE_list(
  'forms',
  [forms.SAVED_MODEL],
  f'What is made: {", ".join(forms.FORMS)} (comma-separated), or all.',
)
_CALIBRATION_FILE = flags.DEFINE_string(
  'calibration_file',
  None,
  'For tflite_int8, public examples: .npy, .npz (x), or .txt with a text per '
  'line; those of training clients by default.',
)
_MOST = flags.DEFINE_integer(
  'most_test_examples',
  10_000,
  'Test examples on which forms are judged, at most.',
  lower_bound=1,
)


def main(argv: Sequence[str]) -> None:
  """Replaces the run's `model` directory, its forms and model card."""
  flag_values.refuse_arguments(argv)
  names = _names()
  # Locked before it is read: a run in progress would overtake what is exported.
  with run_directory.RunDirectory.existing(_RUN_DIR.value) as directory:
    run = finished_run.load(directory)
    model = run.evaluator.model
    report = exporter.export_run(
      directory,
      run.task,
      model,
      run.config,
      run.round_num,
      _request(names, run),
    )
    reports = form_exporter.read(directory, model) if names else {}
  print(f'model of round {run.round_num}: {run.directory.model}')
  print(parity.summary(report))
  made = {name: reports[name] for name in names}
  for name, found in made.items():
    print(form_exporter.summary(name, found))
  if failed := form_exporter.failures(made):
    print(f'error: {len(failed)} of {len(made)} forms fail', file=sys.stderr)
    sys.exit(FAILED_EXIT_CODE)


def _names() -> list[str]:
  """The forms to make and judge; none if that is the SavedModel alone."""
  given = _FORMS.value
  names = list(forms.FORMS if given == ['all'] else dict.fromkeys(given))
  try:
    forms.check_names(names)
  except ValueError as error:
    raise flags.IllegalFlagValueError(str(error)) from error
  if 'tflite_int8' not in names and _CALIBRATION_FILE.value:
    raise flags.IllegalFlagValueError(
      '--calibration_file is for --forms=tflite_int8.'
    )
  if names in ([], [forms.SAVED_MODEL]):
    return []
  form_parity.serving_python()
  return names


def _request(
  names: Sequence[str], run: finished_run.FinishedRun
) -> form_exporter.Request | None:
  if not names:
    return None
  found, source = None, forms.Source(run.task, run.evaluator.model)
  if 'tflite_int8' in names and not source.has_learned_ranges():
    found = calibration.choose(run.task, run.config, _CALIBRATION_FILE.value)
  return form_exporter.Request(names, _MOST.value, found)


if __name__ == '__main__':
  cli.run(main, flag_values.parse_with_run)
