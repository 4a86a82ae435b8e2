"""Federated averaging and federated optimisation in NumPy alone.

Independent of TFF and TensorFlow, in float64, to compare the real thing with.
Clients work as ClientUpdate of McMahan et al. 2017 (arXiv:1602.05629,
Algorithm 1); the server as Reddi et al. 2021 (arXiv:2003.00295, Algorithms 1
and 2), whose pseudo-gradient is minus the mean of the clients' model updates.

The server optimizers have the form of `tff.learning.optimizers` in TFF 0.87,
which differs from Reddi et al., Algorithm 2, as follows:

  adagrad  divides by sqrt(v + epsilon), the paper by sqrt(v) + tau. `inside`
           chooses.
  adam     corrects the bias of both moments, as Kingma and Ba 2015 do in their
           efficient form (epsilon is not corrected); the paper does not.
           v starts at 0, in the paper at a chosen value of at least tau^2.
  yogi     corrects the bias as adam does. v starts at a chosen value. Its sign
           is of g^2 - v with v = v + (1 - beta_2) g^2 sign: the paper's update.
  momentum v = beta v + g without the factor (1 - beta) that FedAvgM has when
           it is written as FedAdam without v.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

Weights = Sequence[np.ndarray]
Gradient = Callable[[Weights, np.ndarray, np.ndarray], Weights]


@dataclasses.dataclass(frozen=True)
class Client:
  """What one client does in one round.

  Attributes:
    x: Features, [examples, ...].
    y: Labels, [examples, ...].
    batches: Which examples each step takes, over all epochs.
  """

  x: np.ndarray
  y: np.ndarray
  batches: Sequence[np.ndarray]


def linear_gradient(weights: Weights, x: np.ndarray, y: np.ndarray) -> Weights:
  """Gradient of the mean of (w.x - y)^2 for weights (w,), without a bias."""
  (w,) = weights
  error = x.astype(np.float64) @ w - y.reshape(len(x), *w.shape[1:])
  return (2 * x.T.astype(np.float64) @ error / error.size,)


def softmax_gradient(weights: Weights, x: np.ndarray, y: np.ndarray) -> Weights:
  """Gradient of the mean cross entropy for weights (kernel, bias)."""
  kernel, bias = weights
  features = x.reshape(len(x), -1).astype(np.float64)
  logits = features @ kernel + bias
  odds = np.exp(logits - logits.max(axis=1, keepdims=True))
  error = odds / odds.sum(axis=1, keepdims=True)
  error[np.arange(len(y)), y] -= 1
  return features.T @ error / len(y), error.mean(axis=0)


def client_update(
  weights: Weights, client: Client, gradient: Gradient, learning_rate: float
) -> list[np.ndarray]:
  """One client's work: a step of SGD for each of its batches.

  Args:
    weights: The server's weights.
    client: The client.
    gradient: Of the mean loss of a batch.
    learning_rate: The client's.

  Returns:
    The client's weights afterwards.
  """
  weights = [np.asarray(w, np.float64) for w in weights]
  for batch in client.batches:
    steps = gradient(weights, client.x[batch], client.y[batch])
    weights = [
      w - learning_rate * g for w, g in zip(weights, steps, strict=True)
    ]
  return weights


def mean_update(
  weights: Weights,
  cohort: Sequence[Client],
  gradient: Gradient,
  learning_rate: float,
  weighting: str = 'examples',
) -> list[np.ndarray]:
  """The mean of a cohort's model updates (weights after minus before).

  Args:
    weights: The server's weights.
    cohort: The clients of the round.
    gradient: Of the mean loss of a batch.
    learning_rate: The clients'.
    weighting: `examples`, by how many examples a client took in all its
      epochs, or `uniform`.

  Returns:
    The mean update, with the form of `weights`.

  Raises:
    ValueError: If the weighting is unknown or the cohort weighs nothing.
  """
  if weighting == 'examples':
    shares = [sum(len(b) for b in client.batches) for client in cohort]
  elif weighting == 'uniform':
    shares = [1] * len(cohort)
  else:
    raise ValueError(f'weighting={weighting!r} is not examples or uniform')
  if not sum(shares):
    raise ValueError('the cohort has no examples')
  mean = [np.zeros(np.shape(w)) for w in weights]
  for share, client in zip(shares, cohort, strict=True):
    after = client_update(weights, client, gradient, learning_rate)
    for total, new, old in zip(mean, after, weights, strict=True):
      total += share / sum(shares) * (new - old)
  return mean


def train(
  weights: Weights,
  rounds: Sequence[Sequence[Client]],
  gradient: Gradient,
  client_learning_rate: float,
  server_optimizer: 'Sgd | Adagrad | Adam | Yogi | None' = None,
  weighting: str = 'examples',
) -> list[np.ndarray]:
  """Trains for some rounds.

  Args:
    weights: The initial weights.
    rounds: The cohort of each round.
    gradient: Of the mean loss of a batch.
    client_learning_rate: The clients'.
    server_optimizer: A fresh optimizer; None is FedAvg, which takes the mean.
    weighting: As in `mean_update`.

  Returns:
    The server's weights after the last round.
  """
  server_optimizer = server_optimizer or Sgd(1.0)
  weights = [np.asarray(w, np.float64) for w in weights]
  for cohort in rounds:
    update = mean_update(
      weights, cohort, gradient, client_learning_rate, weighting
    )
    weights = [
      server_optimizer.step(key, w, -u)
      for key, (w, u) in enumerate(zip(weights, update, strict=True))
    ]
  return weights


@dataclasses.dataclass
class Sgd:
  """w <- w - lr g, or with momentum: v <- momentum v + g; w <- w - lr v."""

  learning_rate: float
  momentum: float = 0.0
  velocity: dict = dataclasses.field(default_factory=dict)

  def step(self, key: int, w: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Returns the new value of the weights that `key` names."""
    self.velocity[key] = self.momentum * self.velocity.get(key, 0) + g
    return w - self.learning_rate * self.velocity[key]


