"""A TensorFlow graph with its functions, indexed in order of execution."""

import collections
import re
from collections.abc import Iterable, Iterator, Sequence

import tensorflow as tf
from tensorflow.python.framework import function_def_to_graph, op_def_registry

NodeDef = tf.compat.v1.NodeDef

CALLS = ('PartitionedCall', 'StatefulPartitionedCall')
CONDITIONALS = ('If', 'StatelessIf')
LOOPS = ('While', 'StatelessWhile')
WRITES = ('AssignVariableOp', 'AssignAddVariableOp', 'AssignSubVariableOp')
# What is done to a variable without the kernel of the op.
VARIABLES = (
  *WRITES,
  'VarHandleOp',
  'ReadVariableOp',
  'VarIsInitializedOp',
  'VariableShape',
  'ResourceGather',
  'DestroyResourceOp',
)
REPLAYED = (
  *CALLS,
  *CONDITIONALS,
  *LOOPS,
  *VARIABLES,
  'ReduceDataset',
  'NoOp',
  'Identity',
)
# Of weights that are read from a file, see `models.weight_store`.
_FROM_FILE = {'ReadFile', 'DecodeRaw', 'Reshape', 'Const', 'Identity'}
_TF_DATA = re.compile('Dataset|Iterator|Optional')


def split(name: str) -> tuple[str, int]:
  """Splits a tensor's or op's name into the op's and the output's index."""
  node, _, index = name.lstrip('^').partition(':')
  return node, int(index or 0)


def inputs(node: NodeDef) -> list[str]:
  """Names of a node's inputs, without control inputs."""
  return [name for name in node.input if not name.startswith('^')]


class Body:
  """A graph or a function, reduced to what its outputs need.

  Attributes:
    nodes: Nodes by name.
    arguments: Names of the ops that are fed.
    outputs: Op name and output index of each result.
    order: Names of the needed ops, each after what it depends on by data or
      control edges; arguments are left out.
  """

  def __init__(
    self,
    nodes: Iterable[NodeDef],
    arguments: Sequence[str],
    outputs: Sequence[str],
    controls: Sequence[str] = (),
  ):
    """Sorts the nodes.

    Args:
      nodes: All nodes.
      arguments: Names of the tensors that are fed.
      outputs: Names of the tensors that are wanted.
      controls: Names of ops that run whether an output needs them or not.
    """
    self.nodes = {node.name: node for node in nodes}
    self.arguments = [split(name)[0] for name in arguments]
    self.outputs = [split(name) for name in outputs]
    self.order = self._sort([name for name, _ in self.outputs] + [*controls])

  @property
  def nodes_in_order(self) -> list[NodeDef]:
    """The needed ops."""
    return [self.nodes[name] for name in self.order]

  @property
  def is_from_file(self) -> bool:
    """Whether the outputs depend on files and constants alone."""
    ops = {node.op for node in self.nodes_in_order}
    return 'ReadFile' in ops and ops <= _FROM_FILE

  def _sort(self, wanted: Sequence[str]) -> list[str]:
    order, done = [], set(self.arguments)
    stack = [(split(name)[0], False) for name in reversed(wanted)]
    while stack:
      name, expanded = stack.pop()
      if name in done:
        continue
      if expanded:
        done.add(name)
        order.append(name)
        continue
      stack.append((name, True))
      for source in reversed(self.nodes[name].input):
        if split(source)[0] not in done:
          stack.append((split(source)[0], False))
    return order


