"""What a report of PrivUnit tells, against densities integrated here."""

import math

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as pld
from scipy import integrate, stats

from research.privacy import priv_unit

NOISE = [0.2, 0.5, 1.0, 4.0, 50.0]


def _density(x, z: float, sign: int = 1):
  """Along a line through the origin, of a report of the direction +1 or -1."""
  gamma, above = 1 / z, priv_unit.probability_above(z)
  up = above / stats.norm.sf(gamma)
  down = (1 - above) / stats.norm.cdf(gamma)
  return stats.norm.pdf(x) * np.where(sign * x >= gamma, up, down)


def test_epsilon_by_hand():
  # phi(1) = 0.2419707, Phi(1) = 0.8413447: ln(1.0833155 / 0.0833155).
  assert priv_unit.epsilon(1.0) == pytest.approx(2.565147, abs=1e-5)


@pytest.mark.parametrize('z', NOISE)
def test_the_densities_of_two_directions_differ_by_epsilon(z):
  x = np.array([-1, 1]) * 1.01 / z
  ratios = np.log(_density(x, z) / _density(x, z, -1))
  epsilon = priv_unit.epsilon(z)
  np.testing.assert_allclose(ratios, [-epsilon, epsilon], rtol=1e-9)


@pytest.mark.parametrize('z', NOISE)
def test_a_report_is_a_distribution_whose_mean_is_the_direction(z):
  options = {'points': [1 / z], 'epsabs': 1e-12}
  total, _ = integrate.quad(lambda x: _density(x, z), -9, 14, **options)
  assert total == pytest.approx(1, abs=1e-9)
  mean, _ = integrate.quad(lambda x: x * _density(x, z), -9, 14, **options)
  # The report is x / gamma.
  assert mean * z == pytest.approx(1, rel=1e-7)


@pytest.mark.parametrize('z', NOISE)
def test_no_other_threshold_has_less_noise_for_this_epsilon(z):
  gamma = np.linspace(0, 12, 100_001)
  decay = math.exp(-priv_unit.epsilon(z))
  mean = stats.norm.pdf(gamma) * (1 - decay)
  mean /= stats.norm.sf(gamma) + decay * stats.norm.cdf(gamma)
  assert mean.max() == pytest.approx(1 / z, rel=1e-6)


@pytest.mark.parametrize('z', [0.3, 1.0, 4.0])
def test_opposite_directions_are_told_apart_best(z):
  grid = np.arange(-8, 8, 0.01)
  x, y = np.meshgrid(grid, grid)
  gamma, above = 1 / z, priv_unit.probability_above(z)

  def density(angle):
    along = np.cos(angle) * x + np.sin(angle) * y
    up, down = above / stats.norm.sf(gamma), (1 - above) / stats.norm.cdf(gamma)
    weights = np.where(along >= gamma, up, down)
    return weights * stats.norm.pdf(x) * stats.norm.pdf(y) * 1e-4

  total = priv_unit.epsilon(z) / 3

  def delta(angle):
    one, other = density(0.0), density(angle)
    return np.maximum(one - math.exp(total) * other, 0).sum()

  worst = delta(math.pi)
  expected = above * -math.expm1(total - priv_unit.epsilon(z))
  assert worst == pytest.approx(expected, rel=0.01)
  for angle in (0.3, 1.0, 2.0, 2.9):
    assert delta(angle) <= worst * (1 + 1e-9)


@pytest.mark.parametrize('z', [1.0, 4.0])
@pytest.mark.parametrize('order', [1.5, 2, 8])
def test_the_renyi_divergence_is_that_of_the_densities(z, order):
  def integrand(x):
    return _density(x, z) ** order * _density(x, z, -1) ** (1 - order)

  points = [-1 / z, 1 / z]
  expected, _ = integrate.quad(integrand, -9, 9, points=points, limit=200)
  (found,) = priv_unit.renyi_divergence(z, [order])
  assert found == pytest.approx(math.log(expected) / (order - 1), rel=1e-6)


@pytest.mark.parametrize('z', [1.0, 4.0, 50.0])
@pytest.mark.parametrize('reports', [1, 3, 40])
def test_reports_compose_as_their_privacy_losses(z, reports):
  epsilon, above = priv_unit.epsilon(z), priv_unit.probability_above(z)
  opposite = above * math.exp(-epsilon)
  masses = [above, 1 - above - opposite, opposite]
  upper = {i: math.log(mass) for i, mass in enumerate(masses)}
  lower = {i: math.log(mass) for i, mass in enumerate(masses[::-1])}
  one = pld.from_two_probability_mass_functions(
    lower, upper, value_discretization_interval=epsilon / 2000
  )
  expected = one.self_compose(reports).get_epsilon_for_delta(1e-5)
  found = priv_unit.composed_epsilon(z, reports, 1e-5)
  assert found == pytest.approx(expected, rel=2e-3)
  assert found <= reports * epsilon


def test_reports_of_randomized_response_would_tell_more():
  z, reports = 4.0, 200
  flips = 2 / (1 + math.exp(priv_unit.epsilon(z)))
  worse = pld.from_randomized_response(flips, 2).self_compose(reports)
  found = priv_unit.composed_epsilon(z, reports, 1e-5)
  assert found < 0.97 * worse.get_epsilon_for_delta(1e-5)
