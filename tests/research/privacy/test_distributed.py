"""Grid, norms and divergences of distributed noise."""

import dataclasses
import math

import numpy as np
import pytest
from dp_accounting import rdp

from research.privacy import distributed, distributed_accounting
from tests.research.privacy import integer_distributions

_DIMENSION = 1_048_576
# Of the run of 2 rounds on EMNIST that the paper's own code has logged:
# epsilon 10, delta 1 / 3400, 100 of 3400 clients, clipping norm 0.03.
_GAMMA = 1.248800740568264e-4
_LOCAL_STDDEV = 0.002430822051759469
_INFLATED_NORM = 0.0707097967941405
_NOISE_MULTIPLIER = 0.8102740172531564
_INFLATED_NOISE_MULTIPLIER = 0.3437744360709157

ORDERS = np.array([2, 3, 5, 8, 20])


def _encoding(**changes):
  chosen = {
    'clip_norm': 0.03,
    'noise_multiplier': _NOISE_MULTIPLIER,
    'clients_per_round': 100,
    'size': 1_018_174,
    'bits': 16,
    **changes,
  }
  return distributed.Encoding(**chosen)


def test_the_inflated_norm_of_the_papers_log():
  found = distributed.rounded_norm(0.03 / _GAMMA, _DIMENSION) * _GAMMA
  assert found == pytest.approx(_INFLATED_NORM, rel=1e-14)


def test_the_noise_of_the_papers_log_has_its_epsilon():
  norm = distributed.rounded_norm(0.03 / _GAMMA, _DIMENSION)
  stddev = _LOCAL_STDDEV * math.sqrt(100) / _GAMMA
  assert stddev * _GAMMA / 0.03 == pytest.approx(_NOISE_MULTIPLIER, rel=1e-14)
  assert stddev / norm == pytest.approx(_INFLATED_NOISE_MULTIPLIER, rel=1e-14)
  noise = distributed.DiscreteGaussian(stddev, _DIMENSION, 100)
  # The paper's local noise is far from where sums are not nearly Gaussian.
  assert noise.mismatch < 1e-300
  orders = list(range(2, 129))
  total = [
    2
    * distributed_accounting.poisson_sampled(
      lambda counts: noise.rdp(counts, norm), 100 / 3400, order
    )
    for order in orders
  ]
  epsilon, _ = rdp.compute_epsilon(orders, total, 1 / 3400)
  # Their search ends within 1e-8 of the target.
  assert epsilon == pytest.approx(10, abs=1e-7)


def test_the_grid_by_hand():
  # 2^4 gamma = 8 sqrt((3 * 2)^2 / 4 + 2 (gamma / 2)^2 + (1 * 3)^2), so that
  # 256 gamma^2 = 64 (18 + gamma^2 / 2) and gamma^2 = 1152 / 224 = 36 / 7.
  encoding = distributed.Encoding(3.0, 1.0, 2, 3, 4)
  assert encoding.dimension == 4
  assert encoding.granularity == pytest.approx(6 / math.sqrt(7))
  assert encoding.stddev == pytest.approx(math.sqrt(7) / 2)
  # Of the norm 3 / gamma = sqrt(7) / 2 before rounding: 7 / 4 + 4 / 4 +
  # 1 * (sqrt(7) / 2 + 2 / 2) = 5.07, or (sqrt(7) / 2 + 2)^2 = 11.04.
  assert encoding.squared_norm == 5


@pytest.mark.parametrize('bits', [10, 16, 20])
@pytest.mark.parametrize('noise_multiplier', [0.0, 0.5, 20.0])
def test_four_standard_deviations_of_the_sum_have_room(bits, noise_multiplier):
  encoding = _encoding(bits=bits, noise_multiplier=noise_multiplier)
  variance = encoding.stddev**2 + 100 / 4
  variance += (3.0 / encoding.granularity) ** 2 / _DIMENSION
  assert 8 * math.sqrt(variance) == pytest.approx(2**bits)


