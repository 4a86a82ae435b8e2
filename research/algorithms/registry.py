"""Algorithms by name: the one line that a new algorithm adds is here."""

import dataclasses
from collections.abc import Callable, Mapping

import tensorflow_federated as tff

from research.aggregators import rejection
from research.algorithms import fed_avg, fed_sgd

ModelFn = Callable[[], tff.learning.models.VariableModel]


@dataclasses.dataclass(frozen=True)
class Settings:
  """What flags say about an algorithm.

  Attributes:
    client_optimizer: Runs on the clients.
    server_optimizer: Runs on the server.
    client_weighting: Weights of the mean of the clients' updates.
    loop_implementation: How a client iterates over its batches.
    model_aggregator: Combines the clients' updates. An algorithm that has no
      use for it says so by `aggregator` in its `unused_flags`.
  """

  client_optimizer: tff.learning.optimizers.Optimizer
  server_optimizer: tff.learning.optimizers.Optimizer
  client_weighting: tff.learning.ClientWeighting
  loop_implementation: tff.learning.LoopImplementation
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
  """

  build: Callable[[ModelFn, Settings], tff.learning.templates.LearningProcess]
  paper: str
  unused_flags: frozenset[str] = frozenset()


def _build_fed_avg(model_fn: ModelFn, settings: Settings):
  return fed_avg.build(model_fn, **vars(settings))


def _build_fed_sgd(model_fn: ModelFn, settings: Settings):
  return fed_sgd.build(
    model_fn,
    server_optimizer=settings.server_optimizer,
    loop_implementation=settings.loop_implementation,
    model_aggregator=settings.model_aggregator,
  )


ALGORITHMS: Mapping[str, Algorithm] = {
  'fed_avg': Algorithm(_build_fed_avg, 'McMahan et al. 2017, Algorithm 1'),
  'fed_sgd': Algorithm(
    _build_fed_sgd,
    'McMahan et al. 2017, Section 2',
    frozenset(
      ['client_optimizer', 'client_epochs_per_round', 'client_weighting']
    ),
  ),
}
