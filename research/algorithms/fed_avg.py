"""Federated averaging.

McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from
Decentralized Data", arXiv:1602.05629, Algorithm 1; with a server optimizer it
is FedOpt of Reddi et al. 2021, arXiv:2003.00295, Algorithm 1.
"""

from collections.abc import Callable

import tensorflow_federated as tff

from research.aggregators import rejection
from research.algorithms import (
  attacks,
  averaging,
  statistics,
  weight_constraints,
)


def build(
  model_fn: Callable[[], tff.learning.models.VariableModel],
  *,
  client_optimizer: tff.learning.optimizers.Optimizer,
  server_optimizer: tff.learning.optimizers.Optimizer | None = None,
  client_weighting: tff.learning.ClientWeighting = (
    tff.learning.ClientWeighting.NUM_EXAMPLES
  ),
  loop_implementation: tff.learning.LoopImplementation = (
    tff.learning.LoopImplementation.DATASET_ITERATOR
  ),
  model_aggregator: tff.aggregators.WeightedAggregationFactory | None = None,
  attack: attacks.Attack | None = None,
  statistics_settings: statistics.Settings | None = None,
  constraints: weight_constraints.Constraints | None = None,
) -> tff.learning.templates.LearningProcess | attacks.AttackedProcess:
  """Builds FedAvg.

  One round: each client k starts at the server's weights w, runs its optimizer
  over its batches to w_k, and sends w - w_k. The server steps along the mean of
  these, weighted by the examples that each client trained on (epochs counted)
  or uniformly.

  Args:
    model_fn: Builds the model anew at each call.
    client_optimizer: Runs on the clients; its state starts anew each round.
    server_optimizer: Takes the mean model update as its gradient. None is SGD
      with learning rate 1, as in Algorithm 1.
    client_weighting: The weights of the mean. NUM_EXAMPLES is Algorithm 1.
    loop_implementation: How a client iterates over its batches.
    model_aggregator: Combines the updates; None is the mean of Algorithm 1.
    attack: How clients may change what they send, if at all.
    statistics_settings: How variables that are measured are aggregated; None
      for models without any.
    constraints: What holds for the server's weights, if anything.

  Returns:
    A process whose metrics count the rejected clients; see
    `rejection.CountRejectedFactory`.
  """
  server_optimizer = server_optimizer or tff.learning.optimizers.build_sgdm(1.0)
  model_aggregator = model_aggregator or rejection.mean()
  if attack or statistics_settings or constraints:
    return averaging.build(
      model_fn,
      client_optimizer=client_optimizer,
      server_optimizer=server_optimizer,
      client_weighting=client_weighting,
      loop_implementation=loop_implementation,
      model_aggregator=model_aggregator,
      attack=attack,
      statistics_settings=statistics_settings,
      constraints=constraints,
    )
  return tff.learning.algorithms.build_weighted_fed_avg(
    model_fn,
    client_optimizer_fn=client_optimizer,
    server_optimizer_fn=server_optimizer,
    client_weighting=client_weighting,
    model_aggregator=model_aggregator,
    loop_implementation=loop_implementation,
  )
