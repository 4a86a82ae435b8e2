"""Scaffold and FedDyn in NumPy alone, in float64; see `numpy_reference`."""

from collections.abc import MutableMapping, Sequence

import numpy as np

from tests.research.algorithms import numpy_reference

Weights = numpy_reference.Weights


def scaffold_round(
  x: np.ndarray,
  c: np.ndarray,
  own: MutableMapping[str, np.ndarray],
  cohort: MutableMapping[str, numpy_reference.Client],
  gradient: numpy_reference.Gradient,
  client_rate: float,
  server_rate: float,
) -> tuple[np.ndarray, np.ndarray]:
  """Karimireddy et al. 2020, Algorithm 1, option II, for one weight tensor.

  Args:
    x: The server's weights.
    c: The server's variate.
    own: The clients' variates by name, all N; those of the cohort are replaced.
    cohort: The clients of the round by name.
    gradient: Of the mean loss of a batch.
    client_rate: eta_l.
    server_rate: eta_g.

  Returns:
    The new x and c.
  """
  moves, changes = [], []
  for name, client in cohort.items():
    y = x
    for batch in client.batches:
      (g,) = gradient([y], client.x[batch], client.y[batch])
      y = y - client_rate * (g - own[name] + c)
    steps = len(client.batches)
    new = own[name] - c + (x - y) / (steps * client_rate)
    moves.append(y - x)
    changes.append(new - own[name])
    own[name] = new
  share = len(cohort) / len(own)
  return x + server_rate * _mean(moves), c + share * _mean(changes)


def fed_dyn_round(
  theta: np.ndarray,
  h: np.ndarray,
  own: MutableMapping[str, np.ndarray],
  cohort: MutableMapping[str, numpy_reference.Client],
  gradient: numpy_reference.Gradient,
  client_rate: float,
  alpha: float,
) -> tuple[np.ndarray, np.ndarray]:
  """Acar et al. 2021, Algorithm 1, with steps of SGD for the argmin.

  Args:
    theta: The server's weights.
    h: The server's h, which in the paper starts at 0.
    own: The clients' local gradients by name, all m; the cohort's are replaced.
    cohort: The clients of the round by name.
    gradient: Of the mean loss of a batch.
    client_rate: The learning rate.
    alpha: The regularisation.

  Returns:
    The new theta and h.
  """
  trained = []
  for name, client in cohort.items():
    local = theta
    for batch in client.batches:
      (g,) = gradient([local], client.x[batch], client.y[batch])
      local = local - client_rate * (g - own[name] + alpha * (local - theta))
    own[name] = own[name] - alpha * (local - theta)
    trained.append(local)
  h = h - alpha / len(own) * sum(local - theta for local in trained)
  return _mean(trained) - h / alpha, h


def _mean(arrays: Sequence[np.ndarray]) -> np.ndarray:
  return sum(arrays) / len(arrays)
