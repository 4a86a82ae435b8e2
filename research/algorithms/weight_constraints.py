"""Pruned and clustered weights: what the server demands of its own.

After its step the server prunes (`models.pruning`) and then clusters
(`models.weight_clustering`) each kernel. All clients agree on what is pruned:
the server sends the mask beside the weights, and no local step changes a weight
that it has pruned. Clients train clustered weights freely; what clustering took
away is added again before the server's next step, so that small steps gather
until a weight changes its cluster (the error feedback of Seide et al. 2014,
"1-Bit Stochastic Gradient Descent").

Both follow from the server's weights and the aggregate alone: with differential
privacy they are post-processing.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from models import kernels, weight_clustering
from models import pruning as pruning_lib
from research.algorithms import local_training
from research.tasks import frozen_model

SPARSITY = 'sparsity'
Correction = Callable[
  [local_training.Tensors, local_training.Tensors, Any], local_training.Tensors
]


@dataclasses.dataclass(frozen=True)
class Constraints:
  """What holds for the kernels of a model.

  Attributes:
    positions: Of the kernels among the model's trainable variables.
    masks: bool, for each kernel what is not pruned when training begins.
    pruning: How the kernels are pruned; None is not at all.
    clustering: How they are clustered; None is not at all.
  """

  positions: tuple[int, ...]
  masks: tuple[np.ndarray, ...]
  pruning: pruning_lib.Settings | None = None
  clustering: weight_clustering.Settings | None = None

  def model_fn(
    self, model_fn: local_training.ModelFn
  ) -> local_training.ModelFn:
    """Returns what builds the model that the server sends: with its masks."""
    if self.pruning is None:
      return model_fn

    def build() -> tff.learning.models.VariableModel:
      model = model_fn()
      return frozen_model.FrozenModel(
        model,
        [
          *model.non_trainable_variables,
          *(tf.Variable(m, trainable=False, name='mask') for m in self.masks),
        ],
      )

    return build

  def correct(self, correct: Correction | None = None) -> Correction | None:
    """Returns a correction whose last step holds pruned weights still.

    Args:
      correct: As of `local_training.build_client_work`.
    """
    if self.pruning is None:
      return correct

    def masked(gradients, weights, initial):
      if correct is not None:
        gradients = correct(gradients, weights, initial)
      changed = list(gradients)
      masks = initial.non_trainable[-len(self.positions) :]
      for position, mask in zip(self.positions, masks, strict=True):
        changed[position] = tf.where(mask, gradients[position], 0.0)
      return tuple(changed)

    return masked

  def finalizer(
    self,
    inner: tff.learning.templates.FinalizerProcess,
    weights_type: tff.Type,
  ) -> tff.learning.templates.FinalizerProcess:
    """Returns a finalizer that prunes and clusters what another one makes.

    Args:
      inner: Makes the server's step.
      weights_type: Of the model that the server sends.

    Returns:
      A finalizer whose state counts the rounds and keeps what clustering took
      away, and that measures the share of zeros if it prunes.
    """
    with_residuals = self.positions if self.clustering else ()
    residuals_type = tff.to_type(
      [weights_type.trainable[p] for p in with_residuals]
    )

    @tff.tensorflow.computation
    def initial_residuals():
      specs = tff.types.type_to_tf_tensor_specs(residuals_type)
      return [tf.zeros(spec.shape, spec.dtype) for spec in specs]

    @tff.federated_computation
    def initialize():
      return tff.federated_zip(
        collections.OrderedDict(
          inner=inner.initialize(),
          round=tff.federated_value(np.int32(0), tff.SERVER),
          residuals=tff.federated_eval(initial_residuals, tff.SERVER),
        )
      )

    @tff.tensorflow.computation(weights_type, residuals_type)
    def restored(weights, residuals):
      changed = list(weights.trainable)
      for position, residual in zip(with_residuals, residuals, strict=True):
        changed[position] += residual
      return _with(weights, changed)

    @tff.tensorflow.computation(weights_type, np.int32)
    def constrain(weights, round_num):
      return self._constrain(weights, round_num + 1)

    @tff.federated_computation(
      initialize.type_signature.result,
      tff.FederatedType(weights_type, tff.SERVER),
      inner.next.type_signature.parameter[2],
    )
    def next_fn(state, weights, aggregate):
      start = tff.federated_map(restored, (weights, state['residuals']))
      output = inner.next(state['inner'], start, aggregate)
      found = tff.federated_map(constrain, (output.result, state['round']))
      new_state = collections.OrderedDict(
        inner=output.state, round=found['round'], residuals=found['residuals']
      )
      measurements = output.measurements
      if self.pruning:
        measurements = tff.federated_zip(
          collections.OrderedDict({SPARSITY: found[SPARSITY]})
        )
      return tff.templates.MeasuredProcessOutput(
        tff.federated_zip(new_state), found['weights'], measurements
      )

    return _with_hparams(inner, initialize, next_fn)

  def _constrain(self, weights: Any, round_num: tf.Tensor) -> Any:
    """Prunes and clusters weights after `round_num` rounds."""
    changed, others = list(weights.trainable), list(weights.non_trainable)
    values = [changed[position] for position in self.positions]
    residuals, sparsity = [], tf.constant(0.0)
    if self.pruning:
      masks = self._masks(values, others[-len(values) :], round_num)
      others[-len(values) :] = masks
      values = [
        tf.where(mask, value, 0.0)
        for value, mask in zip(values, masks, strict=True)
      ]
      sparsity = _share_of_zeros(masks)
    if self.clustering:
      clustered = [self._clustered(value, round_num) for value in values]
      residuals = [v - c for v, c in zip(values, clustered, strict=True)]
      values = clustered
    for position, value in zip(self.positions, values, strict=True):
      changed[position] = value
    return collections.OrderedDict(
      [
        ('weights', _with(weights, changed, others)),
        ('round', round_num),
        ('residuals', residuals),
        (SPARSITY, sparsity),
      ]
    )

  def _masks(
    self,
    values: Sequence[tf.Tensor],
    masks: Sequence[tf.Tensor],
    round_num: tf.Tensor,
  ) -> list[tf.Tensor]:
    if self.pruning.preserves:
      return list(masks)
    is_due, sparsity = self.pruning.sparsity(round_num)
    return [
      tf.cond(
        is_due, lambda v=v, m=m: pruning_lib.mask(v, m, sparsity), lambda m=m: m
      )
      for v, m in zip(values, masks, strict=True)
    ]

  def _clustered(self, kernel: tf.Tensor, round_num: tf.Tensor) -> tf.Tensor:
    number, begin = self.clustering.num_clusters, self.clustering.begin_round
    return tf.cond(
      round_num > begin,
      lambda: weight_clustering.cluster(
        kernel, number, keep_zeros=self.pruning is not None
      ),
      lambda: kernel,
    )

  def without_masks(self, process: Any) -> Any:
    """Returns a process whose model weights are those of the model itself.

    Args:
      process: A learning process, or one that can be attacked.
    """
    if self.pruning is None:
      return process
    get = process.get_model_weights
    state_type = get.type_signature.parameter
    inner_type = tff.to_type(self._unmasked(get.type_signature.result))

    @tff.tensorflow.computation(state_type)
    def get_model_weights(state):
      return self._unmasked(get(state))

    if dataclasses.is_dataclass(process):
      return dataclasses.replace(process, get_model_weights=get_model_weights)

    @tff.tensorflow.computation(state_type, inner_type)
    def set_model_weights(state, weights):
      masks = list(get(state).non_trainable)[-len(self.masks) :]
      others = [*weights.non_trainable, *masks]
      return process.set_model_weights(state, _with(weights, None, others))

    return tff.learning.templates.LearningProcess(
      process.initialize,
      process.next,
      get_model_weights,
      set_model_weights,
      get_hparams_fn=process.get_hparams,
      set_hparams_fn=process.set_hparams,
    )

  def _unmasked(self, weights: Any) -> Any:
    """Takes the masks from the weights that are sent, or from their type."""
    others = list(weights.non_trainable)[: -len(self.masks)]
    return _with(weights, None, others)


def _with_hparams(
  inner: tff.learning.templates.FinalizerProcess,
  initialize: tff.Computation,
  next_fn: tff.Computation,
) -> tff.learning.templates.FinalizerProcess:
  """Makes a finalizer with the hyperparameters of the one in its state."""
  state_type = initialize.type_signature.result.member
  hparams_type = inner.get_hparams.type_signature.result

  @tff.tensorflow.computation(state_type)
  def get_hparams(state):
    return inner.get_hparams(state['inner'])

  @tff.tensorflow.computation(state_type, hparams_type)
  def set_hparams(state, hparams):
    changed = inner.set_hparams(state['inner'], hparams)
    return collections.OrderedDict(
      inner=changed, round=state['round'], residuals=state['residuals']
    )

  return tff.learning.templates.FinalizerProcess(
    initialize,
    next_fn,
    get_hparams_fn=get_hparams,
    set_hparams_fn=set_hparams,
  )


def of_model(
  model: tf.keras.Model,
  pruning: pruning_lib.Settings | None,
  clustering: weight_clustering.Settings | None,
) -> Constraints:
  """Finds the kernels of a model.

  Args:
    model: With the weights that training begins with.
    pruning: How they are pruned, if at all.
    clustering: How they are clustered, if at all.

  Raises:
    local_training.UnsuitableError: If no kernel is trained.
  """
  variables = model.trainable_variables
  positions = tuple(
    i for i, variable in enumerate(variables) if kernels.is_kernel(variable)
  )
  if not positions:
    raise local_training.UnsuitableError(
      'No kernel is trained that could be pruned or clustered; what is trained '
      f'is {", ".join(v.name for v in variables)}. LoRA and adapters change '
      'kernels that stay as they are: train all of the model.'
    )
  values = [variables[position].numpy() for position in positions]
  keeps = pruning is not None and pruning.preserves
  return Constraints(
    positions,
    tuple(v != 0 if keeps else np.ones(v.shape, bool) for v in values),
    pruning,
    clustering,
  )


def measures_sparsity(process: Any) -> bool:
  """Whether the metrics of a process tell the share of pruned weights."""
  metrics = process.next.type_signature.result.metrics.member
  return hasattr(getattr(metrics, 'finalizer', None), SPARSITY)


def _share_of_zeros(masks: Sequence[tf.Tensor]) -> tf.Tensor:
  kept = sum(tf.math.count_nonzero(m, dtype=tf.float32) for m in masks)
  return 1.0 - kept / float(sum(m.shape.num_elements() for m in masks))


def _with(weights: Any, trainable: Any = None, others: Any = None) -> Any:
  return tff.learning.models.ModelWeights(
    tuple(weights.trainable if trainable is None else trainable),
    tuple(weights.non_trainable if others is None else others),
  )
