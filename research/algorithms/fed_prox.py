"""FedProx: local training that is drawn back to the server's weights.

Li et al. 2020, "Federated Optimization in Heterogeneous Networks",
arXiv:1812.06127, Algorithm 2 with the local objective of Equation 2.
"""

import tensorflow as tf
import tensorflow_federated as tff

from research.algorithms import (
  attacks,
  averaging,
  local_training,
  statistics,
  weight_constraints,
)


def build(
  model_fn: local_training.ModelFn,
  *,
  client_optimizer: tff.learning.optimizers.Optimizer,
  server_optimizer: tff.learning.optimizers.Optimizer,
  client_weighting: tff.learning.ClientWeighting,
  loop_implementation: tff.learning.LoopImplementation,
  proximal_strength: float,
  model_aggregator: tff.aggregators.WeightedAggregationFactory | None = None,
  attack: attacks.Attack | None = None,
  statistics_settings: statistics.Settings | None = None,
  constraints: weight_constraints.Constraints | None = None,
) -> tff.learning.templates.LearningProcess | attacks.AttackedProcess:
  """Builds FedProx.

  One round is FedAvg's, but client k minimises, by steps of its optimizer,
  F_k(w) + mu / 2 ||w - w_t||^2 with the server's weights w_t (Equation 2): each
  gradient gets mu (w - w_t) added. With mu = 0 it is FedAvg. The paper samples
  clients in proportion to their examples and averages uniformly; here, as in
  FedAvg, they are sampled uniformly and `client_weighting` weighs them.

  Args:
    model_fn: Builds the model anew at each call.
    client_optimizer: Runs on the clients; its state starts anew each round.
    server_optimizer: Takes the mean model update as its gradient; SGD with
      learning rate 1 is the paper's.
    client_weighting: The weights of the mean.
    loop_implementation: How a client iterates over its batches.
    proximal_strength: mu of Equation 2, at least 0.
    model_aggregator: Combines the updates; None is their weighted mean.
    attack: How clients may change what they send, if at all.
    statistics_settings: How variables that are measured are aggregated; None
      for models without any.
    constraints: What holds for the server's weights, if anything.

  Returns:
    A process whose metrics count the rejected clients.

  Raises:
    UnsuitableError: If `proximal_strength` is negative.
  """
  if proximal_strength < 0:
    raise local_training.UnsuitableError(
      f'proximal_strength is {proximal_strength}; it must be at least 0.'
    )

  def correct(gradients, weights, initial):
    anchor = tf.nest.flatten(initial.trainable)
    return tuple(
      g + proximal_strength * (w - w_t)
      for g, w, w_t in zip(gradients, weights, anchor, strict=True)
    )

  return averaging.build(
    model_fn,
    client_optimizer=client_optimizer,
    server_optimizer=server_optimizer,
    client_weighting=client_weighting,
    loop_implementation=loop_implementation,
    correct=correct,
    model_aggregator=model_aggregator,
    attack=attack,
    statistics_settings=statistics_settings,
    constraints=constraints,
  )
