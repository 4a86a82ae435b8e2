"""Algorithms by name: the one line that a new algorithm adds is here."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from models import pruning as pruning_lib
from models import weight_clustering
from research.aggregators import rejection
from research.algorithms import (
  attacks,
  ditto,
  fed_avg,
  fed_dyn,
  fed_kmeans,
  fed_nova,
  fed_prox,
  fed_recon,
  fed_sgd,
  local_training,
  mime,
  one_shot,
  scaffold,
  stateful,
  weight_constraints,
)
from research.algorithms import statistics as statistics_lib
from research.tasks import task as task_lib

ModelFn = Callable[[], tff.learning.models.VariableModel]
# The last is a list of names.
Hparam = float | int | bool | tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Settings:
  """What flags say about an algorithm.

  Attributes:
    client_optimizer: Runs on the clients.
    server_optimizer: Runs on the server.
    client_weighting: Weights of the mean of the clients' updates.
    loop_implementation: How a client iterates over its batches.
    hparams: The algorithm's own hyperparameters, those of `Algorithm.hparams`.
    model_aggregator: Combines the clients' updates. An algorithm that has no
      use for it says so by `aggregator` in its `unused_flags`.
    num_clients: All training clients, the empty ones apart.
    participation: Share of the training clients that a round asks.
    layers: Positions of each layer's variables among the model's trainable
      ones, for an algorithm that `has_local_layers`.
    attack: How clients may change what they send, for which the algorithm must
      have `can_be_attacked`; None is not at all.
    statistics: How variables are aggregated that a model measures, for which
      the algorithm must have `aggregates_statistics`; None leaves them as they
      were at first, as TFF does.
    statistics_settings: The same if the task's model has any; `build_for` fills
      it in.
    pruning: How kernels are pruned, for which the algorithm must have
      `can_constrain_weights`; None is not at all.
    clustering: The same of clustering.
    constraints: Both for the task's model; `build_for` fills them in.
  """

  client_optimizer: tff.learning.optimizers.Optimizer
  server_optimizer: tff.learning.optimizers.Optimizer
  client_weighting: tff.learning.ClientWeighting
  loop_implementation: tff.learning.LoopImplementation
  hparams: Mapping[str, Hparam] = dataclasses.field(default_factory=dict)
  model_aggregator: tff.aggregators.WeightedAggregationFactory = (
    dataclasses.field(default_factory=rejection.mean)
  )
  num_clients: int = 1
  participation: float = 1.0
  layers: Mapping[str, tuple[int, ...]] = dataclasses.field(
    default_factory=dict
  )
  attack: attacks.Attack | None = None
  statistics: statistics_lib.Settings | None = dataclasses.field(
    default_factory=statistics_lib.Settings
  )
  statistics_settings: statistics_lib.Settings | None = None
  pruning: pruning_lib.Settings | None = None
  clustering: weight_clustering.Settings | None = None
  constraints: weight_constraints.Constraints | None = None


_BY_GRADIENTS = frozenset(
  ['classification', 'reconstruction', 'regression', 'tagging']
  + ['masked_language_modelling']
)


@dataclasses.dataclass(frozen=True)
class Algorithm:
  """An algorithm that `--algorithm` can name.

  Attributes:
    build: Builds the learning process.
    paper: Where it is from.
    unused_flags: Flags without a meaning here; setting one is an error.
    hparams: Its own hyperparameters, each a flag of its default's kind.
    can_be_attacked: Whether it has a form whose clients change what they send.
    aggregates_statistics: Whether it learns variables that are measured rather
      than trained.
    can_constrain_weights: Whether it can prune and cluster its weights.
    has_own_models: Whether clients keep models of their own.
    kinds: Kinds of tasks that it learns.
    is_least_squares: Whether it knows the mean squared error alone.
    has_local_layers: Whether a part of the model never leaves the clients, who
      make it from their examples whenever they need it.
  """

  build: Callable[[ModelFn, Settings], stateful.AnyProcess]
  paper: str
  unused_flags: frozenset[str] = frozenset()
  hparams: Mapping[str, Hparam] = dataclasses.field(default_factory=dict)
  can_be_attacked: bool = False
  aggregates_statistics: bool = False
  can_constrain_weights: bool = False
  has_own_models: bool = False
  kinds: frozenset[str] = _BY_GRADIENTS
  is_least_squares: bool = False
  has_local_layers: bool = False

  def build_for(
    self, task: task_lib.Task, settings: Settings
  ) -> stateful.AnyProcess:
    """Builds what learns a task.

    Args:
      task: Its clients are counted, and its layers named if that is needed.
      settings: The others.

    Returns:
      The learning process.

    Raises:
      local_training.UnsuitableError: If a setting does not fit.
    """
    wanted = settings.statistics if task.has_statistics else None
    if wanted and not self.aggregates_statistics:
      able = [n for n, a in ALGORITHMS.items() if a.aggregates_statistics]
      name = next(n for n, a in ALGORITHMS.items() if a is self)
      raise local_training.UnsuitableError(
        'The model has variables that are measured, not trained (ranges of '
        '--quantize=qat, or moments of batch normalisation), which '
        f'--algorithm={name} ({self.paper}) would leave as they were '
        f'at first; --algorithm={" and ".join(able)} aggregate them.'
      )
    if wanted and task.frozen_names:
      raise local_training.UnsuitableError(
        'The model has variables that are measured, and frozen layers: '
        f'{", ".join(task.frozen_names)}. What is frozen would be aggregated '
        'and noised with what is measured; make it a part that is trained, or '
        'leave out quantization and batch normalisation.'
      )
    filled = [size for size in task.data.train.num_examples.values() if size]
    settings = dataclasses.replace(
      settings,
      num_clients=len(filled),
      statistics_settings=wanted,
      constraints=self._constraints(task, settings),
      layers=task.layers() if self.has_local_layers else {},
    )
    return self.build(task.model_fn, settings)

  def _constraints(
    self, task: task_lib.Task, settings: Settings
  ) -> weight_constraints.Constraints | None:
    if settings.pruning is None and settings.clustering is None:
      return None
    if not self.can_constrain_weights:
      able = [n for n, a in ALGORITHMS.items() if a.can_constrain_weights]
      raise local_training.UnsuitableError(
        f'The algorithm of {self.paper} neither prunes nor clusters its '
        f'weights; --algorithm={" and ".join(able)} can.'
      )
    if task.trains_part:
      raise local_training.UnsuitableError(
        'What is trained is pruned and clustered, and that is a part of this '
        'model alone: train all of it (--fine_tuning=full).'
      )
    return weight_constraints.of_model(
      task.build_keras_model(), settings.pruning, settings.clustering
    )


def _with(build, *names: str, **constants: Any):
  """What builds an algorithm from the settings of these names."""

  def build_from(model_fn: ModelFn, settings: Settings):
    arguments = {name: getattr(settings, name) for name in names}
    return build(model_fn, **arguments, **settings.hparams, **constants)

  return build_from


_LOCAL_TRAINING = (
  'client_optimizer',
  'server_optimizer',
  'client_weighting',
  'loop_implementation',
)
_BY_REPORT = (
  'model_aggregator',
  'attack',
  'statistics_settings',
  'constraints',
)
_CONTROL_VARIATES = (
  'client_optimizer',
  'server_optimizer',
  'loop_implementation',
  'num_clients',
)
# What clients send besides a model update would go past another aggregator.
_OWN_AGGREGATION = frozenset(['aggregator'])

# Where the paper's mean over the clients is uniform by what it averages.
_UNIFORM = frozenset(['client_weighting'])

ALGORITHMS: Mapping[str, Algorithm] = {
  'ditto': Algorithm(
    _with(ditto.build, *_LOCAL_TRAINING, 'model_aggregator'),
    'Li et al. 2021, Algorithm 1',
    hparams={'ditto_regularization': 0.1},
    has_own_models=True,
  ),
  'fed_avg': Algorithm(
    _with(fed_avg.build, *_LOCAL_TRAINING, *_BY_REPORT),
    'McMahan et al. 2017, Algorithm 1',
    can_be_attacked=True,
    aggregates_statistics=True,
    can_constrain_weights=True,
  ),
  'fed_dyn': Algorithm(
    _with(fed_dyn.build, *_CONTROL_VARIATES),
    'Acar et al. 2021, Algorithm 1',
    _OWN_AGGREGATION | _UNIFORM,
    {'dynamic_regularization': 0.01},
  ),
  'fed_kmeans': Algorithm(
    _with(fed_kmeans.build, 'loop_implementation', 'participation'),
    'Sculley 2010, Algorithm 1',
    _OWN_AGGREGATION
    | {'client_optimizer', 'client_epochs_per_round', 'client_weighting'}
    | {'server_optimizer', 'mixed_precision'},
    kinds=frozenset(['clustering']),
  ),
  'fed_nova': Algorithm(
    _with(fed_nova.build, *_LOCAL_TRAINING),
    'Wang et al. 2020, Equation 9',
    _OWN_AGGREGATION,
  ),
  'fed_prox': Algorithm(
    _with(fed_prox.build, *_LOCAL_TRAINING, *_BY_REPORT),
    'Li et al. 2020, Algorithm 2',
    hparams={'proximal_strength': 0.01},
    can_be_attacked=True,
    aggregates_statistics=True,
    can_constrain_weights=True,
  ),
  'fed_recon': Algorithm(
    _with(fed_recon.build, *_LOCAL_TRAINING, 'layers', 'model_aggregator'),
    'Singhal et al. 2021, Algorithm 1',
    # Each epoch has an order of its own: support and query would overlap.
    frozenset(['client_epochs_per_round']),
    {
      'local_layers': (),
      'reconstruction_epochs': 1,
      'reconstruction_learning_rate': 0.1,
      'support_is_query': False,
    },
    has_local_layers=True,
  ),
  'fed_sgd': Algorithm(
    _with(
      fed_sgd.build,
      'server_optimizer',
      'loop_implementation',
      'model_aggregator',
    ),
    'McMahan et al. 2017, Section 2',
    frozenset(
      ['client_optimizer', 'client_epochs_per_round', 'client_weighting']
    ),
  ),
  'mime': Algorithm(
    _with(mime.build, *_LOCAL_TRAINING, lite=False),
    'Karimireddy et al. 2021, Algorithm 1',
    _OWN_AGGREGATION,
  ),
  'mime_lite': Algorithm(
    _with(mime.build, *_LOCAL_TRAINING, lite=True),
    'Karimireddy et al. 2021, Algorithm 1',
    _OWN_AGGREGATION,
  ),
  'one_shot': Algorithm(
    _with(one_shot.build, 'loop_implementation', 'model_aggregator'),
    'Karr et al. 2005',
    frozenset(['client_optimizer', 'client_epochs_per_round'])
    | {'client_weighting', 'server_optimizer', 'mixed_precision'},
    {'one_shot_ridge': 0.0},
    kinds=frozenset(['regression', 'reconstruction']),
    is_least_squares=True,
  ),
  'scaffold': Algorithm(
    _with(scaffold.build, *_CONTROL_VARIATES),
    'Karimireddy et al. 2020, Algorithm 1',
    _OWN_AGGREGATION | _UNIFORM,
  ),
}


def check_kind(name: str, kind: str, loss: tf.keras.losses.Loss) -> None:
  """Refuses an algorithm for tasks that it can't learn.

  Args:
    name: A key of `ALGORITHMS`.
    kind: Of `task.Task`.
    loss: Of the task.

  Raises:
    UnsuitableError: It names the algorithms that can.
  """
  is_squared = isinstance(loss, tf.keras.losses.MeanSquaredError)
  able = [
    n
    for n, a in ALGORITHMS.items()
    if kind in a.kinds and (is_squared or not a.is_least_squares)
  ]
  if name not in able:
    raise local_training.UnsuitableError(
      f"--algorithm={name} can't learn a task of the kind {kind} with the loss "
      f'{type(loss).__name__}; {", ".join(able)} can.'
    )


HPARAMS = tuple(
  dict.fromkeys(
    name for algorithm in ALGORITHMS.values() for name in algorithm.hparams
  )
)
