"""The noise for a budget: never too little, hardly too much."""

import dataclasses
import json
import math

import dp_accounting as da
import pytest

from research.privacy import accounting, calibration, guarantee
from tests.research.privacy import reference

POISSON = guarantee.Sampling('poisson', 1000, 10, 100)


@dataclasses.dataclass(frozen=True)
class Columns:
  """A factorization whose columns have norm 1 and don't meet."""

  name: str = 'columns'
  bands: int | None = None

  def sensitivity(self, min_separation: int, max_participations: int) -> float:
    return math.sqrt(max_participations)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
  monkeypatch.setattr(calibration, '_known', {})


def epsilon(z, sampling, delta):
  accountant = accounting.build(da.GaussianDpEvent(z), sampling, delta)
  return accountant.guarantee(sampling.total_rounds).epsilon


def next_lower(z):
  """With five digits."""
  unit = 10.0 ** (math.floor(math.log10(z)) - 4)
  return round(round(z / unit) - 1) * unit


@pytest.mark.parametrize(
  'target, sampling, delta',
  [
    (0.1, POISSON, 1e-5),
    (30.0, POISSON, 1e-5),
    (8.0, guarantee.Sampling('poisson', 40, 40, 7), 1e-3),
    (3.0, guarantee.Sampling('fixed_size', 100, 100, 4), 1e-4),
    (1.0, guarantee.Sampling('cyclic_poisson', 1000, 2, 90, 10), 1e-8),
    # A small probability and little noise: epsilon is steep in the noise.
    (1.0, guarantee.Sampling('poisson', 10**6, 100, 500), 1e-7),
  ],
)
def test_epsilon_is_just_within_the_target(target, sampling, delta):
  z = calibration.noise_multiplier(target, delta, sampling)
  reached = epsilon(z, sampling, delta)
  assert target * (1 - calibration.TOLERANCE) <= reached <= target
  assert epsilon(next_lower(z), sampling, delta) > target


def test_the_noise_of_one_gaussian():
  """The closed form: mu of epsilon 1, delta 1e-5 over 9 rounds of everyone."""
  sampling = guarantee.Sampling('poisson', 50, 50, 9)
  z = calibration.noise_multiplier(1.0, 1e-5, sampling)
  for noise, within in [(z, True), (z * (1 - 1e-4), False)]:
    mu = math.sqrt(9) / noise
    assert (reference.gaussian_delta(1.0, mu) <= 1e-5) == within


def test_pld_needs_less_noise_than_rdp():
  """Measured with dp_accounting's own search: 1.0223 by RDP, .9591 by PLD."""
  sampling = guarantee.Sampling('poisson', 10_000, 100, 1000)
  z = calibration.noise_multiplier(2.0, 1e-5, sampling)
  assert z == pytest.approx(0.9591, abs=2e-4)


def test_a_smaller_budget_never_asks_for_less_noise():
  everyone = guarantee.Sampling('poisson', 100, 100, 10)
  targets = [0.5, 0.50001, 0.501, 0.51, 1.0, 1.00001, 1.5, 4.0, 4.001]
  noise = [calibration.noise_multiplier(t, 1e-5, everyone) for t in targets]
  assert noise == sorted(noise, reverse=True)
  assert noise[0] > noise[3] > noise[4] > noise[-1]
  sampled = [
    calibration.noise_multiplier(t, 1e-5, POISSON) for t in (1, 1.00001, 1.002)
  ]
  assert sampled[0] >= sampled[1] > sampled[2]


@pytest.mark.parametrize('bands, probability', [(None, 1), (10, 0.02)])
def test_correlated_noise(bands, probability):
  sampling = guarantee.Sampling('cyclic_poisson', 1000, 2, 100, 10)
  strategy = Columns(bands=bands)
  z = calibration.noise_multiplier(2.0, 1e-4, sampling, strategy)
  if probability == 1:
    mu = math.sqrt(10) / z
    assert reference.gaussian_epsilon(1e-4, mu) == pytest.approx(2, rel=1e-3)
  else:
    truth = reference.PoissonGaussian([(probability, z, 10)])
    assert truth.delta(2.0) <= 1e-4 < truth.delta(2.0 * (1 - 1.5e-3))


