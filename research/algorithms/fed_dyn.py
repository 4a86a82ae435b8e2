"""FedDyn: each client's objective is regularised anew in every round.

Acar et al. 2021, "Federated Learning Based on Dynamic Regularization",
arXiv:2111.04263, Algorithm 1 with Equation 1.
"""

import tensorflow_federated as tff

from research.algorithms import control_variates, local_training, stateful


def build(
  model_fn: local_training.ModelFn,
  *,
  client_optimizer: tff.learning.optimizers.Optimizer,
  server_optimizer: tff.learning.optimizers.Optimizer,
  loop_implementation: tff.learning.LoopImplementation,
  num_clients: int,
  dynamic_regularization: float,
) -> stateful.StatefulProcess:
  """Builds FedDyn.

  One round: client k minimises, by steps of its optimizer,
  L_k(w) - <l_k, w> + alpha / 2 ||w - w_t||^2 with the server's weights w_t
  (Equation 1): each gradient gets -l_k + alpha (w - w_t) added. Then
  l_k <- l_k - alpha (w_k - w_t), which a client that reached the minimum has as
  its gradient. The server has the mean h of all l_k, and its weights become the
  uniform mean of the clients' minus h / alpha.

  Args:
    model_fn: Builds the model anew at each call.
    client_optimizer: Runs on the clients; its state starts anew each round.
    server_optimizer: Takes the mean model update plus h / alpha as its
      gradient; SGD with learning rate 1 is the paper's.
    loop_implementation: How a client iterates over its batches.
    num_clients: m, all clients that may ever be asked.
    dynamic_regularization: alpha of Equation 1, above 0.

  Returns:
    A process whose metrics count the rejected clients.

  Raises:
    UnsuitableError: If `dynamic_regularization` is not above 0.
  """
  alpha = dynamic_regularization
  if alpha <= 0:
    raise local_training.UnsuitableError(
      f'dynamic_regularization is {alpha}; it must be above 0.'
    )

  def correct(gradients, weights, initial, own, control):
    del control
    return tuple(
      g - l_k + alpha * (w - w_t)
      for g, l_k, w, w_t in zip(gradients, own, weights, initial, strict=True)
    )

  def change(update, num_steps, control, learning_rate):
    del num_steps, control, learning_rate
    return tuple(alpha * delta for delta in update)

  def descend(mean_update, control):
    return tuple(
      delta + h / alpha for delta, h in zip(mean_update, control, strict=True)
    )

  return control_variates.build(
    model_fn,
    control_variates.Rule(correct, change, descend, is_broadcast=False),
    client_optimizer=client_optimizer,
    server_optimizer=server_optimizer,
    loop_implementation=loop_implementation,
    num_clients=num_clients,
  )