class Graph:
  """A GraphDef whose ops and functions can be walked."""

  def __init__(self, graph_def: tf.compat.v1.GraphDef):
    """Indexes a graph.

    Args:
      graph_def: The graph with its library.
    """
    self._nodes = list(graph_def.node)
    self._functions = {f.signature.name: f for f in graph_def.library.function}
    self._bodies: dict = {}
    # A function is converted where those that it calls are known.
    self._library = tf.Graph()
    with self._library.as_default():
      only = tf.compat.v1.GraphDef(library=graph_def.library)
      tf.graph_util.import_graph_def(only, name='')

  def body(self, arguments: Sequence[str], fetches: Sequence[str]) -> Body:
    """Returns the part of the main graph that the fetches need."""
    key = (tuple(arguments), tuple(fetches))
    if key not in self._bodies:
      self._bodies[key] = Body(self._nodes, arguments, fetches)
    return self._bodies[key]

  def function(self, name: str) -> Body:
    """Returns a function of the library."""
    if name not in self._bodies:
      definition = self._functions[name]
      with self._library.as_default():
        flat, names = function_def_to_graph.function_def_to_graph_def(
          definition
        )
      signature = definition.signature
      outputs = [definition.ret[out.name] for out in signature.output_arg]
      self._bodies[name] = Body(
        flat.node,
        [argument.name for argument in signature.input_arg],
        [names.get(output, output) for output in outputs],
        list(definition.control_ret.values()),
      )
    return self._bodies[name]

  def called(self, node: NodeDef) -> list[str]:
    """Names of the library's functions that a node calls."""
    return [
      value.func.name
      for key, value in sorted(node.attr.items())
      if not key.startswith('_')
      and value.HasField('func')
      and value.func.name in self._functions
    ]

  def walk(self, body: Body) -> Iterator[NodeDef]:
    """Yields the nodes of a body and of all functions below it, once each."""
    seen, bodies = set(), [body]
    while bodies:
      current = bodies.pop()
      for name in current.order:
        node = current.nodes[name]
        yield node
        for called in self.called(node):
          if called not in seen:
            seen.add(called)
            bodies.append(self.function(called))

  def op_counts(self, body: Body) -> collections.Counter[str]:
    """Counts the ops of a body and of all functions below it."""
    return collections.Counter(node.op for node in self.walk(body))

  def files(self, body: Body) -> set[str]:
    """Names of the files that a body reads, where they are constants."""
    found = set()
    for name in body.order:
      node = body.nodes[name]
      if node.op == 'ReadFile':
        source = body.nodes[split(node.input[0])[0]]
        if source.op == 'Const':
          found.add(
            tf.make_ndarray(source.attr['value'].tensor).item().decode()
          )
    return found

  def unsupported(self, body: Body) -> list[str]:
    """Names the ops that can't be replayed; empty if all can be."""
    return sorted(
      {
        node.op
        for node in self.walk(body)
        if node.op not in REPLAYED and (self.called(node) or _keeps_state(node))
      }
    )

  def written(self, name: str) -> frozenset[int]:
    """Positions of a function's arguments that it assigns to."""
    body = self.function(name)
    position = {argument: i for i, argument in enumerate(body.arguments)}
    found = set()
    for op in body.order:
      node = body.nodes[op]
      sources = [split(source)[0] for source in inputs(node)]
      if node.op == 'Identity' and sources[0] in position:
        position[op] = position[sources[0]]
      touched = {0} if node.op in WRITES else self.written_inputs(node)
      found |= {position[sources[i]] for i in touched if sources[i] in position}
    return frozenset(found)

  def written_inputs(self, node: NodeDef) -> set[int]:
    """Positions of a node's inputs that the functions it calls assign to."""
    count, found = len(inputs(node)), set()
    for called in self.called(node):
      # Captured handles come last, in the op and in its functions alike.
      shift = count - len(self.function(called).arguments)
      found |= {position + shift for position in self.written(called)}
    return found


def _keeps_state(node: NodeDef) -> bool:
  """Whether an op uses a resource or a dataset."""
  if _TF_DATA.search(node.op):
    return True
  op_def = op_def_registry.get(node.op)
  if op_def is None:
    return True
  for argument in [*op_def.input_arg, *op_def.output_arg]:
    types = [argument.type]
    if argument.type_attr:
      types = [node.attr[argument.type_attr].type]
    elif argument.type_list_attr:
      types = node.attr[argument.type_list_attr].list.type
    if tf.resource.as_datatype_enum in types:
      return True
  return False