@pytest.mark.parametrize(
  'target, sampling, message',
  [
    (0.0, POISSON, 'A target of epsilon 0: give a number above 0'),
    (float('inf'), POISSON, 'A target of epsilon inf'),
    (float('nan'), POISSON, 'A target of epsilon nan'),
    (1e5, POISSON, 'asks for next to no noise: .* gives 354.3 already'),
    # The orders of RDP end somewhere, and with them what it can show.
    (
      1e-3,
      guarantee.Sampling('fixed_size', 100, 3, 4),
      'out of reach: even a noise multiplier of 10000 gives 0.0[0-9]*. Ask',
    ),
  ],
)
def test_targets_out_of_reach_are_refused(target, sampling, message):
  with pytest.raises(guarantee.AccountingError, match=message):
    calibration.noise_multiplier(target, 1e-5, sampling)


def test_what_can_not_be_accounted_for_is_refused():
  with pytest.raises(guarantee.AccountingError, match='all data of one client'):
    calibration.noise_multiplier(1.0, 0.1, POISSON)
  with pytest.raises(
    guarantee.AccountingError, match='bounded number of times'
  ):
    calibration.noise_multiplier(1.0, 1e-5, POISSON, Columns())


def no_search(*args):
  raise AssertionError('searched')


def test_answers_are_kept_in_memory_and_on_disk(tmp_path, monkeypatch):
  arguments = 2.0, 1e-5, guarantee.Sampling('poisson', 20, 20, 3)
  z = calibration.noise_multiplier(*arguments, cache_folder=tmp_path)
  (file,) = (tmp_path / 'noise_multipliers').iterdir()
  monkeypatch.setattr(calibration, '_search', no_search)
  assert calibration.noise_multiplier(*arguments) == z
  calibration._known.clear()
  assert calibration.noise_multiplier(*arguments, cache_folder=tmp_path) == z
  for other in [
    (2.1, *arguments[1:]),
    (2.0, 1e-6, arguments[2]),
    (2.0, 1e-5, guarantee.Sampling('poisson', 20, 20, 4)),
  ]:
    with pytest.raises(AssertionError, match='searched'):
      calibration.noise_multiplier(*other, cache_folder=tmp_path)
  assert json.loads(file.read_text())['noise_multiplier'] == z


@pytest.mark.parametrize('spoil', ['cut', 'another', 'list', 'less'])
def test_a_spoilt_answer_on_disk_is_not_believed(tmp_path, spoil):
  arguments = 2.0, 1e-5, guarantee.Sampling('poisson', 20, 20, 3)
  z = calibration.noise_multiplier(*arguments, cache_folder=tmp_path)
  (file,) = (tmp_path / 'noise_multipliers').iterdir()
  text = file.read_text()
  file.write_text(
    {
      'cut': text[:-9],
      'another': text.replace('"delta": 1e-05', '"delta": 0.5'),
      'list': '[]',
      'less': text.replace(f'{z}', f'{z / 2}'),
    }[spoil]
  )
  calibration._known.clear()
  assert calibration.noise_multiplier(*arguments, cache_folder=tmp_path) == z
  assert file.read_text() == text


def test_another_factorization_is_another_answer(tmp_path):
  sampling = guarantee.Sampling('cyclic_poisson', 1000, 100, 100, 10)
  found = {
    calibration.noise_multiplier(2.0, 1e-4, sampling, strategy, tmp_path)
    for strategy in [None, Columns(), Columns(bands=10), Columns('other')]
  }
  # Everyone has ten turns in all of them.
  assert len(found) == 1
  assert len(list((tmp_path / 'noise_multipliers').iterdir())) == 4
