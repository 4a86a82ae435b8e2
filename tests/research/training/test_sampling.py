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
