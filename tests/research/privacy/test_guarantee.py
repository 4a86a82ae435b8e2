"""The assumptions, numbers and words of a guarantee."""

import decimal

import pytest

from research.privacy import guarantee
from research.training import sampling


def of(scheme='poisson', population=1000, clients=50, rounds=100, apart=None):
  return guarantee.Sampling(scheme, population, clients, rounds, apart)


def example(**changes):
  settings = {
    'epsilon_rdp': 2.10137,
    'epsilon_pld': 1.82854,
    'delta': 1e-4,
    'relation': guarantee.ADD_OR_REMOVE,
    'sampling': of(),
    'mechanism': 'Independent Gaussian noise in each round',
    'noise_multiplier': 1.5,
    'amplified': True,
    'rounds': 40,
    'repeated': (),
  }
  return guarantee.Guarantee(**{**settings, **changes})


def test_probabilities_and_participations_by_hand():
  poisson, fixed = of(), of('fixed_size')
  assert poisson.probability == fixed.probability == 0.05
  assert poisson.participations(7) == fixed.participations(7) == 7
  cyclic = of('cyclic_poisson', apart=8)
  # Groups of 125 clients, of which 50 are expected.
  assert cyclic.probability == 0.4
  # A group has its turns in rounds 1, 9, 17, ...: the most of any in r rounds.
  by_counting = [
    max(len(range(first, r + 1, 8)) for first in range(1, 9)) for r in range(60)
  ]
  assert [cyclic.participations(r) for r in range(60)] == by_counting
  assert of('cyclic_poisson', apart=20).probability == 1.0


def test_each_scheme_has_its_relation():
  assert of().relation == 'add_or_remove_one_client'
  assert of('fixed_size').relation == 'replace_one_client'
  assert of('cyclic_poisson', apart=2).relation == 'zero_out_one_client'


@pytest.mark.parametrize(
  'arguments, message',
  [
    (('uniform', 10, 1, 1), "Client sampling 'uniform' has no accounting"),
    (('poisson', 10, 11, 1), '11 clients per round of a population of 10'),
    (('poisson', 10, 0, 1), 'give 1 to 10 clients per round'),
    (('poisson', 10, 1, 0), '0 rounds: give at least 1'),
    (('poisson', 10, 1, 1, 3), 'minimum separation of 3 under poisson'),
    (('cyclic_poisson', 10, 1, 1), 'of None under cyclic_poisson'),
    (('cyclic_poisson', 10, 1, 1, 0), 'separation of 0: give at least 1'),
    (('cyclic_poisson', 100, 30, 9, 4), 'separation of at most 3'),
  ],
)
def test_samplings_that_make_no_sense_are_refused(arguments, message):
  with pytest.raises(guarantee.AccountingError, match=message):
    guarantee.Sampling(*arguments)


@pytest.mark.parametrize('scheme', [sampling.POISSON, sampling.FIXED_SIZE])
def test_a_sampler_says_how_it_samples(scheme):
  sampler = sampling.ClientSampler(list('abcd'), 3, scheme)
  expected = guarantee.Sampling(scheme, 4, 3, 9)
  assert guarantee.Sampling.of(sampler, 9) == expected


@pytest.mark.parametrize('population', [2, 3, 10, 100, 539, 1000, 3400, 10**7])
def test_the_default_delta_has_one_digit_and_is_small_enough(population):
  delta = guarantee.default_delta(population)
  assert len(decimal.Decimal(repr(delta)).as_tuple().digits) == 1
  # Rounding down costs at most a half: from just below 2 to 1.
  assert population**-1.1 / 2 < delta <= population**-1.1
  guarantee.check_delta(delta, population)


def test_default_deltas_by_hand():
  assert guarantee.default_delta(3400) == 1e-4  # 1.305e-4
  assert guarantee.default_delta(1000) == 5e-4  # 5.012e-4
  with pytest.raises(guarantee.AccountingError, match='no one to hide among'):
    guarantee.default_delta(1)


@pytest.mark.parametrize('delta', [0.0, -1e-5, 0.01, 0.5, float('nan')])
def test_deltas_that_protect_no_one_are_refused(delta):
  with pytest.raises(guarantee.AccountingError, match='below 1 / 100 = 0.01'):
    guarantee.check_delta(delta, 100)
  guarantee.check_delta(0.00999, 100)


def test_printed_epsilons_are_never_below_the_number():
  for value in [1.8280001, 9.99991, 0.00012345678, 123456.7, 2.0, 1e-9, 12.345]:
    text = guarantee.round_up(value)
    assert value <= float(text) <= value * 1.001
  assert guarantee.round_up(1.82801) == '1.829'
  assert guarantee.round_up(1.828) == '1.829'  # As a float it is above 1.828.
  assert guarantee.round_up(0.5) == '0.5000'
  assert guarantee.round_up(float('inf')) == 'inf'


def test_epsilon_is_that_of_pld_where_there_is_one():
  assert example().epsilon == 1.82854
  assert example(epsilon_pld=None).epsilon == 2.10137


def test_releases_count_repetitions():
  assert example(repeated=(2, 4)).releases == 40 + 1 + 3


def test_the_statement_says_what_holds_and_what_does_not():
  text = example(repeated=(2,)).statement()
  for part in [
    '(1.829, 0.0001)-differential privacy of clients after 41 releases',
    'all its examples together',
    'one client more than the other (add_or_remove_one_client)',
    'The server is trusted',
    'the seed that the cohorts were drawn from',
    'noise multiplier 1.5',
    '1 rounds were released again',
    'each of the 1000 clients is in each round independently with probability '
    '0.05',
    'below 1 / 1000 clients',
    'Renyi differential privacy gives 2.102',
    'privacy loss distributions give 1.829',
    '**Not covered.**',
  ]:
    assert part in text


def test_the_statement_of_fixed_size_and_unamplified_runs():
  text = example(
    epsilon_pld=None,
    relation=guarantee.REPLACE,
    sampling=of('fixed_size'),
    amplified=False,
  ).statement()
  assert '(2.102, 0.0001)' in text
  assert 'another client in the place of one client' in text
  assert 'exactly 50 of the 1000 clients' in text
  assert 'have no valid form' in text
  assert 'seed' not in text and 'released again' not in text


def test_the_statement_of_cyclic_sampling_bounds_participations():
  text = example(
    relation=guarantee.ZERO_OUT, sampling=of('cyclic_poisson', apart=8)
  ).statement()
  assert '1000 clients are divided into 8 groups' in text
  assert 'no client is in more than 13 of 100 rounds' in text
  assert 'one client sends zeros whenever it takes part' in text
