"""Replays a TensorFlow graph, op by op, into the graph that is being traced.

A leaf of a TFF computation is a graph with variables and a dataset. Replayed it
is a pure function of tensors: a variable is a value that the replay carries
along, and the reduction of a dataset is a loop over arrays. So it can be looped
over, vectorised and compiled by XLA.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import tensorflow as tf

from research.runtime import graph as graph_lib

# Of TensorFlow's core/kernels/stateless_random_ops.cc; the number of Philox.
_SCRAMBLE_KEY, _PHILOX = 0x02461E293EC8F720, 1
# What was read of files that never change, by the ops that read it.
_read: dict[tuple[bytes, ...], tf.Tensor] = {}
_compiles = contextvars.ContextVar('compiles', default=False)


class UnsupportedGraphError(ValueError):
  """A graph has an op that can't be replayed."""


@contextlib.contextmanager
def compiling() -> Iterator[None]:
  """Keeps calls that a leaf's author has XLA compile what they are.

  Elsewhere they are inlined: a vectoriser sees ops, and a program that XLA
  compiles as a whole has no need of them.
  """
  token = _compiles.set(True)
  try:
    yield
  finally:
    _compiles.reset(token)


class Batches(Protocol):
  """A client's batches, where the graph has a dataset."""

  def reduce(
    self,
    step: Callable[[Sequence[tf.Tensor], Sequence[tf.Tensor]], list],
    state: Sequence[tf.Tensor],
    shapes: Sequence[tf.TensorShape],
  ) -> list[tf.Tensor]:
    """Applies `step(state, batch)` to each batch in turn.

    Args:
      step: Returns the new state; a batch is the list of its components.
      state: The first state.
      shapes: What stays of the state's shapes over all steps.

    Returns:
      The last state.
    """


class _Variable:
  """The value of a variable at one point of the replay."""

  def __init__(self, initializer: Callable[[], tf.Tensor] | None = None):
    # Weights are mostly assigned before they are read: then their initialiser,
    # which draws random numbers, is never replayed.
    self._initializer = initializer
    self.value: tf.Tensor | None = None

  def read(self) -> tf.Tensor:
    if self.value is None:
      if self._initializer is None:
        raise UnsupportedGraphError('A variable is read before it has a value.')
      self.value = self._initializer()
    return self.value


class _Rows:
  """The gradient of an embedding: rows that are summed into a large table.

  An optimizer's step `weights - rate * gradient` then touches only these rows;
  everything else gets the table.
  """

  def __init__(self, node: graph_lib.NodeDef, sources: Sequence[tf.Tensor]):
    self._node = node
    self._values, self._indices, self._count = sources
    self._dense: tf.Tensor | None = None

  def times(self, factor: tf.Tensor) -> '_Rows':
    """The product with a scalar."""
    sources = [self._values * factor, self._indices, self._count]
    return _Rows(self._node, sources)

  def fits(self, table: tf.Tensor) -> bool:
    """Whether a tensor surely has the table's shape: nothing is broadcast."""
    rows = _static(self._count)
    shape = tf.TensorShape([rows]).concatenate(self._values.shape[1:])
    return shape.is_fully_defined() and table.shape == shape

  def subtracted_from(self, table: tf.Tensor) -> tf.Tensor:
    """The table without these rows' values."""
    # A segment sum drops negative ids; a scatter would refuse them.
    known = tf.reshape(
      self._indices >= 0, [-1] + [1] * (self._values.shape.rank - 1)
    )
    values = tf.where(known, self._values, tf.zeros_like(self._values))
    indices = tf.expand_dims(tf.maximum(self._indices, 0), -1)
    return tf.tensor_scatter_nd_sub(table, indices, values)

  def dense(self) -> tf.Tensor:
    """The table."""
    if self._dense is None:
      sources = [self._values, self._indices, self._count]
      self._dense = _emit(self._node, sources)[0]
    return self._dense


