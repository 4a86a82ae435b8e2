"""Algorithms by name: the one line that a new algorithm adds is here."""

import dataclasses
from collections.abc import Callable, Mapping

import tensorflow_federated as tff

from research.aggregators import rejection
from research.algorithms import fed_avg, fed_nova, fed_prox, fed_sgd, mime

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
  """

  client_optimizer: tff.learning.optimizers.Optimizer
  server_optimizer: tff.learning.optimizers.Optimizer
  client_weighting: tff.learning.ClientWeighting
  loop_implementation: tff.learning.LoopImplementation
  hparams: Mapping[str, float] = dataclasses.field(default_factory=dict)
  model_aggregator: tff.aggregators.WeightedAggregationFactory = (
    dataclasses.field(default_factory=rejection.mean)
  )


@dataclasses.dataclass(frozen=True)
class Algorithm:
  """An algorithm that `--algorithm` can name.

  Attributes:
    build: Builds the learning process.
    paper: Where it is from.
    unused_flags: Flags without a meaning here; setting one is an error.
    hparams: Its own hyperparameters, each a flag, with their defaults.
  """

  build: Callable[[ModelFn, Settings], tff.learning.templates.LearningProcess]
  paper: str
  unused_flags: frozenset[str] = frozenset()
  hparams: Mapping[str, float] = dataclasses.field(default_factory=dict)


def _with_two_optimizers(build):
  """For algorithms with a client and a server optimizer."""

  def build_from(model_fn: ModelFn, settings: Settings):
    arguments = dict(vars(settings))
    hparams = arguments.pop('hparams')
    return build(model_fn, **arguments, **hparams)

  return build_from


def _build_fed_nova(model_fn: ModelFn, settings: Settings):
  return fed_nova.build(
    model_fn,
    client_optimizer=settings.client_optimizer,
    server_optimizer=settings.server_optimizer,
    client_weighting=settings.client_weighting,
    loop_implementation=settings.loop_implementation,
  )


def _build_fed_sgd(model_fn: ModelFn, settings: Settings):
  return fed_sgd.build(
    model_fn,
    server_optimizer=settings.server_optimizer,
    loop_implementation=settings.loop_implementation,
    model_aggregator=settings.model_aggregator,
  )


def _build_mime(lite: bool):
  def build_from(model_fn: ModelFn, settings: Settings):
    return mime.build(
      model_fn,
      base_optimizer=settings.client_optimizer,
      server_optimizer=settings.server_optimizer,
      client_weighting=settings.client_weighting,
      loop_implementation=settings.loop_implementation,
      lite=lite,
    )

  return build_from


# What clients send besides a model update would go past another aggregator.
_OWN_AGGREGATION = frozenset(['aggregator'])

ALGORITHMS: Mapping[str, Algorithm] = {
  'fed_avg': Algorithm(
    _with_two_optimizers(fed_avg.build), 'McMahan et al. 2017, Algorithm 1'
  ),
  'fed_nova': Algorithm(
    _build_fed_nova, 'Wang et al. 2020, Equation 9', _OWN_AGGREGATION
  ),
  'fed_prox': Algorithm(
    _with_two_optimizers(fed_prox.build),
    'Li et al. 2020, Algorithm 2',
    hparams={'proximal_strength': 0.01},
  ),
  'fed_sgd': Algorithm(
    _build_fed_sgd,
    'McMahan et al. 2017, Section 2',
    frozenset(
      ['client_optimizer', 'client_epochs_per_round', 'client_weighting']
    ),
  ),
  'mime': Algorithm(
    _build_mime(lite=False),
    'Karimireddy et al. 2021, Algorithm 1',
    _OWN_AGGREGATION,
  ),
  'mime_lite': Algorithm(
    _build_mime(lite=True),
    'Karimireddy et al. 2021, Algorithm 1',
    _OWN_AGGREGATION,
  ),
}

HPARAMS = tuple(
  dict.fromkeys(
    name for algorithm in ALGORITHMS.values() for name in algorithm.hparams
  )
)
