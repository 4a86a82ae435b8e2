"""Generalised linear models: linear, logistic and Poisson regression."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf


class PoissonLoss(tf.keras.losses.Loss):
  """exp(u) - y u of predictors u [n, m] and counts y [n, m], a mean over m.

  The negative log-likelihood of the Poisson distribution with log link, less
  the term log(y!) that no weight changes.
  """

  def call(self, y_true, y_pred):
    return tf.reduce_mean(tf.nn.log_poisson_loss(y_true, y_pred), axis=-1)


@dataclasses.dataclass(frozen=True)
class Family:
  """What kind of target is explained, and how.

  The linear predictor is u = z W + b of features z; McCullagh and Nelder,
  Generalized Linear Models (1989), chapter 2.

  Attributes:
    responses: What targets may be: numbers, counts or classes.
    build_loss: Makes the loss of the Keras model's output.
    mean: Maps predictors [n, m] to the expected targets [n, m]; of classes, to
      the probabilities of all but the first.
    curvature: Maps predictors [n, m] to the second derivatives of an example's
      loss, [n, m, m]; the first ones are mean(u) - y.
  """

  responses: tuple[str, ...]
  build_loss: Callable[[], tf.keras.losses.Loss]
  mean: Callable[[tf.Tensor], tf.Tensor]
  curvature: Callable[[tf.Tensor], tf.Tensor]


def _probabilities(predictors: tf.Tensor) -> tf.Tensor:
  return tf.nn.softmax(tf.pad(predictors, [[0, 0], [1, 0]]))[:, 1:]


def _covariance(predictors: tf.Tensor) -> tf.Tensor:
  p = _probabilities(predictors)
  return tf.linalg.diag(p) - p[:, :, tf.newaxis] * p[:, tf.newaxis, :]


FAMILIES = {
  'linear': Family(
    responses=('numbers', 'counts'),
    build_loss=tf.keras.losses.MeanSquaredError,
    mean=tf.identity,
    curvature=lambda u: tf.linalg.diag(tf.ones_like(u)),
  ),
  'logistic': Family(
    responses=('classes',),
    build_loss=lambda: tf.keras.losses.SparseCategoricalCrossentropy(
      from_logits=True
    ),
    mean=_probabilities,
    curvature=_covariance,
  ),
  'poisson': Family(
    responses=('counts',),
    build_loss=PoissonLoss,
    mean=tf.exp,
    curvature=lambda u: tf.linalg.diag(tf.exp(u)),
  ),
}


def build(
  family: str, num_features: int, num_predictors: int, l2_penalty: float = 0.0
) -> tf.keras.Model:
  """Builds a model whose weights start at zero.

  Its weights are W [num_features, num_predictors] and the intercepts b
  [num_predictors].

  Args:
    family: A key of `FAMILIES`.
    num_features: Of an example.
    num_predictors: Targets; of logistic regression, classes less one.
    l2_penalty: lambda. To the mean loss of a batch is added lambda ||W||^2 for
      logistic regression, and lambda ||W||^2 / num_predictors for the others,
      whose loss is a mean over targets: each target gets the ridge regression
      of its own. Intercepts are not penalised.

  Returns:
    The model. Its output is the predictors [n, num_predictors], or the logits
    [n, classes] of logistic regression, where the first class is the reference:
    its logit is 0, so that all weights can be estimated.

  Raises:
    ValueError: If an argument is out of range.
  """
  if min(num_features, num_predictors) < 1:
    raise ValueError(
      'A linear model needs one feature and one predictor at least, given '
      f'{num_features} and {num_predictors}.'
    )
  if l2_penalty < 0:
    raise ValueError(f'l2_penalty must not be negative, given {l2_penalty}.')
  scale = 1 if family == 'logistic' else num_predictors
  regularizer = tf.keras.regularizers.L2(l2_penalty / scale)
  features = tf.keras.Input((num_features,))
  outputs = tf.keras.layers.Dense(
    num_predictors,
    kernel_initializer='zeros',
    kernel_regularizer=regularizer if l2_penalty else None,
    name='linear',
  )(features)
  if family == 'logistic':
    outputs = tf.pad(outputs, [[0, 0], [1, 0]])
  return tf.keras.Model(features, outputs)


@dataclasses.dataclass(frozen=True)
class Standardisation:
  """Means and scales that make numbers comparable.

  Attributes:
    means: What is subtracted, one per number.
    scales: What is divided by then; above 0.
  """

  means: tuple[float, ...]
  scales: tuple[float, ...]

  @classmethod
  def identity(cls, size: int) -> 'Standardisation':
    """Changes nothing."""
    return cls((0.0,) * size, (1.0,) * size)

  def apply(self, values: tf.Tensor) -> tf.Tensor:
    """Returns (values - means) / scales of float32 [n, size]."""
    means = tf.constant(self.means, tf.float32)
    return (values - means) / tf.constant(self.scales, tf.float32)

  def invert(self, values: tf.Tensor) -> tf.Tensor:
    """Returns values * scales + means of float32 [n, size]."""
    means = tf.constant(self.means, tf.float32)
    return values * tf.constant(self.scales, tf.float32) + means


@dataclasses.dataclass(frozen=True)
class Features:
  """From raw features to those of the model, in graph operations.

  Attributes:
    standardisation: Of the raw features.
    degree: All products of up to so many standardised features are features of
      the model.
  """

  standardisation: Standardisation
  degree: int = 1

  @property
  def products(self) -> list[tuple[int, ...]]:
    """The raw features that make each feature of the model."""
    raw = range(len(self.standardisation.means))
    return [
      product
      for degree in range(1, self.degree + 1)
      for product in itertools.combinations_with_replacement(raw, degree)
    ]

  def apply(self, values: tf.Tensor) -> tf.Tensor:
    """Maps raw features [n, raw] to float32 [n, len(products)]."""
    values = self.standardisation.apply(tf.cast(values, tf.float32))
    parts = [values]
    for degree in range(2, self.degree + 1):
      chosen = [p for p in self.products if len(p) == degree]
      factors = tf.gather(values, np.array(chosen, np.int32), axis=1)
      parts.append(tf.reduce_prod(factors, axis=2))
    return tf.concat(parts, axis=1)

  def names(self, raw_names: Sequence[str]) -> tuple[str, ...]:
    """Names the features of the model, as `bmi` and `age*bmi`."""
    return tuple('*'.join(raw_names[i] for i in p) for p in self.products)