def replay(
  graph: graph_lib.Graph,
  arguments: Mapping[str, Any],
  fetches: Sequence[str],
  initialize: str | None = None,
) -> list[tf.Tensor]:
  """Emits the ops that the fetches need into the default graph.

  Args:
    graph: The graph.
    arguments: Tensor names to tensors, and to `Batches` for datasets.
    fetches: Names of the tensors that are wanted.
    initialize: Name of the op that initialises the graph's variables.

  Returns:
    The fetched tensors.

  Raises:
    UnsupportedGraphError: If an op can't be replayed.
  """
  names, values = list(arguments), list(arguments.values())
  variables: dict[str, _Variable] = {}
  run = _Replay(graph, variables)
  if initialize:
    body = graph.body(names, [initialize])
    for node in body.nodes.values():
      if node.op == 'AssignVariableOp' and node.name in body.order:
        first = graph.body(names, [node.input[1]])
        variables[graph_lib.split(node.input[0])[0]] = _Variable(
          functools.partial(_from_file, graph, first)
          if first.is_from_file
          else lambda first=first: run.body(first, values)[0]
        )
  return run.body(graph.body(names, fetches), values)


def _from_file(graph: graph_lib.Graph, body: graph_lib.Body) -> tf.Tensor:
  """A value that depends on files alone, read once per process.

  The program that is traced has it as a constant that all clients share.
  """
  key = tuple(node.SerializeToString() for node in body.nodes_in_order)
  if key not in _read:
    unused = [None] * len(body.arguments)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
      array = session.run(_Replay(graph, {}).body(body, unused)[0])
    with tf.init_scope():
      _read[key] = tf.constant(array)
  return _read[key]


def _key_and_counter(seed: tf.Tensor) -> list[tf.Tensor]:
  """What TensorFlow's kernels make of a seed; XLA differs for some.

  A seed is the counter of four numbers of Philox with a fixed key.
  """
  mixed = tf.raw_ops.StatelessRandomUniformFullIntV2(
    shape=[4],
    key=tf.constant([_SCRAMBLE_KEY], tf.uint64),
    counter=tf.cast(seed, tf.uint64),
    alg=_PHILOX,
    dtype=tf.uint32,
  )
  words = tf.cast(mixed, tf.uint64)
  key, counter = tf.unstack(
    words[::2] | tf.bitwise.left_shift(words[1::2], tf.constant(32, tf.uint64))
  )
  return [key[tf.newaxis], tf.stack([tf.zeros_like(counter), counter])]


def _is_float32_uniform(node: graph_lib.NodeDef) -> bool:
  return (
    node.op == 'StatelessRandomUniformV2'
    and node.attr['dtype'].type == tf.float32.as_datatype_enum
  )


def _uniform(
  shape: tf.Tensor, key: tf.Tensor, counter: tf.Tensor, alg: tf.Tensor
) -> tf.Tensor:
  """What TensorFlow's kernels draw, in XLA too, from [0, 1).

  Both make the same integers of a seed, but a float of the low or the high bits
  of one: a rotation by a client in XLA would not be undone by the server.
  """
  integers = tf.raw_ops.StatelessRandomUniformFullIntV2(
    shape=shape, key=key, counter=counter, alg=alg, dtype=tf.int32
  )
  one_to_two = (integers & 0x7FFFFF) | 0x3F800000
  return tf.bitcast(one_to_two, tf.float32) - 1.0


