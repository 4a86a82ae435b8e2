"""Federated SGD: the server steps along the clients' full-batch gradient.

McMahan et al. 2017, arXiv:1602.05629, Section 2 (FedAvg with B = infinity,
E = 1 and the learning rate at the server).
"""

from collections.abc import Callable

import tensorflow_federated as tff

from research.aggregators import rejection


def build(
  model_fn: Callable[[], tff.learning.models.VariableModel],
  *,
  server_optimizer: tff.learning.optimizers.Optimizer,
  loop_implementation: tff.learning.LoopImplementation,
  model_aggregator: tff.aggregators.WeightedAggregationFactory | None = None,
) -> tff.learning.templates.LearningProcess:
  """Builds FedSGD.

  One round: each client k sends the mean gradient g_k over its n_k examples at
  the server's weights; the server steps along sum_k n_k g_k / sum_k n_k.

  Args:
    model_fn: Builds the model anew at each call.
    server_optimizer: Takes the mean gradient.
    loop_implementation: How a client iterates over its batches. Batches only
      bound memory here: their size does not change the gradient.
    model_aggregator: Combines the gradients; None is their weighted mean.

  Returns:
    A process whose metrics count the rejected clients.
  """
  return tff.learning.algorithms.build_fed_sgd(
    model_fn,
    server_optimizer_fn=server_optimizer,
    model_aggregator=model_aggregator or rejection.mean(),
    metrics_aggregator=rejection.sum_finite_then_finalize,
    loop_implementation=loop_implementation,
  )
