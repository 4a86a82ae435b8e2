"""Loads any text set by name, divided among clients as asked.

Texts come as they are written; `word_pieces.tokenise` makes ids of them.
"""

import dataclasses

from datasets import (
  federated_data,
  synthetic,
  text_file,
  text_records,
  text_sets,
  text_synthetic,
)
from datasets import (
  load as load_lib,
)

TEXT_DATASETS = {
  **{name: text_set.text for name, text_set in text_sets.SETS.items()},
  **{
    synthetic.PREFIX + name: f'small generated twin of {name}'
    for name in text_sets.SETS
  },
  'file': 'own texts: a CSV, JSONL or CoNLL column file (--data_file)',
}
# Of own texts `kind` knows more: their file and columns decide.
KINDS = {
  **{name: text_set.kind for name, text_set in text_sets.SETS.items()},
  **{
    synthetic.PREFIX + name: text_set.kind
    for name, text_set in text_sets.SETS.items()
  },
  'file': text_records.CLASSIFICATION,
}
PARTITIONS = {k: v for k, v in load_lib.PARTITIONS.items() if k != 'writer'}
# Tags and running text have no label for each example to divide by.
_WITHOUT_LABELS = ('natural', 'iid', 'quantity_skew')


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """Which texts, and how they are divided.

  Attributes:
    dataset: A key of `TEXT_DATASETS`.
    partition: A key of `PARTITIONS`; None is the set's own: natural, iid where
      it is published without clients, dirichlet for newsgroups as in FedNLP
      (Lin et al. 2022, https://arxiv.org/abs/2104.08815).
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
    data_dir: A directory with the archive that carries the set, fetched by
      hand.
    cache_dir: Where fetched data is kept; see `download.cache_directory`.
    data_file: For the data set 'file', as for all that follow.
    client_column: Column of the client id.
    text_column: Column of the text.
    label_column: Column of the label; None for language models.
    split_column: Column that says train, validation or test; None draws a
      test split from each client.
    test_fraction: Share of that test split.
  """

  dataset: str
  partition: str | None = None
  num_clients: int = 100
  shards_per_client: int = 2
  dirichlet_alpha: float = 1.0
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
  text_column: str = 'text'
  label_column: str | None = 'label'
  split_column: str | None = None
  test_fraction: float = 0.2


def load(config: TextConfig) -> federated_data.FederatedData:
  """Loads a text set.

  Args:
    config: Which, and how it is divided.

  Returns:
    The data. 'x' and 'y' are, by `kind`:
    classification: object [n] of str, and int32 [n];
    tagging: object [n] of tuples of words, and object [n] of int32 [words],
    positions in `class_names`;
    language: object [n] of str, and zeros, int32 [n]; `class_names` is empty.
    Training clients follow the partition; the test split keeps natural
    clients, or has one client 'test' where there are none. `text_sets.TextSet`
    says how each set's test split is drawn.

  Raises:
    ValueError: If the configuration makes no sense.
    DataError: If the data cannot be had or is not right.
  """
  how = resolve_partition(config)
  name = config.dataset
  if name == 'file':
    data = text_file.load(
      config.data_file,
      text_file.Columns(
        config.client_column,
        config.text_column,
        config.label_column,
        config.split_column,
      ),
      test_fraction=config.test_fraction,
    )
  elif name.startswith(synthetic.PREFIX):
    data = text_synthetic.load(name.removeprefix(synthetic.PREFIX))
  else:
    data = text_sets.load(name, config.data_dir, config.cache_dir)
  return load_lib.arrange(data, how, config)


def kind(config: TextConfig) -> str:
  """Returns 'classification', 'tagging' or 'language'."""
  if config.dataset == 'file' and config.data_file:
    if text_file.is_columns(config.data_file):
      return text_records.TAGGING
    if config.label_column is None:
      return text_records.LANGUAGE
  return KINDS[config.dataset]


def resolve_partition(config: TextConfig) -> str:
  """Returns the partition's name, after a check of the configuration."""
  for name, value, allowed in (
    ('dataset', config.dataset, TEXT_DATASETS),
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
  if config.data_dir and config.dataset not in text_sets.SETS:
    raise ValueError(f'data_dir is not used by the data set {config.dataset}.')
  if (config.data_file is None) == (config.dataset == 'file'):
    raise ValueError(
      'data_file goes with the data set file, and only with it; given '
      f'data_file={config.data_file!r} and dataset={config.dataset!r}.'
    )
  form = text_sets.SETS.get(config.dataset.removeprefix(synthetic.PREFIX))
  how = config.partition or (form.partition if form else 'natural')
  _check_partition(config, how, natural=form is None or bool(form.clients))
  return how


def _check_partition(config: TextConfig, how: str, *, natural: bool) -> None:
  allowed = list(PARTITIONS)
  if kind(config) != text_records.CLASSIFICATION:
    allowed = [p for p in allowed if p in _WITHOUT_LABELS]
  reason = 'its examples have no single label to divide by'
  if how == 'natural' and not natural:
    reason = 'it has no clients of its own'
  if not natural:
    allowed.remove('natural')
  if how not in allowed:
    raise ValueError(
      f'{config.dataset} cannot have the partition {how}: {reason}; use one of '
      f'{", ".join(allowed)}.'
    )
