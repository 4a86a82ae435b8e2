import itertools
import math

import dp_accounting
import dp_accounting.rdp
import numpy as np
import pytest

from research.privacy import matrix_factorization as mf
from research.privacy import toeplitz
from tests.research.privacy import dense

ROUNDS = 2000
# What single participation costs at least, per Toeplitz strategy.
LEAST = np.sum(toeplitz.square_root_coefficients(ROUNDS) ** 2)

pytestmark = pytest.mark.filterwarnings('error:overflow', 'error:invalid value')


def _loss(strategy, separation, count, error='max'):
  errors = {'max': strategy.max_error, 'rmse': strategy.rmse}
  return errors[error]() * strategy.sensitivity(separation, count)


def test_sensitivity_is_that_of_all_patterns():
  rng = np.random.default_rng(0)
  for rounds, separation, count in itertools.product(
    (1, 2, 5, 9), (1, 2, 3, 4, 9), (1, 2, 3, 9)
  ):
    c = np.sort(rng.uniform(size=rounds))[::-1]
    actual = mf.Toeplitz('any', c).sensitivity(separation, count)
    expected = dense.sensitivity(dense.toeplitz(c), separation, count)
    assert actual == pytest.approx(expected, rel=1e-12)


def test_sensitivity_to_one_participation_is_the_largest_column_norm():
  for strategy in (mf.banded(30, 4), mf.blt(30, 30, 1, 2)):
    norms = np.linalg.norm(dense.toeplitz(strategy.coefficients), axis=0)
    assert strategy.sensitivity(30, 1) == pytest.approx(norms.max(), rel=1e-12)


@pytest.mark.parametrize('c', [[1, 0.2, 0, 0.9, 0], [1, -0.5]])
def test_sensitivity_is_refused_where_the_theorem_does_not_hold(c):
  c = np.array(c, np.float64)
  # The earliest and densest rounds are not the worst ones, as a change by
  # updates of either sign shows.
  early = np.linalg.norm(dense.toeplitz(c)[:, [0, 1]].sum(axis=1))
  signs = itertools.product([-1, 1], repeat=2)
  pairs = itertools.combinations(range(len(c)), 2)
  worst = max(
    np.linalg.norm(dense.toeplitz(c)[:, pair] @ sign)
    for pair, sign in itertools.product(pairs, signs)
  )
  assert worst > early + 0.01
  with pytest.raises(ValueError, match='nowhere negative and never rise'):
    mf.Toeplitz('any', c).sensitivity(1, 2)


@pytest.mark.parametrize('name', ['total_rounds', 'min_separation'])
def test_counts_below_one_are_refused(name):
  arguments = {'total_rounds': 5, 'min_separation': 2, name: 0}
  with pytest.raises(ValueError, match=f'{name} is 0; it must be at least 1'):
    mf.participations(**arguments, max_participations=3)


def test_participations_are_those_that_fit():
  assert mf.participations(10, 3, 99) == 4
  assert mf.participations(9, 3, 99) == 3
  assert mf.participations(9, 3, 2) == 2


@pytest.mark.parametrize(
  'strategy', [mf.banded(60, 5), mf.blt(60, 20, 3, 3)], ids=lambda s: s.name
)
def test_errors_are_those_of_dense_matrices(strategy):
  inverse = np.linalg.inv(dense.toeplitz(strategy.coefficients))
  variances = ((dense.prefix_sums(60) @ inverse) ** 2).sum(axis=1)
  np.testing.assert_allclose(strategy.noise_variances(), variances, rtol=1e-10)
  assert strategy.max_error() == pytest.approx(np.sqrt(variances.max()))
  assert strategy.rmse() == pytest.approx(np.sqrt(variances.mean()))


def test_one_band_is_independent_noise():
  strategy = mf.banded(9, 1)
  np.testing.assert_array_equal(strategy.coefficients, np.eye(9)[0])
  assert strategy.max_error() == 3
  assert strategy.rmse() == pytest.approx(math.sqrt(5))


