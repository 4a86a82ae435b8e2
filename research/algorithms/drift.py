"""Where FedAvg ends on linear regression: the algebra of client drift.

A client with the quadratic loss f_k(w) = w'A_k w - 2 b_k'w + c, that takes E
full-batch steps with rate r from w, ends at w - Q_k (A_k w - b_k), where Q_k =
2r sum_{i<E} (I - 2r A_k)^i. The weighted mean of these has the fixed point

  (sum p_k Q_k A_k) w = sum p_k Q_k b_k,

which for E = 1 is the pooled solution, and for more steps is not, unless the
clients agree. Charles and Konečný, "Convergence and Accuracy Trade-Offs in
Federated Learning and Meta-Learning", AISTATS 2021, have it as the
solution of a surrogate loss.
"""

import numpy as np


def fixed_point(
  curvatures: np.ndarray,
  moments: np.ndarray,
  weights: np.ndarray,
  learning_rate: float,
  steps: int,
) -> np.ndarray:
  """Returns the weights at which FedAvg's rounds stay.

  Args:
    curvatures: A_k, [clients, size, size]: Z'Z / n of the client's features,
      plus the penalty if any.
    moments: b_k, [clients, size, targets]: Z'Y / n.
    weights: p_k, [clients]: examples, for FedAvg's usual weighting.
    learning_rate: Of the clients' gradient descent on the mean squared error.
    steps: Full-batch steps of a client in a round.

  Returns:
    Float64 [size, targets].
  """
  size = curvatures.shape[1]
  left, right = np.zeros((size, size)), np.zeros(moments.shape[1:])
  for curvature, moment, weight in zip(
    curvatures, moments, weights / np.sum(weights), strict=True
  ):
    # I - (I - 2rA)^E = Q A, in the eigenvectors of A.
    values, vectors = np.linalg.eigh(curvature)
    powers = (1 - 2 * learning_rate * values)[:, None] ** np.arange(steps)
    scale = 2 * learning_rate * powers.sum(axis=1)
    q = (vectors * scale) @ vectors.T
    left += weight * q @ curvature
    right += weight * q @ moment
  return np.linalg.lstsq(left, right, rcond=None)[0]


def quadratics(
  clients: list[tuple[np.ndarray, np.ndarray]], l2_penalty: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the quadratic losses of clients, for `fixed_point`.

  Args:
    clients: Features [n, size] and targets [n, targets] of each, in what the
      model gets; the intercept is added here, as the last feature.
    l2_penalty: See `linear.build`; each target has the same.

  Returns:
    Curvatures, moments and weights.
  """
  curvatures, moments, weights = [], [], []
  for x, y in clients:
    z = np.c_[x, np.ones(len(x))].astype(np.float64)
    penalty = np.full(z.shape[1], l2_penalty)
    penalty[-1] = 0
    curvatures.append(z.T @ z / len(z) + np.diag(penalty))
    moments.append(z.T @ y / len(z))
    weights.append(len(z))
  return np.stack(curvatures), np.stack(moments), np.array(weights)
