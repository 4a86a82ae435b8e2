"""Flag groups: each defines its flags once and returns what they describe.

A binary makes the groups that it needs at import and calls `get()` in main().
"""

import dataclasses
from collections.abc import Sequence

import tensorflow_federated as tff
from absl import flags

from datasets import load
from research import (
  aggregator_flags,
  constraint_flags,
  fault_flags,
  flag_values,
  partition_flags,
  privacy_flags,
  statistics_flags,
)
from research.algorithms import optimizers, registry
from research.tasks import task as task_lib
from research.training import (
  faults,
  loop,
  private_rounds,
  run_directory,
  sampling,
  schedules,
  trackers,
)

FLAGS = flag_values.FLAGS
define = flag_values.define
enum = flag_values.enum
refuse_unused = flag_values.refuse_unused


def _shape(words: Sequence[str]) -> tuple[int, ...]:
  """Reads `--feature_shape`."""
  if not all(word.strip().isdecimal() for word in words):
    raise flags.IllegalFlagValueError(
      f'--feature_shape={",".join(words)} must be whole numbers, as 28,28,1.'
    )
  return tuple(int(word) for word in words)


class DataFlags:
  """Which federated data, and how it is split over clients."""

  def __init__(self):
    enum('dataset', None, load.DATASETS, "Data; the task's usual by default.")
    partition_flags.define_flags(load.PARTITIONS)
    text = "Folder with your copy of the dataset's published files."
    define('string', 'data_dir', None, text, free=True)
    text = 'Folder of fetched data; ~/.cache/tff_research by default.'
    define('string', 'cache_dir', None, text, free=True)
    text = 'Own CSV, NPZ, Parquet or TFRecord file, for --dataset=file.'
    define('string', 'data_file', None, text)
    define('string', 'client_column', 'client_id', 'Its column of client ids.')
    define('string', 'label_column', 'label', 'Its column of labels.')
    text = 'Its column that says train, validation or test.'
    define('string', 'split_column', None, text)
    text = 'Share of each client that is test data, without a split column.'
    define('float', 'test_fraction', 0.2, text)
    text = 'Shape of its features, as 28,28,1.'
    define('list', 'feature_shape', None, text)

  def get(self, dataset: str, seed: int) -> load.LoadConfig:
    """Returns the data's description.

    Args:
      dataset: Used if no flag names one.
      seed: Decides the partition and what is held out.

    Returns:
      The configuration.

    Raises:
      flags.IllegalFlagValueError: If a flag is set that nothing uses.
    """
    fields = [field.name for field in dataclasses.fields(load.LoadConfig)]
    given = {n: FLAGS[n].value for n in fields if n in FLAGS and n != 'seed'}
    given['dataset'] = given['dataset'] or dataset
    given['num_clients'] = FLAGS.partition_clients
    if given['feature_shape'] is not None:
      given['feature_shape'] = _shape(given['feature_shape'])
    config = load.LoadConfig(**given, seed=seed)
    how = load.resolve_partition(config)
    partition_flags.refuse_unused(how)
    if config.dataset != 'file':
      refuse_unused(
        [n for n in fields if n.endswith('_column')]
        + ['test_fraction', 'feature_shape'],
        f'by --dataset={config.dataset}',
      )
    return config


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """An optimizer and its learning rate by round."""

  optimizer: tff.learning.optimizers.Optimizer
  schedule: schedules.Schedule


_GRADIENT_CLIP_NORM = 'client_gradient_clip_norm'


