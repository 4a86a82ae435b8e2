"""Ditto: FedAvg, beside which each client keeps a model of its own.

Li et al. 2021, "Ditto: Fair and Robust Federated Learning Through
Personalization", arXiv:2012.04221, Algorithm 1, with the objective of
Equation 1.
"""

import collections

import tensorflow as tf
import tensorflow_federated as tff

from research.algorithms import fed_avg, local_training, stateful


def _personal_update(
  model_fn, types, hparams_type, optimizer, loop_implementation, strength
):
  """A computation: a client's steps of its own model v_k."""

  @tff.tensorflow.computation(
    hparams_type, types.weights, types.data, types.weights.trainable
  )
  def personal_update(hparams, server_weights, dataset, own):
    model = model_fn()

    @tf.function
    def update(hparams, server_weights, dataset, own):
      anchor = tuple(tf.nest.flatten(server_weights.trainable))

      def step(state, weights, gradients, unused_batch):
        gradients = tuple(
          g + strength * (v - w)
          for g, v, w in zip(gradients, weights, anchor, strict=True)
        )
        return optimizer.next(state, weights, gradients)

      state = optimizer.initialize(
        local_training.specs(model.trainable_variables)
      )
      result = local_training.train(
        model,
        tff.learning.models.ModelWeights(own, server_weights.non_trainable),
        dataset,
        step=step,
        optimizer_state=optimizer.set_hparams(state, hparams),
        weighting=tff.learning.ClientWeighting.UNIFORM,
        loop_implementation=loop_implementation,
      )
      advanced = tf.nest.map_structure(tf.subtract, own, result.update)
      return advanced, result.metrics

    return update(hparams, server_weights, dataset, own)

  return personal_update


def build(
  model_fn: local_training.ModelFn,
  *,
  client_optimizer: tff.learning.optimizers.Optimizer,
  server_optimizer: tff.learning.optimizers.Optimizer,
  client_weighting: tff.learning.ClientWeighting,
  loop_implementation: tff.learning.LoopImplementation,
  ditto_regularization: float,
  model_aggregator: tff.aggregators.WeightedAggregationFactory | None = None,
) -> stateful.StatefulProcess:
  """Builds Ditto.

  One round is FedAvg's for the server's weights w_t. Besides, each client of
  the cohort goes on with its own model v_k by steps of its optimizer for
  F_k(v) + lambda / 2 ||v - w_t||^2 (Equation 1), over the same batches. Nothing
  of v_k is sent. A client's first v_k are the initial weights.

  Args:
    model_fn: Builds the model anew at each call.
    client_optimizer: Of both models; its state starts anew each round.
    server_optimizer: Takes the mean model update as its gradient.
    client_weighting: The weights of the mean.
    loop_implementation: How a client iterates over its batches.
    ditto_regularization: lambda of Equation 1, at least 0; with 0 the own
      models are those of local training alone.
    model_aggregator: Combines the updates; None is their weighted mean.

  Returns:
    A process whose client states are the own models, and whose metrics have
    `personal` beside `train`.

  Raises:
    UnsuitableError: If `ditto_regularization` is negative.
  """
  if ditto_regularization < 0:
    raise local_training.UnsuitableError(
      f'ditto_regularization is {ditto_regularization}; it must be at least 0.'
    )
  shared = fed_avg.build(
    model_fn,
    client_optimizer=client_optimizer,
    server_optimizer=server_optimizer,
    client_weighting=client_weighting,
    loop_implementation=loop_implementation,
    model_aggregator=model_aggregator,
  )
  types = local_training.model_types(model_fn)
  state_type = shared.initialize.type_signature.result
  personal_update = _personal_update(
    model_fn,
    types,
    state_type.member.client_work,
    client_optimizer,
    loop_implementation,
    ditto_regularization,
  )

  @tff.tensorflow.computation
  def initial_model():
    return tff.learning.models.ModelWeights.from_model(model_fn()).trainable

  @tff.federated_computation(
    state_type,
    tff.FederatedType(types.data, tff.CLIENTS),
    tff.FederatedType(types.weights.trainable, tff.CLIENTS),
  )
  def next_fn(state, data, own):
    output = shared.next(state, data)
    advanced, metrics = tff.federated_map(
      personal_update,
      (
        tff.federated_broadcast(state.client_work),
        tff.federated_broadcast(state.global_model_weights),
        data,
        own,
      ),
    )
    found = output.metrics
    work = collections.OrderedDict(
      train=found.client_work.train, personal=types.aggregate_metrics(metrics)
    )
    measurements = collections.OrderedDict(
      distributor=found.distributor,
      client_work=tff.federated_zip(work),
      aggregator=found.aggregator,
      finalizer=found.finalizer,
    )
    return stateful.Output(
      output.state, tff.federated_zip(measurements), advanced
    )

  return stateful.StatefulProcess(
    shared.initialize,
    next_fn,
    initial_model,
    shared.get_model_weights,
    shared.get_hparams,
    shared.set_hparams,
    has_own_models=True,
  )
