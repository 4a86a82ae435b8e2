"""Proves that an exported model computes what the trained model computes."""

import os
import pathlib
import subprocess
import sys
import tempfile
import types
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from models import quantization
from research.export import saved_model, text_parity, text_signatures
from research.tasks import task as task_lib
from research.training import atomic

SERVING_PYTHON = 'TFF_RESEARCH_SERVING_PYTHON'
TENSORFLOW_TOLERANCE = 1e-5
OPENVINO_TOLERANCE = 1e-4
# Of a model with fake quantization: a value between two steps of a range can
# fall to either, and the next layers go on from there. A step of its output is
# 1/255 of the output's range.
QUANTIZED_TOLERANCE = 0.05
# Steps add up over the layers of an encoder; 0.08 was measured with six.
QUANTIZED_TEXT_TOLERANCE = 0.15

# Outputs that are positions: of which output, and of which of its values.
_CHOSEN_BY = {
  'class': ('logits', np.max),
  'cluster': ('squared_distances', np.min),
}

_SCRIPTS = pathlib.Path(__file__).absolute().parent
_SEED = 20170220
_TIMEOUT_SECONDS = 300
_BATCHES = (1, 32)
# NumPy's kinds of dtypes that hold texts or bytes.
_TEXT_KINDS = 'OSU'

Arrays = Mapping[str, np.ndarray]


class ParityError(AssertionError):
  """An exported model differs from the trained one, or can't be run."""


def serving_python() -> pathlib.Path:
  """The interpreter of the serving environment, whether or not it exists."""
  given = os.environ.get(SERVING_PYTHON)
  if given:
    return pathlib.Path(given).expanduser().absolute()
  return _SCRIPTS.parents[1] / '.venv-serving' / 'bin' / 'python'


def check(
  task: task_lib.Task,
  keras_model: tf.keras.Model,
  directory: atomic.Path,
  batches: Sequence[int] | None = None,
) -> dict[str, Any]:
  """Compares an exported model with the trained one on fixed examples.

  These are random images; where features have units of their own, they are
  examples of a training client; texts are those of `text_parity`.

  All signatures run in a fresh process that has TensorFlow only (for texts also
  TensorFlow Text), and the default signature in OpenVINO, without TensorFlow,
  at float32 precision; for texts it is the one on token ids. All
  of it runs on the CPU. A difference is measured against max(1, the largest
  magnitude of that output): a float32 number has seven digits, so that logits
  of several hundreds (which random images can give) can't agree to 1e-5. Where
  training quantizes it is measured against the output's range. For
  `class` it is how far the logit of the class chosen lies below the largest,
  for `cluster` how far the squared distance lies above the smallest. Texts must
  be equal, up to ties of what they are chosen by.

  Args:
    task: The task.
    keras_model: The trained model.
    directory: The SavedModel.
    batches: The batch sizes; 1 and 32 by default, 1 and 8 for texts.

  Returns:
    {'batches': [...], 'tensorflow': {...}, 'openvino': {...}}, each runtime
    with 'runtime' (its name and version), 'tolerance', 'max_abs_difference'
    and 'max_difference' (relative, as above) over all outputs and
    'outputs' (the relative difference of each). Where the serving environment
    is absent, openvino is {'not_run': reason}.

  Raises:
    ParityError: If a difference is beyond the tolerance (1e-5 for TensorFlow,
      1e-4 for OpenVINO, and for both 0.05 where training quantizes, 0.15 of
      texts), or a runtime fails.
  """
  has_texts = text_signatures.is_text(task)
  batches = batches or (text_parity.BATCHES if has_texts else _BATCHES)
  inputs, choices = _inputs(task, batches), {}
  # Accelerators round convolutions differently; the export is what is tested.
  with tf.device('/CPU:0'):
    if has_texts:
      expected, choices = text_parity.expected(task, keras_model, inputs)
    else:
      expected = _expected(task, keras_model, inputs)
  report = {'batches': list(batches)}
  rounded = _rounded_tolerance(task)
  scale = _output_range(keras_model) if rounded else 1.0
  report['tensorflow'] = _check_runtime(
    'fresh_process.py',
    pathlib.Path(sys.executable),
    directory,
    inputs,
    expected,
    rounded or TENSORFLOW_TOLERANCE,
    choices,
    scale,
  )
  python = serving_python()
  if not python.exists():
    reason = f'serving environment missing: no {python.name} at '
    reason += (
      SERVING_PYTHON if SERVING_PYTHON in os.environ else '.venv-serving'
    )
    report['openvino'] = {'not_run': reason}
    return report
  default, below = f'{saved_model.SERVING}/', directory
  if has_texts:
    default = f'{text_signatures.SERVE_TOKEN_IDS}/'
    below = os.path.join(directory, text_signatures.WITHOUT_TEXT)
  report['openvino'] = _check_runtime(
    'form_process.py',
    python,
    below,
    {k: v for k, v in inputs.items() if k.startswith(default)},
    {k: v for k, v in expected.items() if k.startswith(default)},
    rounded or OPENVINO_TOLERANCE,
    least_scale=scale,
  )
  return report