class OptimizerFlags:
  """One optimizer; `prefix` is client or server."""

  def __init__(self, prefix: str, learning_rate: float):
    self._prefix = prefix
    enum(
      f'{prefix}_optimizer',
      'sgd',
      sorted(optimizers.OPTIMIZERS),
      f'Optimizer of the {prefix}.',
    )
    rate = f'{prefix}_learning_rate'
    define('float', rate, learning_rate, 'Its learning rate.', lower_bound=0.0)
    for name in optimizers.HPARAMS:
      users = ', '.join(
        f'{key} {spec.hparams[name]}'
        for key, spec in optimizers.OPTIMIZERS.items()
        if name in spec.hparams
      )
      text = f'Defaults: {users}.'
      define('float', f'{prefix}_{name}', None, text, lower_bound=0.0)
    if prefix == 'client':
      text = 'Scale gradients of local steps down to this norm.'
      define('float', _GRADIENT_CLIP_NORM, None, text)
    enum(
      f'{rate}_schedule',
      schedules.CONSTANT,
      schedules.KINDS,
      'Its learning rate by round.',
    )
    text = 'Rounds over which the schedule decays; of plateau, its patience.'
    define('integer', f'{rate}_decay_rounds', None, text, lower_bound=1)
    text = 'Factor per decay_rounds (exponential), or per plateau.'
    define('float', f'{rate}_decay_rate', None, text, lower_bound=0.0)
    text = 'Rounds of linear warm-up.'
    define('integer', f'{rate}_warmup_rounds', 0, text, lower_bound=0)

  def get(self) -> OptimizerConfig:
    """Builds the optimizer; raises if a flag is set that it does not use."""
    prefix = self._prefix
    name = FLAGS[f'{prefix}_optimizer'].value
    used = optimizers.OPTIMIZERS[name].hparams
    refuse_unused(
      [f'{prefix}_{key}' for key in optimizers.HPARAMS if key not in used],
      f'by --{prefix}_optimizer={name}',
    )
    values = {key: FLAGS[f'{prefix}_{key}'].value for key in used}
    rate = f'{prefix}_learning_rate'
    schedule = schedules.Schedule(
      FLAGS[rate].value,
      kind=FLAGS[f'{rate}_schedule'].value,
      decay_rounds=FLAGS[f'{rate}_decay_rounds'].value,
      decay_rate=FLAGS[f'{rate}_decay_rate'].value,
      warmup_rounds=FLAGS[f'{rate}_warmup_rounds'].value,
    )
    given = {key: value for key, value in values.items() if value is not None}
    optimizer = optimizers.build(name, schedule.learning_rate, given)
    if prefix == 'client' and (norm := FLAGS[_GRADIENT_CLIP_NORM].value):
      optimizer = optimizers.GradientClipping(optimizer, norm)
    return OptimizerConfig(optimizer, schedule)


# What makes a flag of a hyperparameter, by the type of its default.
_KINDS = {
  bool: ('boolean', {}),
  float: ('float', {'lower_bound': 0.0}),
  int: ('integer', {'lower_bound': 0}),
  tuple: ('list', {}),
}


class AlgorithmFlags:
  """The federated algorithm with its two optimizers."""

  def __init__(self):
    enum(
      'algorithm',
      'fed_avg',
      sorted(registry.ALGORITHMS),
      'Federated algorithm; with a server optimizer fed_avg is FedOpt.',
    )
    enum(
      'client_weighting',
      'examples',
      ['examples', 'uniform'],
      "Weights of the clients' updates.",
    )
    for name in registry.HPARAMS:
      defaults = {
        key: algorithm.hparams[name]
        for key, algorithm in registry.ALGORITHMS.items()
        if name in algorithm.hparams
      }
      users = ', '.join(f'{key} {value}' for key, value in defaults.items())
      kind, kwargs = _KINDS[type(next(iter(defaults.values())))]
      define(kind, name, None, f'Defaults: {users}.', **kwargs)
    self._client = OptimizerFlags('client', 0.1)
    self._server = OptimizerFlags('server', 1.0)
    self._aggregator = aggregator_flags.AggregatorFlags()
    self._statistics = statistics_flags.StatisticsFlags()
    self._constraints = constraint_flags.ConstraintFlags()
    self._faults = fault_flags.FaultFlags()
    self._privacy = privacy_flags.PrivacyFlags()

  def get(
    self, loop_implementation: tff.learning.LoopImplementation
  ) -> tuple[registry.Algorithm, registry.Settings, loop.Schedules]:
    """Returns the algorithm, its settings, and its learning rates by round."""
    name = FLAGS.algorithm
    algorithm = registry.ALGORITHMS[name]
    unused = {*algorithm.unused_flags, *registry.HPARAMS}
    unused -= set(algorithm.hparams)
    has_none = [p for p in ('client', 'server') if f'{p}_optimizer' in unused]
    for prefix in has_none:
      rate = f'{prefix}_learning_rate'
      unused.update(n for n in flag_values.names() if n.startswith(rate))
      unused.update(f'{prefix}_{key}' for key in optimizers.HPARAMS)
      if prefix == 'client':
        unused.add(_GRADIENT_CLIP_NORM)
    refuse_unused(sorted(unused), f'by --algorithm={name}')
    client, server = self._client.get(), self._server.get()
    self._privacy.check([client.schedule, server.schedule])
    weightings = {
      'examples': tff.learning.ClientWeighting.NUM_EXAMPLES,
      'uniform': tff.learning.ClientWeighting.UNIFORM,
    }
    settings = registry.Settings(
      client_optimizer=client.optimizer,
      server_optimizer=server.optimizer,
      client_weighting=weightings[FLAGS.client_weighting],
      loop_implementation=loop_implementation,
      hparams={
        key: default if FLAGS[key].value is None else FLAGS[key].value
        for key, default in algorithm.hparams.items()
      },
      model_aggregator=self._aggregator.get(name),
      attack=self._faults.attack() or self._privacy.attack(),
      statistics=self._statistics.get(self._aggregator.of_statistics),
      pruning=self._constraints.pruning(),
      clustering=self._constraints.clustering(),
    )
    return (
      algorithm,
      settings,
      loop.Schedules(
        client=None if 'client' in has_none else client.schedule,
        server=None if 'server' in has_none else server.schedule,
      ),
    )

  def privacy(
    self,
    task: task_lib.Task,
    sampler: sampling.ClientSampler,
    run: run_directory.RunDirectory,
  ) -> private_rounds.PrivateRounds | None:
    """Returns what wraps private rounds; None without privacy."""
    return self._privacy.get(task, sampler, run)

  def private_aggregator(
    self, noise_multiplier: float
  ) -> tff.aggregators.WeightedAggregationFactory:
    """Builds the aggregator with a noise multiplier that has been found."""
    return self._aggregator.get(FLAGS.algorithm, noise_multiplier)

  def faults(self, task: task_lib.Task) -> faults.Faults:
    """Returns what goes wrong with the clients of a task."""
    return self._faults.get(task)


