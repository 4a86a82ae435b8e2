"""Vectorisation rules that TensorFlow's pfor lacks, or has in a form that
neither XLA nor federated clients can use.

`tf.vectorized_map` and pfor rewrite a function of one client to a function of
all: a tensor that differs between clients is stacked along a new first axis.
How an operation is rewritten says its converter, in a registry of the process.

What a rule does with clients that don't take a branch, or that have left a
loop: **it computes them too and drops the result.** A NaN of theirs is dropped
with it. But a computation that fails is one that fails for all: on the CPU a
gather beyond the end raises (XLA and GPUs clamp it or give zero), and so does
`tf.debugging.Assert`. Loops and branches must tolerate being run once more on
a client's last values.
"""

import importlib
from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf
from tensorflow.python.ops.parallel_for import control_flow_ops

from research.runtime import pfor_conv_rules, pfor_quantization_rules

# `from ... import pfor` would give the function of that name.
pfor = importlib.import_module('tensorflow.python.ops.parallel_for.pfor')

# Name of the operation that takes a client's row of what `map_clients` maps.
_OWN_ROW = 'row_of_this_client'
# They have no inputs, or pfor knows them without a rule.
_WITHOUT_RULE = frozenset({'Const', 'NoOp', 'Placeholder', '_Arg', '_Retval'})
# Their inputs are shapes, which are equal for all clients.
_OF_SHAPES = frozenset({'BroadcastArgs', 'BroadcastGradientArgs'}) | frozenset(
  {'ConcatOffset', 'DynamicStitch', 'InvertPermutation', 'Range'}
)


def register(grouped_convolution: bool | None = None) -> None:
  """Puts the rules into pfor's registry, for the whole process.

  Calling it again changes nothing but what `grouped_convolution` says.

  Args:
    grouped_convolution: How to convolve with filters that differ between
      clients. True: as grouped convolutions, which GPUs and TPUs have with
      and without XLA; TensorFlow's CPU kernels have no gradients of them.
      False: client after client. None: grouped where XLA compiles the graph
      that is being traced, client after client elsewhere.
  """
  pfor._pfor_converter_registry.update(
    _RULES
    | pfor_quantization_rules.RULES
    | pfor_conv_rules.build(grouped_convolution)
  )


def missing(op_names: Iterable[str]) -> list[str]:
  """Lists the operations that can't be vectorised; call `register` before.

  Args:
    op_names: Types of operations of a graph and of the functions it calls.

  Returns:
    Those without a converter, sorted, each once. An operation that is not
    listed may still be refused when it is traced: some converters want that
    certain inputs, or the shapes, are equal for all clients.
  """
  known = {
    *pfor._pfor_converter_registry,
    *pfor.passthrough_stateful_ops,
    *_WITHOUT_RULE,
    *_OF_SHAPES,
  }
  return sorted(set(op_names) - known)


def count(tensor: tf.Tensor) -> 'int | tf.Tensor':
  """The number of a tensor's rows: static where it is known, as XLA needs."""
  return tensor.shape[0] or tf.shape(tensor)[0]


def map_clients(function: Callable[[Any], Any], elements: Any) -> Any:
  """Vectorises a function of one client; call `register` before.

  `tf.vectorized_map` copies all rows where it is not told the number of
  clients when it is traced.

  Args:
    function: From one client's tensors to its results.
    elements: Structure of tensors with equally many rows, one per client.

  Returns:
    The results, stacked.

  Raises:
    ValueError: If an operation can't be vectorised.
  """

  def one(client: tf.Tensor) -> Any:
    rows = tf.nest.map_structure(
      lambda tensor: tf.gather(tensor, client, name=_OWN_ROW), elements
    )
    return function(rows)

  clients = count(tf.nest.flatten(elements)[0])
  return control_flow_ops.pfor(one, clients, fallback_to_while_loop=False)


def _gather(pfor_input):
  name = pfor_input.op.name.rpartition('/')[2]
  if not name.startswith(_OWN_ROW):
    return pfor._convert_gather(pfor_input)
  return pfor.wrap(pfor_input.unstacked_input(0))


