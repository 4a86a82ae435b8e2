"""Sums over clients that standardise features and fit linear models exactly.

Each client sends sums over its examples; the server gets their sum over the
clients and no example. Karr, Lin, Sanil, Reiter, "Secure Regression on
Distributed Databases", Journal of Computational and Graphical Statistics 14(2),
2005, fit linear regression so, in one shot; for the other families each Newton
step is such a sum. All sums are float64.
"""

import collections
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from datasets import federated_data
from models import linear

# Bounds the memory of a client's second derivatives.
_BATCH_SIZE = 256
_NEWTON_STEPS = 25
_HALVINGS = 10
# The last step's share of the weights.
_TOLERANCE = 1e-8
# Below this share of the largest eigenvalue a direction is not determined.
_SINGULAR = 1e-12

Preprocess = Callable[[Mapping[str, tf.Tensor]], Mapping[str, tf.Tensor]]


class FitError(ValueError):
  """A model has no best weights, or Newton's method does not find them."""


@dataclasses.dataclass(frozen=True)
class Moments:
  """First and second moments of all clients' examples together.

  Attributes:
    num_examples: How many.
    means: By name of the array, float64 [numbers].
    deviations: Standard deviations, likewise.
  """

  num_examples: float
  means: Mapping[str, np.ndarray]
  deviations: Mapping[str, np.ndarray]

  def standardisation(self, name: str) -> linear.Standardisation:
    """Returns what standardises an array, in six digits.

    Rounded, the numbers read the same whatever computed them, and they need not
    be exact. Numbers that are all the same keep the scale 1.
    """
    means, scales = [], []
    for mean, scale in zip(
      self.means[name], self.deviations[name], strict=True
    ):
      constant = scale <= 1e-7 * abs(mean) or scale == 0
      scale = 1.0 if constant else float(f'{scale:.5e}')
      digits = 5 - int(np.floor(np.log10(scale)))
      means.append(float(np.round(mean, digits)))
      scales.append(scale)
    return linear.Standardisation(tuple(means), tuple(scales))


@dataclasses.dataclass(frozen=True)
class Fit:
  """The best weights for all clients' examples together.

  Attributes:
    weights: Float64 [features + 1, predictors], the intercepts last.
    covariance: Of the estimates, float64 [(features + 1) * predictors] squared
      in the order of `weights.ravel()`; None where there is none: with a
      penalty, with features that depend on each other, or with too few
      examples.
    num_examples: How many examples it is for.
  """

  weights: np.ndarray
  covariance: np.ndarray | None
  num_examples: float

  @property
  def standard_errors(self) -> np.ndarray | None:
    """Float64 [features + 1, predictors], or None."""
    if self.covariance is None:
      return None
    return np.sqrt(np.diag(self.covariance)).reshape(self.weights.shape)


def moments(
  split: federated_data.Split, names: tuple[str, ...] = ('x', 'y')
) -> Moments:
  """Sums over the clients in TFF's current context.

  Args:
    split: The clients.
    names: Of the arrays [n, numbers] that are wanted.

  Returns:
    The moments.
  """
  specs = {name: _batch_spec(split)[name] for name in names}
  shapes = {name: spec.shape[1:] for name, spec in specs.items()}

  def zero():
    return collections.OrderedDict(
      num_examples=tf.zeros([], tf.float64),
      sums={k: tf.zeros(s, tf.float64) for k, s in shapes.items()},
      squares={k: tf.zeros(s, tf.float64) for k, s in shapes.items()},
    )

  def add(total, batch):
    values = {name: tf.cast(batch[name], tf.float64) for name in names}
    new = collections.OrderedDict(
      num_examples=_count(batch),
      sums={k: tf.reduce_sum(v, axis=0) for k, v in values.items()},
      squares={k: tf.reduce_sum(v * v, axis=0) for k, v in values.items()},
    )
    return tf.nest.map_structure(tf.add, total, new)

  @tff.tensorflow.computation(tff.SequenceType(_tff_spec(split)))
  def client(dataset):
    return dataset.reduce(zero(), add)

  @tff.federated_computation(
    tff.FederatedType(client.type_signature.parameter, tff.CLIENTS)
  )
  def over_clients(datasets):
    return tff.federated_sum(tff.federated_map(client, datasets))

  total = over_clients(_datasets(split))
  count = float(total['num_examples'])
  means = {k: np.asarray(v) / count for k, v in total['sums'].items()}
  variances = {
    k: np.asarray(v) / count - means[k] ** 2
    for k, v in total['squares'].items()
  }
  deviations = {k: np.sqrt(np.maximum(v, 0)) for k, v in variances.items()}
  return Moments(count, means, deviations)


