import numpy as np
import pytest

from research.training import sampling

IDS = tuple(f'c{i}' for i in range(50))


def test_fixed_size_draws_distinct_clients_of_the_population():
  sampler = sampling.ClientSampler(IDS, 7, seed=3)
  for round_num in range(1, 30):
    cohort = sampler.sample(round_num)
    assert len(set(cohort)) == 7
    assert set(cohort) <= set(IDS)


def test_a_draw_depends_on_seed_and_round_alone():
  sampler = sampling.ClientSampler(IDS, 7, seed=3)
  backwards = [sampler.sample(r) for r in range(9, 0, -1)][::-1]
  forwards = [
    sampling.ClientSampler(IDS, 7, seed=3).sample(r) for r in range(1, 10)
  ]
  assert backwards == forwards
  assert sampling.ClientSampler(IDS, 7, seed=4).sample(1) != forwards[0]
  assert len({tuple(cohort) for cohort in forwards}) == 9


def test_seed_and_round_do_not_mix():
  first = sampling.ClientSampler(IDS, 7, seed=1).sample(2)
  assert first != sampling.ClientSampler(IDS, 7, seed=2).sample(1)


@pytest.mark.parametrize('scheme', [sampling.FIXED_SIZE, sampling.POISSON])
def test_each_client_is_drawn_equally_often(scheme):
  # Chi-squared with 49 degrees of freedom exceeds 85.4 with probability 1e-3;
  # the seed is fixed, so that this one draw either passes always or never.
  rounds, expected = 4000, 4000 * 5 / 50
  sampler = sampling.ClientSampler(IDS, 5, scheme)
  counts = dict.fromkeys(IDS, 0)
  for round_num in range(rounds):
    for client in sampler.sample(round_num):
      counts[client] += 1
  observed = np.array(list(counts.values()))
  variance = rounds * 0.1 * 0.9
  assert np.sum((observed - expected) ** 2) / variance < 85.4


def test_poisson_cohorts_have_the_binomial_mean_and_variance_and_can_be_empty():
  sampler = sampling.ClientSampler(IDS, 2, sampling.POISSON)
  sizes = np.array([len(sampler.sample(r)) for r in range(5000)])
  # Five standard errors: a false alarm in 1.7 million seeds.
  assert abs(sizes.mean() - 2) < 5 * np.sqrt(2 * 0.96 / 5000)
  assert abs(sizes.var() - 1.92) < 0.25
  assert sizes.min() == 0


@pytest.mark.parametrize('clients', [0, 51])
def test_an_impossible_cohort_names_the_flag_and_the_population(clients):
  with pytest.raises(ValueError, match=r'--clients_per_round is .* 50 clients'):
    sampling.ClientSampler(IDS, clients)


def cyclic(clients_per_round=4, min_separation=5, seed=0):
  return sampling.ClientSampler(
    IDS, clients_per_round, sampling.CYCLIC_POISSON, seed, min_separation
  )


def test_cyclic_cohorts_of_a_client_are_whole_cycles_apart():
  sampler = cyclic()
  rounds = {}
  for round_num in range(1, 201):
    for client in sampler.sample(round_num):
      rounds.setdefault(client, []).append(round_num)
  assert set(rounds) == set(IDS)
  for taken in rounds.values():
    assert len({round_num % 5 for round_num in taken}) == 1
  groups = [
    sum(taken[0] % 5 == i for taken in rounds.values()) for i in range(5)
  ]
  assert groups == [10] * 5


def test_cyclic_cohorts_have_the_binomial_mean_and_variance():
  sizes = np.array([len(cyclic().sample(r)) for r in range(1, 5001)])
  # Ten clients of a group, each with probability 5 * 4 / 50.
  assert abs(sizes.mean() - 4) < 5 * np.sqrt(4 * 0.6 / 5000)
  assert abs(sizes.var() - 2.4) < 0.25


def test_groups_depend_on_the_seed_and_one_group_is_poisson():
  assert set(cyclic(10, 5, seed=1).sample(1)) != set(
    cyclic(10, 5, seed=2).sample(1)
  )
  poisson = sampling.ClientSampler(IDS, 4, sampling.POISSON)
  for round_num in range(1, 20):
    assert cyclic(4, 1).sample(round_num) == poisson.sample(round_num)


@pytest.mark.parametrize(
  'scheme, min_separation, message',
  [
    (sampling.CYCLIC_POISSON, None, 'cyclic_poisson needs it'),
    (sampling.POISSON, 3, 'nothing else uses it'),
    (sampling.CYCLIC_POISSON, 13, 'groups of 3, fewer than'),
    ('other', None, 'one of fixed_size, poisson, cyclic_poisson'),
  ],
)
def test_impossible_schemes_name_their_flags(scheme, min_separation, message):
  with pytest.raises(ValueError, match=message):
    sampling.ClientSampler(IDS, 4, scheme, 0, min_separation)