def _bitcast(pfor_input):
  stacked = pfor_input.stacked_input(0)
  return pfor.wrap(tf.bitcast(stacked, pfor_input.get_attr('type')), True)


def _l2_loss(pfor_input):
  stacked = pfor_input.stacked_input(0)
  flat = tf.reshape(stacked, [tf.shape(stacked)[0], -1])
  return pfor.wrap(tf.reduce_sum(tf.square(flat), axis=1) / 2)


def _squeeze(pfor_input):
  stacked = pfor_input.stacked_input(0)
  axes = pfor_input.get_attr('squeeze_dims')
  if not axes:
    # Of a single client TensorFlow's rule would squeeze the clients' axis too.
    sizes = pfor_input.op.inputs[0].shape
    axes = [axis for axis, size in enumerate(sizes) if size == 1]
  axes = [axis + 1 if axis >= 0 else axis for axis in axes]
  return pfor.wrap(tf.squeeze(stacked, axes) if axes else stacked)


def _ones_like(pfor_input):
  return pfor.wrap(tf.ones_like(pfor_input.stacked_input(0)))


def _top_k(pfor_input):
  values, indices = tf.raw_ops.TopKV2(
    input=pfor_input.stacked_input(0),
    k=pfor_input.unstacked_input(1),
    sorted=pfor_input.get_attr('sorted'),
  )
  return [pfor.wrap(values), pfor.wrap(indices)]


def _in_top_k(pfor_input):
  return pfor._convert_flatten_batch(pfor_input, 'InTopKV2', dims=[0, 1])


def _scatter(pfor_input):
  """Scatters to the client's own part of one tensor of all clients."""
  creates = pfor_input.op_type == 'ScatterNd'
  first = 0 if creates else 1
  pfor_input.stack_inputs([0, 1] if creates else [0, 1, 2])
  operands = [operand.t for operand in pfor_input.inputs]
  operands[first] = _prepend_client(operands[first])
  if creates:
    shape = pfor_input.unstacked_input(2)
    length = tf.cast(pfor_input.pfor.loop_len_vector, shape.dtype)
    operands[2] = tf.concat([length, shape], axis=0)
  scattered = pfor._create_op(
    pfor_input.op_type,
    operands,
    [pfor_input.output(0).dtype],
    attrs=pfor_input.op.node_def.attr,
  )
  return pfor.wrap(scattered.outputs[0])


def _prepend_client(indices: tf.Tensor) -> tf.Tensor:
  """Puts the client's number before each index of stacked indices."""
  one = indices[..., :1]
  clients = tf.cumsum(tf.ones_like(one), axis=0, exclusive=True)
  return tf.concat([clients, indices], axis=-1)


def _if(pfor_input):
  """Runs both branches on all clients and selects; TensorFlow's rule divides
  the clients between the branches, which gives shapes that XLA refuses."""
  predicate, *inputs = pfor_input.inputs
  if not predicate.is_stacked:
    return pfor._convert_if(pfor_input)
  branches = [
    _function(pfor_input, name) for name in ('then_branch', 'else_branch')
  ]
  converted = [
    _call(pfor_input.pfor, branch, list(inputs)) for branch in branches
  ]
  stack = pfor_input.pfor._unwrap_or_tile
  tensors, outputs = [], []
  for index, (taken, other) in enumerate(zip(*converted, strict=True)):
    if taken.t.dtype == tf.variant:
      # What a gradient needs of one branch; the other has nothing to offer.
      empty = branches[0].graph.outputs[index].op.type == 'OptionalNone'
      outputs.append(other if empty else taken)
    else:
      tensors.append((taken, other))
      outputs.append(None)

  def mixed() -> list[tf.Tensor]:
    return [_select(predicate.t, stack(a), stack(b)) for a, b in tensors]

  if not tensors or pfor_conv_rules.is_for_xla():
    selected = mixed()
  else:
    # Mostly all clients agree, as on not being broken: then nothing is copied.
    votes = tf.cast(predicate.t, tf.int32)
    selected = tf.switch_case(
      tf.reduce_min(votes) + tf.reduce_max(votes),
      [
        lambda: [stack(other) for _, other in tensors],
        mixed,
        lambda: [stack(taken) for taken, _ in tensors],
      ],
    )
  selected = map(pfor.wrap, selected)
  return [next(selected) if o is None else o for o in outputs]


