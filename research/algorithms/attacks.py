"""Federated averaging some of whose clients change what they send.

The caller tells each client what to do with its model update, by an instruction
of the attack's own kind; one kind leaves the update as it is. The server drops
what is not finite, as a client's own check would.
"""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from research.algorithms import local_training


@dataclasses.dataclass(frozen=True)
class Attack:
  """How clients can change what they send.

  Attributes:
    instruction: From the specs of a model update to an instruction that leaves
      it as it is; those of all clients have its type.
    change: In a graph, from an update and an instruction to what is sent.
  """

  instruction: Callable[[Any], Any]
  change: Callable[[Any, Any], Any]


def _zeros(specs: Any) -> Any:
  return tf.nest.map_structure(
    lambda spec: np.zeros(spec.shape, spec.dtype.as_numpy_dtype), specs
  )


def _spec(value: np.ndarray | np.generic) -> tf.TensorSpec:
  return tf.TensorSpec(value.shape, value.dtype)


# The instruction is a float32 factor: 1 is a sound client, -1 the sign flip, a
# large one the scaled update of model replacement (Bagdasaryan et al. 2020,
# arXiv:1807.00459, Section 4.2), NaN an update that is not finite.
SCALE = Attack(
  lambda specs: np.float32(1),
  lambda update, factor: tf.nest.map_structure(lambda d: d * factor, update),
)
# The instruction is whether to send something else, and that.
REPLACE = Attack(
  lambda specs: collections.OrderedDict(
    is_replaced=np.bool_(False), update=_zeros(specs)
  ),
  lambda update, instruction: tf.nest.map_structure(
    lambda d, other: tf.where(instruction['is_replaced'], other, d),
    update,
    instruction['update'],
  ),
)


@dataclasses.dataclass(frozen=True)
class AttackedProcess:
  """A learning process that takes an instruction per client.

  Attributes:
    initialize: As of a `tff.learning.templates.LearningProcess`.
    next: From (state, clients' data, clients' instructions) to a
      `tff.learning.templates.LearningProcessOutput`.
    get_model_weights: Of a state, as in TFF.
    get_hparams: Of a state, as in TFF.
    set_hparams: From a state and hyperparameters to a state, as in TFF.
    no_instruction: Leaves what a client sends as it is.
  """

  initialize: tff.Computation
  next: tff.Computation
  get_model_weights: tff.Computation
  get_hparams: tff.Computation
  set_hparams: tff.Computation
  no_instruction: Any


def compose(
  model_fn: local_training.ModelFn,
  client_work: tff.learning.templates.ClientWorkProcess,
  aggregator: tff.aggregators.WeightedAggregationFactory,
  finalizer: tff.learning.templates.FinalizerProcess,
  attack: Attack,
) -> AttackedProcess:
  """As `local_training.compose_finalized`, with room for an attack.

  Args:
    model_fn: Builds the model anew at each call.
    client_work: What clients do before the attack.
    aggregator: Of what they send.
    finalizer: From the server's weights and the aggregate to new weights.
    attack: How clients can change what they send.

  Returns:
    The process.
  """
  sound = local_training.compose_finalized(
    model_fn, client_work, aggregator, finalizer
  )
  work_type = client_work.next.type_signature
  sent_type = work_type.result.result.member
  aggregation = aggregator.create(sent_type.update, sent_type.update_weight)

  no_instruction = attack.instruction(
    tff.types.type_to_tf_tensor_specs(sent_type.update)
  )
  instruction_type = tff.types.tensorflow_to_type(
    tf.nest.map_structure(_spec, no_instruction)
  )

  @tff.tensorflow.computation(sent_type, instruction_type)
  def change(sent, instruction):
    update = attack.change(sent.update, instruction)
    is_accepted = local_training.all_finite(update)
    return tff.learning.templates.ClientResult(
      update=local_training.unless_rejected(is_accepted, update),
      update_weight=tf.cast(is_accepted, tf.float32) * sent.update_weight,
    )

  @tff.federated_computation(
    sound.initialize.type_signature.result,
    work_type.parameter[2],
    tff.FederatedType(instruction_type, tff.CLIENTS),
  )
  def next_fn(state, data, instructions):
    weights = state.global_model_weights
    work = client_work.next(
      state.client_work, tff.federated_broadcast(weights), data
    )
    sent = tff.federated_map(change, (work.result, instructions))
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
    no_instruction,
  )
