"""The forms in which a trained model can be exported.

A form is an entry of `FORMS`: how it is made of a model, what its file is
called, and how close to the model it must come.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from research.export import (
  form_examples,
  onnx_model,
  saved_model,
  text_signatures,
  tflite,
)
from research.tasks import task as task_lib

SAVED_MODEL = 'saved_model'
# Share of test examples with the trained model's answer; where answers are
# numbers, the share of their variance (R^2).
LEAST_AGREEMENT = 0.99
# Of models that round activations: how much less a form may have than the model
# with itself, by chance, and what it must have all the same.
ALLOWANCE = 0.01
LEAST_OF_QUANTIZED = 0.95


@dataclasses.dataclass(frozen=True)
class Source:
  """What forms are made of.

  Attributes:
    task: What was learned.
    model: The trained model; of texts, with nothing to merge.
    representative: Inputs from which int8 takes the ranges of activations;
      None if the model has learned them.
  """

  task: task_lib.Task
  model: tf.keras.Model
  representative: np.ndarray | None = None

  def serve(
    self, is_fixed: bool = False, keeps_scaling: bool = False
  ) -> tf.types.experimental.GenericFunction:
    """The function to convert: raw examples, or token ids, to named outputs.

    Args:
      is_fixed: Whether texts come one at a time, padded to the longest length.
      keeps_scaling: Whether the rows of a table must be standardised before
        they meet a weight.
    """
    task, model = self.task, self.model
    if keeps_scaling and task.data.feature_names:
      model = functools.partial(_behind_a_barrier, model)
    if text_signatures.is_text(task):
      shape = [1, task.max_length] if is_fixed else [None, None]
      spec = tf.TensorSpec(shape, tf.int32, text_signatures.TOKEN_IDS)
      body = functools.partial(text_signatures.of_token_ids, task, model)
    else:
      dtype = saved_model.input_dtypes(task)[saved_model.SERVING]
      shape = [None, *task.example_shape]
      spec = tf.TensorSpec(shape, dtype, saved_model.input_name(task))
      body = functools.partial(saved_model.servable_outputs, task, model)
    return tf.function(
      lambda given: body(given), input_signature=[spec], autograph=False
    )

  def has_learned_ranges(self) -> bool:
    """Whether training found the ranges, so that int8 needs no examples."""
    return tflite.has_fake_quantization(self.serve().get_concrete_function())


def _behind_a_barrier(
  model: tf.keras.Model, x: tf.Tensor, training: bool
) -> tf.Tensor:
  """Calls a model on x, and changes nothing but what a converter can merge.

  TFLite's multiplies standardisation into the weights behind it. One int8 range
  for raw features of different units would then be lost to the largest.
  """
  return model(tf.maximum(x, x.dtype.min), training=training)


@dataclasses.dataclass(frozen=True)
class Form:
  """A form.

  Attributes:
    title: In words.
    suffix: Of its file's name; empty for the directory of the SavedModel.
    convert: Makes the file's content; None for the SavedModel.
    tolerance: Bound of the difference from the trained model, relative to
      max(1, the largest magnitude of the output); None where weights are
      rounded, so that agreement alone is bounded.
    is_int8: Whether all matrix products have to be of int8.
    is_of_quantized: Whether the trained model rounds activations itself.
  """

  title: str
  suffix: str
  convert: Callable[[Source], bytes] | None
  tolerance: float | None
  is_int8: bool = False
  is_of_quantized: bool = False

  def of_quantized(self) -> 'Form':
    """The same of a model with fake quantization in it.

    A value between two steps may fall to either, so that agreement is all that
    can be bounded. In a deep model one step leads to others, and no runtime
    agrees better than the model does with itself when thresholds move a little.
    """
    return dataclasses.replace(self, tolerance=None, is_of_quantized=True)

  def least_agreement(self, model_agreement: float | None = None) -> float:
    """The bound of agreement.

    Args:
      model_agreement: Of a model that rounds activations with itself in ranges
        that are wider by `form_examples.WIDENING`; None of others.
    """
    if not self.is_of_quantized:
      return LEAST_AGREEMENT
    found = min(LEAST_AGREEMENT, model_agreement - ALLOWANCE)
    return max(LEAST_OF_QUANTIZED, found)

  def bound(self, answers: str) -> str:
    """Says what is asked of the form; see `form_parity.check`."""
    wanted = f'{answers} with the trained model at least {LEAST_AGREEMENT:g}'
    if self.is_of_quantized:
      wanted += (
        f', or {LEAST_OF_QUANTIZED:g} and at most {ALLOWANCE:g} less than it '
        f'has with itself in ranges wider by {form_examples.WIDENING:g}'
      )
    if self.tolerance is not None:
      wanted = f'outputs within {self.tolerance:.0e}, {wanted}'
    return f'{wanted}, matrix products in int8' if self.is_int8 else wanted


def _tflite(precision: str, source: Source) -> bytes:
  is_int8 = precision == tflite.INT8
  serve = source.serve(is_fixed=True, keeps_scaling=is_int8)
  function = serve.get_concrete_function()
  examples = source.representative if is_int8 else None
  return tflite.convert(function, source.model.variables, precision, examples)


def _tflite_form(title: str, precision: str, tolerance=None) -> Form:
  convert = functools.partial(_tflite, precision)
  is_int8 = precision == tflite.INT8
  return Form(title, '.tflite', convert, tolerance, is_int8)


FORMS: Mapping[str, Form] = {
  # OpenVINO's convolutions add up in another order.
  SAVED_MODEL: Form('SavedModel, float32', '', None, 1e-4),
  'tflite': _tflite_form('TFLite, float32', tflite.FLOAT, 1e-5),
  'tflite_dynamic': _tflite_form(
    'TFLite, int8 weights, ranges as they come', tflite.DYNAMIC_RANGE
  ),
  'tflite_float16': _tflite_form(
    'TFLite, float16 weights, computes in float32', tflite.FLOAT16
  ),
  'tflite_int8': _tflite_form(
    'TFLite, int8 weights and activations', tflite.INT8
  ),
  'onnx': Form(
    'ONNX, float32',
    '.onnx',
    lambda source: onnx_model.convert(source.serve()),
    1e-5,
  ),
}


def check_names(names: Sequence[str]) -> None:
  """Raises unless all forms exist and can be made here.

  Raises:
    ValueError: If there is no such form.
    ImportError: If a package lacks.
  """
  if unknown := [name for name in names if name not in FORMS]:
    raise ValueError(
      f'--forms has {", ".join(unknown)}; there are {", ".join(FORMS)}.'
    )
  if 'onnx' in names:
    onnx_model.check_installed()