def _while(pfor_input):
  """Loops while any client does; see `_Loop`."""
  loop = _Loop(pfor_input)
  # A variable that starts equal for all clients may differ after a step, and
  # then make others differ: trace until nothing changes.
  while True:
    loop.grown = set()
    traced = tf.function(loop.build, autograph=False).get_concrete_function()
    if loop.by_client and loop.has_lists():
      return pfor._convert_while(pfor_input)
    if not loop.grown:
      return loop.wrap_outputs(traced())
    pfor_input.stack_inputs(sorted(loop.grown), tile_variants=True)


class _Loop:
  """A loop of all clients in lock-step, each of which stops by itself.

  A client is active until its condition fails once; then its variables keep
  their values. A variable that is equal for all active clients (as a counter)
  stays one value inside, so that it can index and slice; only its final value
  is kept for each client. Other than in TensorFlow's rule, the number of
  clients is constant, which XLA needs.

  Attributes:
    inputs: The wrapped initial values, as in `pfor_input`.
    carried: Indices of the inputs that an iteration may change.
    grown: Indices of inputs that `build` found to differ between clients in
      spite of equal initial values.
    by_client: Whether the clients stop by themselves.
  """

  def __init__(self, pfor_input):
    self._pfor = pfor_input.pfor
    self._condition = _function(pfor_input, 'cond')
    self._body = _function(pfor_input, 'body')
    self._parallel_iterations = pfor_input.get_attr('parallel_iterations')
    self.inputs = pfor_input.inputs
    variables = self._body.graph
    self.carried = [
      index
      for index, variable in enumerate(variables.inputs)
      if _source(variables.outputs[index]) is not variable
    ]
    self.grown = set()
    self.by_client = False

  def has_lists(self) -> bool:
    """Whether tensor lists are carried, which clients can't leave alone."""
    return any(self.inputs[i].t.dtype == tf.variant for i in self.carried)

  def build(self) -> list[tf.Tensor]:
    """Adds the loop to the current graph.

    Returns:
      The final values of the carried variables, stacked where the clients stop
      by themselves or the variable differs between clients.
    """
    values = [self.inputs[index].t for index in self.carried]
    active = self._convert(self._condition, values)[0]
    self.by_client = active.is_stacked
    if self.by_client and self.has_lists():
      return []
    stacked = [self.inputs[index].is_stacked for index in self.carried]
    kept = self._stack_final(values, stacked)
    invariants = [
      self._shape(index, is_stacked)
      for index, is_stacked in zip(self.carried, stacked, strict=True)
    ]
    kept_invariants = [
      self._shape(index, True)
      for index, is_stacked in zip(self.carried, stacked, strict=True)
      if self.by_client and not is_stacked
    ]
    for value, shape in zip(
      values + kept, invariants + kept_invariants, strict=True
    ):
      value.set_shape(shape)
    _, values, kept = tf.while_loop(
      lambda active, *_: tf.reduce_any(active),
      self._iterate,
      [active.t, values, kept],
      shape_invariants=[active.t.shape, invariants, kept_invariants],
      parallel_iterations=self._parallel_iterations,
    )
    if not self.by_client:
      return values
    kept = iter(kept)
    return [
      value if is_stacked else next(kept)
      for value, is_stacked in zip(values, stacked, strict=True)
    ]

  def wrap_outputs(self, values: list[tf.Tensor]) -> list:
    """Wraps what `build` returned as outputs of the operation."""
    outputs = list(self.inputs)
    for index, value in zip(self.carried, values, strict=True):
      is_stacked = self.by_client or self.inputs[index].is_stacked
      outputs[index] = pfor.wrap(value, is_stacked)
    return outputs

  def _iterate(self, active, values, kept):
    """One iteration of all clients."""
    converted = self._convert(self._body, values)
    results = []
    for index, old in zip(self.carried, values, strict=True):
      new = converted[index]
      if self.inputs[index].is_stacked:
        new = self._pfor._unwrap_or_tile(new)
        results.append(_select(active, new, old) if self.by_client else new)
      elif new.is_stacked:
        self.grown.add(index)
        results.append(old)
      else:
        results.append(new.t)
    stacked = [self.inputs[index].is_stacked for index in self.carried]
    kept = [
      _select(active, new, old)
      for new, old in zip(
        self._stack_final(results, stacked), kept, strict=True
      )
    ]
    condition = self._convert(self._condition, results)[0].t
    if self.by_client:
      condition = tf.logical_and(active, condition)
    return condition, results, kept

  def _stack_final(
    self, values: list[tf.Tensor], stacked: list[bool]
  ) -> list[tf.Tensor]:
    """Stacks the values that are equal for all clients, if these stop alone."""
    if not self.by_client:
      return []
    return [
      pfor._stack(value, self._pfor.loop_len_vector).t
      for value, is_stacked in zip(values, stacked, strict=True)
      if not is_stacked
    ]

  def _convert(self, function, values: list[tf.Tensor]) -> list:
    """Vectorises a function of all variables and calls it."""
    arguments = list(self.inputs)
    for index, value in zip(self.carried, values, strict=True):
      arguments[index] = pfor.wrap(value, self.inputs[index].is_stacked)
    return _call(self._pfor, function, arguments)

  def _shape(self, index: int, is_stacked: bool) -> tf.TensorShape:
    """The shape that a variable has in all iterations."""
    shape = self._body.graph.inputs[index].shape
    if not is_stacked or self.inputs[index].t.dtype == tf.variant:
      return shape
    return tf.TensorShape([_num_clients(self._pfor)]) + shape