class _Replay:
  """One replay: its graph, and the variables of the main graph."""

  def __init__(self, graph: graph_lib.Graph, variables: dict[str, _Variable]):
    self._graph = graph
    self._variables = variables
    # One for all calls, so that XLA compiles it once.
    self._compiled: dict[str, Callable[..., list]] = {}

  def body(self, body: graph_lib.Body, arguments: Sequence[Any]) -> list:
    """Replays a graph or a function on its arguments."""
    values = {
      (name, 0): value
      for name, value in zip(body.arguments, arguments, strict=True)
    }
    for name in body.order:
      node = body.nodes[name]
      sources = [
        values[graph_lib.split(source)] for source in graph_lib.inputs(node)
      ]
      for index, value in enumerate(self._node(node, sources)):
        values[name, index] = value
    return [
      value.dense() if isinstance(value, _Rows) else value
      for value in (values[output] for output in body.outputs)
    ]

  def _node(self, node: graph_lib.NodeDef, sources: list) -> Sequence[Any]:
    if node.op == 'UnsortedSegmentSum' and sources[1].shape.rank == 1:
      return [_Rows(node, sources)]
    if any(isinstance(source, _Rows) for source in sources):
      if (step := _sparse_step(node, sources)) is not None:
        return [step]
      sources = [s.dense() if isinstance(s, _Rows) else s for s in sources]
    if node.op in graph_lib.CALLS:
      name = node.attr['f'].func.name
      # Asking for an attribute that is not there would make it.
      compiled = '_XlaMustCompile' in node.attr and _compiles.get()
      if compiled and all(tf.is_tensor(source) for source in sources):
        return self._compiled_call(name, sources)
      return self._call(name, sources)
    if node.op in graph_lib.VARIABLES:
      return self._variable(node, sources)
    if node.op in graph_lib.CONDITIONALS:
      return self._conditional(node, sources)
    if node.op in graph_lib.LOOPS:
      return self._loop(node, sources)
    if node.op == 'ReduceDataset':
      return self._reduce(node, sources)
    if node.op == 'NoOp':
      return []
    if node.op == 'StatelessRandomGetKeyCounter':
      return _key_and_counter(*sources)
    if _is_float32_uniform(node):
      return [_uniform(*sources)]
    if node.op == 'Identity' and not tf.is_tensor(sources[0]):
      return sources
    return _emit(node, sources)

  def _call(self, name: str, sources: Sequence[Any]) -> list:
    return self.body(self._graph.function(name), sources)

  def _compiled_call(self, name: str, sources: Sequence[tf.Tensor]) -> list:
    if name not in self._compiled:
      self._compiled[name] = tf.function(
        lambda *tensors: self._call(name, tensors),
        jit_compile=True,
        autograph=False,
      )
    return self._compiled[name](*sources)

  def _variable(self, node: graph_lib.NodeDef, sources: list) -> list:
    if node.op == 'VarHandleOp':
      return [self._variables.setdefault(node.name, _Variable())]
    variable = sources[0]
    if node.op == 'ReadVariableOp':
      return [variable.read()]
    if node.op == 'AssignVariableOp':
      variable.value = sources[1]
    elif node.op == 'AssignAddVariableOp':
      variable.value = variable.read() + sources[1]
    elif node.op == 'AssignSubVariableOp':
      variable.value = variable.read() - sources[1]
    elif node.op == 'VarIsInitializedOp':
      return [tf.constant(True)]
    elif node.op == 'VariableShape':
      out_type = tf.dtypes.as_dtype(node.attr['out_type'].type)
      return [tf.shape(variable.read(), out_type=out_type)]
    elif node.op == 'ResourceGather':
      dims = node.attr['batch_dims'].i
      return [tf.gather(variable.read(), sources[1], batch_dims=dims)]
    return []

  def _conditional(self, node: graph_lib.NodeDef, sources: list) -> list:
    predicate, *arguments = sources
    written = self._written(node, sources)
    bodies = [
      self._graph.function(node.attr[branch].func.name)
      for branch in ('then_branch', 'else_branch')
    ]
    before = [variable.read() for variable in written]

    def branch(body: graph_lib.Body) -> Callable[[], list]:
      def trace() -> list:
        results = self.body(body, arguments)
        results += [variable.value for variable in written]
        _assign(written, before)
        return results

      return trace

    results = tf.cond(
      tf.cast(predicate, tf.bool), branch(bodies[0]), branch(bodies[1])
    )
    count = len(results) - len(written)
    _assign(written, results[count:])
    return results[:count]

  def _loop(self, node: graph_lib.NodeDef, sources: list) -> list:
    written = self._written(node, sources)
    moving = [i for i, source in enumerate(sources) if tf.is_tensor(source)]
    condition = self._graph.function(node.attr['cond'].func.name)
    body = self._graph.function(node.attr['body'].func.name)
    given = [tf.TensorShape(s) for s in node.attr['output_shapes'].list.shape]
    shapes = [given[i] if given else sources[i].shape for i in moving]

    def merge(state: Sequence[tf.Tensor]) -> list:
      """Puts the loop's state into the arguments and the variables."""
      arguments = list(sources)
      for i, value in zip(moving, state, strict=False):
        arguments[i] = value
      _assign(written, state[len(moving) :])
      return arguments

    def step(*state: tf.Tensor) -> list:
      results = self.body(body, merge(state))
      moved = [
        tf.ensure_shape(results[i], shape)
        for i, shape in zip(moving, shapes, strict=True)
      ]
      return moved + [variable.value for variable in written]

    before = [variable.read() for variable in written]
    final = tf.while_loop(
      lambda *state: self.body(condition, merge(state))[0],
      step,
      [*(sources[i] for i in moving), *before],
      shape_invariants=[*shapes, *(value.shape for value in before)],
    )
    return merge(final)

  def _reduce(self, node: graph_lib.NodeDef, sources: list) -> list:
    count = len(node.attr['Tstate'].list.type)
    batches, state, others = (
      sources[0],
      sources[1 : 1 + count],
      sources[1 + count :],
    )
    if not hasattr(batches, 'reduce'):
      raise UnsupportedGraphError('A dataset is reduced that no client sent.')
    written = self._written(node, sources)
    shapes = [tf.TensorShape(s) for s in node.attr['output_shapes'].list.shape]
    name = node.attr['f'].func.name

    def step(state: Sequence[tf.Tensor], batch: Sequence[tf.Tensor]) -> list:
      _assign(written, state[count:])
      results = self._call(name, [*state[:count], *batch, *others])
      results = [
        tf.ensure_shape(result, shape)
        for result, shape in zip(results, shapes, strict=True)
      ]
      return results + [variable.value for variable in written]

    before = [variable.read() for variable in written]
    final = batches.reduce(
      step,
      [*map(tf.ensure_shape, state, shapes), *before],
      [*shapes, *(value.shape for value in before)],
    )
    _assign(written, final[count:])
    return final[:count]

  def _written(self, node: graph_lib.NodeDef, sources: list) -> list:
    """Variables that a node's functions assign to; all its variables are read.

    A value that is first needed inside of a branch or a loop would be emitted
    there, and be out of reach after it.
    """
    for source in sources:
      if isinstance(source, _Variable):
        source.read()
    written = [sources[i] for i in sorted(self._graph.written_inputs(node))]
    return list(dict.fromkeys(written))


