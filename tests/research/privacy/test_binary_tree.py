import itertools

import numpy as np
import pytest
import tensorflow_privacy as tfp

from research.privacy import binary_tree, matrix_factorization
from tests.research.privacy import dense


def test_sensitivity_is_that_of_all_patterns():
  for rounds, period, separation, count in itertools.product(
    (1, 2, 3, 7, 8, 12, 15, 16), (3, 5, 8, 16), range(2, 9), (1, 2, 3, 16)
  ):
    nodes, _ = dense.tree(rounds, period)
    expected = dense.sensitivity(nodes, separation, count) ** 2
    actual = matrix_factorization.tree(rounds, period).sensitivity(
      separation, count
    )
    assert actual**2 == pytest.approx(expected, rel=1e-12), (
      rounds,
      period,
      separation,
      count,
    )


def test_clients_in_each_round_count_in_each_node_as_often_as_it_has_rounds():
  # Nodes of 1, 2, 4 and 8 rounds: 8 * 1 + 4 * 4 + 2 * 16 + 64.
  assert binary_tree.sensitivity_squared(8, 8, 1, 8) == 120


@pytest.mark.parametrize(
  'rounds, separation, count', [(150, 20, 6), (200, 70, 3), (100, 9, 11)]
)
def test_sensitivity_is_that_of_another_library(rounds, separation, count):
  # It counts the rounds between two participations.
  zcdp = tfp.compute_zcdp_single_tree(1.0, rounds, count, separation - 1)
  actual = binary_tree.sensitivity_squared(rounds, rounds, separation, count)
  assert actual == pytest.approx(2 * zcdp, rel=1e-12)


def test_sensitivity_of_the_published_keyboard_model():
  """Published: zCDP 0.81 at noise multiplier 7; 313 rounds lie in between."""
  sensitivity = matrix_factorization.tree(2000).sensitivity(314, 6)
  assert round(sensitivity**2 / (2 * 7**2), 2) == 0.81


def test_one_participation_per_tree_counts_the_height_of_each():
  strategy = matrix_factorization.tree(24, restart_period=8)
  # Four heights in each of three trees.
  assert strategy.sensitivity(8, 3) ** 2 == pytest.approx(12)
  assert strategy.sensitivity(8, 2) ** 2 == pytest.approx(8)


@pytest.mark.parametrize('rounds, period', [(20, 20), (20, 7), (9, 1), (1, 1)])
def test_noise_is_that_of_estimates_from_noisy_nodes(rounds, period):
  nodes, estimates = dense.tree(rounds, period)
  np.testing.assert_allclose(
    estimates @ nodes, dense.prefix_sums(rounds), atol=1e-12
  )
  strategy = matrix_factorization.tree(rounds, period)
  expected = (estimates**2).sum(axis=1)
  np.testing.assert_allclose(strategy.noise_variances(), expected, rtol=1e-12)
  assert strategy.max_error() == pytest.approx(np.sqrt(expected.max()))
  assert strategy.rmse() == pytest.approx(np.sqrt(expected.mean()))


def test_an_estimate_varies_as_the_one_of_a_node_and_two_estimates_below():
  deviations, halves, weights = binary_tree.estimates(100)
  variance = np.zeros(7)
  for height in range(7):
    variance[height] = deviations[height] ** 2 + halves[height] ** 2 @ variance
    below = variance[height - 1] / 2 if height else 0
    assert variance[height] == pytest.approx(1 + below, rel=1e-12)
  # What counts a round 2 - 2^-h times has just this variance.
  np.testing.assert_allclose(weights, 1 / variance, rtol=1e-12)
