"""What a finished regression found: coefficients, fit by client, pictures."""

import io
import pathlib

import numpy as np
import pandas as pd
import tensorflow as tf

from datasets import federated_data
from research.algorithms import drift, federated_sums
from research.export import saved_model
from research.tasks import linear_regression as tasks
from research.training import atomic, evaluation, regression_plots
from research.training import run_directory as run_directory_lib

POOLED = '(all)'
_INTERCEPT = '(intercept)'
_ROWS = 10_000
_LOCAL_STEPS = (1, 2, 3, 5, 10, 20, 50, 100)


def write(
  run: run_directory_lib.RunDirectory,
  task: tasks.LinearTask,
  evaluator: evaluation.Evaluator,
  client_learning_rate: float | None = None,
) -> str:
  """Writes coefficients.csv, clients.csv and their pictures.

  Asks all training clients for sums, in TFF's current context; see
  `federated_sums.fit`.

  Args:
    run: Gets the files.
    task: What was learned.
    evaluator: Carries the trained weights.
    client_learning_rate: Where FedAvg's clients run plain gradient descent,
      its rate: drift.png then says where more local steps would end.

  Returns:
    Lines for people.
  """
  try:
    fit = federated_sums.fit(
      task.family,
      task.data.train,
      task.preprocess,
      len(task.features.products),
      tasks.num_predictors(task.data),
      task.l2_penalty,
    )
    lines = []
  except federated_sums.FitError as error:
    fit, lines = None, [f'no pooled solution: {error}']
  table = coefficients(task, trained_weights(evaluator.model), fit)
  _write_csv(run.path / 'coefficients.csv', table)
  regression_plots.coefficients(table, run.plots / 'coefficients.png')
  by_client = clients(task, evaluator)
  _write_csv(run.path / 'clients.csv', by_client)
  if task.kind == 'regression':
    x = task.data.test.pooled()
    regression_plots.residuals(
      predictions(task, evaluator.model, x['x']),
      x['y'],
      task.data.target_names,
      run.plots / 'residuals.png',
    )
  if client_learning_rate and task.family == 'linear' and fit is not None:
    distances = drift_by_steps(task, fit.weights, client_learning_rate)
    if distances:
      regression_plots.drift(distances, run.plots / 'drift.png')
  if fit is not None:
    difference = (table['coefficient'] - table['pooled_coefficient']).abs()
    lines.append(
      f'largest difference from the pooled solution {difference.max():.1e} '
      '(standardised)'
    )
  everyone = by_client[by_client['client'] == POOLED]
  lines.append(everyone.drop(columns='client').to_string(index=False))
  lines.append(f'coefficients: {run.path / "coefficients.csv"}')
  return '\n'.join(lines)


def trained_weights(model: tf.keras.Model) -> np.ndarray:
  """Returns a model's weights as those of `federated_sums.Fit`."""
  kernel, intercepts = (v.numpy() for v in model.trainable_variables)
  return np.vstack([kernel, intercepts]).astype(np.float64)


def coefficients(
  task: tasks.LinearTask,
  weights: np.ndarray,
  fit: federated_sums.Fit | None,
) -> pd.DataFrame:
  """Returns a row per coefficient.

  Args:
    task: What was learned.
    weights: The trained weights, [features + 1, predictors].
    fit: The pooled solution, if there is one.

  Returns:
    A table with the columns `output` and `feature`; `coefficient`,
    `standard_error` (of the pooled solution) and `pooled_coefficient` for
    standardised features and targets; and, without products of features,
    `coefficient_in_units` and `standard_error_in_units` for features and
    targets as the data has them. What there is not is empty.
  """
  names = [*task.feature_names, _INTERCEPT]
  outputs = task.predictor_names
  nothing = np.full(weights.shape, np.nan)
  errors = None if fit is None else fit.standard_errors
  table = {
    'output': np.tile(outputs, len(names)),
    'feature': np.repeat(names, len(outputs)),
    'coefficient': weights.ravel(),
    'standard_error': (nothing if errors is None else errors).ravel(),
    'pooled_coefficient': (nothing if fit is None else fit.weights).ravel(),
  }
  if task.features.degree == 1:
    change, scales, shift = _units(task)
    in_units = change @ weights * scales
    in_units[-1] += shift
    table['coefficient_in_units'] = in_units.ravel()
    covariance = None if fit is None else fit.covariance
    in_units = nothing.copy()
    if covariance is not None:
      number = len(outputs)
      for k in range(number):
        own = covariance[k::number, k::number]
        variances = np.einsum('ia,ab,ib->i', change, own, change)
        in_units[:, k] = np.sqrt(variances) * scales[k]
    table['standard_error_in_units'] = in_units.ravel()
  return pd.DataFrame(table)


