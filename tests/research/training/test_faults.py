"""Who fails, lags or lies: drawn from the seed, and counted."""

import math

import numpy as np
import pytest

from datasets import federated_data
from research.training import faults

DRAWS = 4000


def test_nothing_goes_wrong_by_default():
  sound = faults.Faults()
  assert not sound.any
  assert not any(sound.drops_out(r, c) for r in range(9) for c in range(9))
  assert all(sound.steps(r, 3, 7) == 7 for r in range(9))
  assert not sound.is_poisoned(0) and sound.factor(0) == 1


@pytest.mark.parametrize(
  'field, draw',
  [
    ('client_dropout_rate', lambda f, i: f.drops_out(i // 50, i % 50)),
    ('straggler_rate', lambda f, i: f.steps(i // 50, i % 50, 10**6) < 10**6),
    ('poisoned_fraction', lambda f, i: f.is_poisoned(i)),
  ],
)
def test_rates_are_met(field, draw):
  """Within 5 standard deviations: a false alarm in 1.7 million runs."""
  found = faults.Faults(poison=faults.SIGN_FLIP, seed=3, **{field: 0.3})
  share = np.mean([draw(found, i) for i in range(DRAWS)])
  assert abs(share - 0.3) < 5 * math.sqrt(0.3 * 0.7 / DRAWS)
  again = faults.Faults(poison=faults.SIGN_FLIP, seed=3, **{field: 0.3})
  other = faults.Faults(poison=faults.SIGN_FLIP, seed=4, **{field: 0.3})
  first = [draw(found, i) for i in range(200)]
  assert first == [draw(again, i) for i in range(200)]
  assert first != [draw(other, i) for i in range(200)]


def test_kinds_of_faults_are_drawn_apart():
  found = faults.Faults(0.5, 0.5, faults.SCALE, 0.5)
  drops = [found.drops_out(0, c) for c in range(200)]
  lags = [found.steps(0, c, 10**6) < 10**6 for c in range(200)]
  lies = [found.is_poisoned(c) for c in range(200)]
  for one, other in ((drops, lags), (drops, lies), (lags, lies)):
    # 200 coins agree in 65 to 135 cases, but for 1 of a million.
    assert 65 < sum(a == b for a, b in zip(one, other, strict=True)) < 135


def test_a_straggler_makes_a_uniform_part_of_its_steps_and_at_least_one():
  late = faults.Faults(straggler_rate=1.0)
  steps = [late.steps(r, 0, 10) for r in range(2000)]
  assert set(steps) == set(range(1, 11))
  # Uniform on 1 to 10 has mean 5.5 and variance 8.25: 5 deviations.
  assert abs(np.mean(steps) - 5.5) < 5 * math.sqrt(8.25 / 2000)
  assert late.steps(1, 0, 1) == 1


@pytest.mark.parametrize(
  'poison, factor',
  [
    (faults.SIGN_FLIP, -1.0),
    (faults.SCALE, 4.0),
    (faults.LABEL_FLIP, 1.0),
    (faults.NOT_FINITE, math.nan),
  ],
)
def test_only_poisoned_clients_change_their_updates(poison, factor):
  found = faults.Faults(poison=poison, poisoned_fraction=0.5, poison_scale=4.0)
  factors = {c: found.factor(c) for c in range(20)}
  for client, value in factors.items():
    expected = factor if found.is_poisoned(client) else 1.0
    np.testing.assert_equal(value, expected)
  assert len({found.is_poisoned(c) for c in factors}) == 2


def test_flipped_labels_are_those_of_poisoned_clients_alone():
  y = np.array([0, 1, 2, 3], np.int32)
  split = federated_data.Split.from_client_arrays(
    {f'c{i}': {'x': np.zeros([4, 2]), 'y': y} for i in range(12)}
  )
  found = faults.Faults(poison=faults.LABEL_FLIP, poisoned_fraction=0.5)
  flipped = found.poisoned_split(split, 4)
  for client in split.client_ids:
    is_poisoned = found.is_poisoned(split.position(client))
    expected = [3, 2, 1, 0] if is_poisoned else [0, 1, 2, 3]
    arrays = flipped.client(client)
    np.testing.assert_array_equal(arrays['y'], expected)
    assert arrays['y'].dtype == np.int32
  np.testing.assert_array_equal(split.client('c0')['y'], y)
  assert faults.Faults(poison=faults.SCALE).poisoned_split(split, 4) is split
