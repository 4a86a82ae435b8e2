"""Epsilon against closed forms, an independent integration and papers."""

import math

import dp_accounting as da
import pytest

from research.privacy import accounting, guarantee, spending
from research.training import sampling as sampling_lib
from tests.research.privacy import reference

LARGE = 10**12


def gaussian(z, delta=1e-5, scheme='poisson', population=10_000, **changes):
  settings = {'clients_per_round': 100, 'total_rounds': 1000, **changes}
  sampling = guarantee.Sampling(scheme, population, **settings)
  return accounting.build(da.GaussianDpEvent(z), sampling, delta)


def everyone(z, delta=1e-5, rounds=1, scheme='poisson', population=9):
  """Without sampling: every client is in every round."""
  return gaussian(
    z,
    delta,
    scheme,
    population,
    clients_per_round=population,
    total_rounds=rounds,
  ).guarantee(rounds)


# Poisson sampling against the independent integration.
SAMPLED = [
  # Population, clients per round, rounds, noise multiplier, delta.
  (10_000, 100, 1000, 1.0, 1e-5),
  (10_000, 100, 1000, 1.0, 1e-10),
  (1000, 100, 100, 2.0, 1e-6),
  (1000, 30, 17, 0.6, 1e-5),
  (100, 50, 50, 3.0, 1e-4),
  (100, 90, 10, 2.0, 1e-4),
]


@pytest.mark.parametrize('population, clients, rounds, z, delta', SAMPLED)
def test_pld_bounds_the_integrated_delta_closely(
  population, clients, rounds, z, delta
):
  """Never below the truth, and at most 0.05 % above (0.15 % at 1e-10)."""
  epsilon = (
    gaussian(
      z,
      delta,
      population=population,
      clients_per_round=clients,
      total_rounds=rounds,
    )
    .guarantee(rounds)
    .epsilon_pld
  )
  truth = reference.PoissonGaussian([(clients / population, z, rounds)])
  # Where delta is small there is room for the rounding errors of an FFT.
  assert truth.delta(epsilon) <= (0.985 if delta == 1e-10 else 1) * delta
  slack = 1.5e-3 if delta == 1e-10 else 5e-4
  assert truth.delta(epsilon * (1 - slack)) > delta


def test_the_integration_knows_the_closed_form():
  """Sampling with probability next to 1 is the Gaussian mechanism."""
  truth = reference.PoissonGaussian([(1 - 1e-9, 8.0, 16)])
  for epsilon in (0.5, 1.0, 3.0):
    expected = reference.gaussian_delta(epsilon, 0.5)
    assert truth.delta(epsilon) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize('q, z', [(0.01, 1.0), (0.1, 2.0), (0.5, 4.0)])
def test_rdp_agrees_with_quadrature(q, z):
  """To rounding for whole orders; the library rounds fractional ones up."""
  accountant = gaussian(
    z, clients_per_round=round(10_000 * q), total_rounds=100
  )
  orders = [1 + tenths / 10 for tenths in range(5, 100)] + list(range(11, 20))
  truth = [reference.renyi_divergence(q, z, a) for a in orders]
  library = dict(
    zip(spending._ORDERS, accountant._spent._round_rdp(1), strict=True)
  )
  for order, divergence in zip(orders, truth, strict=True):
    if order == int(order):
      assert library[order] == pytest.approx(divergence, rel=1e-10)
    else:
      assert library[order] >= divergence
  expected = reference.epsilon_of_renyi(orders, [100 * t for t in truth], 1e-5)
  assert expected <= accountant.rdp_epsilon(100) <= expected * 1.004


@pytest.mark.parametrize('mu', [0.05, 0.3, 1.0, 2.0, 5.0])
@pytest.mark.parametrize('delta', [1e-10, 1e-5, 1e-2])
def test_without_sampling_it_is_the_closed_form(mu, delta):
  found = everyone(2 / mu, delta, rounds=4)
  expected = reference.gaussian_epsilon(delta, mu)
  assert found.epsilon_pld == pytest.approx(expected, rel=1e-9, abs=1e-10)
  assert found.epsilon_rdp >= expected
  assert not found.amplified


