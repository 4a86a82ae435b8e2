"""Bounds and estimates of epsilon, against hand counts and known mechanisms."""

import math

import dp_accounting
import numpy as np
import pytest
from scipy import optimize, stats

from research.privacy import audit


def test_guesses_by_hand():
  scores = np.array([0.3, -1.0, 2.0, 0.5, -0.2])
  is_included = np.array([False, True, True, True, False])
  assert audit.Guesses(2, 0).correct(scores, is_included) == 2
  assert audit.Guesses(0, 2).correct(scores, is_included) == 1
  assert audit.Guesses(2, 1).correct(scores, is_included) == 2
  assert audit.Guesses(2, 3).correct(scores, is_included) == 4


def test_a_p_value_by_hand():
  # W ~ Binomial(2, 3/4): P[W >= 2] = 9/16; the largest of P[W = 1] / 1 = 3/8
  # and P[W <= 1] / 2 = 7/32 is the first: 9/16 + 2 * 5 * 0.01 * 3/8.
  p = audit.p_value(math.log(3), 0.01, canaries=5, guesses=2, correct=2)
  assert p == pytest.approx(0.6, abs=1e-12)
  assert audit.p_value(1.0, 0.5, 10, 4, 0) == 1


@pytest.mark.parametrize('guesses', [5, 10, 300])
def test_a_bound_by_hand(guesses):
  # All right with probability q^r = 0.05.
  q = 0.05 ** (1 / guesses)
  found = audit.epsilon_lower_bound(0.0, guesses, guesses, guesses)
  assert found == pytest.approx(math.log(q / (1 - q)), rel=1e-7)


def test_few_or_wrong_guesses_show_nothing():
  assert audit.epsilon_lower_bound(0.0, 4, 4, 4) == 0
  assert audit.epsilon_lower_bound(0.0, 100, 100, 50) == 0
  assert audit.epsilon_lower_bound(0.0, 100, 100, 0) == 0
  # With a delta of a half per canary everything could be told.
  assert audit.epsilon_lower_bound(0.5, 100, 100, 100) == 0


def test_the_bound_rises_with_right_guesses_and_falls_with_delta():
  counts = range(0, 101, 5)
  bounds = [audit.epsilon_lower_bound(1e-5, 300, 100, v) for v in counts]
  assert bounds == sorted(bounds)
  deltas = [0, 1e-6, 1e-4, 1e-3]
  bounds = [audit.epsilon_lower_bound(d, 300, 100, 90) for d in deltas]
  assert bounds == sorted(bounds, reverse=True)
  assert len(set(bounds)) == len(bounds)


def _violations(right: np.ndarray, epsilon: float, delta: float, canaries: int):
  """How likely the bound exceeds epsilon; `right` has P[v guesses right]."""
  guesses = len(right) - 1
  refuted = [
    audit.epsilon_lower_bound(delta, canaries, guesses, v) > epsilon
    for v in range(guesses + 1)
  ]
  return float(np.sum(right[refuted]))


@pytest.mark.parametrize(
  ('guesses', 'epsilon'), [(60, 0.0), (60, 2.0), (500, 0.7), (500, 4.0)]
)
def test_randomised_response_is_bounded_with_the_stated_confidence(
  guesses, epsilon
):
  """It is the worst mechanism: the bound errs in nearly 5 % of all cases."""
  q = 1 / (1 + math.exp(-epsilon))
  right = stats.binom.pmf(np.arange(guesses + 1), guesses, q)
  assert 0.015 < _violations(right, epsilon, 0.0, guesses) <= 0.05


def test_what_delta_allows_is_allowed():
  """Randomised response that, rarely, gives 20 of 100 canaries away.

  With probability 100 delta / 20 it does, so that each canary is given away
  with probability delta.
  """
  epsilon, delta, m, given = 1.0, 0.01, 100, 20
  q, rarely = 1 / (1 + math.exp(-epsilon)), m * delta / given
  v = np.arange(m + 1)
  right = (1 - rarely) * stats.binom.pmf(v, m, q)
  right += rarely * stats.binom.pmf(v - given, m - given, q)
  assert _violations(right, epsilon, 0.0, m) > 0.05
  assert _violations(right, epsilon, delta, m) <= 0.05