def _sparse_step(node: graph_lib.NodeDef, sources: Sequence[Any]) -> Any:
  """The op of an optimizer on the rows alone; None if it needs the table."""
  first, second = (*sources, None)[:2]
  if node.op == 'Sub' and tf.is_tensor(first) and second.fits(first):
    return second.subtracted_from(first)
  if node.op == 'Mul':
    rows, factor = (
      (first, second) if isinstance(first, _Rows) else (second, first)
    )
    if tf.is_tensor(factor) and factor.shape.rank == 0:
      return rows.times(factor)
  return None


def _static(count: tf.Tensor) -> Any:
  """A scalar's value if the graph has it, as an element of a constant too."""
  if count.op.type != 'StridedSlice' or count.shape.rank != 0:
    return tf.get_static_value(count)
  vector, begin, *_ = map(tf.get_static_value, count.op.inputs)
  return None if vector is None or begin is None else vector[begin[0]]


def _assign(
  variables: Sequence[_Variable], values: Sequence[tf.Tensor]
) -> None:
  for variable, value in zip(variables, values, strict=True):
    variable.value = value


def _emit(node: graph_lib.NodeDef, sources: Sequence[tf.Tensor]) -> list:
  """Adds a copy of an op to the default graph."""
  graph = tf.compat.v1.get_default_graph()
  if node.op == 'Placeholder':
    raise UnsupportedGraphError(f'{node.name} is needed, but was not given.')
  attributes = {
    key: value for key, value in node.attr.items() if not key.startswith('_')
  }
  op = graph._create_op_internal(
    node.op, list(sources), name=node.name.lstrip('_'), attrs=attributes
  )
  return op.outputs
