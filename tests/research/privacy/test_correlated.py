"""Epsilon of noise that is correlated between rounds; fake factorizations."""

import dataclasses
import math

import pytest

from research.privacy import accounting, guarantee
from tests.research.privacy import reference


@dataclasses.dataclass(frozen=True)
class Columns:
  """Columns that don't meet, so that squared norms add up."""

  squared_norm: float = 1.0
  bands: int | None = None
  name: str = 'columns'

  def sensitivity(self, min_separation: int, max_participations: int) -> float:
    return math.sqrt(max_participations * self.squared_norm)


@dataclasses.dataclass(frozen=True)
class Tree(Columns):
  """The squared sensitivity of a whole tree, whatever is asked."""

  name: str = 'tree'

  def sensitivity(self, min_separation: int, max_participations: int) -> float:
    return math.sqrt(self.squared_norm)


def production(strategy, z, rounds, separation):
  """One of Gboard's models: no amplification, delta 1e-10."""
  sampling = guarantee.Sampling(
    'cyclic_poisson', 10**8, 6500, rounds, separation
  )
  accountant = accounting.build_correlated(strategy, z, sampling, 1e-10)
  return accountant.guarantee(rounds)


def test_gboards_brazilian_portuguese():
  """z = 8.35, two participations: zCDP .014343, exact Gaussian."""
  zcdp = 2 / (2 * 8.35**2)
  assert zcdp == pytest.approx(0.014343, abs=5e-7)
  found = production(Columns(), 8.35, 2000, 1428)
  assert found.epsilon_pld == pytest.approx(0.99355, abs=5e-6)
  assert not found.amplified


def test_gboards_spanish():
  """z = 1.411 and zCDP .15068, which is that of columns of norm 1 / sqrt(5).

  Three participations, as published, are 1,452 rounds 484 apart.
  """
  found = production(Columns(1 / 5), 1.411, 1452, 484)
  zcdp = 3 / 5 / (2 * 1.411**2)
  assert zcdp == pytest.approx(0.15068, abs=5e-6)
  assert found.epsilon_pld == pytest.approx(3.424, abs=5e-5)


def test_gboards_first_tree():
  """z = 7, 2,000 rounds: zCDP .81 is a squared sensitivity of 79, by RDP 8.90.

  The published number is not the exact Gaussian one, which is lower.
  """
  found = production(Tree(79.0), 7.0, 2000, 314)
  assert round(79 / (2 * 7.0**2), 2) == 0.81
  assert found.epsilon_rdp == pytest.approx(8.90, abs=5e-3)
  assert found.epsilon_pld == pytest.approx(8.526, abs=1e-3)


def cyclic(rounds=100, separation=10):
  return guarantee.Sampling('cyclic_poisson', 1000, 20, rounds, separation)


def test_epsilon_grows_when_a_client_can_take_part_again():
  accountant = accounting.build_correlated(Columns(), 4.0, cyclic(), 1e-5)
  for rounds, turns in [(1, 1), (10, 1), (11, 2), (91, 10), (100, 10)]:
    expected = reference.gaussian_epsilon(1e-5, math.sqrt(turns) / 4)
    found = accountant.guarantee(rounds).epsilon_pld
    assert found == pytest.approx(expected, rel=1e-9)


def test_a_separation_beyond_the_last_round_is_single_participation():
  accountant = accounting.build_correlated(
    Columns(), 4.0, cyclic(rounds=30, separation=50), 1e-5
  )
  expected = reference.gaussian_epsilon(1e-5, 1 / 4)
  assert accountant.guarantee(30).epsilon == pytest.approx(expected, rel=1e-9)


def test_rounds_released_again_are_charged_as_if_all_were():
  accountant = accounting.build_correlated(Columns(), 4.0, cyclic(), 1e-5)
  expected = reference.gaussian_epsilon(1e-5, math.sqrt(3 * 10) / 4)
  found = accountant.guarantee(100, (2, 3, 2)).epsilon
  assert found == pytest.approx(expected, rel=1e-9)


def test_few_bands_are_amplified_by_sampling():
  """Ten turns with probability 20 * 10 / 1000, by the integration."""
  strategy = Columns(bands=10)
  accountant = accounting.build_correlated(strategy, 2.0, cyclic(), 1e-5)
  found = accountant.guarantee(100)
  truth = reference.PoissonGaussian([(0.2, 2.0, 10)])
  epsilon = found.epsilon_pld
  assert truth.delta(epsilon) <= 1e-5 < truth.delta(epsilon * (1 - 5e-4))
  assert found.amplified
  assert found.relation == 'zero_out_one_client'
  assert 'columns' in found.statement()


def test_amplification_counts_the_norm_of_columns():
  sampling = cyclic()
  half = Columns(squared_norm=0.25, bands=10)
  found = accounting.build_correlated(half, 1.0, sampling, 1e-5)
  whole = accounting.build_correlated(Columns(bands=10), 2.0, sampling, 1e-5)
  assert found.guarantee(100).epsilon == whole.guarantee(100).epsilon
  assert found.guarantee(100).noise_multiplier == 1.0


def test_more_bands_than_rounds_apart_are_not_amplified():
  build = accounting.build_correlated
  found = build(Columns(bands=11), 2.0, cyclic(), 1e-5).guarantee(100)
  expected = reference.gaussian_epsilon(1e-5, math.sqrt(10) / 2)
  assert not found.amplified
  assert found.epsilon == pytest.approx(expected, rel=1e-9)


def test_amplified_rounds_released_again():
  """At worst each is a turn of the same client."""
  accountant = accounting.build_correlated(
    Columns(bands=10), 2.0, cyclic(), 1e-5
  )
  epsilon = accountant.guarantee(100, (2, 2, 3)).epsilon_pld
  parts = [
    (0.2, 2.0, 7),
    (0.2, 2 / math.sqrt(2), 2),
    (0.2, 2 / math.sqrt(3), 1),
  ]
  truth = reference.PoissonGaussian(parts)
  assert truth.delta(epsilon) <= 1e-5 < truth.delta(epsilon * (1 - 5e-4))
  # More repetitions than a client has turns.
  most = accountant.guarantee(100, (2,) * 30).epsilon_pld
  truth = reference.PoissonGaussian([(0.2, 2 / math.sqrt(2), 10)])
  assert truth.delta(most) <= 1e-5 < truth.delta(most * (1 - 5e-4))


@pytest.mark.parametrize('scheme', ['poisson', 'fixed_size'])
def test_sampling_without_a_bound_on_participation_is_refused(scheme):
  sampling = guarantee.Sampling(scheme, 1000, 20, 100)
  with pytest.raises(
    guarantee.AccountingError, match='bounded number of times'
  ):
    accounting.build_correlated(Columns(), 1.0, sampling, 1e-5)


@pytest.mark.parametrize('z', [0.0, -1.0, float('nan'), float('inf')])
def test_no_noise_is_refused(z):
  with pytest.raises(guarantee.AccountingError, match='Give a number above 0'):
    accounting.build_correlated(Columns(), z, cyclic(), 1e-5)
