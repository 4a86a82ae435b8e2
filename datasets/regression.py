"""Loads any table for regression by name, divided among clients as asked."""

import collections
import dataclasses
from collections.abc import Callable

import numpy as np
from sklearn import datasets as sklearn_datasets

from datasets import (
  digits,
  federated_data,
  own_file,
  partition,
  real_tables,
  synthetic_regression,
)

NUMBERS, COUNTS, CLASSES = 'numbers', 'counts', 'classes'

# Sets whose examples come in natural groups, and those that come without.
_NATURAL = {
  'synthetic_numbers': 'generated; clients with their own optima',
  'synthetic_counts': 'generated counts, likewise',
  'synthetic_classes': 'Synthetic(alpha, beta) of FedProx, 10 classes',
  **{name: table.text for name, table in real_tables.TABLES.items()},
  'file': 'own data: a CSV, NPZ, Parquet or TFRecord file (--data_file)',
}
_WITHOUT_CLIENTS = {
  'diabetes': '442 patients, disease progression; needs no network',
  'breast_cancer': '569 tumours, benign or malignant; needs no network',
}
DATASETS = {**_WITHOUT_CLIENTS, **_NATURAL}
PARTITIONS = {
  'natural': "the data's own clients",
  'iid': 'shuffled and dealt out evenly',
  'shards': 'sorted by the first target, a few shards for each client',
  'quantity_skew': 'targets at random, sizes by a Dirichlet draw',
}
_TEST_FRACTION = 0.2
# The test examples are the same in every run.
_TEST_SEED = 20_040_630


@dataclasses.dataclass(frozen=True)
class Config:
  """Which table, and how it is divided.

  Attributes:
    dataset: A key of `DATASETS`.
    partition: A key of `PARTITIONS`; None is natural, or iid where the data
      has no clients of its own.
    num_clients: Clients of an artificial partition.
    shards_per_client: For shards.
    quantity_skew_alpha: For quantity_skew.
    seed: Decides the partition and what is generated.
    synthetic: The form of generated data.
    cache_dir: Where fetched data is kept.
    data_file: For the data set 'file', as for all that follow.
    client_column: Column of the client id.
    target_columns: Columns of the numbers or of the one class to explain.
    split_column: Column that says train or test; None draws a test split.
    test_fraction: Share of that test split.
    classes: Whether the file's target is a class.
  """

  dataset: str
  partition: str | None = None
  num_clients: int = 10
  shards_per_client: int = 2
  quantity_skew_alpha: float = 0.5
  seed: int = 0
  synthetic: synthetic_regression.Config = synthetic_regression.Config()
  cache_dir: str | None = None
  data_file: str | None = None
  client_column: str = 'client_id'
  target_columns: tuple[str, ...] = ('target',)
  split_column: str | None = None
  test_fraction: float = 0.2
  classes: bool = False


def load(config: Config) -> federated_data.FederatedData:
  """Loads a table.

  Args:
    config: Which, and how it is divided.

  Returns:
    The data: 'x' float32 [n, features], 'y' float32 [n, targets] or, of
    classes, int32 [n].

  Raises:
    ValueError: If the configuration makes no sense.
    DataError: If the data cannot be had or is not right.
  """
  how = resolve_partition(config)
  data = _load(config)
  if how == 'natural':
    return dataclasses.replace(data, partition=how)
  pooled = data.train.pooled()
  y = pooled['y'] if pooled['y'].ndim == 1 else pooled['y'][:, 0]
  train = federated_data.Split.from_arrays(pooled, _divide(how, y, config))
  return dataclasses.replace(data, partition=how, train=train)


def resolve_partition(config: Config) -> str:
  """Returns the partition's name, after a check of the configuration."""
  if config.dataset not in DATASETS:
    raise ValueError(
      f'dataset must be one of {", ".join(DATASETS)}, given {config.dataset!r}.'
    )
  if (config.data_file is None) == (config.dataset == 'file'):
    raise ValueError(
      'data_file goes with the data set file, and only with it; given '
      f'data_file={config.data_file!r} and dataset={config.dataset!r}.'
    )
  if config.classes and len(config.target_columns) != 1:
    raise ValueError(
      f'A class is one target column, given {list(config.target_columns)}.'
    )
  without = config.dataset in _WITHOUT_CLIENTS
  how = config.partition or ('iid' if without else 'natural')
  if how not in PARTITIONS:
    raise ValueError(
      f'partition must be one of {", ".join(PARTITIONS)}, given {how!r}.'
    )
  if without and how == 'natural':
    others = ', '.join(p for p in PARTITIONS if p != 'natural')
    raise ValueError(
      f'{config.dataset} has no clients of its own; partition must be one of '
      f'{others}.'
    )
  return how


