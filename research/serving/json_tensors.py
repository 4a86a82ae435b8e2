"""JSON to arrays and back, as the REST API of TensorFlow Serving has it.

Numbers that JSON lacks are NaN, Infinity and -Infinity; bytes are
{"b64": "..."}; a float32 is written with as many digits as tell it from its
neighbours.
"""

import base64
import binascii
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

# Outputs of this name are written as base64 where they hold strings.
_BYTES_SUFFIX = '_bytes'
_SHOWN = 60

Json = Any


class RequestError(ValueError):
  """A request that can't be answered; the message is for its sender."""


def parse(body: bytes) -> dict[str, Json]:
  """Reads the body of a request.

  Raises:
    RequestError: If it is not a JSON object.
  """
  try:
    value = json.loads(body)
  except (ValueError, RecursionError) as error:
    raise RequestError(f'JSON Parse error: {error}') from error
  if not isinstance(value, dict):
    raise RequestError(f'the request must be a JSON object, not {_show(value)}')
  return value


def dumps(value: Json) -> bytes:
  """Writes a response in UTF-8."""
  return json.dumps(value, ensure_ascii=False).encode('utf-8', 'replace')


def from_instances(
  instances: Json, specs: Mapping[str, tf.TensorSpec]
) -> dict[str, np.ndarray]:
  """Makes inputs of the row format.

  Args:
    instances: A list with the values of each example: {input: value}, or, where
      there is only one input, its value.
    specs: The inputs.

  Returns:
    Arrays [batch, ...].

  Raises:
    RequestError: If they are not what the inputs take.
  """
  if not isinstance(instances, list) or not instances:
    raise RequestError(
      f"'instances' must be a list that is not empty, not {_show(instances)}"
    )
  if not any(map(_is_named, instances)):
    if len(specs) > 1:
      raise RequestError(
        f"each of 'instances' must be an object with {', '.join(specs)}"
      )
    (name,) = specs
    return {name: to_array(instances, specs[name])}
  for number, instance in enumerate(instances):
    if not _is_named(instance) or set(instance) != set(specs):
      raise RequestError(
        f"item {number} of 'instances' must be an object with "
        f'{", ".join(specs)}, as others are; it is {_show(instance)}'
      )
  return {
    name: to_array([instance[name] for instance in instances], spec)
    for name, spec in specs.items()
  }


def from_inputs(
  inputs: Json, specs: Mapping[str, tf.TensorSpec]
) -> dict[str, np.ndarray]:
  """Makes inputs of the column format.

  Args:
    inputs: {input: value}, or, where there is only one input, its value.
    specs: The inputs.

  Returns:
    The arrays.

  Raises:
    RequestError: If they are not what the inputs take.
  """
  if not _is_named(inputs):
    if len(specs) > 1:
      raise RequestError(f"'inputs' must be an object with {', '.join(specs)}")
    (name,) = specs
    inputs = {name: inputs}
  if set(inputs) != set(specs):
    raise RequestError(
      f"'inputs' must have {', '.join(specs)}; it has {', '.join(inputs)}"
    )
  return {name: to_array(inputs[name], spec) for name, spec in specs.items()}


def to_array(value: Json, spec: tf.TensorSpec) -> np.ndarray:
  """Makes an array of nested lists.

  Raises:
    RequestError: If it is not of the input's dtype and shape, or ragged.
  """
  shape, leaves = _flatten(value, spec.name)
  wanted = spec.shape
  if wanted.rank is not None and not wanted.is_compatible_with(shape):
    raise RequestError(
      f'{spec.name} must be of shape {_shape(wanted)}, not {_show(shape)}'
    )
  if spec.dtype == tf.string:
    return np.array([*map(to_bytes, leaves)], object).reshape(shape)
  return _numbers(leaves, spec).reshape(shape)


def to_bytes(value: Json) -> bytes:
  """Makes bytes of a string, or of {"b64": ...}.

  Raises:
    RequestError: If it is neither.
  """
  try:
    if isinstance(value, str):
      return value.encode('utf-8')
    if _is_base64(value):
      return base64.b64decode(value['b64'], validate=True)
  except (UnicodeEncodeError, binascii.Error, ValueError) as error:
    raise RequestError(f'{_show(value)} can not be read: {error}') from error
  raise RequestError(f'{_show(value)} is neither a string nor {{"b64": "..."}}')


def to_example(
  features: Json, context: Mapping[str, Json] | None = None
) -> bytes:
  """Makes a serialised `tf.train.Example`.

  Whole numbers and booleans make a feature of int64, decimal ones of float,
  strings and {"b64": ...} of bytes.

  Args:
    features: {name: value or list of values}.
    context: Features that all examples have in common.

  Raises:
    RequestError: If a feature mixes kinds, or the values are of none.
  """
  if not isinstance(features, dict):
    raise RequestError(f'an example must be an object, not {_show(features)}')
  made = {}
  for name, value in {**(context or {}), **features}.items():
    made[to_text(name)] = _feature(
      name, value if isinstance(value, list) else [value]
    )
  example = tf.train.Example(features=tf.train.Features(feature=made))
  return example.SerializeToString()


def to_text(value: str) -> str:
  """Refuses a string with half a surrogate pair, which UTF-8 has not."""
  return to_bytes(value).decode('utf-8')