@pytest.mark.parametrize('bands', [2, 7, 400])
@pytest.mark.parametrize('error', toeplitz.ERRORS)
def test_banded_columns_have_norm_one_and_entries_that_fall(bands, error):
  c = mf.banded(ROUNDS, bands, error).coefficients
  assert np.linalg.norm(c) == pytest.approx(1, rel=1e-12)
  assert np.all(np.diff(c[:bands]) < 0)
  assert c[bands - 1] > 0
  np.testing.assert_array_equal(c[bands:], 0)


@pytest.mark.parametrize('error', toeplitz.ERRORS)
def test_two_bands_are_the_best_of_a_grid(error):
  def loss(second):
    c = np.r_[1, second, np.zeros(28)]
    b = dense.prefix_sums(30) @ np.linalg.inv(dense.toeplitz(c))
    variances = (b**2).sum(axis=1)
    worst = variances.max() if error == 'max' else variances.mean()
    return math.sqrt(worst) * np.linalg.norm(c)

  best = min(loss(second) for second in np.linspace(0, 1, 401))
  actual = _loss(mf.banded(30, 2, error), 30, 1, error)
  assert actual == pytest.approx(best, rel=1e-5)
  assert actual <= best


def test_with_all_bands_the_largest_error_is_that_of_the_square_root():
  assert _loss(mf.banded(300, 300, 'max'), 300, 1) == pytest.approx(
    np.sum(toeplitz.square_root_coefficients(300) ** 2), rel=1e-9
  )


def test_each_error_is_least_where_it_was_minimised():
  by_max, by_rmse = (mf.banded(200, 20, error) for error in toeplitz.ERRORS)
  assert by_max.max_error() < 0.999 * by_rmse.max_error()
  assert by_rmse.rmse() < 0.999 * by_max.rmse()


def test_more_bands_cost_less():
  losses = [_loss(mf.banded(ROUNDS, b, 'max'), ROUNDS, 1) for b in (1, 2, 20)]
  losses += [_loss(mf.banded(ROUNDS, 400, 'max'), ROUNDS, 1), LEAST]
  assert losses[0] == pytest.approx(math.sqrt(ROUNDS))
  assert np.all(np.diff(losses) < 0)


@pytest.mark.parametrize('buffers, within', [(2, 0.03), (3, 0.005), (4, 0.001)])
def test_few_buffers_come_near_the_square_root(buffers, within):
  loss = _loss(mf.blt(ROUNDS, ROUNDS, 1, buffers), ROUNDS, 1)
  assert LEAST * (1 - 1e-9) < loss < LEAST * (1 + within)


@pytest.mark.parametrize(
  'rounds, separation, buffers', [(2000, 400, 4), (500, 50, 3), (100, 10, 2)]
)
def test_buffers_for_many_participations_come_near_bands(
  rounds, separation, buffers
):
  count = rounds // separation
  strategy = mf.blt(rounds, separation, count, buffers)
  bands = mf.banded(rounds, separation, 'max')
  loss = _loss(strategy, separation, count)
  assert loss < 1.05 * _loss(bands, separation, count)
  single = mf.blt(rounds, rounds, 1, buffers)
  assert loss < 0.97 * _loss(single, separation, count)
  assert loss < _loss(mf.tree(rounds), separation, count)


def test_buffers_are_the_best_nearby():
  strategy = mf.blt(200, 50, 4, 2)
  rng = np.random.default_rng(0)
  for _ in range(100):
    scales = strategy.scales * np.exp(0.01 * rng.normal(size=2))
    rates = -np.log(strategy.decays) * np.exp(0.01 * rng.normal(size=2))
    c = np.r_[1, scales @ np.exp(-np.outer(rates, np.arange(199)))]
    other = mf.Toeplitz('any', c)
    assert _loss(other, 50, 4) > _loss(strategy, 50, 4) * (1 - 1e-9)


