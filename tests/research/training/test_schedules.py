import math

import pytest

from research.training import schedules


def test_constant():
  schedule = schedules.Schedule(0.3)
  assert [schedule(r) for r in (1, 2, 1000)] == [0.3] * 3
  assert schedule.is_constant


def test_exponential_decays_by_its_rate_every_decay_rounds():
  schedule = schedules.Schedule(
    0.8, 'exponential', decay_rounds=10, decay_rate=0.5
  )
  assert schedule(1) == 0.8
  assert schedule(11) == pytest.approx(0.4)
  assert schedule(6) == pytest.approx(0.8 * 0.5**0.5)


def test_inverse_sqrt():
  schedule = schedules.Schedule(1.0, 'inverse_sqrt', decay_rounds=4)
  assert schedule(1) == 1.0
  assert schedule(13) == pytest.approx(1 / math.sqrt(4))


def test_cosine_reaches_zero_and_stays():
  schedule = schedules.Schedule(2.0, 'cosine', decay_rounds=8)
  assert schedule(1) == 2.0
  assert schedule(5) == pytest.approx(1.0)
  assert schedule(9) == schedule(20) == 0.0


def test_plateau_counts_losses_that_are_no_new_minimum():
  schedule = schedules.Schedule(
    0.8, 'plateau', decay_rounds=2, decay_rate=0.5, warmup_rounds=1
  )
  assert not schedule.is_constant
  # The first loss is of the warm-up; 4 and 2 are new minima.
  losses = [9.0, 4.0, 5.0, 4.0, 6.0, 2.0, None, 3.0, 3.0, 3.0]
  expected = [0.4, 0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.4, 0.2, 0.2, 0.1]
  found = [schedule(r + 1, losses[:r]) for r in range(len(losses) + 1)]
  assert found == pytest.approx(expected)


def test_warm_up_is_linear_and_ends_at_the_learning_rate():
  schedule = schedules.Schedule(1.0, warmup_rounds=3)
  assert [schedule(r) for r in range(1, 6)] == [0.25, 0.5, 0.75, 1.0, 1.0]
  assert not schedule.is_constant


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'kind': 'cosine'}, 'needs decay_rounds'),
    ({'kind': 'exponential', 'decay_rounds': 2}, 'needs decay_rate'),
    ({'kind': 'plateau', 'decay_rounds': 2}, 'needs decay_rate'),
    ({'kind': 'plateau', 'decay_rate': 0.5}, 'needs decay_rounds'),
    ({'decay_rounds': 2}, 'does not use decay_rounds'),
    ({'kind': 'cosine', 'decay_rounds': 2, 'decay_rate': 0.5}, 'decay_rate'),
  ],
)
def test_settings_that_do_not_fit_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    schedules.Schedule(1.0, **arguments)
