"""A TensorFlow leaf of a TFF computation, in this process."""

import collections
import itertools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from research import compat
from research.runtime import graph as graph_lib
from research.runtime import replay

_unique = itertools.count()


def flatten_type(type_signature: tff.Type | None) -> list[tff.Type]:
  """The tensor and sequence types of a type, in the order of its elements."""
  if type_signature is None:
    return []
  if isinstance(type_signature, tff.FederatedType):
    return flatten_type(type_signature.member)
  if isinstance(type_signature, tff.StructType):
    members = [
      type_signature[index]  # By position: not every element has a name.
      for index in range(len(type_signature))
    ]
    return [leaf for member in members for leaf in flatten_type(member)]
  return [type_signature]


class Leaf:
  """A function from flat tensors (and clients' batches) to flat tensors.

  Attributes:
    type_signature: The function's TFF type.
    parameter_types: Types of the flat arguments.
    result_types: Types of the flat results.
    op_counts: How often each op occurs, those of functions included.
    unsupported: Why it can't be replayed; empty if it can.
    has_sequence: Whether an argument or a result is a dataset.
    files: Names of files with initial values of its variables.
  """

  def __init__(self, block: Any):
    """Reads a compiled computation.

    Args:
      block: A `CompiledComputation` with TensorFlow.
    """
    self.type_signature = block.type_signature
    self.parameter_types = flatten_type(block.type_signature.parameter)
    self.result_types = flatten_type(block.type_signature.result)
    proto = block.proto.tensorflow
    self._parameters = []
    if block.type_signature.parameter is not None:
      self._parameters = list(compat.tensor_names(proto.parameter))
    self._results = list(compat.tensor_names(proto.result))
    self._initialize = proto.initialize_op.lstrip('^') or None
    self._graph_def = compat.unpack_graph_def(proto.graph_def)
    self._graph = graph_lib.Graph(self._graph_def)
    self._token = self._find_token(proto.session_token_tensor_name)
    arguments = [*self._parameters, *([self._token] if self._token else [])]
    body = self._graph.body(arguments, self._results)
    self.op_counts = self._graph.op_counts(body)
    self.has_sequence = any(
      isinstance(t, tff.SequenceType)
      for t in [*self.parameter_types, *self.result_types]
    )
    self.unsupported = self._graph.unsupported(body)
    self.files: set[str] = set()
    if self._initialize:
      first = self._graph.body(arguments, [self._initialize])
      self.unsupported += self._graph.unsupported(first)
      self.files = self._graph.files(first)
    if any(isinstance(t, tff.SequenceType) for t in self.result_types):
      self.unsupported.append('a dataset as its result')
    self._function = None

  def _find_token(self, name: str) -> str | None:
    """The name of TFF's session token if an op uses it.

    Fed without need it would be a string, which XLA refuses.
    """
    node = graph_lib.split(name)[0]
    for user in self._graph_def.node:
      if any(graph_lib.split(source)[0] == node for source in user.input):
        return name
    return None

  def replay(self, values: Sequence[Any]) -> list[tf.Tensor]:
    """Emits the leaf into the graph that is being traced.

    Args:
      values: Flat arguments: tensors, and `replay.Batches` for sequences.

    Returns:
      The flat results.

    Raises:
      replay.UnsupportedGraphError: If an op can't be replayed.
    """
    arguments = dict(zip(self._parameters, values, strict=True))
    if self._token:
      arguments[self._token] = tf.constant('')
    return replay.replay(
      self._graph, arguments, self._results, self._initialize
    )

  def run(self, values: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Runs the leaf as it is, with variables and datasets.

    Args:
      values: Flat arguments; a dataset is given as its variant tensor.

    Returns:
      The flat results.
    """
    if self._function is None:
      self._function = self._wrap()
    initialize, function = self._function
    values = list(values)
    if self._token:
      values.append(tf.constant(''))
    if initialize is not None:
      compat.call_flat(initialize, values)
    return compat.call_flat(function, values)

  def _wrap(self):
    """Imports the graph as a function and, if it has one, its initialiser."""
    graph_def = _with_unique_names(self._graph_def)
    wrapped = tf.compat.v1.wrap_function(
      lambda: tf.graph_util.import_graph_def(graph_def, name=''), []
    )
    graph = wrapped.graph
    names = [*self._parameters, *([self._token] if self._token else [])]
    feeds = [graph.get_tensor_by_name(name) for name in names]
    fetches = [graph.get_tensor_by_name(name) for name in self._results]
    initialize = None
    if self._initialize:
      initialize = wrapped.prune(
        feeds, graph.get_operation_by_name(self._initialize)
      )
    return initialize, wrapped.prune(feeds, fetches)


def _with_unique_names(
  graph_def: tf.compat.v1.GraphDef,
) -> tf.compat.v1.GraphDef:
  """Copies a graph so that no function or variable meets one of its name."""
  copy = tf.compat.v1.GraphDef()
  copy.CopyFrom(graph_def)
  suffix = f'_leaf{next(_unique)}'
  own = {function.signature.name for function in copy.library.function}
  nodes = [copy.node, *(f.node_def for f in copy.library.function)]
  for function in copy.library.function:
    function.signature.name += suffix
  del copy.library.gradient[:]
  for node in itertools.chain.from_iterable(nodes):
    for value in node.attr.values():
      for called in [value.func, *value.list.func]:
        if called.name in own:
          called.name += suffix
    if node.op in own:
      node.op += suffix
    if 'shared_name' in node.attr and (
      node.op == 'VarHandleOp' or node.attr['shared_name'].s
    ):
      name = node.attr['shared_name'].s or node.name.encode()
      node.attr['shared_name'].s = name + suffix.encode()
  return copy


def total_ops(leaves: Sequence[Leaf]) -> collections.Counter[str]:
  """Counts the ops of several leaves."""
  return sum((leaf.op_counts for leaf in leaves), collections.Counter())