def likelihood_sums(
  family: str,
  split: federated_data.Split,
  preprocess: Preprocess,
  num_features: int,
  num_predictors: int,
) -> tff.Computation:
  """Builds the sums that a Newton step needs.

  Args:
    family: A key of `linear.FAMILIES`.
    split: Clients of the kind that it will be called with.
    preprocess: Maps raw batches to features x [n, num_features] and targets y
      [n, num_predictors], or classes [n].
    num_features: Features of the model.
    num_predictors: See `linear.build`.

  Returns:
    A computation (weights@SERVER, batches@CLIENTS) -> sums@SERVER, weights
    being those of `Fit`. With z an example's features and 1, and r = mean(z W)
    - y: `num_examples`, `gradient` sum z r', `curvature` sum z z' * curvature
    [features + 1, predictors, features + 1, predictors], `squares` sum r^2. For
    the linear family and W = 0 these are the Gram matrix Z'Z and -Z'Y.
  """
  size, number = num_features + 1, num_predictors
  rule = linear.FAMILIES[family]

  def zero():
    return collections.OrderedDict(
      num_examples=tf.zeros([], tf.float64),
      gradient=tf.zeros([size, number], tf.float64),
      curvature=tf.zeros([size, number, size, number], tf.float64),
      squares=tf.zeros([number], tf.float64),
    )

  def sums(batch, weights):
    batch = preprocess(batch)
    x = tf.cast(batch['x'], tf.float64)
    z = tf.concat([x, tf.ones_like(x[:, :1])], axis=1)
    y = batch['y']
    if 'classes' in rule.responses:
      y = tf.one_hot(y, number + 1)[:, 1:]
    predictors = z @ weights
    error = rule.mean(predictors) - tf.cast(y, tf.float64)
    curved = z[:, :, None, None] * rule.curvature(predictors)[:, None]
    product = tf.matmul(
      z, tf.reshape(curved, [-1, size * number * number]), transpose_a=True
    )
    # Axes: the other feature, a feature, its predictor, the other predictor.
    product = tf.reshape(product, [size, size, number, number])
    return collections.OrderedDict(
      num_examples=_count(batch),
      gradient=tf.matmul(z, error, transpose_a=True),
      curvature=tf.transpose(product, [1, 2, 0, 3]),
      squares=tf.reduce_sum(error * error, axis=0),
    )

  weights_type = tff.TensorType(np.float64, [size, number])

  @tff.tensorflow.computation(weights_type, tff.SequenceType(_tff_spec(split)))
  def client(weights, dataset):
    return dataset.reduce(
      zero(),
      lambda total, batch: tf.nest.map_structure(
        tf.add, total, sums(batch, weights)
      ),
    )

  @tff.federated_computation(
    tff.FederatedType(weights_type, tff.SERVER),
    tff.FederatedType(tff.SequenceType(_tff_spec(split)), tff.CLIENTS),
  )
  def over_clients(weights, datasets):
    return tff.federated_sum(
      tff.federated_map(client, (tff.federated_broadcast(weights), datasets))
    )

  return over_clients