@dataclasses.dataclass
class Adagrad:
  """v <- v + g^2; w <- w - lr g / sqrt(v + epsilon).

  With `inside=False`, w <- w - lr g / (sqrt(v) + epsilon), as in the paper.
  """

  learning_rate: float
  initial: float = 0.1
  epsilon: float = 1e-7
  inside: bool = True
  second: dict = dataclasses.field(default_factory=dict)

  def step(self, key: int, w: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Returns the new value of the weights that `key` names."""
    v = self.second[key] = self.second.get(key, self.initial) + g**2
    if self.inside:
      return w - self.learning_rate * g / np.sqrt(v + self.epsilon)
    return w - self.learning_rate * g / (np.sqrt(v) + self.epsilon)


@dataclasses.dataclass
class Adam:
  """Bias-corrected Adam; the correction goes into the learning rate.

  m <- beta_1 m + (1 - beta_1) g; v <- beta_2 v + (1 - beta_2) g^2;
  w <- w - lr sqrt(1 - beta_2^t) / (1 - beta_1^t) m / (sqrt(v) + epsilon).
  """

  learning_rate: float
  beta_1: float = 0.9
  beta_2: float = 0.999
  epsilon: float = 1e-7
  initial: float = 0.0
  moments: dict = dataclasses.field(default_factory=dict)

  def step(self, key: int, w: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Returns the new value of the weights that `key` names."""
    t, m, v = self.moments.get(key, (0, 0.0, self.initial))
    t += 1
    m = self.beta_1 * m + (1 - self.beta_1) * g
    v = self._second_moment(v, g**2)
    self.moments[key] = t, m, v
    correction = np.sqrt(1 - self.beta_2**t) / (1 - self.beta_1**t)
    step = self.learning_rate * correction
    return w - step * m / (np.sqrt(v) + self.epsilon)

  def _second_moment(self, v, square):
    return self.beta_2 * v + (1 - self.beta_2) * square


@dataclasses.dataclass
class Yogi(Adam):
  """Adam with v <- v + (1 - beta_2) g^2 sign(g^2 - v)."""

  epsilon: float = 1e-3
  initial: float = 1e-6

  def _second_moment(self, v, square):
    return v + (1 - self.beta_2) * square * np.sign(square - v)


def local_steps(
  weights: Weights,
  client: Client,
  gradient: Gradient,
  optimizer: 'Sgd',
  correct: Callable[[Weights, Weights, np.ndarray], Weights] | None = None,
) -> list[np.ndarray]:
  """One client's steps with an optimizer and corrected gradients.

  Args:
    weights: The server's weights.
    client: The client.
    gradient: Of the mean loss of a batch.
    optimizer: A fresh one.
    correct: From a step's gradient, its weights and its batch to the gradient
      that is used.

  Returns:
    The client's weights afterwards.
  """
  weights = [np.asarray(w, np.float64) for w in weights]
  for batch in client.batches:
    steps = gradient(weights, client.x[batch], client.y[batch])
    if correct:
      steps = correct(steps, weights, batch)
    weights = [
      optimizer.step(key, w, g)
      for key, (w, g) in enumerate(zip(weights, steps, strict=True))
    ]
  return weights


def examples_of(client: Client) -> int:
  """Examples that a client trains on in a round, over all its epochs."""
  return sum(len(batch) for batch in client.batches)


def fed_prox_round(
  weights: Weights,
  cohort: Sequence[Client],
  gradient: Gradient,
  learning_rate: float,
  proximal_strength: float,
) -> list[np.ndarray]:
  """One round of Li et al. 2020 (arXiv:1812.06127), weighted by examples."""

  def correct(steps, local, unused_batch):
    return [
      g + proximal_strength * (w - w_t)
      for g, w, w_t in zip(steps, local, weights, strict=True)
    ]

  total = sum(map(examples_of, cohort))
  trained = [
    local_steps(weights, client, gradient, Sgd(learning_rate), correct)
    for client in cohort
  ]
  return [
    sum(
      examples_of(client) / total * after[key]
      for client, after in zip(cohort, trained, strict=True)
    )
    for key in range(len(weights))
  ]


def fed_nova_round(
  weights: Weights,
  cohort: Sequence[Client],
  gradient: Gradient,
  learning_rate: float,
  momentum: float,
) -> list[np.ndarray]:
  """One round of Wang et al. 2020 (arXiv:2007.07481), weighted by examples.

  The norm of a_i is counted step by step, as Section 4.1 defines the vector,
  not by its closed form.
  """
  total = sum(map(examples_of, cohort))
  effective, direction = 0.0, [np.zeros(np.shape(w)) for w in weights]
  for client in cohort:
    share = examples_of(client) / total
    optimizer = Sgd(learning_rate, momentum)
    after = local_steps(weights, client, gradient, optimizer)
    steps = len(client.batches)
    norm = sum(
      momentum**power for step in range(steps) for power in range(steps - step)
    )
    effective += share * norm
    for key, (new, old) in enumerate(zip(after, weights, strict=True)):
      direction[key] += share * (old - new) / norm
  return [w - effective * d for w, d in zip(weights, direction, strict=True)]


def mime_round(
  weights: Weights,
  velocity: Weights,
  cohort: Sequence[Client],
  gradient: Gradient,
  learning_rate: float,
  momentum: float,
  lite: bool,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
  """One round of Karimireddy et al. 2021 (arXiv:2008.03606), Algorithm 1.

  The base optimizer is momentum in TFF's form; clients weigh by examples.

  Returns:
    The server's weights and its velocity.
  """
  total = sum(map(examples_of, cohort))
  control = [np.zeros(np.shape(w)) for w in weights]
  for client in cohort:
    seen = np.concatenate(client.batches)
    full = gradient(weights, client.x[seen], client.y[seen])
    for key, g in enumerate(full):
      control[key] += len(seen) / total * g
  mean = [np.zeros(np.shape(w)) for w in weights]
  for client in cohort:
    local = [np.asarray(w, np.float64) for w in weights]
    for batch in client.batches:
      x, y = client.x[batch], client.y[batch]
      steps = gradient(local, x, y)
      if not lite:
        at_server = gradient(weights, x, y)
        steps = [
          g - g_x + c
          for g, g_x, c in zip(steps, at_server, control, strict=True)
        ]
      local = [
        w - learning_rate * (momentum * v + g)
        for w, v, g in zip(local, velocity, steps, strict=True)
      ]
    for key, after in enumerate(local):
      mean[key] += examples_of(client) / total * after
  velocity = [momentum * v + c for v, c in zip(velocity, control, strict=True)]
  return mean, velocity
