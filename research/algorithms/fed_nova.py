"""FedNova: updates are normalised by what a client's steps add up to.

Wang et al. 2020, "Tackling the Objective Inconsistency Problem in Heterogeneous
Federated Optimization", arXiv:2007.07481, Algorithm 1 and Equation 9.
"""

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from research.aggregators import bits, rejection
from research.algorithms import local_training

# Of a client optimizer whose a_i the paper gives.
_KNOWN_HPARAMS = {'learning_rate', 'momentum'}


def accumulation_norm(
  num_steps: tf.Tensor, momentum: tf.Tensor | float
) -> tf.Tensor:
  """||a_i||_1: the weight of all gradients in a client's update.

  Wang et al. 2020, Section 4.1. Momentum SGD from a zero buffer weighs the
  gradient of step k of tau by (1 - rho^(tau - k)) / (1 - rho), counted from 0,
  which adds up to (tau - rho (1 - rho^tau) / (1 - rho)) / (1 - rho). Without
  momentum it is tau.

  Args:
    num_steps: tau, local steps of a round.
    momentum: rho, in [0, 1).

  Returns:
    A float32 scalar.
  """
  tau, rho = tf.cast(num_steps, tf.float32), tf.cast(momentum, tf.float32)
  return (tau - rho * (1 - rho**tau) / (1 - rho)) / (1 - rho)


class EffectiveStepsFactory(tff.aggregators.WeightedAggregationFactory):
  """Multiplies the mean direction by the mean accumulation norm (Equation 9).

  Values are pairs of a model update d_i and a float32 ||a_i||_1.
  """

  def __init__(self, inner: tff.aggregators.WeightedAggregationFactory):
    """Stores the aggregator of directions.

    Args:
      inner: Its measurements are this one's.
    """
    self._inner = inner

  def create(self, value_type, weight_type):
    direction_type, norm_type = value_type
    inner = self._inner.create(direction_type, weight_type)

    @tff.tensorflow.computation(direction_type, norm_type)
    def scale(direction, norm):
      return tf.nest.map_structure(lambda d: d * norm, direction)

    @tff.federated_computation(
      inner.initialize.type_signature.result,
      tff.FederatedType(value_type, tff.CLIENTS),
      tff.FederatedType(weight_type, tff.CLIENTS),
    )
    def next_fn(state, value, weight):
      output = inner.next(state, value[0], weight)
      effective = tff.federated_mean(value[1], weight)
      update = tff.federated_map(scale, (output.result, effective))
      return tff.templates.MeasuredProcessOutput(
        output.state, update, output.measurements
      )

    return tff.templates.AggregationProcess(inner.initialize, next_fn)


def build(
  model_fn: local_training.ModelFn,
  *,
  client_optimizer: tff.learning.optimizers.Optimizer,
  server_optimizer: tff.learning.optimizers.Optimizer,
  client_weighting: tff.learning.ClientWeighting,
  loop_implementation: tff.learning.LoopImplementation,
) -> tff.learning.templates.LearningProcess:
  """Builds FedNova.

  One round: client i trains as in FedAvg and sends d_i, its model update over
  ||a_i||_1, and that norm. The server steps along
  (sum_i p_i ||a_i||_1) sum_i p_i d_i. With plain SGD the norm is the number of
  local steps tau_i, and clients with equal tau_i make it FedAvg.

  Args:
    model_fn: Builds the model anew at each call.
    client_optimizer: SGD or SGD with momentum; its state starts anew each
      round.
    server_optimizer: Takes the aggregate as its gradient; SGD with learning
      rate 1 is the paper's.
    client_weighting: p_i. NUM_EXAMPLES is the paper's.
    loop_implementation: How a client iterates over its batches.

  Returns:
    A process whose metrics count the rejected clients.

  Raises:
    UnsuitableError: If the paper gives no a_i for the client optimizer.
  """
  hparams = local_training.hparams_of(client_optimizer)
  if not set(hparams) <= _KNOWN_HPARAMS:
    raise local_training.UnsuitableError(
      'fed_nova normalises the steps of the client optimizers sgd and '
      'momentum; '
      f'the given one has {", ".join(hparams)}.'
    )

  def report(result, hparams):
    norm = accumulation_norm(result.num_steps, hparams.get('momentum', 0.0))
    # A client without batches has steps and update 0.
    direction = tf.nest.map_structure(
      lambda delta: tf.math.divide_no_nan(delta, norm), result.update
    )
    return direction, norm

  work = local_training.build_client_work(
    model_fn,
    optimizer=client_optimizer,
    weighting=client_weighting,
    loop_implementation=loop_implementation,
    report=report,
  )
  norm_type = tff.TensorType(np.float32)
  directions = bits.MeasureUploadFactory(
    rejection.mean(), lambda t: bits.of_type(t) + bits.of_type(norm_type)
  )
  return local_training.compose(
    model_fn,
    work,
    EffectiveStepsFactory(directions),
    server_optimizer,
  )
