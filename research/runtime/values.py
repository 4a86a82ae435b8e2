"""Python values into the flat tensors of a computation, and back."""

import collections
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from research import compat
from research.runtime import cohort as cohort_lib
from research.runtime import program, tree


def stacked(values: Any) -> Any:
  """Stacks a tensor per client if they have one shape."""
  if tf.is_tensor(values):
    return values
  if len({tuple(value.shape) for value in values}) == 1:
    return tf.stack(values)
  return values


def flatten(value: Any, signature: tff.Type) -> tuple[list[Any], int | None]:
  """Flattens an argument.

  Returns:
    The flat values, and the number of clients if there is one.

  Raises:
    ValueError: If two parts have different numbers of clients.
  """
  if isinstance(signature, tff.FederatedType):
    if signature.placement is tff.CLIENTS and not signature.all_equal:
      if not isinstance(value, list | tuple | cohort_lib.Cohort):
        raise TypeError(
          f'A list with a value per client is needed for {signature}, but a '
          f'{type(value).__name__} was given.'
        )
      return _flatten_clients(value, signature.member), len(value)
    return _flatten(value, signature.member), None
  if not isinstance(signature, tff.StructType):
    return _flatten(value, signature), None
  flat, found = [], set()
  for part, member in _parts(value, signature):
    values, clients = flatten(part, member)
    flat += values
    found |= {clients} - {None}
  if len(found) > 1:
    raise ValueError(f'The arguments have {sorted(found)} clients.')
  return flat, next(iter(found), None)


def _parts(value: Any, signature: tff.StructType) -> list[tuple[Any, tff.Type]]:
  """Pairs the elements of a Python container with their types."""
  members = list(compat.iter_elements(signature))
  if isinstance(value, collections.abc.Mapping):
    if set(value) != {name for name, _ in members}:
      raise TypeError(
        f'The names {sorted(map(str, value))} were given for {signature}.'
      )
    return [(value[name], member) for name, member in members]
  names = [name for name, _ in members]
  if type(value) in (list, tuple):
    values = value
  elif all(name and hasattr(value, name) for name in names):
    # As the states of TFF's learning processes.
    values = [getattr(value, name) for name in names]
  else:
    values = list(compat.to_struct(value))
  if len(values) != len(members):
    raise TypeError(f'{len(values)} values for the type {signature}')
  types = [member for _, member in members]
  return list(zip(values, types, strict=True))


def _flatten(value: Any, signature: tff.Type) -> list[Any]:
  if isinstance(signature, tff.StructType):
    return [
      leaf
      for part, member in _parts(value, signature)
      for leaf in _flatten(part, member)
    ]
  if isinstance(signature, tff.SequenceType):
    if not isinstance(value, tf.data.Dataset):
      value = compat.dataset_of(None, value, signature.element)
    return [tf.data.experimental.to_variant(value)]
  return [_tensor(value, signature)]


def _tensor(value: Any, signature: tff.TensorType) -> tf.Tensor:
  dtype = tf.dtypes.as_dtype(signature.dtype)
  if not (tf.is_tensor(value) and value.dtype == dtype):
    array = np.asarray(value)
    if array.dtype.kind == 'f' and (dtype.is_integer or dtype.is_bool):
      raise TypeError(f'A {array.dtype} was given for {signature}.')
    value = tf.convert_to_tensor(array, dtype)
  if not tf.TensorShape(signature.shape).is_compatible_with(value.shape):
    raise TypeError(f'The shape {value.shape} was given for {signature}.')
  return tf.convert_to_tensor(value)


def _flatten_clients(value: Any, signature: tff.Type) -> list[Any]:
  if isinstance(signature, tff.SequenceType):
    if isinstance(value, cohort_lib.Cohort):
      return [value]
    return [cohort_lib.pack(value, signature.element)]
  if isinstance(signature, tff.StructType):
    parts = [_parts(client, signature) for client in value]
    flat = []
    for i, (_, member) in enumerate(compat.iter_elements(signature)):
      flat += _flatten_clients([client[i][0] for client in parts], member)
    return flat
  return [stacked([_tensor(client, signature) for client in value])]


def exporter(
  value: Any, signature: tff.Type, stays: bool = False
) -> Callable[[dict[program.Ref, Any], int | None], Any]:
  """Builds what makes a Python result of the values of references.

  TFF's own conversion examines types and containers in each round, which for
  small models takes longer than their computation.
  """
  if isinstance(signature, tff.FederatedType):
    if signature.placement is tff.CLIENTS and not signature.all_equal:
      one = _client_exporter(value, signature.member)
      return lambda env, clients: [one(env, i) for i in range(clients)]
    return exporter(value, signature.member, stays)
  if isinstance(signature, tff.StructType):
    parts = [
      exporter(part, member, stays or name == 'state')
      for (name, part), (_, member) in zip(
        tree.members(value), compat.iter_elements(signature), strict=True
      )
    ]
    build = _container(signature)
    return lambda env, clients: build([part(env, clients) for part in parts])
  if isinstance(signature, tff.SequenceType):
    structure = compat.type_to_tf_structure(signature.element)
    return lambda env, _: tf.data.experimental.from_variant(
      env[value], structure
    )
  if stays:
    return lambda env, _: env[value]
  return lambda env, _: env[value].numpy()


def _client_exporter(
  value: Any, signature: tff.Type
) -> Callable[[dict[program.Ref, Any], int], Any]:
  """Builds what makes one client's result, by the client's position."""
  if isinstance(signature, tff.StructType):
    parts = [
      _client_exporter(part, member)
      for (_, part), (_, member) in zip(
        tree.members(value), compat.iter_elements(signature), strict=True
      )
    ]
    build = _container(signature)
    return lambda env, client: build([part(env, client) for part in parts])
  if isinstance(signature, tff.SequenceType):
    raise NotImplementedError(
      'A client returns a dataset; --runtime=stock can run this computation.'
    )
  if value.placement == program.SERVER:
    return lambda env, _: env[value].numpy()
  return lambda env, client: env[value][client].numpy()


def _container(signature: tff.StructType) -> Callable[[list[Any]], Any]:
  """Builds what arranges elements in the container that a type names."""
  names = [name for name, _ in compat.iter_elements(signature)]
  container = getattr(signature, 'python_container', None)
  if all(name is None for name in names):
    return container or tuple
  if container is None or issubclass(container, collections.abc.Mapping):
    make = container or collections.OrderedDict
    return lambda values: make(zip(names, values, strict=True))
  return lambda values: container(**dict(zip(names, values, strict=True)))