def test_a_replaced_client_counts_twice():
  """Its update goes and another's comes: twice the clipping norm."""
  found = everyone(10.0, rounds=100, scheme='fixed_size', population=100)
  assert found.epsilon_pld == pytest.approx(
    reference.gaussian_epsilon(1e-5, 2.0), rel=1e-9
  )
  assert found.epsilon_pld == pytest.approx(9.997, abs=1e-3)
  added = everyone(10.0, rounds=100, population=100)
  assert added.epsilon_pld == pytest.approx(4.377, abs=1e-3)
  assert added.epsilon_rdp == pytest.approx(4.729, abs=1e-3)


def test_fixed_size_sampling_does_not_get_the_epsilon_of_half_the_change():
  """The trap: 3.58 would be printed, 20.99 is what a z of 1 gives."""
  found = gaussian(1.0, scheme='fixed_size').guarantee(1000)
  assert found.epsilon_rdp == pytest.approx(20.99, abs=5e-3)
  assert found.epsilon_pld is None
  assert found.epsilon == found.epsilon_rdp
  assert found.relation == 'replace_one_client'
  twice = gaussian(2.0, scheme='fixed_size').guarantee(1000)
  assert twice.epsilon_rdp == pytest.approx(3.576, abs=1e-3)


def test_poisson_sampling_gives_the_numbers_of_the_library():
  accountant = gaussian(1.0)
  after = accountant.guarantee(1000)
  assert after.epsilon_rdp == pytest.approx(2.101, abs=1e-3)
  assert after.epsilon_pld == pytest.approx(1.828, abs=1e-3)
  assert accountant.guarantee(100).epsilon_rdp == pytest.approx(1.214, abs=1e-3)
  assert accountant.guarantee(100).epsilon_pld == pytest.approx(0.718, abs=1e-3)
  assert after.relation == 'add_or_remove_one_client'
  assert after.amplified


def test_the_tff_tutorial_is_2_1e5_private():
  """EMNIST digits: 120 of 3,383 writers, z = 1.2, 100 rounds."""
  after = gaussian(
    1.2, population=3383, clients_per_round=120, total_rounds=100
  ).guarantee(100)
  assert after.epsilon_rdp == pytest.approx(1.986, abs=1e-3)
  assert after.epsilon_pld < after.epsilon_rdp


def test_published_epsilons_of_one_gaussian():
  """LiDP (2305.18447) by RDP; ME-MF (2211.06530) by RDP and exactly."""
  lidp = {
    58.8: 0.5,
    16.36: 1,
    7.788: 1.5,
    4.62: 2,
    2.23: 3,
    1.34: 4,
    0.4066: 8,
    0.13135: 16,
  }
  for variance, epsilon in lidp.items():
    found = everyone(math.sqrt(variance)).epsilon_rdp
    assert found == pytest.approx(epsilon, rel=4e-4)
  me_mf = {
    0.3: (20.39, 19.13),
    0.4: (14.13, 13.21),
    0.5: (10.72, 10.00),
    0.75: (6.60, 6.13),
    1.0: (4.73, 4.38),
    2.0: (2.17, 1.99),
  }
  for z, (by_rdp, exactly) in me_mf.items():
    found = everyone(z)
    assert found.epsilon_rdp == pytest.approx(by_rdp, abs=6e-3)
    assert found.epsilon_pld == pytest.approx(exactly, abs=5e-3)


def test_the_published_noise_of_ddgauss_keeps_its_epsilon():
  """2102.06387: EMNIST, 2 rounds, epsilon 10 by a looser sampling bound."""
  after = gaussian(
    0.3437744360709157,
    1 / 3401,
    population=3400,
    clients_per_round=100,
    total_rounds=2,
  ).guarantee(2)
  assert 9.7 < after.epsilon_rdp < 10
  assert after.epsilon_pld < after.epsilon_rdp