def summary(report: Mapping[str, Any]) -> str:
  """One line for people about a report of `check`."""
  parts = []
  for name in ('tensorflow', 'openvino'):
    result = report[name]
    if 'not_run' in result:
      parts.append(f'{name} not run ({result["not_run"]})')
    else:
      parts.append(
        f'{result["runtime"]} within {result["max_difference"]:.1e} '
        f'(tolerance {result["tolerance"]:.0e})'
      )
  return 'parity with the trained model: ' + '; '.join(parts)


def _inputs(task: task_lib.Task, batches: Sequence[int]) -> dict[str, Any]:
  """Examples, the same in each call, keyed `<signature>/<batch>`."""
  if text_signatures.is_text(task):
    return text_parity.inputs(task, batches)
  if task.data.feature_names:
    sizes = task.data.train.num_examples
    x = task.data.train.client(max(sizes, key=sizes.get))['x']
    x = x.astype(np.float32)
    return {
      f'{saved_model.SERVING}/{batch}': np.resize(x, [batch, *x.shape[1:]])
      for batch in batches
    }
  inputs = {}
  for batch in batches:
    rng = np.random.default_rng([_SEED, batch])
    shape = [batch, *task.example_shape]
    for name, dtype in saved_model.input_dtypes(task).items():
      if dtype == tf.uint8:
        inputs[f'{name}/{batch}'] = rng.integers(0, 256, shape, np.uint8)
      else:
        inputs[f'{name}/{batch}'] = rng.random(shape, np.float32)
  return inputs


def _expected(
  task: task_lib.Task, keras_model: tf.keras.Model, inputs: Arrays
) -> dict[str, np.ndarray]:
  expected = {}
  for key, image in inputs.items():
    outputs = saved_model.servable_outputs(
      task, keras_model, tf.constant(image)
    )
    for name, value in outputs.items():
      expected[f'{key}/{name}'] = value.numpy()
  return expected


def _rounded_tolerance(task: task_lib.Task) -> float:
  """The tolerance where training quantizes; 0 elsewhere."""
  if task.quantization is None:
    return 0.0
  is_text = text_signatures.is_text(task)
  return QUANTIZED_TEXT_TOLERANCE if is_text else QUANTIZED_TOLERANCE


def _output_range(model: tf.keras.Model) -> float:
  """The largest magnitude in the range of a quantized model's output."""
  ends = quantization.ranges(model)[-2:]
  return max(1.0, *(abs(float(end)) for end in ends))


def _check_runtime(
  script: str,
  python: pathlib.Path,
  directory: atomic.Path,
  inputs: Arrays,
  expected: Arrays,
  tolerance: float,
  choices: Mapping[str, text_parity.Choice] = types.MappingProxyType({}),
  least_scale: float = 1.0,
) -> dict[str, Any]:
  actual = run_script(script, python, directory, inputs)
  runtime = str(actual.pop('runtime'))
  absolute, relative = compare(runtime, expected, actual, choices, least_scale)
  worst = max(relative, key=relative.get)
  if not relative[worst] <= tolerance:
    raise ParityError(
      f'the exported model in {directory} differs from the trained one: '
      f'{worst} in {runtime} is off by {relative[worst]:.3g}, beyond '
      f'{tolerance:.0e}'
    )
  return {
    'runtime': runtime,
    'tolerance': tolerance,
    'max_abs_difference': absolute,
    'max_difference': relative[worst],
    'outputs': relative,
  }


