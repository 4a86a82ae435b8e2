"""Flags of how examples are divided among clients, and what is held out."""

from collections.abc import Mapping

from datasets import load
from research import flag_values

# What each partition uses, with the kind of the flag and its help.
_OF_PARTITION = {
  'shards': ('integer', 'shards_per_client', 'For --partition=shards.'),
  'dirichlet': ('float', 'dirichlet_alpha', 'For dirichlet; small is skewed.'),
  'power_law': (
    'float',
    'power_law_exponent',
    'For power_law; 0 is equal sizes.',
  ),
  'classes': (
    'integer',
    'classes_per_client',
    'Labels of each client, for --partition=classes.',
  ),
  'quantity_skew': (
    'float',
    'quantity_skew_alpha',
    'For quantity_skew; small is skewed.',
  ),
}
_DEFAULTS = load.LoadConfig('digits')


def define_flags(partitions: Mapping[str, str], **defaults: float) -> None:
  """Defines the flags.

  Args:
    partitions: The choices of `--partition`.
    **defaults: Defaults that differ from those of `load.LoadConfig`.
  """
  text = "How examples go to clients; the dataset's own way by default."
  flag_values.enum('partition', None, partitions, text)
  text = 'Clients that a partition makes (not natural or writer).'
  flag_values.define('integer', 'partition_clients', 100, text)
  for kind, name, text in _OF_PARTITION.values():
    default = defaults.get(name, getattr(_DEFAULTS, name))
    flag_values.define(kind, name, default, text)
  text = 'Training examples that are held out.'
  flag_values.define('integer', 'validation_examples', 0, text, lower_bound=0)
  text = 'Hold out examples of all clients, or whole clients.'
  flag_values.enum('validation_by', 'examples', ['examples', 'clients'], text)


def refuse_unused(partition: str) -> None:
  """Raises if a flag is set that a partition does not use.

  Args:
    partition: The partition, by name.

  Raises:
    flags.IllegalFlagValueError: It names the flag.
  """
  others = [
    name for how, (_, name, _) in _OF_PARTITION.items() if how != partition
  ]
  if partition in load.NATURAL_PARTITIONS:
    others.append('partition_clients')
  flag_values.refuse_unused(others, f'by --partition={partition}')
  if not flag_values.FLAGS.validation_examples:
    flag_values.refuse_unused(
      ['validation_by'], 'without --validation_examples'
    )