def test_adaptive_clipping_merges_into_one_gaussian():
  # 1 = 1 / z^2 + 1 / 10^2 for the sum and the count of clipped clients.
  parts = [da.GaussianDpEvent(math.sqrt(1 / 0.99)), da.GaussianDpEvent(10.0)]
  event = da.ComposedDpEvent(parts)
  assert accounting.merged_noise_multiplier(event) == pytest.approx(1.0)
  sampling = guarantee.Sampling('poisson', 1000, 50, 10)
  merged = accounting.build(event, sampling, 1e-4).guarantee(10)
  single = accounting.build(da.GaussianDpEvent(1.0), sampling, 1e-4)
  assert merged.epsilon == pytest.approx(single.guarantee(10).epsilon, rel=1e-9)
  four = da.SelfComposedDpEvent(da.GaussianDpEvent(3.0), 4)
  assert accounting.merged_noise_multiplier(four) == pytest.approx(1.5)


@pytest.mark.parametrize(
  'event, message',
  [
    (da.PoissonSampledDpEvent(0.1, da.GaussianDpEvent(1.0)), 'sampled already'),
    (
      da.SampledWithoutReplacementDpEvent(10, 1, da.GaussianDpEvent(1.0)),
      'sampled already',
    ),
    (da.UnsupportedDpEvent(), 'has no accounting here'),
    (da.LaplaceDpEvent(1.0), 'has no accounting here'),
    (da.ComposedDpEvent([]), 'has no accounting here'),
    (da.GaussianDpEvent(0.0), 'without noise there is no privacy'),
    (
      da.ComposedDpEvent([da.GaussianDpEvent(1.0), da.NonPrivateDpEvent()]),
      'has no accounting here',
    ),
  ],
)
def test_other_events_are_refused(event, message):
  sampling = guarantee.Sampling('poisson', 1000, 50, 10)
  with pytest.raises(guarantee.AccountingError, match=message):
    accounting.build(event, sampling, 1e-4)


def test_a_delta_of_one_client_is_refused():
  with pytest.raises(guarantee.AccountingError, match='all data of one client'):
    gaussian(1.0, 1e-4)


def test_another_sampler_than_accounted_for_is_refused():
  accountant = gaussian(
    1.0, 1e-3, population=100, clients_per_round=10, total_rounds=5
  )
  ids = [str(i) for i in range(100)]
  accountant.check_sampler(sampling_lib.ClientSampler(ids, 10, 'poisson'))
  for other in [
    sampling_lib.ClientSampler(ids, 10, 'fixed_size'),
    sampling_lib.ClientSampler(ids, 11, 'poisson'),
    sampling_lib.ClientSampler(ids[:-1], 10, 'poisson'),
  ]:
    with pytest.raises(guarantee.AccountingError, match='would not hold'):
      accountant.check_sampler(other)


@pytest.mark.parametrize('z, delta', [(1.0, 1e-5), (0.5, 1e-8)])
def test_numbers_do_not_depend_on_what_was_asked_before(z, delta):
  in_order, out_of_order = gaussian(z, delta), gaussian(z, delta)
  rounds = [1, 2, 3, 15, 16, 17, 18, 48, 49]
  expected = [in_order.guarantee(r) for r in rounds]
  assert [out_of_order.guarantee(r) for r in rounds[::-1]] == expected[::-1]
  epsilons = [e.epsilon for e in expected]
  assert epsilons == sorted(epsilons)


def test_nothing_released_costs_nothing():
  assert gaussian(1.0).guarantee(0).epsilon == 0
  fixed = gaussian(1.0, scheme='fixed_size').guarantee(0)
  assert (fixed.epsilon_rdp, fixed.epsilon_pld) == (0, None)


def test_very_small_deltas_are_left_to_rdp():
  """An FFT in double precision does not reach them; a closed form does."""
  assert gaussian(1.0, 9e-11).guarantee(10).epsilon_pld is None
  assert gaussian(1.0, 1.1e-10).guarantee(10).epsilon_pld is not None
  assert everyone(1.0, 1e-14).epsilon_pld is not None