def _units(task: tasks.LinearTask) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """What turns standardised coefficients into those of the data's units."""
  standard = task.features.standardisation
  means, scales = np.array(standard.means), np.array(standard.scales)
  change = np.diag([*(1 / scales), 1.0])
  change[-1, :-1] = -means / scales
  return change, np.array(task.targets.scales), np.array(task.targets.means)


def drift_by_steps(
  task: tasks.LinearTask, pooled: np.ndarray, learning_rate: float
) -> dict[int, float]:
  """Says how far from the pooled solution FedAvg ends, by local steps.

  It looks at each client's sums, which only a simulation can.

  Args:
    task: What was learned, of the linear family.
    pooled: The pooled solution.
    learning_rate: Of the clients' gradient descent.

  Returns:
    The largest difference of a coefficient by full-batch steps of a round;
    empty where a client's gradient descent diverges at this rate.
  """
  batches = [
    task.preprocess(task.data.train.client(client))
    for client, count in task.data.train.num_examples.items()
    if count
  ]
  clients = [(batch['x'].numpy(), batch['y'].numpy()) for batch in batches]
  quadratics = drift.quadratics(clients, task.l2_penalty)
  # The loss is a mean over targets.
  rate = learning_rate / pooled.shape[1]
  if rate * np.linalg.eigvalsh(quadratics[0]).max() >= 1:
    return {}
  return {
    steps: float(
      np.abs(drift.fixed_point(*quadratics, rate, steps) - pooled).max()
    )
    for steps in _LOCAL_STEPS
  }


def predictions(
  task: tasks.LinearTask, model: tf.keras.Model, x: np.ndarray
) -> np.ndarray:
  """Returns predictions [n, targets] in the targets' units."""
  parts = [
    saved_model.servable_outputs(
      task, model, tf.constant(x[start : start + _ROWS])
    )['prediction'].numpy()
    for start in range(0, len(x), _ROWS)
  ]
  return np.concatenate(parts)


def clients(
  task: tasks.LinearTask, evaluator: evaluation.Evaluator
) -> pd.DataFrame:
  """Returns how well the model fits each client, and all of them together.

  Args:
    task: What was learned.
    evaluator: Carries the trained weights.

  Returns:
    A table with the columns `split`, `client` (or POOLED), `examples`; of
    regression `target`, `rmse` in its units and `r2`, 1 - the squared errors'
    share of the squared deviations from the client's own mean, empty where
    these are zero; of classification `loss` and `accuracy`.
  """
  rows = []
  for split_name in ('train', 'test'):
    split = getattr(task.data, split_name)
    if task.kind == 'classification':
      rows += _classification_rows(split_name, split, evaluator)
      continue
    pooled = split.pooled()
    predicted = predictions(task, evaluator.model, pooled['x'])
    start = 0
    for client, count in [
      *split.num_examples.items(),
      (POOLED, split.total_examples),
    ]:
      first = 0 if client == POOLED else start
      part = slice(first, first + count)
      start += count
      if not count:
        continue
      for k, target in enumerate(task.data.target_names):
        rmse, r2 = quality(pooled['y'][part, k], predicted[part, k])
        rows.append(
          {
            'split': split_name,
            'client': client,
            'examples': count,
            'target': target,
            'rmse': rmse,
            'r2': r2,
          }
        )
  return pd.DataFrame(rows)


def quality(y: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
  """Returns RMSE and R2 (NaN where all y are equal) of numbers [n]."""
  y, predicted = y.astype(np.float64), predicted.astype(np.float64)
  squares = float(np.sum((y - predicted) ** 2))
  deviations = float(np.sum((y - y.mean()) ** 2))
  r2 = 1 - squares / deviations if deviations else np.nan
  return np.sqrt(squares / len(y)), r2


def _classification_rows(
  name: str, split: federated_data.Split, evaluator: evaluation.Evaluator
) -> list[dict]:
  found = evaluator.evaluate_clients(split)
  found[POOLED] = evaluator.evaluate(split)
  sizes = {**split.num_examples, POOLED: split.total_examples}
  return [
    {'split': name, 'client': client, 'examples': sizes[client], **metrics}
    for client, metrics in found.items()
  ]


def _write_csv(path: pathlib.Path, table: pd.DataFrame) -> None:
  buffer = io.StringIO()
  table.to_csv(buffer, index=False, lineterminator='\n')
  atomic.write_text(path, buffer.getvalue())