def responses(data: federated_data.FederatedData) -> str:
  """Says what the targets of data are: numbers, counts or classes."""
  if data.num_classes:
    return CLASSES
  for client in data.train.client_ids:
    y = data.train.client(client)['y']
    if (y < 0).any() or (y != np.round(y)).any():
      return NUMBERS
  return COUNTS


def _divide(
  how: str, targets: np.ndarray, config: Config
) -> collections.OrderedDict[str, np.ndarray]:
  settings = {
    'iid': {},
    'shards': {'shards_per_client': config.shards_per_client},
    'quantity_skew': {'alpha': config.quantity_skew_alpha},
  }
  return getattr(partition, how)(
    targets, config.num_clients, seed=config.seed, **settings[how]
  )


def _load(config: Config) -> federated_data.FederatedData:
  name, synthetic = config.dataset, config.synthetic
  if name in real_tables.TABLES:
    return real_tables.load(name, config.cache_dir)
  if name == 'file':
    return _load_file(config)
  if name == 'synthetic_classes':
    return synthetic_regression.load_fedprox(
      synthetic.alpha, synthetic.beta, synthetic.clients, synthetic.seed
    )
  if name in ('synthetic_numbers', 'synthetic_counts'):
    return synthetic_regression.load(synthetic, name == 'synthetic_counts')
  return _EMBEDDED[name]()


def _load_file(config: Config) -> federated_data.FederatedData:
  label = config.target_columns[0] if config.classes else None
  targets = () if config.classes else config.target_columns
  data = own_file.load(
    config.data_file,
    own_file.Columns(config.client_column, label, config.split_column, targets),
    test_fraction=config.test_fraction,
  )
  shape = data.train.element_spec['x'].shape
  if len(shape) != 1:
    raise federated_data.DataError(
      f'{config.data_file}: features must be numbers or one vector, given '
      f'arrays of shape {shape}.'
    )
  return data


def _load_diabetes() -> federated_data.FederatedData:
  raw = sklearn_datasets.load_diabetes(scaled=False)
  return _embedded(
    'diabetes',
    raw.data,
    raw.target.astype(np.float32)[:, None],
    raw.feature_names,
    federated_data.Source(
      title='Diabetes (scikit-learn)',
      licence='none stated; BSD-3-Clause with scikit-learn',
      citation=(
        'B. Efron, T. Hastie, I. Johnstone, R. Tibshirani. Least angle '
        'regression. Annals of Statistics 32(2), 2004.'
      ),
      url='https://www4.stat.ncsu.edu/~boos/var.select/diabetes.html',
    ),
    target_names=('progression',),
  )


def _load_breast_cancer() -> federated_data.FederatedData:
  raw = sklearn_datasets.load_breast_cancer()
  return _embedded(
    'breast_cancer',
    raw.data,
    raw.target.astype(np.int32),
    raw.feature_names,
    federated_data.Source(
      title='Breast cancer Wisconsin, diagnostic (scikit-learn)',
      licence='CC BY 4.0',
      citation=(
        'W. Wolberg, O. Mangasarian, N. Street, W. Street. Breast Cancer '
        'Wisconsin (Diagnostic). UCI Machine Learning Repository, 1995.'
      ),
      url='https://archive.ics.uci.edu/dataset/17',
    ),
    class_names=tuple(map(str, raw.target_names)),
  )


_EMBEDDED: dict[str, Callable[[], federated_data.FederatedData]] = {
  'diabetes': _load_diabetes,
  'breast_cancer': _load_breast_cancer,
}


def _embedded(
  name, x, y, feature_names, source, class_names=(), target_names=()
) -> federated_data.FederatedData:
  """A table without clients: one client 'train' and one client 'test'."""
  arrays = {'x': np.asarray(x, np.float32), 'y': y}
  train, test = digits.split_each(
    {'all': np.arange(len(y))}, _TEST_FRACTION, _TEST_SEED
  )
  return federated_data.FederatedData(
    name=name,
    partition='none',
    train=federated_data.Split.from_arrays(arrays, {'train': train['all']}),
    validation=None,
    test=federated_data.Split.from_arrays(arrays, {'test': test['all']}),
    num_classes=len(class_names),
    class_names=class_names,
    source=source,
    content_sha256=federated_data.content_hash(arrays),
    feature_names=tuple(map(str, feature_names)),
    target_names=target_names,
  )
