"""Flags of regression on tables: which data, which model."""

import dataclasses
from collections.abc import Sequence

from absl import flags

from datasets import regression, synthetic_regression
from models import linear
from research import flag_values
from research.tasks import linear_regression as tasks
from research.tasks import task as task_lib

FLAGS = flag_values.FLAGS
define = flag_values.define
enum = flag_values.enum
refuse_unused = flag_values.refuse_unused

# The fields of the synthetic configuration by flag.
_SYNTHETIC = {
  'clients': ('integer', 'Clients.'),
  'alpha': ('float', "How much the clients' true weights differ."),
  'beta': ('float', "How much the clients' features differ."),
  'features': ('integer', 'Features.'),
  'nonzero_features': ('integer', 'Features that explain anything; all.'),
  'targets': ('integer', 'Targets.'),
  'examples': ('integer', 'Training examples of a mean client.'),
  'noise': ('float', 'Standard deviation of the noise of the targets.'),
}
# What a generated set uses of them.
_USED = {
  'synthetic_numbers': set(_SYNTHETIC),
  'synthetic_counts': set(_SYNTHETIC) - {'noise'},
  'synthetic_classes': {'clients', 'alpha', 'beta'},
}


class DataFlags:
  """Which table, and how its rows are divided over clients."""

  def __init__(self):
    enum('dataset', None, regression.DATASETS, "Data; the model's by default.")
    text = "How rows go to clients; the data's own way by default."
    enum('partition', None, regression.PARTITIONS, text)
    defaults = regression.Config('diabetes')
    text = 'Clients that a partition makes (not natural).'
    define('integer', 'partition_clients', defaults.num_clients, text)
    text = 'For --partition=shards.'
    define('integer', 'shards_per_client', defaults.shards_per_client, text)
    text = 'For quantity_skew; small is skewed.'
    alpha = defaults.quantity_skew_alpha
    define('float', 'quantity_skew_alpha', alpha, text)
    for name, (kind, text) in _SYNTHETIC.items():
      default = getattr(defaults.synthetic, name)
      if name == 'clients':
        default, text = None, 'Clients; 20, or 30 of synthetic_classes.'
      define(kind, f'synthetic_{name}', default, f'Of generated data: {text}')
    text = 'Folder of fetched data; ~/.cache/tff_research by default.'
    define('string', 'cache_dir', None, text, free=True)
    text = 'Own CSV, NPZ, Parquet or TFRecord file, for --dataset=file.'
    define('string', 'data_file', None, text)
    define('string', 'client_column', 'client_id', 'Its column of client ids.')
    text = 'Its columns to explain; one column of classes for logistic.'
    define('list', 'target_columns', ['target'], text)
    text = 'Its column that says train or test.'
    define('string', 'split_column', None, text)
    text = 'Share of each client that is test data, without a split column.'
    define('float', 'test_fraction', defaults.test_fraction, text)

  def get(self, dataset: str, classes: bool, seed: int) -> regression.Config:
    """Returns the data's description.

    Args:
      dataset: Used if no flag names one.
      classes: Whether an own file's target is a class.
      seed: Decides the partition and what is generated.

    Returns:
      The configuration.

    Raises:
      flags.IllegalFlagValueError: If a flag is set that nothing uses.
      ValueError: If the configuration makes no sense.
    """
    dataset = FLAGS.dataset or dataset
    used = _USED.get(dataset, set())
    refuse_unused(
      [f'synthetic_{name}' for name in _SYNTHETIC if name not in used],
      f'by --dataset={dataset}',
    )
    own = {'client_column', 'split_column', 'test_fraction'}
    if dataset != 'file':
      refuse_unused([*sorted(own), 'target_columns'], f'by --dataset={dataset}')
    form = {name: FLAGS[f'synthetic_{name}'].value for name in _SYNTHETIC}
    if form['clients'] is None:
      form['clients'] = 30 if dataset == 'synthetic_classes' else 20
    config = regression.Config(
      dataset=dataset,
      partition=FLAGS.partition,
      num_clients=FLAGS.partition_clients,
      shards_per_client=FLAGS.shards_per_client,
      quantity_skew_alpha=FLAGS.quantity_skew_alpha,
      seed=seed,
      synthetic=synthetic_regression.Config(**form, seed=seed),
      cache_dir=FLAGS.cache_dir,
      data_file=FLAGS.data_file,
      target_columns=tuple(FLAGS.target_columns),
      classes=classes and dataset == 'file',
      **{name: FLAGS[name].value for name in own},
    )
    how = regression.resolve_partition(config)
    needed = {
      'natural': set(),
      'iid': {'partition_clients'},
      'shards': {'partition_clients', 'shards_per_client'},
      'quantity_skew': {'partition_clients', 'quantity_skew_alpha'},
    }
    every = set().union(*needed.values())
    refuse_unused(sorted(every - needed[how]), f'by --partition={how}')
    return config