def _function(pfor_input, attribute: str):
  name = pfor_input.get_attr(attribute).name
  return pfor_input.op.graph._get_function(name)


def _source(tensor: tf.Tensor) -> tf.Tensor:
  """What a tensor is a copy of: loops copy the variables they don't change."""
  while tensor.op.type == 'Identity':
    tensor = tensor.op.inputs[0]
  return tensor


def _call(converter, function, arguments: list) -> list:
  """Vectorises a function and calls it with wrapped arguments."""
  length = _num_clients(converter)
  inner = pfor.PFor(
    loop_var=converter.loop_var,
    loop_len=converter.loop_len_vector[0] if length is None else length,
    pfor_ops=function.graph.get_operations(),
    fallback_to_while_loop=converter.fallback_to_while_loop,
    all_indices=converter.all_indices,
    all_indices_partitioned=converter.all_indices_partitioned,
    pfor_config=converter.pfor_config,
  )
  for parameter, argument in zip(function.graph.inputs, arguments, strict=True):
    inner._add_conversion(parameter, argument)
  # TensorFlow's own way traces a function for each call, which takes longer.
  results = function.graph.outputs[: len(function.function_type.flat_outputs)]
  return [inner._convert_helper(result) for result in results]


def _num_clients(converter) -> int | None:
  """The number of clients if it is known in the graph."""
  length = tf.get_static_value(converter.loop_len_vector)
  return None if length is None else int(length[0])


def _select(mask: tf.Tensor, chosen: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
  """Selects by client; `tf.where` would broadcast unequal shapes."""
  return tf.raw_ops.Select(condition=mask, x=chosen, y=other)


_RULES: dict[str, Callable] = {
  'Bitcast': _bitcast,
  'GatherV2': _gather,
  'L2Loss': _l2_loss,
  'InTopKV2': _in_top_k,
  'OnesLike': _ones_like,
  'ScatterNd': _scatter,
  'TensorScatterAdd': _scatter,
  'TensorScatterSub': _scatter,
  'Squeeze': _squeeze,
  'TopKV2': _top_k,
  'If': _if,
  'StatelessIf': _if,
  'While': _while,
  'StatelessWhile': _while,
  # As TensorFlow does with the older forms: a loop around this operation only,
  # since its numbers must follow from each client's own seed.
  **dict.fromkeys(
    (
      'StatelessRandomGetKeyCounter',
      'StatelessRandomNormalV2',
      'StatelessRandomUniformFullIntV2',
      'StatelessRandomUniformIntV2',
      'StatelessRandomUniformV2',
      'StatelessTruncatedNormalV2',
    ),
    pfor._fallback_converter,
  ),
}
