"""Algorithms by name: the one line that a new algorithm adds is here."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow_federated as tff

from research.aggregators import rejection
from research.algorithms import (
  attacks,
  ditto,
  fed_avg,
  fed_dyn,
  fed_nova,
  fed_prox,
  fed_sgd,
  mime,
  scaffold,
  stateful,
)

ModelFn = Callable[[], tff.learning.models.VariableModel]


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
    attack: How clients may change what they send, for which the algorithm must
      have `can_be_attacked`; None is not at all.
  """

  client_optimizer: tff.learning.optimizers.Optimizer
  server_optimizer: tff.learning.optimizers.Optimizer
  client_weighting: tff.learning.ClientWeighting
  loop_implementation: tff.learning.LoopImplementation
  hparams: Mapping[str, float] = dataclasses.field(default_factory=dict)
  model_aggregator: tff.aggregators.WeightedAggregationFactory = (
    dataclasses.field(default_factory=rejection.mean)
  )
  num_clients: int = 1
  attack: attacks.Attack | None = None


@dataclasses.dataclass(frozen=True)
class Algorithm:
  """An algorithm that `--algorithm` can name.

  Attributes:
    build: Builds the learning process.
    paper: Where it is from.
    unused_flags: Flags without a meaning here; setting one is an error.
    hparams: Its own hyperparameters, each a flag, with their defaults.
    can_be_attacked: Whether it has a form whose clients change what they send.
    has_own_models: Whether clients keep models of their own.
  """

  build: Callable[[ModelFn, Settings], stateful.AnyProcess]
  paper: str
  unused_flags: frozenset[str] = frozenset()
  hparams: Mapping[str, float] = dataclasses.field(default_factory=dict)
  can_be_attacked: bool = False
  has_own_models: bool = False


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
    _with(fed_avg.build, *_LOCAL_TRAINING, 'model_aggregator', 'attack'),
    'McMahan et al. 2017, Algorithm 1',
    can_be_attacked=True,
  ),
  'fed_dyn': Algorithm(
    _with(fed_dyn.build, *_CONTROL_VARIATES),
    'Acar et al. 2021, Algorithm 1',
    _OWN_AGGREGATION | _UNIFORM,
    {'dynamic_regularization': 0.01},
  ),
  'fed_nova': Algorithm(
    _with(fed_nova.build, *_LOCAL_TRAINING),
    'Wang et al. 2020, Equation 9',
    _OWN_AGGREGATION,
  ),
  'fed_prox': Algorithm(
    _with(fed_prox.build, *_LOCAL_TRAINING, 'model_aggregator', 'attack'),
    'Li et al. 2020, Algorithm 2',
    hparams={'proximal_strength': 0.01},
    can_be_attacked=True,
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
  'scaffold': Algorithm(
    _with(scaffold.build, *_CONTROL_VARIATES),
    'Karimireddy et al. 2020, Algorithm 1',
    _OWN_AGGREGATION | _UNIFORM,
  ),
}

HPARAMS = tuple(
  dict.fromkeys(
    name for algorithm in ALGORITHMS.values() for name in algorithm.hparams
  )
)