def compare(
  runtime: str,
  expected: Arrays,
  actual: Arrays,
  choices: Mapping[str, text_parity.Choice] = types.MappingProxyType({}),
  least_scale: float = 1.0,
) -> tuple[float, dict[str, float]]:
  """Measures how far outputs are from those of the trained model; see `check`.

  Args:
    runtime: Name of what gave them.
    expected: Outputs of the trained model, keyed `<name>/<batch>/<output>`.
    actual: Of these keys at least.
    choices: How texts among them were chosen.
    least_scale: What numbers are measured against at least.

  Returns:
    The largest absolute difference, and the relative one of each output.

  Raises:
    ParityError: If an output lacks or is of another shape or dtype.
  """
  if missing := sorted(set(expected) - set(actual)):
    raise ParityError(
      f'{runtime} gives no {", ".join(missing)}; it gives '
      f'{", ".join(sorted(actual))}'
    )
  absolute, relative = 0.0, {}
  for key, value in expected.items():
    if value.dtype.kind in _TEXT_KINDS:
      difference, scale = _text_difference(
        key, value, actual[key], choices.get(key)
      )
    else:
      difference, scale = _difference(key, value, actual[key], expected)
      scale = max(scale, least_scale)
    absolute = max(absolute, difference)
    relative[key] = difference / scale
  return absolute, relative


def _difference(
  key: str, expected: np.ndarray, actual: np.ndarray, all_expected: Arrays
) -> tuple[float, float]:
  """The largest difference of one output, and its scale (at least 1)."""
  if expected.shape != actual.shape or expected.dtype != actual.dtype:
    raise ParityError(
      f'{key} is {actual.dtype} of shape {actual.shape}; the trained model '
      f'gives {expected.dtype} of shape {expected.shape}'
    )
  group, _, name = key.rpartition('/')
  if name in _CHOSEN_BY:
    of, best = _CHOSEN_BY[name]
    values = all_expected[f'{group}/{of}']
    chosen = np.take_along_axis(values, actual[:, None], axis=-1)
    expected, actual = best(values, axis=-1, keepdims=True), chosen
    scale = np.abs(values).max()
  else:
    scale = np.abs(expected).max()
  difference = np.abs(expected.astype(np.float64) - actual.astype(np.float64))
  # A difference that is not a number must not pass for a small one.
  worst = np.inf if np.isnan(difference).any() else float(difference.max())
  return worst, max(1.0, float(scale))


def _text_difference(
  key: str,
  expected: np.ndarray,
  actual: np.ndarray,
  choice: text_parity.Choice | None,
) -> tuple[float, float]:
  """0 for equal texts, else how far the choice was from a tie; its scale."""
  if expected.shape != actual.shape:
    raise ParityError(
      f'{key} is of shape {actual.shape}; the trained model gives '
      f'{expected.shape}'
    )
  if (expected == actual).all():
    return 0.0, 1.0
  if choice is None:
    return np.inf, 1.0
  worst, scale = text_parity.tie(choice, expected, actual)
  return worst, max(1.0, scale)


def run_script(
  script: str,
  python: pathlib.Path,
  model: atomic.Path,
  inputs: Arrays,
  timeout_seconds: float = _TIMEOUT_SECONDS,
) -> dict[str, np.ndarray]:
  """Runs one of the scripts beside this file in a process of its own.

  Args:
    script: Its name.
    python: The interpreter.
    model: What it is to run.
    inputs: The arrays that it gets.
    timeout_seconds: How long it may take.

  Returns:
    The arrays that it writes.

  Raises:
    ParityError: If it fails or takes longer.
  """
  environment = {
    **os.environ,
    'CUDA_VISIBLE_DEVICES': '-1',
    'TF_CPP_MIN_LOG_LEVEL': '3',
    'PYTHONPATH': '',
  }
  with tempfile.TemporaryDirectory() as folder:
    given, results = (os.path.join(folder, n) for n in ('in.npz', 'out.npz'))
    np.savez(given, **inputs)
    command = [python, _SCRIPTS / script, model, given, results]
    try:
      subprocess.run(
        [os.fspath(part) for part in command],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
        timeout=timeout_seconds,
      )
    except subprocess.CalledProcessError as error:
      raise ParityError(
        f'{script} could not run {model} with {python}: '
        f'{error.stderr.strip()[-2000:]}'
      ) from error
    except subprocess.TimeoutExpired as error:
      raise ParityError(
        f'{script} did not end within {timeout_seconds:g} s'
      ) from error
    with np.load(results) as outputs:
      return {name: outputs[name] for name in outputs.files}
