"""Loads any data set by name, divided among clients as asked."""

import collections
import dataclasses

import numpy as np

from datasets import (
  cifar10,
  digits,
  emnist,
  federated_data,
  image_sets,
  mnist,
  own_file,
  partition,
  synthetic,
  validation,
  writers,
)

REAL_DATASETS = {
  'emnist_digits': 'federated EMNIST, 10 digits by 3,383 writers',
  'emnist_characters': 'federated EMNIST, 62 characters by 3,400 writers',
  'mnist': 'MNIST, 60,000 digits; by 539 writers with --partition=writer',
  'fashion_mnist': 'Fashion-MNIST, 60,000 garments of 10 classes',
  'cifar10': 'CIFAR-10, 50,000 colour images of 10 classes',
  'digits': 'scikit-learn digits by 14 writer forms; needs no network',
}
DATASETS = {
  **REAL_DATASETS,
  **{
    synthetic.PREFIX + name: f'small generated twin of {name}'
    for name in REAL_DATASETS
  },
  'file': 'own data: a CSV, NPZ, Parquet or TFRecord file (--data_file)',
}
PARTITIONS = {
  'natural': "the data's own client ids",
  'writer': 'natural, where the clients are writers (EMNIST, MNIST, digits)',
  'iid': 'shuffled and dealt out evenly',
  'shards': 'sorted by label, a few shards for each client (McMahan 2017)',
  'dirichlet': 'each label divided by a Dirichlet draw',
  'power_law': 'two labels for each client, sizes by a power law (FedProx)',
  'classes': 'some labels for each client, divided equally (NIID-Bench)',
  'quantity_skew': 'labels at random, sizes by a Dirichlet draw',
}
NATURAL_PARTITIONS = ('natural', 'writer')
_DEFAULT_IID = ('mnist', 'fashion_mnist', 'cifar10')
_NO_CLIENTS = ('fashion_mnist', 'cifar10')


@dataclasses.dataclass(frozen=True)
class LoadConfig:
  """Which data, and how it is divided.

  Attributes:
    dataset: A key of `DATASETS`.
    partition: A key of `PARTITIONS`; None is the set's own way: iid for the
      sets that are published without clients, else natural.
    num_clients: Clients of an artificial partition.
    shards_per_client: For shards.
    dirichlet_alpha: For dirichlet.
    power_law_exponent: For power_law; 0 is equal sizes.
    classes_per_client: For classes.
    quantity_skew_alpha: For quantity_skew.
    seed: Decides the partition and the validation data.
    validation_examples: How many training examples to hold out.
    validation_by: 'examples' holds out examples of all clients, 'clients'
      whole clients until they have so many examples.
    data_dir: A directory with the user's copy of the set's published files.
    cache_dir: Where fetched data is kept; see `download.cache_directory`.
    data_file: For the data set 'file', as for all that follow.
    client_column: Column of the client id.
    label_column: Column of the label.
    split_column: Column that says train, validation or test; None draws a
      test split from each client.
    test_fraction: Share of that test split.
    feature_shape: Shape of an example's features, where columns do not say.
  """

  dataset: str
  partition: str | None = None
  num_clients: int = 100
  shards_per_client: int = 2
  dirichlet_alpha: float = 0.5
  power_law_exponent: float = 1.0
  classes_per_client: int = 2
  quantity_skew_alpha: float = 0.5
  seed: int = 0
  validation_examples: int = 0
  validation_by: str = 'examples'
  data_dir: str | None = None
  cache_dir: str | None = None
  data_file: str | None = None
  client_column: str = 'client_id'
  label_column: str = 'label'
  split_column: str | None = None
  test_fraction: float = 0.2
  feature_shape: tuple[int, ...] | None = None


def load(config: LoadConfig) -> federated_data.FederatedData:
  """Loads a data set.

  Args:
    config: Which, and how it is divided.

  Returns:
    The data. Training clients follow the partition; the test split keeps the
    set's own clients where they were loaded, else it has one client 'test'.

  Raises:
    ValueError: If the configuration makes no sense.
    DataError: If the data cannot be had or is not right.
  """
  how = resolve_partition(config)
  data = _SOURCES[config.dataset](config, how in NATURAL_PARTITIONS)
  return arrange(data, how, config)


