"""Judges exported forms by a process that shares no code with this project."""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from research.export import form_examples, forms, parity, tflite
from research.training import atomic

_REPETITIONS = 200
_TIMEOUT_SECONDS = 3600
# More numbers than these are pixels, many of them the same in all images.
_MOST_TARGETS = 32


def serving_python() -> pathlib.Path:
  """The interpreter that runs forms.

  Raises:
    FileNotFoundError: If there is none: without proof there is no export.
  """
  python = parity.serving_python()
  if not python.exists():
    raise FileNotFoundError(
      f'{python} is needed to run what --forms makes: make serving, or name '
      f'another by {parity.SERVING_PYTHON}.'
    )
  return python


def check(
  form: forms.Form,
  model: atomic.Path,
  examples: form_examples.Examples,
) -> dict[str, Any]:
  """Compares a form with the trained model on test examples.

  It runs on one thread of the CPU, in the serving environment.

  Args:
    form: What it is.
    model: Its file or directory.
    examples: What it is given.

  Returns:
    What a report has of it:
    passed: Whether it keeps its bound.
    reasons: Why not; empty if it does.
    bound: In words.
    runtime: Its name and version.
    max_abs_difference: Of outputs, in batches of 1 and 32; of class or cluster
      numbers, of what these are chosen by.
    max_difference: Relative to max(1, the largest magnitude of that output).
    examples: How many test examples all that follows is of.
    agreement: Share of equal labels (of the examples, or of labelled tokens),
      or R^2 of numbers with those of the trained model (of several targets
      the worst).
    model_agreement: Where training quantizes, that of the trained model with
      itself after its ranges have become wider by `form_examples.WIDENING`.
    accuracy, model_accuracy: Of labels, the form's and the trained model's;
      or rmse, model_rmse: of numbers, in the targets' units.
    latency: Of each batch size p50_ms, p99_ms and runs.

  Raises:
    parity.ParityError: If it can't be run, or gives other outputs.
  """
  timed = [key for key in examples.inputs if key.startswith('parity')]
  actual = parity.run_script(
    'form_process.py',
    serving_python(),
    pathlib.Path(model).absolute(),
    {
      **examples.inputs,
      'timed': np.array(timed),
      'largest': np.array(examples.largest, np.str_),
      'repetitions': np.array(_REPETITIONS),
    },
    _TIMEOUT_SECONDS,
  )
  runtime = str(actual['runtime'])
  absolute, relative = parity.compare(runtime, examples.expected, actual)
  answers = examples.answers_of(actual)
  count = sum(len(v) for k, v in examples.inputs.items() if k not in timed)
  report = {
    'bound': form.bound('R^2' if examples.has_numbers else 'equal labels'),
    'runtime': runtime,
    'max_abs_difference': absolute,
    'max_difference': max(relative.values()),
    'examples': count,
    **_compare_answers(examples, answers),
    'latency': {
      key.partition('/')[2]: _latency(actual[f'{key}/seconds']) for key in timed
    },
  }
  reasons = _reasons(form, report)
  return {'passed': not reasons, 'reasons': reasons, **report}


def float_matrix_products(
  operations: Mapping[str, Mapping[str, int]],
) -> list[str]:
  """Names matrix products that are not of int8, as `2 BATCH_MATMUL`."""
  return [
    f'{count} {name} in {dtype}'
    for name in tflite.MATRIX_PRODUCTS
    for dtype, count in operations.get(name, {}).items()
    if dtype != 'int8'
  ]


def _reasons(form: forms.Form, report: Mapping[str, Any]) -> list[str]:
  """What bounds are not kept; a number that is none keeps no bound."""
  reasons = []
  tolerance, difference = form.tolerance, report['max_difference']
  if tolerance is not None and not difference <= tolerance:
    reasons.append(f'outputs are off by {difference:.3g}, beyond {tolerance:g}')
  least = form.least_agreement(report.get('model_agreement'))
  if not report['agreement'] >= least:
    reasons.append(f'agreement is {report["agreement"]:.4f}, below {least:.4g}')
  return reasons


def _compare_answers(
  examples: form_examples.Examples, answers: np.ndarray
) -> dict[str, float]:
  wanted, truth = examples.answers, examples.truth
  if answers.shape != wanted.shape:
    raise parity.ParityError(
      f'the form has answers of shape {answers.shape}, the trained model '
      f'{wanted.shape}'
    )
  measure = r_squared if examples.has_numbers else _share_of_equal
  found = {'agreement': measure(wanted, answers)}
  if examples.widened_answers is not None:
    found['model_agreement'] = measure(wanted, examples.widened_answers)
  if examples.has_numbers:
    found['rmse'] = _rmse(truth, answers)
    found['model_rmse'] = _rmse(truth, wanted)
  elif truth is not None:
    found['accuracy'] = _share_of_equal(truth, answers)
    found['model_accuracy'] = _share_of_equal(truth, wanted)
  return found


def _share_of_equal(wanted: np.ndarray, found: np.ndarray) -> float:
  return float(np.mean(found == wanted))


def r_squared(wanted: np.ndarray, found: np.ndarray) -> float:
  """1 - squared differences / squared deviations, of numbers [n, targets].

  Targets whose wanted values do not vary have 1 if all are met, else -inf. The
  result is that of the worst target; pixels count as one target.
  """
  if wanted.shape[1] > _MOST_TARGETS:
    wanted, found = (array.reshape([-1, 1]) for array in (wanted, found))
  errors = np.square(found - wanted).sum(axis=0)
  total = np.square(wanted - wanted.mean(axis=0)).sum(axis=0)
  values = np.where(
    total > 0,
    1 - errors / np.where(total > 0, total, 1),
    np.where(errors > 0, -np.inf, 1.0),
  )
  return float(values.min())


def _rmse(truth: np.ndarray, found: np.ndarray) -> float:
  return math.sqrt(np.square(found - truth).mean())


def _latency(seconds: np.ndarray) -> dict[str, float]:
  p50, p99 = np.percentile(seconds, (50, 99)) * 1e3
  return {'p50_ms': float(p50), 'p99_ms': float(p99), 'runs': len(seconds)}
