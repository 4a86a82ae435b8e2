"""Makes the forms of a run's model and keeps a report beside each."""

import dataclasses
import gzip
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
from absl import logging

from datasets import federated_data
from research.export import (
  calibration,
  form_examples,
  form_parity,
  forms,
  forms_table,
  parity,
  text_signatures,
  tflite,
)
from research.tasks import task as task_lib
from research.training import atomic, run_directory

DIRECTORY = 'forms'
_WEIGHTS = 'weights_sha256'


@dataclasses.dataclass(frozen=True)
class Request:
  """Which forms are made, and on what they are judged.

  Attributes:
    names: Keys of `forms.FORMS`.
    most_examples: Test examples that they are run on, at most.
    representative: Examples for int8; None if it isn't made, or
      the model has learned its ranges.
  """

  names: Sequence[str]
  most_examples: int
  representative: calibration.Calibration | None = None


def weights_sha256(model: tf.keras.Model) -> str:
  """The hash of a model's weights, their names and order."""
  return federated_data.content_hash(
    {
      f'{position:05d} {variable.name}': variable.numpy()
      for position, variable in enumerate(model.variables)
    }
  )


def export(
  run: run_directory.RunDirectory,
  task: task_lib.Task,
  model: tf.keras.Model,
  request: Request,
) -> dict[str, Any]:
  """Makes forms of a model whose SavedModel is in the run directory.

  What fails its check stays, with a report that says so.

  Args:
    run: The run; its directory `forms` gets `<name>.tflite` or `.onnx`, and
      `<name>.json` of each.
    task: What was learned.
    model: Its trained model, with nothing merged.
    request: Which.

  Returns:
    The reports by name, as `form_parity.check` has them, with the file's path
    from the run directory, its bytes (of a file also after gzip, which is what
    pruning and clustering make small), the weights' hash, for int8 whose
    examples told the ranges, and for TFLite its `operations`.
  """
  form_parity.serving_python()
  examples = form_examples.draw(task, model, request.most_examples)
  is_text = text_signatures.is_text(task)
  given = request.representative
  source = forms.Source(
    task,
    task.merge(model) if is_text else model,
    given.examples if given else None,
  )
  sha256, reports = weights_sha256(model), {}
  for name in request.names:
    form = forms.FORMS[name]
    if task.quantization is not None:
      form = form.of_quantized()
    path = run.path / DIRECTORY / f'{name}{form.suffix}'
    path.parent.mkdir(exist_ok=True)
    if form.convert is None:
      path = run.model
      if is_text:
        path = path / text_signatures.WITHOUT_TEXT
    report = {
      'title': form.title,
      'file': os.fspath(path.relative_to(run.path)),
      _WEIGHTS: sha256,
    }
    if form.is_int8:
      report['calibration'] = given.source if given else 'learned in training'
    report |= _make(form, source, path, examples)
    atomic.write_json(_report_path(run, name), report)
    reports[name] = report
  return reports


def read(
  run: run_directory.RunDirectory, model: tf.keras.Model
) -> dict[str, Any]:
  """Reads the reports on forms of a model, and removes forms of others.

  Args:
    run: The run.
    model: Its trained model as it is now.

  Returns:
    The reports by name, in the order of `forms.FORMS`; empty without any.
  """
  paths = {name: _report_path(run, name) for name in forms.FORMS}
  if not any(path.exists() for path in paths.values()):
    return {}
  sha256, reports = weights_sha256(model), {}
  for name, path in paths.items():
    if not path.exists():
      continue
    report = json.loads(path.read_text())
    if report[_WEIGHTS] == sha256:
      reports[name] = report
    else:
      path.unlink()
      if suffix := forms.FORMS[name].suffix:
        path.with_suffix(suffix).unlink(missing_ok=True)
  return reports


def failures(reports: Mapping[str, Any]) -> list[str]:
  """One line for each form that fails its check."""
  return [
    f'{name}: {"; ".join(report["reasons"])}'
    for name, report in reports.items()
    if not report['passed']
  ]


def summary(name: str, report: Mapping[str, Any]) -> str:
  """One line for people about a report."""
  if not report['passed']:
    return f'{name}: FAILED: {"; ".join(report["reasons"])}'
  latency = report['latency'][str(form_examples.BATCHES[0])]
  p50 = forms_table.milliseconds(latency['p50_ms'])
  return (
    f'{name}: {report["bytes"]:,} bytes, agreement '
    f'{report["agreement"]:.4f} on {report["examples"]} test examples, '
    'max difference '
    f'{report["max_abs_difference"]:.2g}, p50 {p50} ms '
    f'({report["runtime"]})'
  )


def _make(
  form: forms.Form,
  source: forms.Source,
  path: pathlib.Path,
  examples: form_examples.Examples,
) -> dict[str, Any]:
  """Converts, writes and judges one form."""
  found = {}
  try:
    if form.convert is not None:
      content = _convert(form, source)
      atomic.write_bytes(path, content)
      found['gzip_bytes'] = len(gzip.compress(content, mtime=0))
    found['bytes'] = _size(path)
    found |= form_parity.check(form, path, examples)
    if form.suffix == '.tflite':
      found['operations'] = tflite.operations(content)
  except (parity.ParityError, _ConversionFailed) as error:
    reasons = [str(error), *_hints(form, source.task)]
    return {**found, 'passed': False, 'reasons': reasons}
  if form.is_int8:
    products = form_parity.float_matrix_products(found['operations'])
    if products:
      found['passed'] = False
      found['reasons'].append(f'not int8: {", ".join(products)}')
  return found


def _hints(form: forms.Form, task: task_lib.Task) -> list[str]:
  """What may be the reason that a form can't be made or run."""
  settings = task.quantization
  if settings is None:
    return []
  if form.is_int8 and not settings.symmetric_weights:
    return ['--nosymmetric_weights: LiteRT loads no convolution with such']
  if not form.is_int8 and settings.weight_bits == 4:
    return ["--weight_bits=4: TensorFlow's converter writes no floats for such"]
  return []


class _ConversionFailed(Exception):
  """A converter gave up."""


def _convert(form: forms.Form, source: forms.Source) -> bytes:
  try:
    return form.convert(source)
  # Converters raise whatever they like; the other forms are still wanted.
  except Exception as error:
    logging.exception('%s can not be made', form.title)
    raise _ConversionFailed(
      f'can not be made: {type(error).__name__}: {_one_line(error)[-500:]}'
    ) from error


def _one_line(error: Exception) -> str:
  return ' '.join(str(error).split())


def _size(path: pathlib.Path) -> int:
  if path.is_file():
    return path.stat().st_size
  return sum(file.stat().st_size for file in path.rglob('*') if file.is_file())


def _report_path(run: run_directory.RunDirectory, name: str) -> pathlib.Path:
  return run.path / DIRECTORY / f'{name}.json'
