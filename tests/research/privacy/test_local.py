"""Epsilon of reports that are private by themselves."""

import math

import dp_accounting as da
import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as pld
from scipy import stats

from research.privacy import guarantee, local, priv_unit

DELTA = 1e-5
SAMPLING = guarantee.Sampling('poisson', 1000, 50, 12)
CYCLIC = guarantee.Sampling('cyclic_poisson', 1000, 50, 12, 5)


def _epsilon(mechanism, multiplier, rounds=12, sampling=SAMPLING):
  accountant = local.build(mechanism, multiplier, sampling, DELTA)
  return accountant.guarantee(rounds).epsilon


def _gaussian_delta(epsilon: float, mu: float) -> float:
  """Balle and Wang 2018, arXiv:1805.06530, Theorem 8."""
  first = stats.norm.cdf(mu / 2 - epsilon / mu)
  return first - math.exp(epsilon) * stats.norm.cdf(-mu / 2 - epsilon / mu)


@pytest.mark.parametrize('reports', [1, 12])
def test_gaussian_reports_have_the_exact_epsilon(reports):
  # Two updates of norm 1 can be 2 apart: mu = 2 sqrt(reports) / 9.
  epsilon = _epsilon(local.GAUSSIAN, 9.0, reports)
  delta = _gaussian_delta(epsilon, 2 * math.sqrt(reports) / 9)
  assert delta == pytest.approx(DELTA, rel=1e-6)


def test_one_laplace_report_is_at_most_twice_the_norm_over_its_parameter():
  # With the norm 1 a standard deviation of 4 is a parameter of 4 / sqrt(2).
  pure = 2 * math.sqrt(2) / 4
  assert 0.99 * pure < _epsilon(local.LAPLACE, 4.0, 1) <= pure


@pytest.mark.parametrize('multiplier', [2.0, 10.0, 60.0])
@pytest.mark.parametrize('reports', [2, 12])
def test_laplace_reports_against_their_privacy_loss(multiplier, reports):
  one = pld.from_laplace_mechanism(
    multiplier / math.sqrt(2), sensitivity=2, value_discretization_interval=1e-4
  )
  exact = one.self_compose(reports).get_epsilon_for_delta(DELTA)
  found = _epsilon(local.LAPLACE, multiplier, reports)
  assert exact * (1 - 1e-3) <= found <= 1.2 * exact
  assert found <= reports * 2 * math.sqrt(2) / multiplier * (1 + 1e-12)


def test_priv_unit_reports_by_both_accountants():
  told = local.build(local.PRIV_UNIT, 6.0, SAMPLING, DELTA).guarantee(12)
  pure = 12 * priv_unit.epsilon(6.0)
  assert told.epsilon == told.epsilon_pld < told.epsilon_rdp <= pure
  assert told.epsilon == priv_unit.composed_epsilon(6.0, 12, DELTA)
  assert told.epsilon_report < priv_unit.epsilon(6.0)


def test_a_change_of_an_l1_norm_is_worst_in_one_coordinate():
  x = np.arange(-60, 60, 1e-3)

  def divergence(change, order):
    logs = -order * np.abs(x - change) + (order - 1) * np.abs(x)
    return math.log(np.exp(logs).sum() * 1e-3 / 2) / (order - 1)

  accountant = da.rdp.RdpAccountant([2, 5])
  bounds = accountant.compose(da.LaplaceDpEvent(1 / 1.5)).rdp
  for order, bound in zip((2, 5), bounds, strict=True):
    assert divergence(1.5, order) == pytest.approx(bound, rel=1e-5)
    for share in (0.1, 0.5, 0.9):
      parts = [divergence(1.5 * s, order) for s in (share, 1 - share)]
      assert sum(parts) < bound


@pytest.mark.parametrize('mechanism', local.MECHANISMS)
def test_a_client_spends_for_the_most_reports_it_can_give(mechanism):
  # In 12 rounds of 5 groups a client has 3 turns.
  once = _epsilon(mechanism, 9.0, 3)
  assert _epsilon(mechanism, 9.0, 12, CYCLIC) == pytest.approx(once)
  assert _epsilon(mechanism, 9.0, 5, CYCLIC) == pytest.approx(
    _epsilon(mechanism, 9.0, 1)
  )
  accountant = local.build(mechanism, 9.0, SAMPLING, DELTA)
  again = accountant.guarantee(6, [2, 3])
  assert again.reports == 9
  assert again.epsilon == pytest.approx(accountant.guarantee(9).epsilon)
  # How many others there are hides no one.
  many = guarantee.Sampling('poisson', 90_000, 50, 12)
  assert _epsilon(mechanism, 9.0, 12, many) == _epsilon(mechanism, 9.0)


@pytest.mark.parametrize('sampling', [SAMPLING, CYCLIC], ids=['all', 'cyclic'])
@pytest.mark.parametrize('mechanism', local.MECHANISMS)
def test_a_target_is_met_with_the_least_noise(mechanism, sampling):
  found = local.noise_multiplier(4.0, mechanism, sampling, DELTA)
  assert 4 * 0.999 < _epsilon(mechanism, found, 12, sampling) <= 4
  assert _epsilon(mechanism, found * (1 - 5e-5), 12, sampling) > 4


def test_what_can_not_be_private_is_refused():
  with pytest.raises(guarantee.AccountingError, match='without noise'):
    local.build(local.LAPLACE, 0.0, SAMPLING, DELTA)
  with pytest.raises(guarantee.AccountingError, match='at least 0.1'):
    local.build(local.PRIV_UNIT, 0.09, SAMPLING, DELTA)
  with pytest.raises(guarantee.AccountingError, match='out of reach'):
    local.noise_multiplier(1e-9, local.LAPLACE, SAMPLING, DELTA)
  with pytest.raises(guarantee.AccountingError, match='must be above 0'):
    local.build(local.GAUSSIAN, 1.0, SAMPLING, 0.5)


@pytest.mark.parametrize(
  ('mechanism', 'norm'),
  [(local.GAUSSIAN, 'L2'), (local.LAPLACE, 'L1'), (local.PRIV_UNIT, 'L2')],
)
def test_the_statement_is_of_one_client_against_the_server(mechanism, norm):
  told = local.build(mechanism, 9.0, SAMPLING, DELTA).guarantee(7)
  text = told.statement()
  assert told.relation == 'any_two_values_of_a_client'
  assert 'at most 7 reports' in text
  assert guarantee.round_up(told.epsilon_report) in text
  assert 'the server included' in text
  assert told.summary().endswith('for one report')
  assert 'This is a simulation' in text
  assert ('sent one key' in text) == (mechanism == local.PRIV_UNIT)
  assert 'Renyi differential privacy gives' in text
  assert f'longer {norm} norm' in text
  assert not told.amplified
