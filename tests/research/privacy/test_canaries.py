"""Who the canaries are, what they send, and what their scores say."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from research.privacy import audit, audit_report, canaries, guarantee

CANARIES = canaries.Canaries(
  number=400, probability=0.2, shapes=((3, 4), (5,)), norm=7.0, seed=1
)


def test_everything_is_a_function_of_the_seed():
  same = dataclasses.replace(CANARIES)
  other = dataclasses.replace(CANARIES, seed=2)
  for found in (same, other):
    equal = [
      np.array_equal(CANARIES.is_included, found.is_included),
      CANARIES.taking_part(3) == found.taking_part(3),
      np.array_equal(CANARIES.direction(7), found.direction(7)),
    ]
    assert equal == [found is same] * 3
  assert CANARIES.taking_part(3) != CANARIES.taking_part(4)


def test_half_are_in_and_take_part_with_the_probability():
  many = dataclasses.replace(CANARIES, number=20_000)
  included = int(many.is_included.sum())
  assert stats.binomtest(included, 20_000, 0.5).pvalue > 1e-3
  rounds = [many.taking_part(r) for r in range(1, 11)]
  assert many.is_included[np.concatenate(rounds)].all()
  total = sum(map(len, rounds))
  assert stats.binomtest(total, 10 * included, 0.2).pvalue > 1e-3
  # Rounds are drawn independently of each other.
  both = len(set(rounds[0]) & set(rounds[1]))
  assert stats.binomtest(both, len(rounds[0]), 0.2).pvalue > 1e-3


def test_turns_come_in_equal_groups_at_the_separation():
  turns = dataclasses.replace(CANARIES, probability=1.0, min_separation=5)
  rounds = [turns.taking_part(r) for r in range(1, 11)]
  assert rounds[:5] == rounds[5:]
  assert (
    sorted(sum(rounds[:5], [])) == np.flatnonzero(turns.is_included).tolist()
  )
  assert np.bincount(turns.group).tolist() == [80] * 5


def test_guesses_know_who_can_not_have_taken_part():
  # After 50 rounds hardly any canary was idle: (1 - 0.2)^50 = 1e-5.
  assert CANARIES.guesses(50) == audit.Guesses(50, 50)
  # After 2 rounds 64 % were.
  assert CANARIES.guesses(2) == audit.Guesses(36, 0)
  turns = dataclasses.replace(CANARIES, min_separation=25)
  assert turns.guesses(50) == CANARIES.guesses(2)


def test_directions_are_uniform_on_the_sphere():
  found = np.array([CANARIES.direction(i) for i in range(400)], np.float64)
  np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
  # Of a uniform unit vector in d dimensions, x^2 ~ Beta(1/2, (d - 1) / 2).
  for coordinate in (found[:, 0], found @ np.full(17, 17**-0.5)):
    assert stats.kstest(coordinate**2, stats.beta(0.5, 8).cdf).pvalue > 1e-3
    assert stats.binomtest(int((coordinate > 0).sum()), 400).pvalue > 1e-3


def test_what_is_sent_is_the_direction_in_the_shapes_of_the_weights():
  first, second = CANARIES.update(5)
  assert first.shape == (3, 4)
  assert second.shape == (5,)
  assert first.dtype == second.dtype == np.float32
  flat = np.concatenate([first.ravel(), second])
  np.testing.assert_allclose(flat, 7 * CANARIES.direction(5), rtol=1e-6)
  told = CANARIES.instruction(5)
  assert told['is_replaced']
  np.testing.assert_array_equal(told['update'][1], second)
  assert not CANARIES.no_instruction['is_replaced']


def test_statistics_beside_an_update_do_not_move():
  found = dataclasses.replace(CANARIES, statistics=((), (3,)))
  for said in (found.instruction(0), found.no_instruction):
    still = said['update']['statistics']
    assert [part.shape for part in still] == [(), (3,)]
    assert not any(np.any(part) for part in still)
  sent = found.instruction(0)['update']['trainable']
  for part, wanted in zip(sent, found.update(0), strict=True):
    np.testing.assert_array_equal(part, wanted)


def test_a_score_is_an_inner_product():
  released = [np.zeros((3, 4), np.float32), np.zeros(5, np.float32)]
  released[0][1, 2], released[1][3] = 2.0, -1.0
  expected = [
    2 * CANARIES.direction(i)[6] - CANARIES.direction(i)[15] for i in range(400)
  ]
  np.testing.assert_allclose(CANARIES.scores(released), expected, rtol=1e-6)


CLAIM = guarantee.Guarantee(
  epsilon_rdp=1.3,
  epsilon_pld=1.25,
  delta=1e-6,
  relation='add_or_remove_one_client',
  sampling=guarantee.Sampling('poisson', 1000, 200, 50),
  mechanism='Gaussian',
  noise_multiplier=1.0,
  amplified=True,
  rounds=50,
)
LARGE = dataclasses.replace(CANARIES, shapes=((3000,), (2000,)))


def _released(canaries_in: float, noise: float):
  total = np.random.default_rng(0).normal(scale=noise, size=5000)
  for i in np.flatnonzero(LARGE.is_included):
    total += canaries_in * LARGE.direction(i)
  return [total[:3000], total[3000:]]


def test_a_model_full_of_canaries_contradicts_the_claim():
  found = audit_report.examine(LARGE, _released(1.0, 0.01), 50, CLAIM)
  assert (found.canaries, found.guesses, found.correct) == (400, 100, 100)
  assert found.included == LARGE.is_included.sum()
  bound = audit.epsilon_lower_bound(1e-6, 400, 100, 100)
  assert found.epsilon_lower_bound == found.epsilon_if_all_were_right == bound
  assert bound == pytest.approx(3.49, abs=0.01)
  assert found.epsilon_claimed == 1.25
  # The others are the noise: included cosines have a mean of 1 / |sum|, and
  # N(0, 1/d) beside it is sqrt(d / n) = 5 standard deviations away.
  assert found.epsilon_one_shot_estimate > 20
  assert found.to_json()['is_violated']
  with pytest.raises(audit_report.ViolationError, match='CONTRADICTS') as error:
    found.check()
  assert 'at most 5% of all audits' in str(error.value)
  assert '> 1.25 claimed' in found.line()


def test_a_model_without_canaries_does_not():
  found = audit_report.examine(LARGE, _released(0.0, 1.0), 50, CLAIM)
  assert found.epsilon_lower_bound < 0.5
  assert found.epsilon_one_shot_estimate < 1.25
  assert not found.to_json()['is_violated']
  found.check()
  assert found.statement().startswith('**Audit.**')
  assert 'no proof of privacy' in found.statement()


def test_a_model_that_did_not_move_or_is_broken_has_no_estimate():
  for value in (0.0, np.nan):
    released = [np.full(3000, value), np.full(2000, value)]
    found = audit_report.examine(LARGE, released, 50, CLAIM)
    assert found.epsilon_one_shot_estimate is None
    assert not found.is_violated
