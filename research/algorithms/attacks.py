"""Federated averaging whose poisoned clients change what they send.

A client multiplies its model update by a factor that the caller chooses: 1 is a
sound client, -1 the sign flip, a large one the scaled update of model
replacement (Bagdasaryan et al. 2020, arXiv:1807.00459, Section 4.2), NaN an
update that is not finite. The server drops what is not finite, as a client's
own check would.
"""

import collections
import dataclasses

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from research.algorithms import local_training


@dataclasses.dataclass(frozen=True)
class AttackedProcess:
  """A learning process that takes a factor per client.

  Attributes:
    initialize: As of a `tff.learning.templates.LearningProcess`.
    next: From (state, clients' data, clients' float32 factors) to a
      `tff.learning.templates.LearningProcessOutput`.
    get_model_weights: Of a state, as in TFF.
    get_hparams: Of a state, as in TFF.
    set_hparams: From a state and hyperparameters to a state, as in TFF.
  """

  initialize: tff.Computation
  next: tff.Computation
  get_model_weights: tff.Computation
  get_hparams: tff.Computation
  set_hparams: tff.Computation


def compose(
  model_fn: local_training.ModelFn,
  client_work: tff.learning.templates.ClientWorkProcess,
  aggregator: tff.aggregators.WeightedAggregationFactory,
  server_optimizer: tff.learning.optimizers.Optimizer,
) -> AttackedProcess:
  """Composes a process as `local_training.compose`, with room for attacks.

  Args:
    model_fn: Builds the model anew at each call.
    client_work: What clients do before the attack.
    aggregator: Of what they send.
    server_optimizer: Takes the aggregate as its gradient.

  Returns:
    The process.
  """
  sound = local_training.compose(
    model_fn, client_work, aggregator, server_optimizer
  )
  work_type = client_work.next.type_signature
  sent_type = work_type.result.result.member
  aggregation = aggregator.create(sent_type.update, sent_type.update_weight)
  finalizer = tff.learning.templates.build_apply_optimizer_finalizer(
    server_optimizer, work_type.parameter[1].member
  )

  @tff.tensorflow.computation(sent_type, np.float32)
  def attack(sent, factor):
    update = tf.nest.map_structure(lambda d: d * factor, sent.update)
    is_accepted = local_training.all_finite(update)
    return tff.learning.templates.ClientResult(
      update=local_training.unless_rejected(is_accepted, update),
      update_weight=tf.cast(is_accepted, tf.float32) * sent.update_weight,
    )

  @tff.federated_computation(
    sound.initialize.type_signature.result,
    work_type.parameter[2],
    tff.FederatedType(np.float32, tff.CLIENTS),
  )
  def next_fn(state, data, factors):
    weights = state.global_model_weights
    work = client_work.next(
      state.client_work, tff.federated_broadcast(weights), data
    )
    sent = tff.federated_map(attack, (work.result, factors))
    aggregate = aggregation.next(
      state.aggregator, sent.update, sent.update_weight
    )
    finalized = finalizer.next(state.finalizer, weights, aggregate.result)
    new_state = tff.learning.templates.LearningAlgorithmState(
      global_model_weights=finalized.result,
      distributor=state.distributor,
      client_work=work.state,
      aggregator=aggregate.state,
      finalizer=finalized.state,
    )
    metrics = collections.OrderedDict(
      distributor=state.distributor,
      client_work=work.measurements,
      aggregator=aggregate.measurements,
      finalizer=finalized.measurements,
    )
    return tff.learning.templates.LearningProcessOutput(
      tff.federated_zip(new_state), tff.federated_zip(metrics)
    )

  return AttackedProcess(
    sound.initialize,
    next_fn,
    sound.get_model_weights,
    sound.get_hparams,
    sound.set_hparams,
  )
