"""Federated Reconstruction in NumPy alone, in float64.

Singhal et al. 2021 (arXiv:2102.03448), Algorithm 1. The local weights are the
last ones of a list of weights.
"""

from collections.abc import Sequence

import numpy as np

from tests.research.algorithms import numpy_reference
from tests.research.algorithms.numpy_reference import Client, Gradient, Weights


def scaled_gradient(weights: Weights, x: np.ndarray, y: np.ndarray) -> Weights:
  """Gradient of the mean of (s (w.x) - y)^2 for weights (w, s)."""
  w, s = (np.asarray(weight, np.float64) for weight in weights)
  x = x.astype(np.float64)
  error = 2 * (x @ w @ s - y.reshape(-1, 1)) / len(y)
  return x.T @ error @ s.T, (x @ w).T @ error


def reconstruct(
  shared: Weights,
  initial: Weights,
  client: Client,
  batches: Sequence[np.ndarray],
  gradient: Gradient,
  learning_rate: float,
  epochs: int,
) -> list[np.ndarray]:
  """R of Algorithm 1: local weights after steps on the support set."""
  local = list(initial)
  for batch in [*batches] * epochs:
    steps = gradient([*shared, *local], client.x[batch], client.y[batch])
    steps = steps[len(shared) :]
    local = [w - learning_rate * g for w, g in zip(local, steps, strict=True)]
  return local


def fed_recon_round(
  shared: Weights,
  initial: Weights,
  cohort: Sequence[Client],
  gradient: Gradient,
  learning_rate: float,
  reconstruction_learning_rate: float,
  epochs: int = 1,
  support_is_query: bool = False,
  weighting: str = 'examples',
) -> list[np.ndarray]:
  """One round; the server takes the mean.

  Args:
    shared: The server's weights.
    initial: What every client's local weights start from.
    cohort: The clients of the round.
    gradient: Of the mean loss of a batch, by shared and local weights.
    learning_rate: Of the shared weights' steps.
    reconstruction_learning_rate: Of the local weights' steps.
    epochs: Passes over the support set.
    support_is_query: Whether both sets are all batches.
    weighting: `examples` of the query sets, or `uniform`.

  Returns:
    The server's weights afterwards.
  """
  updated, shares = [], []
  for client in cohort:
    support, query = client.batches[0::2], client.batches[1::2]
    if support_is_query or len(client.batches) == 1:
      support = query = client.batches
    local = reconstruct(
      shared,
      initial,
      client,
      support,
      gradient,
      reconstruction_learning_rate,
      epochs,
    )
    updated.append(
      numpy_reference.client_update(
        shared,
        Client(client.x, client.y, query),
        lambda w, x, y, local=local: gradient([*w, *local], x, y)[: len(w)],
        learning_rate,
      )
    )
    examples = sum(len(batch) for batch in query)
    shares.append(examples if weighting == 'examples' else 1)
  return [
    sum(
      share / sum(shares) * after[key]
      for share, after in zip(shares, updated, strict=True)
    )
    for key in range(len(shared))
  ]