class TrainingFlags:
  """Cohort, local work, rounds and seed."""

  def __init__(self, total_rounds: int, client_batch_size: int):
    for name, default, text, free in (
      ('total_rounds', total_rounds, 'Rounds to train.', True),
      ('clients_per_round', 10, 'Clients per round (expected, if poisson).', 0),
      ('client_epochs_per_round', 1, 'Passes over its data per client.', False),
      ('rounds_per_evaluation', 5, 'Rounds between evaluations.', False),
      ('rounds_per_checkpoint', 1, 'Rounds between checkpoints.', True),
      ('checkpoints_kept', 3, 'Newest checkpoints that are kept.', True),
    ):
      define('integer', name, default, text, lower_bound=1, free=bool(free))
    text = 'Examples per local step; 0 is all of a client at once.'
    define(
      'integer', 'client_batch_size', client_batch_size, text, lower_bound=0
    )
    text = 'Examples that a client uses at most per epoch.'
    define('integer', 'max_examples_per_client', None, text, lower_bound=1)
    text = (
      'End after so many evaluations in a row that were no new minimum of the '
      'validation loss; needs --validation_examples.'
    )
    define('integer', 'early_stopping_evaluations', None, text, lower_bound=1)
    text = (
      'Run directory or exported SavedModel with the weights to start from.'
    )
    define('string', 'initial_model', None, text)
    text = 'Model init, partition, client sampling, shuffling and dropout.'
    define('integer', 'seed', 0, text, lower_bound=0)
    enum(
      'client_sampling',
      sampling.FIXED_SIZE,
      sampling.SCHEMES,
      'Fixed-size draws without replacement, or each client independently; '
      'cyclic_poisson so with one of --min_separation groups after the other.',
    )
    text = 'Rounds between two times of a client, for cyclic_poisson.'
    define('integer', 'min_separation', None, text, lower_bound=1)

  def get(self) -> loop.LoopConfig:
    """Returns the loop's settings."""
    fields = [field.name for field in dataclasses.fields(loop.LoopConfig)]
    return loop.LoopConfig(**{name: FLAGS[name].value for name in fields})

  def sampler(self, client_ids: Sequence[str]) -> sampling.ClientSampler:
    """Returns what draws the cohorts from a population."""
    return sampling.ClientSampler(
      client_ids,
      FLAGS.clients_per_round,
      FLAGS.client_sampling,
      FLAGS.seed,
      FLAGS.min_separation,
    )


@dataclasses.dataclass(frozen=True)
class OutputConfig:
  """Where results go; the attributes are the flags of the same names."""

  root_output_dir: str
  experiment_name: str
  trackers: list[str]
  export_every: int | None
  export: bool
  dry_run: bool


class OutputFlags:
  """The run directory and trackers."""

  def __init__(self, experiment_name: str):
    for name, default, text in (
      ('root_output_dir', 'runs', 'Folder of all runs.'),
      ('experiment_name', experiment_name, 'Folder of this run inside it.'),
      ('from_config', None, 'Take flags not given from this config.json.'),
    ):
      define('string', name, default, text, free=True)
    text = 'Where curves go: tensorboard, wandb, mlflow (comma-separated).'
    define('list', 'trackers', ['tensorboard'], text, free=True)
    text = (
      'Rounds between further exports into exports/round_...; none by default.'
    )
    define('integer', 'export_every', None, text, lower_bound=1, free=True)
    for name, default, text in (
      ('export', True, 'Export a SavedModel at the end.'),
      ('dry_run', False, 'Print estimated time, memory and data, and stop.'),
    ):
      define('boolean', name, default, text, free=True)

  def get(self) -> OutputConfig:
    """Returns the output's description."""
    unknown = sorted(set(FLAGS.trackers) - set(trackers.NAMES))
    if unknown:
      raise flags.IllegalFlagValueError(
        f'--trackers has {", ".join(unknown)}; there are '
        f'{", ".join(trackers.NAMES)}.'
      )
    fields = [field.name for field in dataclasses.fields(OutputConfig)]
    return OutputConfig(**{name: FLAGS[name].value for name in fields})