def fit(
  family: str,
  split: federated_data.Split,
  preprocess: Preprocess,
  num_features: int,
  num_predictors: int,
  l2_penalty: float = 0.0,
) -> Fit:
  """Finds the weights that minimise the mean loss of `linear.build`'s model.

  For linear regression the first Newton step is the one-shot ridge regression:
  the Gram matrices and moment vectors of the clients are added up, and the
  server solves (Z'Z / N + lambda D) W = Z'Y / N, where D leaves the intercepts
  out. Where features depend on each other it is the solution of least norm,
  which gradient descent from zero finds, too.

  Args:
    family: See `likelihood_sums`, as for all but the last.
    split: The clients.
    preprocess: As above.
    num_features: As above.
    num_predictors: As above.
    l2_penalty: See `linear.build`.

  Returns:
    The weights and their covariance.

  Raises:
    FitError: If Newton's method does not converge, as for classes that a
      hyperplane separates.
  """
  computation = likelihood_sums(
    family, split, preprocess, num_features, num_predictors
  )
  datasets = _datasets(split)

  def sums(weights):
    return {k: np.asarray(v) for k, v in computation(weights, datasets).items()}

  weights = np.zeros([num_features + 1, num_predictors])
  if family == 'poisson':
    found = sums(weights)
    # At zero every mean is 1: the gradient says what the mean count is.
    mean = 1 - found['gradient'][-1] / found['num_examples']
    weights[-1] = np.log(np.maximum(mean, 1e-6))
  # A square has the derivative 2: the linear family's loss has no 1/2.
  penalty = np.full_like(weights, l2_penalty * (1 if family == 'linear' else 2))
  penalty[-1] = 0
  # A quadratic is solved by one step; more would chase rounding errors.
  enough = 1 if family == 'linear' else None
  weights, found, slope = _newton(sums, weights, penalty, enough)
  if found is None:
    raise FitError(
      f'Newton steps for {family} regression do not converge: the largest '
      f'slope is {slope:.2g}. Classes that the features separate, or counts '
      'that are all zero, have no best weights; a penalty gives them some.'
    )
  covariance = None if l2_penalty else _covariance(family, found)
  return Fit(weights, covariance, float(found['num_examples']))


def _newton(
  sums: Callable[[np.ndarray], Mapping[str, np.ndarray]],
  weights: np.ndarray,
  penalty: np.ndarray,
  enough: int | None,
) -> tuple[np.ndarray, Mapping[str, np.ndarray] | None, float]:
  """Takes Newton steps, shortened where one is too long.

  Args:
    sums: Of `likelihood_sums` at given weights.
    weights: Where to start.
    penalty: The second derivative of the penalty by weight.
    enough: Steps after which to stop in any case, if that is known.

  Returns:
    The weights, the sums there (None if the steps do not converge), and the
    largest slope.
  """

  def slope(weights, found):
    return found['gradient'] / found['num_examples'] + penalty * weights

  found = sums(weights)
  for taken in range(_NEWTON_STEPS):
    gradient = slope(weights, found)
    largest = float(np.abs(gradient).max())
    hessian = _matrix(found) / found['num_examples'] + np.diag(penalty.ravel())
    step = np.linalg.lstsq(hessian, gradient.ravel(), rcond=_SINGULAR)[0]
    step = step.reshape(weights.shape)
    small = np.abs(step).max() <= _TOLERANCE * max(1, np.abs(weights).max())
    if small or taken == enough:
      return weights, found, largest
    # The norm of a gradient falls along a Newton step, if not at its end.
    for _ in range(_HALVINGS):
      following = sums(weights - step)
      norm = np.linalg.norm(slope(weights - step, following))
      if norm < np.linalg.norm(gradient):
        break
      step = step / 2
    else:
      break
    weights, found = weights - step, following
  return weights, None, largest


def _matrix(found: Mapping[str, np.ndarray]) -> np.ndarray:
  size = found['gradient'].size
  return found['curvature'].reshape(size, size)


def _covariance(
  family: str, found: Mapping[str, np.ndarray]
) -> np.ndarray | None:
  """The inverse of the information, times the residual variance if linear."""
  information = _matrix(found)
  values = np.linalg.eigvalsh(information)
  if values[0] <= _SINGULAR * values[-1]:
    return None
  covariance = np.linalg.inv(information)
  if family != 'linear':
    return covariance
  size, number = found['gradient'].shape
  freedom = found['num_examples'] - size
  if freedom <= 0:
    return None
  deviations = np.sqrt(found['squares'] / freedom)
  scale = np.tile(deviations, size)
  return covariance * np.outer(scale, scale)


def _count(batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
  return tf.cast(tf.shape(batch['x'])[0], tf.float64)


def _batch_spec(split: federated_data.Split) -> dict[str, tf.TensorSpec]:
  return {
    name: tf.TensorSpec([None, *spec.shape], spec.dtype)
    for name, spec in split.element_spec.items()
  }


def _tff_spec(split: federated_data.Split) -> Any:
  return tff.types.to_type(
    collections.OrderedDict(
      (name, tff.TensorType(spec.dtype.as_numpy_dtype, spec.shape))
      for name, spec in _batch_spec(split).items()
    )
  )


def _datasets(split: federated_data.Split) -> list[tf.data.Dataset]:
  return [
    split.dataset(client, batch_size=_BATCH_SIZE, seed=None)
    for client, count in split.num_examples.items()
    if count
  ]
