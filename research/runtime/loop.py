"""The plan `loop`: one client after the other, each a call from Python.

It is the slowest plan and the one that takes every leaf: one that can't be
replayed runs as TFF made it, with its variables and datasets.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from research import compat
from research.runtime import cohort as cohort_lib
from research.runtime import program, reductions


class Loop:
  """Runs a pass over clients from Python.

  Attributes:
    programs: How many functions of whole clients were traced: none.
  """

  programs = 0

  def __init__(self, client_pass: program.ClientPass):
    """Prepares the pass.

    Args:
      client_pass: What the clients do.
    """
    self._pass = client_pass
    self._datasets: dict[Any, Callable] = {}

  def run(
    self, shared: Sequence[tf.Tensor], inputs: Sequence[Any], clients: int
  ) -> tuple[list[tf.Tensor], list[list[tf.Tensor]]]:
    """Runs all clients.

    Args:
      shared: Values of the pass's `shared`.
      inputs: Values of its `inputs`: tensors [clients, ...], lists with a
        tensor per client, and cohorts.
      clients: How many there are.

    Returns:
      The accumulators of all reductions end to end, and the kept values, a list
      with a tensor per client each.
    """
    known = dict(zip(self._pass.shared, shared, strict=True))
    reduced = self._pass.reductions
    accumulators = reductions.zeros(reduced, known)
    kept = [[] for _ in self._pass.kept]
    for client in range(clients):
      env = dict(known)
      for ref, value in zip(self._pass.inputs, inputs, strict=True):
        env[ref] = self._input(value, client, ref.type_signature)
      program.run(self._pass.ops, env, eagerly=True)
      contributions = [
        [env[ref] for ref in program.contributed(reduction)]
        for reduction in reduced
      ]
      accumulators = self._add(accumulators, contributions)
      for values, ref in zip(kept, self._pass.kept, strict=True):
        values.append(env[ref])
    return accumulators, kept

  def _add(self, accumulators, contributions):
    flat, rest = [], list(accumulators)
    for reduction, values in zip(
      self._pass.reductions, contributions, strict=True
    ):
      mine, rest = (
        rest[: len(reduction.results)],
        rest[len(reduction.results) :],
      )
      if isinstance(reduction, program.Aggregate):
        flat += reduction.accumulate([*mine, *values], eagerly=True)
      else:
        flat += reductions.add_client([reduction], mine, [values])
    return flat

  def _input(self, value: Any, client: int, type_signature: tff.Type) -> Any:
    if isinstance(value, cohort_lib.Cohort):
      return self._dataset(value, client, type_signature)
    return value[client]

  def _dataset(
    self, cohort: cohort_lib.Cohort, client: int, type_signature: tff.Type
  ) -> tf.Tensor:
    """The variant tensor of a dataset of one client's batches."""
    begin, end = cohort.clients[client : client + 2]
    first, last = cohort.starts[begin], cohort.starts[end]
    rows = cohort.rows[first:last]
    used, positions = np.unique(rows, return_inverse=True)
    layout = cohort.layout
    if layout not in self._datasets:
      self._datasets[layout] = tf.function(
        _dataset_of(layout, type_signature), reduce_retracing=True
      )
    return self._datasets[layout](
      [component[used] for component in cohort.components],
      positions.astype(np.int32),
      np.diff(cohort.starts[begin : end + 1]),
    )


def _dataset_of(layout: cohort_lib.Layout, type_signature: tff.Type):
  structure = compat.type_to_tf_structure(type_signature.element)

  def build(components, rows, lengths) -> tf.Tensor:
    batches = tf.RaggedTensor.from_row_lengths(rows, lengths)

    def batch(indices: tf.Tensor) -> Any:
      flat = layout.fetch(components, indices)
      return tf.nest.pack_sequence_as(structure, flat)

    dataset = tf.data.Dataset.from_tensor_slices(batches).map(batch)
    return tf.data.experimental.to_variant(dataset)

  return build
