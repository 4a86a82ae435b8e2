"""Runs an aggregator alone, on updates of three weights."""

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_federated as tff

WEIGHTS = 3

Output = collections.namedtuple('Output', ['result', 'measurements'])


def run(
  factory: tff.aggregators.WeightedAggregationFactory,
  rounds: Sequence[Sequence[Sequence[float]]],
  weights: Sequence[float] | None = None,
) -> list[Output]:
  """Aggregates rounds of updates in the runtime that is installed.

  Args:
    factory: What aggregates them; an update is a vector of three weights.
    rounds: Per round and client the update.
    weights: Of the clients; all 1 if None.

  Returns:
    Result and measurements of each round.
  """
  update = tff.TensorType(np.float32, [WEIGHTS])
  process = factory.create(update, tff.TensorType(np.float32))
  state, outputs = process.initialize(), []
  for updates in rounds:
    output = process.next(
      state,
      [np.array(update, np.float32) for update in updates],
      [np.float32(w) for w in weights or [1.0] * len(updates)],
    )
    state = output.state
    outputs.append(Output(np.asarray(output.result), output.measurements))
  return outputs


def find(measurements: Any, name: str) -> Any:
  """The measurement of that name, however deep it lies."""
  if not isinstance(measurements, collections.abc.Mapping):
    return None
  if name in measurements:
    return measurements[name]
  found = (find(value, name) for value in measurements.values())
  return next((value for value in found if value is not None), None)
