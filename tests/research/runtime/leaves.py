"""Leaves of computations, for tests."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from research.runtime import leaf as leaf_lib


def build(computation: tff.Computation) -> leaf_lib.Leaf:
  """The leaf of a `tff.tensorflow.computation`."""
  return leaf_lib.Leaf(computation.to_compiled_building_block())


def replayed(
  leaf: leaf_lib.Leaf, *values: Any, xla: bool = False
) -> list[np.ndarray]:
  """Results of the leaf's replay in a graph.

  Args:
    leaf: The leaf.
    *values: Flat tensors; an `Elements` takes the place of a dataset.
    xla: Whether XLA compiles it.
  """

  @tf.function(autograph=False, jit_compile=xla)
  def run(tensors):
    tensors = iter(tensors)
    return leaf.replay(
      [v if isinstance(v, Elements) else next(tensors) for v in values]
    )

  tensors = [tf.constant(v) for v in values if not isinstance(v, Elements)]
  return [result.numpy() for result in run(tensors)]


class Elements:
  """A sequence whose elements are known when the graph is traced."""

  def __init__(self, elements: Sequence[Sequence[Any]]):
    self._elements = elements

  def reduce(self, step, state, shapes):
    """See `replay.Batches`."""
    del shapes
    for element in self._elements:
      state = step(state, [tf.constant(value) for value in element])
    return list(state)