def test_a_norm_after_rounding_is_below_both_bounds():
  # A coordinate that is rounded by less than 1 each: norm + sqrt(d).
  assert distributed.rounded_norm(0.01, 4) == pytest.approx(
    math.sqrt(1e-4 + 1 + 0.01 + 1)
  )
  assert distributed.rounded_norm(1e4, 1) == pytest.approx(1e4 + 0.5, rel=1e-6)
  assert distributed.rounded_norm(1e-9, 1) == pytest.approx(
    math.sqrt(0.75), rel=1e-6
  )


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'bits': 1}, 'from 2 to 20'),
    ({'bits': 21}, 'from 2 to 20'),
    ({'bits': 5}, 'give at least 6 bits'),
    ({'bits': 8, 'clients_per_round': 5000}, 'give at least 9 bits'),
  ],
  ids=str,
)
def test_too_few_bits_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    _encoding(**changes)
  # What is asked for is enough.
  _encoding(**{**changes, 'bits': 9})


@pytest.mark.parametrize('stddev', [0.8, 1.0, 3.0, 20.0])
@pytest.mark.parametrize(
  ('kind', 'distribution'),
  [
    (
      lambda stddev: distributed.DiscreteGaussian(stddev, 1, 1),
      integer_distributions.discrete_gaussian,
    ),
    (
      lambda stddev: distributed.Skellam(stddev, 1),
      integer_distributions.skellam,
    ),
  ],
  ids=['discrete_gaussian', 'skellam'],
)
def test_divergences_are_bounded_and_not_by_far(kind, distribution, stddev):
  noise = kind(stddev)
  pmf = distribution(stddev**2, int(40 * stddev) + 60)
  for shift in (1, 2, 5):
    bounds = noise.rdp(ORDERS, float(shift))
    other = integer_distributions.shifted(pmf, shift)
    for order, bound in zip(ORDERS, bounds, strict=True):
      for pair in ((pmf, other), (other, pmf)):
        exact = integer_distributions.renyi_divergence(*pair, order)
        assert exact <= bound * (1 + 1e-9)
        if stddev >= 20:
          assert bound <= exact * 1.03


def test_the_divergence_of_a_vector_is_bounded_too():
  # Of (2, 1, 0, 0): the sum of its coordinates' divergences.
  stddev = 1.5
  pmf = integer_distributions.skellam(stddev**2, 150)
  noise = distributed.Skellam(stddev, 4)
  bounds = noise.rdp(ORDERS, math.sqrt(5))
  for order, bound in zip(ORDERS, bounds, strict=True):
    exact = sum(
      integer_distributions.renyi_divergence(
        integer_distributions.shifted(pmf, shift), pmf, order
      )
      for shift in (2, 1)
    )
    assert exact <= bound


@pytest.mark.parametrize('local_stddev', [0.51, 0.6, 0.8, 1.0])
@pytest.mark.parametrize('clients', [2, 3, 10])
def test_a_sum_is_a_discrete_gaussian_up_to_the_mismatch(local_stddev, clients):
  stddev = local_stddev * math.sqrt(clients)
  most = int(30 * stddev)
  one = integer_distributions.discrete_gaussian(local_stddev**2, most)
  total = integer_distributions.sum_of(one, clients)
  ideal = integer_distributions.discrete_gaussian(stddev**2, most)
  inner = ideal > 1e-8
  exact = np.abs(np.log(total[inner] / ideal[inner])).max()
  noise = distributed.DiscreteGaussian(stddev, 1, clients)
  assert exact <= noise.mismatch
  if clients == 2:
    assert noise.mismatch < 3 * exact
  # A sum over all coordinates.
  more = dataclasses.replace(noise, dimension=32)
  assert more.mismatch == pytest.approx(32 * noise.mismatch)


def test_nothing_is_known_of_sums_of_very_little_noise():
  assert distributed.DiscreteGaussian(0.49, 1, 1).mismatch == 0
  assert distributed.DiscreteGaussian(0.49 * 10, 1, 100).mismatch == math.inf
  assert distributed.Skellam(0.01, 1).mismatch == 0
