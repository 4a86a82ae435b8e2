"""Epsilon of distributed noise against sums over all outcomes."""

import dataclasses
import math

import dp_accounting as da
import numpy as np
import pytest

from research.privacy import (
  accounting,
  distributed,
  distributed_accounting,
  guarantee,
)
from tests.research.privacy import integer_distributions

ENCODING = distributed.Encoding(1.0, 1.0, 50, 5000, 16)
SAMPLINGS = {
  'poisson': guarantee.Sampling('poisson', 2000, 50, 100),
  'all': guarantee.Sampling('poisson', 50, 50, 10),
  'fixed_size': guarantee.Sampling('fixed_size', 2000, 50, 100),
  'cyclic_poisson': guarantee.Sampling('cyclic_poisson', 2000, 50, 100, 8),
}
DELTA = 1e-5
NOISES = {
  distributed.DISCRETE_GAUSSIAN: (
    distributed.DiscreteGaussian(2.0, 1, 1),
    integer_distributions.discrete_gaussian(4.0, 120),
  ),
  distributed.SKELLAM: (
    distributed.Skellam(2.0, 1),
    integer_distributions.skellam(4.0, 120),
  ),
}


def _build(mechanism=distributed.SKELLAM, sampling='poisson', **changes):
  encoding = dataclasses.replace(ENCODING, **changes)
  return distributed_accounting.build(
    mechanism, encoding, SAMPLINGS[sampling], DELTA
  )


@pytest.mark.parametrize('probability', [0.01, 0.3])
@pytest.mark.parametrize('mechanism', NOISES)
def test_poisson_sampling_against_the_mixture_itself(mechanism, probability):
  noise, pmf = NOISES[mechanism]
  other = integer_distributions.shifted(pmf, 3)
  mixture = (1 - probability) * pmf + probability * other

  def exact(orders):
    return np.array(
      [
        integer_distributions.renyi_divergence(other, pmf, order)
        for order in orders
      ]
    )

  def bound(orders):
    return noise.rdp(orders, 3.0)

  for order in (2, 3, 6, 12):
    sampled = distributed_accounting.poisson_sampled
    added = integer_distributions.renyi_divergence(mixture, pmf, order)
    removed = integer_distributions.renyi_divergence(pmf, mixture, order)
    assert sampled(exact, probability, order) == pytest.approx(added, rel=1e-9)
    assert removed <= added
    assert added <= sampled(bound, probability, order) * (1 + 1e-9)
    # If all know whether the client was drawn it is protected less.
    known = distributed_accounting.known_cohorts(exact, probability, order)
    parts = [
      np.concatenate([(1 - probability) * pmf, probability * with_client])
      for with_client in (other, pmf)
    ]
    direct = integer_distributions.renyi_divergence(*parts, order)
    assert known == pytest.approx(direct, rel=1e-9)
    assert added <= known <= exact([order])[0]


def test_without_sampling_nothing_is_amplified():
  def divergence(orders):
    return 0.1 * orders

  for sampled in (
    distributed_accounting.poisson_sampled,
    distributed_accounting.known_cohorts,
    distributed_accounting.fixed_size_sampled,
  ):
    assert sampled(divergence, 1.0, 7) == pytest.approx(0.7)


