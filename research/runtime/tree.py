"""Walks the tree of a TFF computation once, and makes a program of it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from research import compat
from research.runtime import leaf as leaf_lib
from research.runtime import program, sequences

_Function = Callable[[Any], Any]


class UnknownIntrinsicError(NotImplementedError):
  """A computation has an intrinsic that this runtime does not know."""


class SecureSumBoundError(ValueError):
  """A client's value is outside of what a secure sum was told to expect."""


def build(computation: tff.Computation) -> program.Program:
  """Compiles a computation.

  Args:
    computation: Any TFF computation whose local work is TensorFlow.

  Returns:
    Its program.

  Raises:
    UnknownIntrinsicError: If an intrinsic is not implemented here.
  """
  return _Builder().build(computation)


def flatten(tree: Any) -> list[program.Ref]:
  """The references of a tree, in order."""
  if isinstance(tree, compat.Struct):
    return [ref for _, value in members(tree) for ref in flatten(value)]
  return [tree]


def members(tree: compat.Struct) -> Iterator[tuple[str | None, Any]]:
  """Names (or None) and values of a struct."""
  return compat.iter_elements(tree)


def pack(type_signature: tff.Type, values: Iterator[Any]) -> Any:
  """Arranges flat values in a tree of the type's form."""
  if isinstance(type_signature, tff.FederatedType):
    return pack(type_signature.member, values)
  if isinstance(type_signature, tff.StructType):
    return compat.Struct(
      [
        (name, pack(member, values))
        for name, member in compat.iter_elements(type_signature)
      ]
    )
  return next(values)


def _placement(type_signature: tff.Type) -> str:
  if (
    isinstance(type_signature, tff.FederatedType)
    and type_signature.placement is tff.CLIENTS
  ):
    return program.CLIENTS
  return program.SERVER


