"""Scaffold: local steps corrected by control variates of client and server.

Karimireddy et al. 2020, "SCAFFOLD: Stochastic Controlled Averaging for
Federated Learning", arXiv:1910.06378, Algorithm 1 with option II.
"""

import tensorflow as tf
import tensorflow_federated as tff

from research.algorithms import control_variates, local_training, stateful


def _correct(gradients, weights, initial, own, control):
  """Line 10: g_i(y) - c_i + c."""
  del weights, initial
  return tuple(
    g - c_i + c for g, c_i, c in zip(gradients, own, control, strict=True)
  )


def _change(update, num_steps, control, learning_rate):
  """Line 12, option II: c_i+ - c_i = (x - y_i) / (K eta_l) - c."""
  distance = tf.cast(num_steps, tf.float32) * learning_rate
  return tuple(
    tf.math.divide_no_nan(delta, tf.cast(distance, delta.dtype)) - c
    for delta, c in zip(update, control, strict=True)
  )


_RULE = control_variates.Rule(
  correct=_correct,
  change=_change,
  descend=lambda update, control: update,
  is_broadcast=True,
)


def build(
  model_fn: local_training.ModelFn,
  *,
  client_optimizer: tff.learning.optimizers.Optimizer,
  server_optimizer: tff.learning.optimizers.Optimizer,
  loop_implementation: tff.learning.LoopImplementation,
  num_clients: int,
) -> stateful.StatefulProcess:
  """Builds Scaffold.

  One round: client i starts at the server's weights x and makes K steps
  y <- y - eta_l (g_i(y) - c_i + c), after which c_i changes by
  (x - y) / (K eta_l) - c. The server averages the clients' weights uniformly,
  as in the paper, and c <- c + (1 / N) sum of the changes. A client sends and
  receives twice what it does in FedAvg.

  Args:
    model_fn: Builds the model anew at each call.
    client_optimizer: SGD, by whose steps option II reckons.
    server_optimizer: Takes the mean model update as its gradient; SGD is the
      paper's, its learning rate eta_g.
    loop_implementation: How a client iterates over its batches.
    num_clients: N, all clients that may ever be asked.

  Returns:
    A process whose metrics count the rejected clients.

  Raises:
    UnsuitableError: If the client optimizer is not SGD.
  """
  hparams = local_training.hparams_of(client_optimizer)
  if set(hparams) != {'learning_rate'}:
    raise local_training.UnsuitableError(
      'scaffold reads gradients off the steps of the client optimizer sgd; '
      f'the given one has {", ".join(hparams)}.'
    )
  return control_variates.build(
    model_fn,
    _RULE,
    client_optimizer=client_optimizer,
    server_optimizer=server_optimizer,
    loop_implementation=loop_implementation,
    num_clients=num_clients,
  )