@pytest.mark.parametrize('probability', [1e-3, 0.02])
@pytest.mark.parametrize('noise_multiplier', [0.6, 1.0, 5.0])
def test_fixed_size_sampling_agrees_with_the_library_on_gaussians(
  probability, noise_multiplier
):
  clients = round(10_000 * probability)
  event = da.SampledWithoutReplacementDpEvent(
    10_000, clients, da.GaussianDpEvent(noise_multiplier)
  )
  orders = [2, 3, 5, 16]
  library = da.rdp.RdpAccountant(orders, da.NeighboringRelation.REPLACE_ONE)
  expected = library.compose(event).rdp

  def divergence(orders):
    return orders / (2 * noise_multiplier**2)

  found = [
    distributed_accounting.fixed_size_sampled(divergence, probability, order)
    for order in orders
  ]
  # The library is tighter, by what it knows of Gaussians.
  assert np.all(found >= expected * (1 - 1e-9))
  for order, bound in zip(orders, found, strict=True):
    second = divergence(2)
    total = 1 + probability**2 * math.comb(order, 2) * min(
      4 * (math.exp(second) - 1), 2 * math.exp(second)
    )
    for j in range(3, order + 1):
      factor = 2 * math.comb(order, j) * probability**j
      total += factor * math.exp((j - 1) * divergence(j))
    inside = math.exp((order - 1) * divergence(order))
    known = 1 - probability + probability * inside
    expected = math.log(min(total, known)) / (order - 1)
    assert bound == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize('probability', [0.01, 0.3])
def test_fixed_size_sampling_bounds_what_replacing_a_client_does(probability):
  noise, pmf = NOISES[distributed.SKELLAM]

  def bound(orders):
    return noise.rdp(orders, 4.0)

  # A client that moves the sum by -2 is replaced by one that moves it by 2, in
  # a cohort where others would move it by anything up to that.
  for others in range(5):
    first, second = (
      (1 - probability) * integer_distributions.shifted(pmf, others)
      + probability * integer_distributions.shifted(pmf, shift)
      for shift in (0, 4)
    )
    for order in (2, 3, 8):
      exact = integer_distributions.renyi_divergence(first, second, order)
      found = distributed_accounting.fixed_size_sampled(
        bound, probability, order
      )
      assert exact <= found


@pytest.mark.parametrize('sampling', SAMPLINGS)
@pytest.mark.parametrize('mechanism', distributed.MECHANISMS)
def test_it_is_never_more_private_than_central_gaussian_noise(
  mechanism, sampling
):
  for multiplier in (0.5, 1.0, 4.0):
    accountant = _build(mechanism, sampling, noise_multiplier=multiplier)
    central = accounting.build(
      da.GaussianDpEvent(multiplier), SAMPLINGS[sampling], DELTA
    )
    rounds = SAMPLINGS[sampling].total_rounds
    found = accountant.guarantee(rounds)
    assert found.epsilon_pld is None
    assert found.epsilon >= central.rdp_epsilon(rounds)
    # On a fine grid it is hardly less private, but for orders below 2 and what
    # is known of a Gaussian alone.
    fine = _build(mechanism, sampling, noise_multiplier=multiplier, bits=20)
    assert fine.guarantee(rounds).epsilon <= found.epsilon
    assert fine.guarantee(rounds).epsilon < 1.12 * central.rdp_epsilon(rounds)


@pytest.mark.parametrize('mechanism', distributed.MECHANISMS)
def test_groups_that_take_turns_are_poisson_sampling_of_fewer_rounds(mechanism):
  # 100 rounds of 8 groups are 13 of one; each client of it has 8 times the
  # probability.
  alike = guarantee.Sampling('poisson', 2000, 400, 13)
  encoding = dataclasses.replace(ENCODING, noise_multiplier=2.0)
  expected = distributed_accounting.build(mechanism, encoding, alike, DELTA)
  found = _build(mechanism, 'cyclic_poisson', noise_multiplier=2.0)
  assert found.guarantee(100).epsilon == pytest.approx(
    expected.guarantee(13).epsilon
  )
  assert found.guarantee(100).relation == guarantee.ZERO_OUT


def test_the_server_learns_more_than_others_but_not_without_bound():
  for sampling in SAMPLINGS:
    found = _build(sampling=sampling, noise_multiplier=3.0)
    rounds = found.sampling.total_rounds
    told = found.guarantee(rounds)
    # Never more than by being in all rounds that it can be in.
    z = 3.0 * ENCODING.clip_norm / (1.01 * ENCODING.clip_norm)
    times = found.sampling.participations(rounds)
    whole = da.rdp.RdpAccountant()
    whole.compose(da.GaussianDpEvent(z), times)
    assert told.epsilon_server <= whole.get_epsilon(DELTA)
    if sampling in ('poisson', 'cyclic_poisson'):
      assert told.epsilon_server > told.epsilon
  everyone = _build(sampling='all').guarantee(10)
  assert everyone.epsilon_server == pytest.approx(everyone.epsilon)