def test_hardly_anything_released_is_no_contradiction():
  """Renyi's bound is 0 here, and a grid of losses can't say 0."""
  found = gaussian(1e4, 1e-4, population=3400, clients_per_round=50)
  assert found.guarantee(1000).epsilon == 0


def test_contradicting_accountants_are_an_error(monkeypatch):
  accountant = gaussian(1.0)
  by_rdp = accountant.guarantee(10).epsilon_rdp
  for excess, allowed in [(0.9e-3, True), (1.1e-3, False)]:
    monkeypatch.setattr(
      spending.SampledGaussian,
      'by_pld',
      lambda *args, e=excess: by_rdp * (1 + e),
    )
    fresh = gaussian(1.0)
    if allowed:
      fresh.guarantee(10)
    else:
      with pytest.raises(guarantee.AccountingError, match='one of the two is'):
        fresh.guarantee(10)


@pytest.mark.parametrize('max_epsilon', [0.1, 0.25, 0.61, 100.0])
def test_most_rounds_is_the_last_within_the_limit(max_epsilon):
  accountant = gaussian(1.0, total_rounds=60)
  within = [
    r for r in range(61) if accountant.guarantee(r).epsilon <= max_epsilon
  ]
  assert accountant.most_rounds(max_epsilon) == within[-1]


def test_most_rounds_counts_repetitions():
  accountant = gaussian(1.0, total_rounds=60)
  limit = accountant.guarantee(30, (2, 3)).epsilon
  assert accountant.most_rounds(limit, 2, lambda r: (r, (2, 3))) == 30
  assert accountant.most_rounds(limit) > 30
  assert accountant.most_rounds(1e-3, 2, lambda r: (r, (2, 3))) == 2


@pytest.mark.parametrize(
  'rounds, repeated, message',
  [
    (61, (), '61 rounds of 60 planned ones'),
    (-1, (), '-1 rounds of 60'),
    (1, (2, 2), 'of 1 rounds'),
    (5, (1,), 'at least 2'),
  ],
)
def test_rounds_that_can_not_be_are_refused(rounds, repeated, message):
  with pytest.raises(guarantee.AccountingError, match=message):
    gaussian(1.0, total_rounds=60).guarantee(rounds, repeated)


def test_a_round_drawn_again_has_the_same_clients():
  """One sample with two releases, which is worse than two samples."""
  accountant = gaussian(
    1.0, 1e-6, population=1000, clients_per_round=100, total_rounds=50
  )
  epsilon = accountant.guarantee(40, (2,) * 10).epsilon_pld
  parts = [(0.1, 1.0, 30), (0.1, math.sqrt(0.5), 10)]
  truth = reference.PoissonGaussian(parts)
  assert truth.delta(epsilon) <= 1e-6 < truth.delta(epsilon * (1 - 5e-4))
  assert epsilon > 1.1 * accountant.guarantee(50).epsilon_pld


def test_without_sampling_a_repetition_is_one_more_round():
  sampling = guarantee.Sampling('poisson', 9, 9, 10)
  accountant = accounting.build(da.GaussianDpEvent(5.0), sampling, 1e-3)
  expected = reference.gaussian_epsilon(1e-3, math.sqrt(4 + 2 + 3) / 5)
  found = accountant.guarantee(6, (3, 2)).epsilon_pld
  assert found == pytest.approx(expected, rel=1e-9)


def test_gaussian_noise_under_cyclic_sampling():
  """A client has ceil(T / b) turns, each with probability b C / N."""
  accountant = gaussian(
    1.0, 1e-6, 'cyclic_poisson', 10_000, total_rounds=99, min_separation=10
  )
  after = accountant.guarantee(99)
  truth = reference.PoissonGaussian([(0.1, 1.0, 10)])
  epsilon = after.epsilon_pld
  assert truth.delta(epsilon) <= 1e-6 < truth.delta(epsilon * (1 - 5e-4))
  assert after.relation == 'zero_out_one_client'
  # Its second turn is in round 11 at the earliest.
  assert accountant.guarantee(1).epsilon == accountant.guarantee(10).epsilon
  assert accountant.guarantee(10).epsilon < accountant.guarantee(11).epsilon
