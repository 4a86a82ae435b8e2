"""Pruning against hand-computed masks and TF-MOT's own."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
from tensorflow_model_optimization.python.core.sparsity.keras import (
  prune_registry,
)

from models import emnist, kernels, pruning

ALL = np.ones([6], bool)
WEIGHTS = np.array([0.1, -3.0, 2.0, 0.0, -0.5, 2.0], np.float32)


def mask(weights, kept, sparsity):
  found = pruning.mask(
    tf.constant(weights), tf.constant(kept), tf.constant(sparsity, tf.float32)
  )
  return found.numpy()


@pytest.mark.parametrize(
  'sparsity, expected',
  [
    (0.0, [1, 1, 1, 1, 1, 1]),
    (0.5, [0, 1, 1, 0, 0, 1]),
    # Of the two that are 2.0 the first one stays.
    (2 / 3, [0, 1, 1, 0, 0, 0]),
    # One weight stays always.
    (0.99, [0, 1, 0, 0, 0, 0]),
  ],
)
def test_the_largest_stay(sparsity, expected):
  np.testing.assert_array_equal(mask(WEIGHTS, ALL, sparsity), expected)


def test_what_was_pruned_stays_so():
  kept = np.array([1, 0, 1, 1, 1, 0], bool)
  found = mask(WEIGHTS, kept, 0.5)
  np.testing.assert_array_equal(found, [1, 0, 1, 0, 1, 0])
  # A sparsity that is reached already prunes nothing more.
  np.testing.assert_array_equal(mask(WEIGHTS, found, 0.5), found)
  np.testing.assert_array_equal(mask(WEIGHTS, found, 0.1), found)


@pytest.mark.parametrize('sparsity', [0.25, 0.6, 0.9])
def test_masks_are_those_of_tf_mot(sparsity):
  kernel = np.random.default_rng(0).normal(size=[7, 11]).astype(np.float32)
  layer = tfmot.sparsity.keras.prune_low_magnitude(
    tf.keras.layers.Dense(11),
    tfmot.sparsity.keras.ConstantSparsity(sparsity, begin_step=0, frequency=1),
    input_shape=[7],
  )
  tf.keras.Sequential([layer])
  layer.set_weights([kernel, *layer.get_weights()[1:]])
  tf.keras.backend.set_value(layer.pruning_step, 0)
  layer.pruning_obj.conditional_mask_update()
  layer.pruning_obj.weight_mask_op()
  ((_, expected, _),) = layer.pruning_vars
  found = mask(kernel, np.ones_like(kernel, bool), sparsity)
  np.testing.assert_array_equal(found, expected.numpy() == 1)
  np.testing.assert_array_equal(
    layer.get_weights()[0], np.where(found, kernel, 0)
  )


def test_the_schedule_is_cubic():
  settings = pruning.Settings(0.8, begin_round=2, end_round=10)
  for round_num in range(13):
    is_due, sparsity = settings.sparsity(tf.constant(round_num))
    left = 1 - min(max((round_num - 2) / 8, 0), 1)
    assert float(sparsity) == pytest.approx(0.8 - 0.8 * left**3, abs=1e-6)
    assert bool(is_due) == (2 <= round_num <= 10)


def test_the_schedule_can_be_slower():
  settings = pruning.Settings(0.8, 1, 7, rounds_per_pruning=3)
  due = [bool(settings.sparsity(tf.constant(r))[0]) for r in range(9)]
  assert [r for r, is_due in enumerate(due) if is_due] == [1, 4, 7]


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'final_sparsity': 1.0}, 'below 1'),
    ({'begin_round': 5, 'end_round': 5}, 'never be reached'),
    ({'end_round': 10, 'rounds_per_pruning': 3}, 'multiple'),
    ({'begin_round': -1}, 'never be reached'),
  ],
)
def test_schedules_that_have_no_end(changes, words):
  with pytest.raises(ValueError, match=words):
    pruning.Settings(**{'final_sparsity': 0.5, **changes})


@pytest.mark.parametrize('name', ['mcmahan_cnn', 'batch_norm_cnn', 'lenet5'])
def test_kernels_are_what_tf_mot_prunes(name):
  model = emnist.build(name, input_shape=(28, 28, 1), num_classes=10, seed=0)
  registry = prune_registry.PruneRegistry
  expected = {
    id(getattr(layer, name))
    for layer in model.layers
    if layer.weights
    for name in registry._weight_names(layer)
  }
  found = {id(v) for v in model.trainable_variables if kernels.is_kernel(v)}
  assert found == expected