class ModelFlags:
  """Which model, and how its features are made."""

  def __init__(self):
    enum('model', 'linear', linear.FAMILIES, 'What kind of regression.')
    text = 'lambda of the penalty lambda ||W||^2; with linear it is ridge.'
    define('float', 'l2_penalty', 0.0, text, lower_bound=0.0)
    text = 'Products of up to so many features are features, too.'
    define('integer', 'polynomial_degree', 1, text, lower_bound=1)
    text = 'Subtract means and divide by scales, both found by federated sums.'
    define('boolean', 'standardise', True, text)
    for name in ('feature', 'target'):
      text = f'Known in place of federated sums: of each {name}.'
      for what in ('means', 'scales'):
        define('list', f'{name}_{what}', None, text)

  def build_task(self, data_flags: DataFlags, seed: int) -> task_lib.Task:
    """Loads the data, standardises it, and builds the task.

    What the sums find is put into the flags, which are saved with the run: a
    model meets other data with the standardisation that it was trained with.

    Args:
      data_flags: Say which data.
      seed: Of partition and generated data.

    Returns:
      The task.

    Raises:
      flags.IllegalFlagValueError: If flags do not fit together.
      ValueError: If flags and data do not.
    """
    family = FLAGS.model
    if FLAGS.l2_penalty:
      # TFF's functional models drop penalties without a word.
      refuse_unused(['mixed_precision'], 'with --l2_penalty')
    if not FLAGS.standardise:
      refuse_unused(
        ['feature_means', 'feature_scales', 'target_means', 'target_scales'],
        'with --nostandardise',
      )
    elif family != 'linear':
      refuse_unused(['target_means', 'target_scales'], f'by --model={family}')
    data = regression.load(
      data_flags.get(tasks.DATASETS[family], family == 'logistic', seed)
    )
    standard = {
      'feature': _given('feature'),
      'target': _given('target'),
    }
    identity = linear.Standardisation.identity
    if not FLAGS.standardise:
      standard['feature'] = identity(len(data.feature_names))
    if not FLAGS.standardise or family != 'linear':
      standard['target'] = identity(tasks.num_predictors(data))
    if None in standard.values():
      _refuse_if_private()
      found = tasks.standardise(data, family)
      for name, values in zip(('feature', 'target'), found, strict=True):
        if standard[name] is None:
          standard[name] = values
          _save(name, values)
    return tasks.build(
      data,
      family,
      linear.Features(standard['feature'], FLAGS.polynomial_degree),
      standard['target'],
      FLAGS.l2_penalty,
    )


def _refuse_if_private() -> None:
  if FLAGS.dp_mechanism != 'none' and not FLAGS.allow_unaccounted_release:
    raise flags.IllegalFlagValueError(
      f'--dp_mechanism={FLAGS.dp_mechanism}: standardisation by the sums of '
      'clients without noise. Give means and scales that are public, by '
      '--feature_means, --feature_scales, --target_means and --target_scales, '
      'or --nostandardise; or give --allow_unaccounted_release, of which the '
      'model card then tells.'
    )


def _given(name: str) -> linear.Standardisation | None:
  """Reads a standardisation from its two flags, or neither."""
  means, scales = (
    FLAGS[f'{name}_{what}'].value for what in ('means', 'scales')
  )
  if means is None and scales is None:
    return None
  values = []
  for what, words in (('means', means), ('scales', scales)):
    try:
      values.append(tuple(float(word) for word in words or ()))
    except ValueError as error:
      raise flags.IllegalFlagValueError(
        f'--{name}_{what}={_joined(words)} must be numbers: {error}.'
      ) from error
  if not all(scale > 0 for scale in values[1]):
    raise flags.IllegalFlagValueError(
      f'--{name}_scales={_joined(scales or ())} must be above 0.'
    )
  return linear.Standardisation(*values)


def _save(name: str, standard: linear.Standardisation) -> None:
  for what, values in dataclasses.asdict(standard).items():
    FLAGS[f'{name}_{what}'].value = [repr(value) for value in values]


def _joined(words: Sequence[str]) -> str:
  return ','.join(words)
