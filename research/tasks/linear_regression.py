"""Generalised linear regression on tables, standardised by federated sums."""

import collections
import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from datasets import federated_data, regression
from models import linear
from research.algorithms import federated_sums
from research.tasks import task as task_lib

DATASETS = {
  'linear': 'diabetes',
  'logistic': 'breast_cancer',
  'poisson': 'synthetic_counts',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearTask(task_lib.Task):
  """A task whose model is linear in its features.

  Attributes:
    family: A key of `linear.FAMILIES`.
    features: From the data's features to the model's.
    targets: Standardises targets; the identity but for linear regression.
    l2_penalty: See `linear.build`.
  """

  family: str
  features: linear.Features
  targets: linear.Standardisation
  l2_penalty: float

  @property
  def predictor_names(self) -> Sequence[str]:
    """Names the linear predictors: targets, or classes but for the first."""
    return self.data.target_names or self.data.class_names[1:]

  @property
  def feature_names(self) -> tuple[str, ...]:
    """Names the model's features, as `age*bmi`."""
    return self.features.names(self.data.feature_names)


def num_predictors(data: federated_data.FederatedData) -> int:
  """Returns how many linear predictors a model of data has."""
  return len(data.target_names) or data.num_classes - 1


def standardise(
  data: federated_data.FederatedData, family: str
) -> tuple[linear.Standardisation, linear.Standardisation]:
  """Finds means and scales by sums over the clients, in TFF's context.

  Args:
    data: Its training clients are asked, all of them once.
    family: A key of `linear.FAMILIES`; targets are standardised for linear
      regression alone.

  Returns:
    The standardisation of the features and that of the targets.
  """
  if family != 'linear':
    moments = federated_sums.moments(data.train, ('x',))
    identity = linear.Standardisation.identity(num_predictors(data))
    return moments.standardisation('x'), identity
  moments = federated_sums.moments(data.train)
  return moments.standardisation('x'), moments.standardisation('y')


def build(
  data: federated_data.FederatedData,
  family: str,
  features: linear.Features,
  targets: linear.Standardisation,
  l2_penalty: float = 0.0,
) -> LinearTask:
  """Builds a task.

  Args:
    data: Clients with features `x` and targets or classes `y`.
    family: A key of `linear.FAMILIES`.
    features: See `LinearTask`, as for those that follow.
    targets: As above.
    l2_penalty: As above.

  Returns:
    The task, of kind regression or, for logistic regression, classification.

  Raises:
    ValueError: If family, data and standardisation do not fit together.
  """
  rule = linear.FAMILIES[family]
  found = regression.responses(data)
  if found not in rule.responses:
    raise ValueError(
      f'--model={family} explains {" or ".join(rule.responses)}, but the '
      f'targets of --dataset={data.name} are {found}.'
    )
  if data.num_classes == 1:
    raise ValueError(f'--dataset={data.name} has a single class.')
  for name, given, wanted in (
    ('feature', features.standardisation, len(data.feature_names)),
    ('target', targets, num_predictors(data)),
  ):
    sizes = {len(given.means), len(given.scales)}
    if sizes != {wanted}:
      raise ValueError(
        f'--{name}_means and --{name}_scales need {wanted} numbers for '
        f'--dataset={data.name}, given {len(given.means)} and '
        f'{len(given.scales)}.'
      )

  def preprocess(batch: task_lib.Batch) -> task_lib.Batch:
    y = batch['y']
    if family != 'logistic':
      y = targets.apply(tf.cast(y, tf.float32))
    return collections.OrderedDict(x=features.apply(batch['x']), y=y)

  def build_metrics() -> list[tf.keras.metrics.Metric]:
    if family != 'logistic':
      return []
    return [tf.keras.metrics.SparseCategoricalAccuracy('accuracy')]

  return LinearTask(
    name=f'{family}_regression',
    data=data,
    kind='classification' if family == 'logistic' else 'regression',
    class_names=data.class_names,
    build_keras_model=lambda: linear.build(
      family, len(features.products), num_predictors(data), l2_penalty
    ),
    build_loss=rule.build_loss,
    build_metrics=build_metrics,
    preprocess_features=features.apply,
    preprocess=preprocess,
    example_shape=(len(data.feature_names),),
    postprocess=lambda outputs: targets.invert(rule.mean(outputs)),
    family=family,
    features=features,
    targets=targets,
    l2_penalty=l2_penalty,
  )