def arrange(
  data: federated_data.FederatedData, how: str, config: LoadConfig
) -> federated_data.FederatedData:
  """Divides training data among clients and holds validation data out.

  Args:
    data: By its natural clients, or of one client for each split.
    how: A key of `PARTITIONS`.
    config: Its settings; any type with these attributes will do.

  Returns:
    The data so divided.

  Raises:
    ValueError: If the configuration doesn't fit the data.
  """
  train, held_out = data.train, data.validation
  wanted = config.validation_examples
  if wanted and held_out is not None:
    raise ValueError(
      'validation_examples must be 0 where the data, or its split_column, '
      'gives validation data.'
    )
  # Before the artificial partition, so that its clients stay equal in size.
  if wanted and config.validation_by == 'examples':
    train, held_out = validation.hold_out_examples(train, wanted, config.seed)
    if data.partition == 'none':
      held_out = federated_data.Split.from_client_arrays(
        {'validation': held_out.pooled()}
      )
  if how not in NATURAL_PARTITIONS:
    pooled = train.pooled()
    train = federated_data.Split.from_arrays(
      pooled, _divide(how, pooled['y'], config)
    )
  if wanted and config.validation_by == 'clients':
    train, held_out = validation.hold_out_clients(train, wanted, config.seed)
  return dataclasses.replace(
    data, partition=how, train=train, validation=held_out
  )


def resolve_partition(config: LoadConfig) -> str:
  """Returns the partition's name, after a check of the configuration."""
  for name, value, allowed in (
    ('dataset', config.dataset, DATASETS),
    ('partition', config.partition, [None, *PARTITIONS]),
    ('validation_by', config.validation_by, ('examples', 'clients')),
  ):
    if value not in allowed:
      raise ValueError(
        f'{name} must be one of {", ".join(filter(None, allowed))}, given '
        f'{value!r}.'
      )
  if config.validation_examples < 0:
    raise ValueError(
      'validation_examples must not be negative, given '
      f'{config.validation_examples}.'
    )
  twin = config.dataset.removeprefix(synthetic.PREFIX)
  generated = twin != config.dataset
  if config.data_dir and (generated or twin in ('digits', 'file')):
    raise ValueError(f'data_dir is not used by the data set {config.dataset}.')
  if (config.data_file is None) == (config.dataset == 'file'):
    raise ValueError(
      'data_file goes with the data set file, and only with it; given '
      f'data_file={config.data_file!r} and dataset={config.dataset!r}.'
    )
  how = config.partition
  if how is None:
    return 'iid' if twin in _DEFAULT_IID else 'natural'
  if how in NATURAL_PARTITIONS and twin in _NO_CLIENTS:
    others = [p for p in PARTITIONS if p not in NATURAL_PARTITIONS]
    raise ValueError(
      f'{config.dataset} has no clients of its own, so partition cannot be '
      f'{how}; use one of {", ".join(others)}.'
    )
  if how == 'writer' and twin == 'file':
    raise ValueError(
      'Nothing says that the clients of a file are writers; use '
      'partition=natural.'
    )
  return how


def _divide(
  how: str, labels: np.ndarray, config: LoadConfig
) -> collections.OrderedDict[str, np.ndarray]:
  settings = {
    'iid': {},
    'shards': {'shards_per_client': config.shards_per_client},
    'dirichlet': {'alpha': config.dirichlet_alpha},
    'power_law': {'exponent': config.power_law_exponent},
    'classes': {'classes_per_client': config.classes_per_client},
    'quantity_skew': {'alpha': config.quantity_skew_alpha},
  }
  function = getattr(partition, how)
  return function(labels, config.num_clients, seed=config.seed, **settings[how])


def _load_mnist(
  config: LoadConfig, natural: bool
) -> federated_data.FederatedData:
  if natural:
    return writers.load(config.data_dir, config.cache_dir)
  return image_sets.load(mnist.MNIST, config.data_dir, config.cache_dir)


def _load_file(config: LoadConfig, _: bool) -> federated_data.FederatedData:
  columns = own_file.Columns(
    config.client_column, config.label_column, config.split_column
  )
  return own_file.load(
    config.data_file,
    columns,
    test_fraction=config.test_fraction,
    feature_shape=config.feature_shape,
  )


_SOURCES = {
  'emnist_digits': lambda config, _: emnist.load(
    'emnist_digits', 'digits_only', config.data_dir, config.cache_dir
  ),
  'emnist_characters': lambda config, _: emnist.load(
    'emnist_characters', 'all', config.data_dir, config.cache_dir
  ),
  'mnist': _load_mnist,
  'fashion_mnist': lambda config, _: image_sets.load(
    mnist.FASHION_MNIST, config.data_dir, config.cache_dir
  ),
  'cifar10': lambda config, _: image_sets.load(
    cifar10.CIFAR10, config.data_dir, config.cache_dir
  ),
  'digits': lambda config, _: digits.load(),
  'file': _load_file,
  **{
    synthetic.PREFIX + name: lambda config, natural, name=name: synthetic.load(
      name, natural
    )
    for name in REAL_DATASETS
  },
}