def from_array(array: np.ndarray, name: str) -> Json:
  """Makes nested lists of an output."""
  if array.dtype.kind in 'OSU':
    as_bytes = name.endswith(_BYTES_SUFFIX)
    flat = [_text(value, as_bytes) for value in array.reshape(-1)]
    made = np.empty(len(flat), object)
    made[:] = flat
    return made.reshape(array.shape).tolist()
  if array.dtype in (np.float16, np.float32):
    # The shortest decimal that is this number, not that of its double.
    return array.astype(str).astype(np.float64).tolist()
  return array.tolist()


def rows(outputs: Mapping[str, np.ndarray]) -> list[Json]:
  """Makes the row format of outputs [batch, ...].

  Raises:
    RequestError: If they are not of one batch size.
  """
  sizes = {name: value.shape[:1] for name, value in outputs.items()}
  if len(set(sizes.values())) != 1 or () in sizes.values():
    raise RequestError(
      f"the outputs have no common batch size ({sizes}): ask by 'inputs'"
    )
  columns = {name: from_array(value, name) for name, value in outputs.items()}
  if len(columns) == 1:
    return next(iter(columns.values()))
  return [
    dict(zip(columns, values, strict=True))
    for values in zip(*columns.values(), strict=True)
  ]


def columns(outputs: Mapping[str, np.ndarray]) -> Json:
  """Makes the column format of outputs."""
  made = {name: from_array(value, name) for name, value in outputs.items()}
  return next(iter(made.values())) if len(made) == 1 else made


def _flatten(value: Json, name: str) -> tuple[list[int], list[Json]]:
  """The shape of nested lists, and what is in the innermost."""
  shape, first = [], value
  while isinstance(first, list):
    shape.append(len(first))
    first = first[0] if first else None
  leaves = [value]
  for size in shape:
    if any(type(part) is not list or len(part) != size for part in leaves):
      raise RequestError(f'the lists of {name} are not all of the same length')
    leaves = list(itertools.chain.from_iterable(leaves))
  return shape, leaves


def _numbers(leaves: Sequence[Json], spec: tf.TensorSpec) -> np.ndarray:
  dtype = spec.dtype
  kinds = {bool} if dtype.is_bool else {int}
  if dtype.is_floating:
    kinds = {int, float}
  for kind in set(map(type, leaves)) - kinds:
    found = next(leaf for leaf in leaves if type(leaf) is kind)
    raise RequestError(
      f'{_show(found)} is not of the type of {spec.name}, {dtype.name}'
    )
  if dtype.is_floating:
    array = _floats(leaves, dtype)
  elif leaves and dtype.is_integer:
    fits = dtype.min <= min(leaves) and max(leaves) <= dtype.max
    array = np.array(leaves, dtype.as_numpy_dtype) if fits else None
  else:
    array = np.array(leaves, dtype.as_numpy_dtype)
  if array is None:
    raise RequestError(f'a number of {spec.name} does not fit {dtype.name}')
  return array


def _floats(leaves: Sequence[Json], dtype: tf.DType) -> np.ndarray | None:
  """None where a finite number becomes infinite."""
  try:
    exact = np.array(leaves, np.float64)
  except OverflowError:
    return None
  with np.errstate(over='ignore'):
    array = exact.astype(dtype.as_numpy_dtype)
  return array if (np.isfinite(array) | ~np.isfinite(exact)).all() else None


def _feature(name: str, values: Sequence[Json]) -> tf.train.Feature:
  kinds = {type(value) for value in values}
  if kinds <= {bool, int}:
    return _listed(name, 'int64_list', values)
  if kinds == {float}:
    limit = np.finfo(np.float32).max
    if any(limit < abs(value) < np.inf for value in values):
      raise RequestError(f'a number of feature {name!r} does not fit float32')
    return _listed(name, 'float_list', values)
  if kinds <= {str, dict}:
    return _listed(name, 'bytes_list', [*map(to_bytes, values)])
  raise RequestError(
    f'feature {name!r} must be all whole numbers, all decimal numbers (1.0) or '
    f'all strings, not {_show(values)}'
  )


def _listed(name: str, field: str, values: Sequence) -> tf.train.Feature:
  feature = tf.train.Feature()
  try:
    getattr(feature, field).value.extend(values)
  except (ValueError, OverflowError) as error:
    raise RequestError(f'feature {name!r}: {error}') from error
  return feature


def _text(value: bytes | str, as_bytes: bool) -> Json:
  if isinstance(value, str):
    value = value.encode('utf-8')
  if as_bytes:
    return {'b64': base64.b64encode(value).decode('ascii')}
  return value.decode('utf-8', 'replace')


def _is_base64(value: Json) -> bool:
  return (
    isinstance(value, dict)
    and set(value) == {'b64'}
    and isinstance(value['b64'], str)
  )


def _is_named(value: Json) -> bool:
  return isinstance(value, dict) and not _is_base64(value)


def _shape(shape: tf.TensorShape) -> list[int]:
  return [-1 if size is None else size for size in shape.as_list()]


def _show(value: Json) -> str:
  try:
    text = repr(value)
  except RecursionError:
    text = f'a deeply nested {type(value).__name__}'
  return text if len(text) <= _SHOWN else f'{text[:_SHOWN]}...'
