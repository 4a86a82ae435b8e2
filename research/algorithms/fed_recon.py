"""Federated Reconstruction: a part of the model never leaves the clients.

Singhal et al. 2021, "Federated Reconstruction: Partially Local Federated
Learning", arXiv:2102.03448, Algorithm 1.

The client work is not that of `tff.learning.algorithms.build_fed_recon`, which
splits a client's batches by operations of tf.data, so that it can't be
vectorised, wants a model of another kind, and has no learning rate schedules.
Where all clients have two batches or more the weights are the same.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from research.aggregators import rejection
from research.algorithms import local_training, partly_local


class Reconstruction(NamedTuple):
  """How a client makes its local variables.

  Attributes:
    partition: Says which they are.
    initial: What they start from in every round.
    learning_rate: Of SGD.
    epochs: Passes over the support set.
    support_is_query: Whether all batches are in both sets.
  """

  partition: partly_local.Partition
  initial: tuple[np.ndarray, ...]
  learning_rate: float
  epochs: int
  support_is_query: bool


def _steps(
  model: tff.learning.models.VariableModel,
  variables: Sequence[tf.Variable],
  dataset: tf.data.Dataset,
  *,
  optimizer: tff.learning.optimizers.Optimizer,
  state: Any,
  takes: Callable[[tf.Tensor], tf.Tensor] | None,
  loop_implementation: tff.learning.LoopImplementation,
) -> tuple[tf.Tensor, tf.Tensor]:
  """Changes some of a model's variables by a step for each batch that is taken.

  Args:
    model: Its metrics count the batches that are taken.
    variables: Change; the others stay.
    dataset: A client's batches.
    optimizer: Makes the steps.
    state: Of the optimizer before the first step.
    takes: Whether the batch of an int64 index is taken; None takes all.
    loop_implementation: How the batches are iterated over.

  Returns:
    The examples of the batches that were taken, and the number of all batches,
    as int64.
  """

  def reduce_fn(carried, batch):
    state, num_examples, index = carried
    weights = tuple(variable.read_value() for variable in variables)

    def step():
      gradients, batch_examples = local_training.gradient(
        model, batch, variables
      )
      new_state, new_weights = optimizer.next(state, weights, gradients)
      return new_state, new_weights, batch_examples

    def stay():
      return state, weights, tf.constant(0, tf.int64)

    if takes is None:
      state, weights, batch_examples = step()
    else:
      state, weights, batch_examples = tf.cond(takes(index), step, stay)
    for variable, weight in zip(variables, weights, strict=True):
      variable.assign(weight)
    return state, num_examples + batch_examples, index + 1

  zero = tf.constant(0, tf.int64)
  _, num_examples, num_batches = local_training.reduce_batches(
    reduce_fn, dataset, (state, zero, zero), loop_implementation
  )
  return num_examples, num_batches


def _reconstruct(
  model: tff.learning.models.VariableModel,
  dataset: tf.data.Dataset,
  reconstruction: Reconstruction,
  loop_implementation: tff.learning.LoopImplementation,
) -> tf.Tensor:
  """R of Algorithm 1: makes a model's local variables from the support set.

  Returns:
    The number of the client's batches, as int64.
  """
  _, local = reconstruction.partition.split(model.trainable_variables)
  for variable, value in zip(local, reconstruction.initial, strict=True):
    variable.assign(value)
  optimizer = tff.learning.optimizers.build_sgdm(reconstruction.learning_rate)

  def in_support(index):
    return tf.equal(index % 2, 0)

  num_batches = tf.constant(0, tf.int64)
  for _ in tf.range(reconstruction.epochs):
    _, num_batches = _steps(
      model,
      local,
      dataset,
      optimizer=optimizer,
      state=optimizer.initialize(local_training.specs(local)),
      takes=None if reconstruction.support_is_query else in_support,
      loop_implementation=loop_implementation,
    )
  return num_batches


def _client_update(
  model_fn,
  types,
  hparams_type,
  optimizer,
  weighting,
  loop_implementation,
  reconstruction,
):
  """A computation: what a client does in a round."""
  partition = reconstruction.partition
  global_part = partly_local.build_global_part(types.weights, partition)

  @tff.tensorflow.computation(
    hparams_type, global_part.type_signature.result, types.data
  )
  def client_update(hparams, initial_weights, dataset):
    # Training metrics are those of the query set: the model that reconstructs
    # is another one.
    reconstructed, model = model_fn(), model_fn()

    @tf.function
    def update(hparams, initial_weights, dataset):
      for one in (reconstructed, model):
        partly_local.assign_global_part(one, initial_weights, partition)
      num_batches = _reconstruct(
        reconstructed, dataset, reconstruction, loop_implementation
      )
      shared, local = partition.split(model.trainable_variables)
      _, found = partition.split(reconstructed.trainable_variables)
      for variable, value in zip(local, found, strict=True):
        variable.assign(value)

      def in_query(index):
        # A single batch is in both sets.
        return tf.equal(index % 2, 1) | tf.equal(num_batches, 1)

      state = optimizer.initialize(local_training.specs(shared))
      num_examples, _ = _steps(
        model,
        shared,
        dataset,
        optimizer=optimizer,
        state=optimizer.set_hparams(state, hparams),
        takes=None if reconstruction.support_is_query else in_query,
        loop_implementation=loop_implementation,
      )
      delta = tf.nest.map_structure(
        tf.subtract, initial_weights.trainable, shared
      )
      is_accepted = local_training.all_finite(delta)
      sent = tff.learning.templates.ClientResult(
        update=local_training.unless_rejected(is_accepted, delta),
        update_weight=local_training.client_weight(
          weighting, num_examples, is_accepted
        ),
      )
      metrics = model.report_local_unfinalized_metrics()
      return sent, local_training.unless_rejected(is_accepted, metrics)

    return update(hparams, initial_weights, dataset)

  return client_update


def build(
  model_fn: local_training.ModelFn,
  *,
  client_optimizer: tff.learning.optimizers.Optimizer,
  server_optimizer: tff.learning.optimizers.Optimizer,
  client_weighting: tff.learning.ClientWeighting,
  loop_implementation: tff.learning.LoopImplementation,
  layers: Mapping[str, tuple[int, ...]],
  local_layers: Sequence[str],
  reconstruction_learning_rate: float,
  reconstruction_epochs: int,
  support_is_query: bool,
  model_aggregator: tff.aggregators.WeightedAggregationFactory | None = None,
) -> tff.learning.templates.LearningProcess:
  """Builds FedRecon.

  One round: the server sends the global variables g. Client i starts its local
  variables anew from their initial values, takes k_r steps of SGD of these
  alone on its support set, then k_u steps of its optimizer of g alone on its
  query set, and sends g - g_i. The server steps along the mean of these,
  weighted by the examples of the query sets. The support set is every other
  batch of the client, the first one included; the query set is the others. A
  client's single batch is in both.

  Args:
    model_fn: Builds the model anew at each call.
    client_optimizer: Makes the k_u steps; its state starts anew each round.
    server_optimizer: Takes the mean update of g as its gradient; SGD with
      learning rate eta_s is the paper's.
    client_weighting: The weights of the mean. NUM_EXAMPLES is the paper's.
    loop_implementation: How a client iterates over its batches.
    layers: See `partly_local.local_layer_names`.
    local_layers: As above.
    reconstruction_learning_rate: Of the k_r steps.
    reconstruction_epochs: k_r, in passes over the support set.
    support_is_query: Whether both sets are all of the client's batches.
    model_aggregator: Combines the updates; None is their weighted mean.

  Returns:
    A process whose training metrics are those of the query sets, while g
    changes. The local variables in its model weights stay as they are
    initially.

  Raises:
    UnsuitableError: If `local_layers` do not fit the model, or
      `reconstruction_epochs` is below 1.
  """
  if reconstruction_epochs < 1:
    raise local_training.UnsuitableError(
      f'reconstruction_epochs is {reconstruction_epochs}; it must be at least '
      '1.'
    )
  partition = partly_local.Partition.of_layers(layers, local_layers)
  _, local = partition.split(model_fn().trainable_variables)
  reconstruction = Reconstruction(
    partition,
    # As numbers: an initialiser may draw others under XLA than at the server.
    tuple(variable.numpy() for variable in local),
    reconstruction_learning_rate,
    reconstruction_epochs,
    support_is_query,
  )
  types = local_training.model_types(model_fn)
  initialize = local_training.initial_hparams(client_optimizer)
  client_update = _client_update(
    model_fn,
    types,
    initialize.type_signature.result.member,
    client_optimizer,
    client_weighting,
    loop_implementation,
    reconstruction,
  )
  return partly_local.compose(
    model_fn,
    local_training.client_work(
      initialize, client_update, types.aggregate_metrics
    ),
    model_aggregator or rejection.mean(),
    server_optimizer,
    partition,
  )