def test_buffers_make_the_coefficients():
  strategy = mf.blt(10, 5, 2, 3)
  expected = [1] + [
    np.sum(strategy.scales * strategy.decays**t) for t in range(9)
  ]
  np.testing.assert_allclose(strategy.coefficients, expected, rtol=1e-12)


@pytest.mark.parametrize('rounds', [1, 2, 3, 10])
@pytest.mark.parametrize('buffers', [1, 5])
def test_small_strategies_are_valid(rounds, buffers):
  for separation in range(1, rounds + 1):
    strategy = mf.blt(rounds, separation, rounds, buffers)
    assert strategy.total_rounds == rounds
    assert strategy.sensitivity(separation, rounds) >= 1
    banded = mf.banded(rounds, separation)
    assert banded.sensitivity(separation, 1) == pytest.approx(1)


def test_banded_sensitivity_is_the_root_of_the_participations():
  strategy = mf.banded(ROUNDS, 400)
  assert strategy.sensitivity(400, 4) == pytest.approx(2, rel=1e-12)
  # The fifth then starts in the last bands, where columns are cut off.
  assert 2 < strategy.sensitivity(410, 5) < math.sqrt(5)


def test_published_guarantee_of_a_banded_keyboard_model():
  """Two participations in columns of norm 1, noise multiplier 8.35."""
  bound = math.sqrt(2)
  assert bound**2 / (2 * 8.35**2) == pytest.approx(0.014342572340349278)
  assert mf.banded(ROUNDS, 1000).sensitivity(1429, 2) <= bound
  epsilon = dp_accounting.get_epsilon_gaussian(8.35 / bound, 1e-10)
  assert epsilon == pytest.approx(0.9935500950539097, rel=1e-6)


def test_published_guarantee_of_a_tree_keyboard_model():
  """Published: epsilon 8.90, by Renyi divergences; exactly it is 8.53."""
  z = 7 / mf.tree(ROUNDS).sensitivity(314, 6)
  accountant = dp_accounting.rdp.RdpAccountant()
  accountant.compose(dp_accounting.GaussianDpEvent(z))
  assert round(accountant.get_epsilon(1e-10), 2) == 8.90
  exact = dp_accounting.get_epsilon_gaussian(z, 1e-10)
  assert exact == pytest.approx(8.526, abs=0.001)


def test_build_makes_the_mechanism_of_that_name():
  for mechanism in mf.MECHANISMS:
    strategy = mf.build(mechanism, 20, 5)
    assert strategy.name == mechanism
    assert strategy.total_rounds == 20
  assert mf.build(mf.BANDED, 20, 5).bands == 5
  assert mf.build(mf.BANDED, 20, 99).bands == 20
  assert mf.build(mf.BANDED, 20, 5, bands=3).bands == 3
  assert len(mf.build(mf.BLT, 20, 5, buffers=2).scales) == 2
  assert mf.build(mf.TREE, 20, 5, restart_period=7).restart_period == 7
  np.testing.assert_array_equal(
    mf.build(mf.BLT, 20, 5).coefficients, mf.blt(20, 5, 4).coefficients
  )


@pytest.mark.parametrize(
  'arguments, message',
  [
    (('gaussian', 20, 5), "mechanism is 'gaussian'"),
    ((mf.BANDED, 20, 0), 'min_separation is 0'),
    ((mf.TREE, 0, 5), 'total_rounds is 0'),
  ],
)
def test_build_refuses(arguments, message):
  with pytest.raises(ValueError, match=message):
    mf.build(*arguments)


@pytest.mark.parametrize(
  'name, arguments, message',
  [
    (mf.BANDED, {'bands': 6}, 'bands is 6; with min_separation 5'),
    (mf.BANDED, {'bands': -1}, 'bands is -1; it must be from 1 to the 20'),
    (mf.BLT, {'buffers': 0}, 'buffers is 0'),
    (mf.TREE, {'restart_period': 0}, 'restart_period is 0'),
  ],
)
def test_build_refuses_what_the_mechanism_cannot_have(name, arguments, message):
  with pytest.raises(ValueError, match=message):
    mf.build(name, 20, 5, **arguments)