def _bounds_of_a_gaussian(canaries: int, guesses: int, repetitions: int):
  """Scores 1 or 0 for in or out, plus N(0, 1)."""
  found = []
  for seed in range(repetitions):
    rng = np.random.default_rng([seed, canaries])
    is_included = rng.random(canaries) < 0.5
    scores = is_included + rng.normal(size=canaries)
    made = audit.Guesses(guesses, guesses)
    correct = made.correct(scores, is_included)
    found.append(audit.epsilon_lower_bound(1e-5, canaries, made.total, correct))
  return np.array(found)


def test_the_bound_of_the_gaussian_mechanism_grows_towards_its_epsilon():
  epsilon = dp_accounting.get_epsilon_gaussian(1.0, 1e-5)
  assert epsilon == pytest.approx(4.377, abs=1e-3)
  means = []
  for canaries in (200, 2000, 20_000):
    found = _bounds_of_a_gaussian(canaries, 50, 40)
    assert np.mean(found > epsilon) <= 0.05
    means.append(found.mean())
  assert means == sorted(means)
  assert means[0] < 0.25 * epsilon
  assert means[2] > 0.45 * epsilon


def test_guesses_are_planned():
  assert audit.plan_guesses(400, 0.0) == audit.Guesses(50, 50)
  # Who may never have taken part can't be told from who was out.
  assert audit.plan_guesses(400, 0.06) == audit.Guesses(50, 0)
  # Forty of two hundred take part, for twenty guesses.
  assert audit.plan_guesses(400, 0.8) == audit.Guesses(20, 0)
  assert audit.plan_guesses(1, 0.999) == audit.Guesses(1, 0)


@pytest.mark.parametrize('mu', [0.2, 1.0, 5.0])
@pytest.mark.parametrize('delta', [1e-2, 1e-5, 1e-10])
def test_equally_wide_gaussians_are_the_gaussian_mechanism(mu, delta):
  expected = dp_accounting.get_epsilon_gaussian(1 / mu, delta)
  for first, second in (((3 * mu, 3), (0, 3)), ((0, 3), (3 * mu, 3))):
    found = audit.epsilon_of_gaussians(first, second, delta)
    assert found == pytest.approx(expected, rel=1e-6)


def _by_integration(first, second, delta):
  x, step = np.linspace(-40, 40, 200_001, retstep=True)
  p, q = stats.norm.logpdf(x, *first), stats.norm.logpdf(x, *second)

  def excess(epsilon):
    return np.maximum(np.exp(p) - np.exp(epsilon + q), 0).sum() * step - delta

  return optimize.brentq(excess, 0, 100)


@pytest.mark.parametrize(
  ('first', 'second'),
  [
    ((1.0, 1.2), (0.0, 1.0)),
    ((1.0, 0.8), (0.0, 1.0)),
    ((0.0, 1.0), (1.0, 0.8)),
    ((0.0, 1.1), (0.0, 1.0)),
    ((0.0, 1.0), (0.0, 1.1)),
  ],
)
def test_other_gaussians_by_plain_integration(first, second):
  found = audit.epsilon_of_gaussians(first, second, 1e-5)
  assert found == pytest.approx(_by_integration(first, second, 1e-5), rel=1e-6)


def test_gaussians_that_delta_covers_need_no_epsilon():
  assert audit.epsilon_of_gaussians((0, 1), (0, 1), 1e-5) == 0
  assert audit.epsilon_of_gaussians((1e-3, 1), (0, 1), 1e-3) == 0


def test_the_one_shot_estimate_takes_the_harder_direction():
  """Cosines whose mean is 0.3 and whose standard deviation is 0.05."""
  cosines = 0.3 + 0.05 * math.sqrt(7 / 8) * np.tile([-1, 1], 4)
  found = audit.one_shot_epsilon(cosines, 400, 1e-5)
  both = ((0.3, 0.05), (0.0, 0.05))
  assert found == pytest.approx(
    audit.epsilon_of_gaussians(*both, 1e-5), rel=1e-6
  )
  wider = audit.one_shot_epsilon(cosines, 1600, 1e-5)
  one = audit.epsilon_of_gaussians((0.3, 0.05), (0.0, 0.025), 1e-5)
  other = audit.epsilon_of_gaussians((0.0, 0.025), (0.3, 0.05), 1e-5)
  assert wider == pytest.approx(max(one, other), rel=1e-9)
  assert one > 2 * other