def test_releases_of_a_round_are_charged_each_time_and_in_any_order():
  accountant = _build()
  later = accountant.guarantee(60).epsilon
  twice = accountant.guarantee(20, [2]).epsilon
  assert _build().guarantee(20, [2]).epsilon == twice
  # Twice the same sample is worse than two samples.
  assert accountant.guarantee(21).epsilon < twice
  assert accountant.guarantee(20, [3]).epsilon > twice
  assert accountant.guarantee(0).epsilon == 0
  limit = (accountant.guarantee(20).epsilon + later) / 2
  most = accountant.most_rounds(limit)
  assert accountant.guarantee(most).epsilon <= limit
  assert accountant.guarantee(most + 1).epsilon > limit


def test_the_mismatch_of_the_discrete_gaussian_is_paid_for():
  # In a cohort of all 2000 clients each would have noise of 0.55 steps.
  few = {'bits': 15, 'noise_multiplier': 0.3, 'size': 1}
  gaussian = _build(distributed.DISCRETE_GAUSSIAN, **few).guarantee(1).epsilon
  skellam = _build(distributed.SKELLAM, **few).guarantee(1).epsilon
  stddev = dataclasses.replace(ENCODING, **few).stddev
  assert 0.5 < stddev / math.sqrt(2000) < 0.7
  assert gaussian > skellam + 1
  with pytest.raises(guarantee.AccountingError, match='distributed_skellam'):
    _build(distributed.DISCRETE_GAUSSIAN, **{**few, 'bits': 14})


@pytest.mark.parametrize('sampling', SAMPLINGS)
@pytest.mark.parametrize('mechanism', distributed.MECHANISMS)
def test_a_target_is_met_with_the_least_noise(mechanism, sampling):
  found = distributed_accounting.noise_multiplier(
    3.0, mechanism, ENCODING, SAMPLINGS[sampling], DELTA
  )
  rounds = SAMPLINGS[sampling].total_rounds

  def epsilon(noise_multiplier):
    accountant = _build(mechanism, sampling, noise_multiplier=noise_multiplier)
    return accountant.guarantee(rounds).epsilon

  assert 3 * 0.999 < epsilon(found) <= 3
  assert epsilon(found * (1 - 5e-5)) > 3


def test_what_can_not_be_private_is_refused():
  few = dataclasses.replace(ENCODING, bits=6)
  with pytest.raises(guarantee.AccountingError, match='--secure_sum_bits'):
    distributed_accounting.noise_multiplier(
      0.1, distributed.SKELLAM, few, SAMPLINGS['poisson'], DELTA
    )
  with pytest.raises(guarantee.AccountingError, match='above 0'):
    distributed_accounting.noise_multiplier(
      0.0, distributed.SKELLAM, few, SAMPLINGS['poisson'], DELTA
    )
  with pytest.raises(guarantee.AccountingError, match='without noise'):
    _build(noise_multiplier=0.0)
  with pytest.raises(guarantee.AccountingError, match='must be above 0'):
    distributed_accounting.build(
      distributed.SKELLAM, ENCODING, SAMPLINGS['poisson'], 0.1
    )


def test_the_statement_names_both_adversaries_and_the_simulation():
  told = _build().guarantee(100)
  text = told.statement()
  assert guarantee.round_up(told.epsilon) in text
  assert guarantee.round_up(told.epsilon_server) in text
  assert 'This is a simulation' in text
  assert 'secret who took part' in text
  assert 'Skellam' in text
  assert 'secret' not in _build(sampling='all').guarantee(1).statement()
  assert 'secret' in _build(sampling='fixed_size').guarantee(1).statement()