class _Builder:
  """Evaluates a tree on references in the place of values."""

  def __init__(self):
    self._ops: list[program.Op] = []
    self._arguments: list[program.Argument] = []
    self._checks: list[program.Check] = []
    self._leaves: dict[int, tuple[Any, leaf_lib.Leaf]] = {}
    # Where leaves run that are called now.
    self._where = program.SERVER

  def build(self, computation: tff.Computation) -> program.Program:
    signature = computation.type_signature
    value = self._evaluate(compat.call_dominant(computation), {})
    if callable(value):
      argument = None
      if signature.parameter is not None:
        argument = self._parameter(signature.parameter)
      value = value(argument)
    return program.Program(
      self._arguments, self._ops, value, flatten(value), self._checks
    )

  def _parameter(self, signature: tff.Type) -> Any:
    if isinstance(signature, tff.StructType):
      return compat.Struct(
        [
          (name, self._parameter(member))
          for name, member in compat.iter_elements(signature)
        ]
      )
    refs = []
    for leaf in leaf_lib.flatten_type(signature):
      # What is equal at all clients is one value, like a broadcast one.
      equal = getattr(signature, 'all_equal', False)
      where = program.SERVER if equal else _placement(signature)
      op = program.Argument(len(self._arguments), where, leaf)
      self._arguments.append(op)
      refs += op.results
    return pack(signature, iter(refs))

  def _evaluate(self, block: Any, env: dict[str, Any]) -> Any:
    blocks = compat.blocks
    if isinstance(block, blocks.Lambda):
      return lambda argument=None: self._evaluate(
        block.result, {**env, block.parameter_name: argument}
      )
    if isinstance(block, blocks.Block):
      env = dict(env)
      for name, value in block.locals:
        env[name] = self._evaluate(value, env)
      return self._evaluate(block.result, env)
    if isinstance(block, blocks.Reference):
      return env[block.name]
    if isinstance(block, blocks.Selection):
      return self._evaluate(block.source, env)[block.as_index()]
    if isinstance(block, blocks.Struct):
      return compat.Struct(
        [
          (name, self._evaluate(value, env))
          for name, value in compat.iter_elements(block)
        ]
      )
    if isinstance(block, blocks.Call):
      function = self._evaluate(block.function, env)
      if block.argument is None:
        return function()
      return function(self._evaluate(block.argument, env))
    if isinstance(block, blocks.CompiledComputation):
      return self._leaf(block)
    if isinstance(block, blocks.Intrinsic):
      return self._intrinsic(block)
    if isinstance(block, blocks.Literal):
      return self._literal(block)
    raise NotImplementedError(
      f'The in-process runtime has no {type(block).__name__}; --runtime=stock '
      'may run this computation.'
    )

  def _add(self, op: program.Op) -> list[program.Ref]:
    self._ops.append(op)
    return op.results

  def _literal(self, block: Any) -> program.Ref:
    dtype = tf.dtypes.as_dtype(block.type_signature.dtype)
    value = block.value
    op = program.Compute(
      [],
      self._where,
      [block.type_signature],
      lambda _: [tf.constant(value, dtype)],
    )
    return self._add(op)[0]

  def _leaf(self, block: Any) -> _Function:
    if id(block) not in self._leaves:
      # The block is kept too, or its id could be another's.
      self._leaves[id(block)] = block, leaf_lib.Leaf(block)
    leaf = self._leaves[id(block)][1]

    def call(argument: Any = None) -> Any:
      inputs = [] if argument is None else flatten(argument)
      op = program.Compute.of_leaf(inputs, self._where, leaf)
      return pack(leaf.type_signature.result, iter(self._add(op)))

    return call

  def _local(self, function: _Function, signature: tff.Type) -> program.Local:
    """Makes a function without placements of a function value."""
    outer, self._ops = self._ops, []
    types = leaf_lib.flatten_type(signature)
    parameters = [
      program.Argument(i, self._where, leaf).results[0]
      for i, leaf in enumerate(types)
    ]
    results = flatten(function(pack(signature, iter(parameters))))
    ops, self._ops = self._ops, outer
    return program.Local(parameters, ops, results)

  def _intrinsic(self, block: Any) -> _Function:
    handler = getattr(self, f'_{block.uri}', None)
    if handler is None:
      raise UnknownIntrinsicError(
        f'The in-process runtime does not know the intrinsic {block.uri}. '
        '--runtime=stock can run this computation.'
      )
    return lambda argument=None: handler(block.type_signature, argument)

  def _at(self, where: str, function: _Function, *arguments: Any) -> Any:
    outer, self._where = self._where, where
    result = function(*arguments)
    self._where = outer
    return result

  # Values are where their references say: moving one is a change of the type.

  def _move(self, signature: tff.Type, argument: Any) -> Any:
    del signature
    return argument

  _federated_value_at_server = _move
  _federated_value_at_clients = _move
  _federated_broadcast = _move
  _federated_zip_at_server = _move
  _federated_zip_at_clients = _move

  def _federated_eval_at_server(self, signature, function):
    return self._at(program.SERVER, function)

  def _federated_eval_at_clients(self, signature, function):
    return self._at(program.CLIENTS, function)

  def _federated_apply(self, signature, argument):
    function, value = argument
    return self._at(program.SERVER, function, value)

  def _federated_map(self, signature, argument):
    function, value = argument
    return self._at(_placement(signature.result), function, value)

  def _federated_map_all_equal(self, signature, argument):
    # The function of equal values is computed once, not at each client.
    function, value = argument
    return self._at(program.SERVER, function, value)

  def _reduce(self, kind: str, value: Any) -> Any:
    if isinstance(value, compat.Struct):
      return compat.Struct(
        [(name, self._reduce(kind, part)) for name, part in members(value)]
      )
    return self._add(program.Reduce(kind, value))[0]

  def _federated_sum(self, signature, value):
    return self._reduce('sum', value)

  def _federated_min(self, signature, value):
    return self._reduce('min', value)

  def _federated_max(self, signature, value):
    return self._reduce('max', value)

  def _federated_aggregate(self, signature, argument):
    value, zero, accumulate, _, report = argument
    types = signature.parameter
    local = self._local(accumulate, types[2].parameter)
    op = program.Aggregate(flatten(zero), flatten(value), local)
    accumulator = pack(types[2].result, iter(self._add(op)))
    return self._at(program.SERVER, report, accumulator)

  def _bounded_sum(self, value: Any, bound: Any, limit: Callable) -> Any:
    """A simulated secure sum: a plain one, and a check of what goes in."""
    if isinstance(value, compat.Struct):
      parts = []
      for i, (name, part) in enumerate(members(value)):
        own = bound[i] if isinstance(bound, compat.Struct) else bound
        parts.append((name, self._bounded_sum(part, own, limit)))
      return compat.Struct(parts)

    def violated(values: Sequence[tf.Tensor]) -> list[tf.Tensor]:
      number, largest = values[0], limit(values[1], values[0].dtype)
      outside = tf.logical_or(number < 0, number > largest)
      return [tf.cast(tf.reduce_any(outside), tf.int32)]

    found = self._add(
      program.Compute(
        [value, bound], program.CLIENTS, [tff.TensorType(np.int32)], violated
      )
    )
    message = (
      'A client sends a value to a secure sum that is negative or larger than '
      f'the sum was declared for ({value.type_signature}).'
    )
    self._checks.append(program.Check(self._reduce('max', found[0]), message))
    return self._reduce('sum', value)

  def _federated_secure_sum(self, signature, argument):
    return self._bounded_sum(argument[0], argument[1], tf.cast)

  def _federated_secure_sum_bitwidth(self, signature, argument):
    def limit(bits: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
      one = tf.constant(1, tf.int64)
      largest = tf.bitwise.left_shift(one, tf.cast(bits, tf.int64)) - 1
      return tf.cast(tf.minimum(largest, dtype.max), dtype)

    return self._bounded_sum(argument[0], argument[1], limit)

  def _federated_secure_modular_sum(self, signature, argument):
    return self._modular_sum(argument[0], argument[1])

  def _modular_sum(self, value: Any, modulus: Any) -> Any:
    if isinstance(value, compat.Struct):
      parts = []
      for i, (name, part) in enumerate(members(value)):
        own = modulus[i] if isinstance(modulus, compat.Struct) else modulus
        parts.append((name, self._modular_sum(part, own)))
      return compat.Struct(parts)
    total = self._reduce('sum', value)

    def remainder(values: Sequence[tf.Tensor]) -> list[tf.Tensor]:
      return [tf.math.floormod(values[0], tf.cast(values[1], values[0].dtype))]

    return self._add(
      program.Compute(
        [total, modulus], program.SERVER, [value.type_signature], remainder
      )
    )[0]

  def _federated_select(self, signature, argument):
    keys, _, values, select = argument
    parameter = signature.parameter[3].parameter
    local = self._local(select, parameter)
    element = signature.result.member.element

    def selected(flat: Sequence[tf.Tensor]) -> list[Any]:
      return [sequences.Selected(flat[0], flat[1:], local, element)]

    def selected_eagerly(flat: Sequence[tf.Tensor]) -> list[tf.Tensor]:
      dataset = tf.data.Dataset.from_tensor_slices(flat[0])
      variant = tf.data.experimental.to_variant(dataset)
      key = tff.TensorType(np.int32)
      return [
        sequences.Dataset(variant, key).map(
          lambda own: local([*flat[1:], *own]), key, element
        )
      ]

    op = program.Compute(
      [keys, *flatten(values)],
      program.CLIENTS,
      [signature.result.member],
      selected,
      local.leaves,
    )
    op.run_eagerly = selected_eagerly
    return self._add(op)[0]

  _federated_secure_select = _federated_select

  def _sequence_map(self, signature, argument):
    function, sequence = argument
    before, after = signature.parameter[0].parameter, signature.result.element
    local = self._local(function, before)
    op = program.Compute(
      [sequence],
      self._where,
      [signature.result],
      lambda flat: [sequences.Mapped(flat[0], local, before, after)],
      local.leaves,
    )
    op.run_eagerly = lambda flat: [
      sequences.Dataset(flat[0], before).map(local, before, after)
    ]
    return self._add(op)[0]

  def _sequence_reduce(self, signature, argument):
    sequence, zero, function = argument
    local = self._local(function, signature.parameter[2].parameter)
    element = signature.parameter[0].element
    op = program.Compute(
      [sequence, *flatten(zero)],
      self._where,
      leaf_lib.flatten_type(signature.result),
      lambda flat: sequences.fold(flat[0], flat[1:], local, element),
      local.leaves,
    )
    op.run_eagerly = lambda flat: sequences.fold(
      sequences.Dataset(flat[0], element), flat[1:], local, element
    )
    return pack(signature.result, iter(self._add(op)))

  def _sequence_sum(self, signature, sequence):
    element = signature.parameter.element
    types = leaf_lib.flatten_type(signature.result)
    op = program.Compute(
      [sequence],
      self._where,
      types,
      lambda flat: sequences.total(flat[0], element),
    )
    op.run_eagerly = lambda flat: sequences.total(
      sequences.Dataset(flat[0], element), element
    )
    return pack(signature.result, iter(self._add(op)))
