"""Magnitude pruning: the smallest weights of a kernel become zero for good.

Zhu and Gupta 2018, "To prune, or not to prune: exploring the efficacy of
pruning for model compression", arXiv:1710.01878, Section 2.
"""

import dataclasses

import tensorflow as tf
import tensorflow_model_optimization as tfmot


@dataclasses.dataclass(frozen=True)
class Settings:
  """When how many weights are pruned, counted in rounds of training.

  Attributes:
    final_sparsity: s_f, the share of a kernel's weights that are zero at the
      end; 0 prunes nothing more than what is zero at first, and keeps that.
    begin_round: t_0, after which the sparsity grows from 0.
    end_round: t_0 + n dt, after which it is `final_sparsity`.
    rounds_per_pruning: dt, rounds between two prunings.
  """

  final_sparsity: float
  begin_round: int = 0
  end_round: int = 1
  rounds_per_pruning: int = 1

  def __post_init__(self):
    if not 0 <= self.final_sparsity < 1:
      raise ValueError(
        f'final_sparsity={self.final_sparsity} must be at least 0 and below 1'
      )
    rounds, remainder = divmod(
      self.end_round - self.begin_round, self.rounds_per_pruning
    )
    if self.begin_round < 0 or rounds < 1 or remainder:
      raise ValueError(
        f'end_round={self.end_round} must be a multiple of '
        f'rounds_per_pruning={self.rounds_per_pruning} after '
        f'begin_round={self.begin_round}, or it would never be reached'
      )

  @property
  def preserves(self) -> bool:
    """Whether the zeros are those that the model begins with."""
    return not self.final_sparsity

  def sparsity(self, round_num: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The schedule, Equation 1 with s_i = 0.

    Args:
      round_num: int32, how many rounds are done.

    Returns:
      Whether this round prunes, and the share that is zero after it.
    """
    schedule = tfmot.sparsity.keras.PolynomialDecay(
      initial_sparsity=0.0,
      final_sparsity=self.final_sparsity,
      begin_step=self.begin_round,
      end_step=self.end_round,
      frequency=self.rounds_per_pruning,
    )
    return schedule(round_num)


def mask(weights: tf.Tensor, kept: tf.Tensor, sparsity: tf.Tensor) -> tf.Tensor:
  """Prunes a kernel.

  Args:
    weights: float32, of any shape.
    kept: bool of the same shape, what was not pruned so far.
    sparsity: float32 scalar, the share that shall be pruned.

  Returns:
    What is kept now: of `kept`, those of the largest magnitude, the first ones
    of several that are equal; at least one weight.
  """
  magnitudes = tf.where(kept, tf.abs(weights), -1.0)
  flat = tf.reshape(magnitudes, [-1])
  size = tf.cast(tf.size(flat), tf.float32)
  count = tf.cast(tf.maximum(tf.round(size * (1.0 - sparsity)), 1.0), tf.int32)
  _, largest = tf.math.top_k(flat, count)
  chosen = tf.scatter_nd(
    largest[:, tf.newaxis], tf.ones_like(largest, tf.int32), tf.shape(flat)
  )
  return tf.logical_and(
    kept, tf.reshape(tf.cast(chosen, tf.bool), weights.shape)
  )
