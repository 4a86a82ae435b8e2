"""What FedAvg and FedProx share: updates, statistics and constraints composed.

A round is: clients train (`local_training`), what they send is aggregated
(updates, and `statistics` if there are any), the server steps, learns the
statistics, and constrains its weights (`weight_constraints`).
"""

import tensorflow_federated as tff

from research.aggregators import rejection
from research.algorithms import (
  attacks,
  local_training,
  statistics,
  weight_constraints,
)

_UNCONSTRAINED = weight_constraints.Constraints((), ())


def build(
  model_fn: local_training.ModelFn,
  *,
  client_optimizer: tff.learning.optimizers.Optimizer,
  server_optimizer: tff.learning.optimizers.Optimizer,
  client_weighting: tff.learning.ClientWeighting,
  loop_implementation: tff.learning.LoopImplementation,
  correct: weight_constraints.Correction | None = None,
  model_aggregator: tff.aggregators.WeightedAggregationFactory | None = None,
  attack: attacks.Attack | None = None,
  statistics_settings: statistics.Settings | None = None,
  constraints: weight_constraints.Constraints | None = None,
) -> tff.learning.templates.LearningProcess | attacks.AttackedProcess:
  """Composes a process of federated averaging.

  Args:
    model_fn: Builds the model anew at each call.
    client_optimizer: Runs on the clients; its state starts anew each round.
    server_optimizer: Takes the aggregated model update as its gradient.
    client_weighting: The weights of the mean.
    loop_implementation: How a client iterates over its batches.
    correct: See `local_training.build_client_work`.
    model_aggregator: Of model updates, or of the one vector of updates and
      statistics; None is their weighted mean.
    attack: How clients may change what they send, if at all.
    statistics_settings: How variables that are measured are aggregated; None
      for models without any.
    constraints: What holds for the server's weights, if anything.

  Returns:
    The process.
  """
  constraints = constraints or _UNCONSTRAINED
  sent_model_fn = constraints.model_fn(model_fn)
  work = local_training.build_client_work(
    sent_model_fn,
    optimizer=client_optimizer,
    weighting=client_weighting,
    loop_implementation=loop_implementation,
    correct=constraints.correct(correct),
    report=statistics_settings.report if statistics_settings else None,
  )
  weights_type = work.next.type_signature.parameter[1].member
  finalizer = tff.learning.templates.build_apply_optimizer_finalizer(
    server_optimizer, weights_type
  )
  aggregator = model_aggregator or rejection.mean()
  if statistics_settings is not None:
    names = statistics.names(sent_model_fn)
    aggregator = statistics_settings.aggregator(aggregator, names)
    finalizer = statistics_settings.finalizer(finalizer, weights_type, names)
  if constraints.positions:
    finalizer = constraints.finalizer(finalizer, weights_type)
  parts = sent_model_fn, work, aggregator, finalizer
  if attack:
    process = attacks.compose(*parts, attack)
  else:
    process = local_training.compose_finalized(*parts)
  return constraints.without_masks(process)
