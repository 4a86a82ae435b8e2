"""The membership inference attack on losses whose ROC curve is known."""

import numpy as np
import pytest
from scipy import stats

from research.privacy import membership_inference


@pytest.mark.parametrize(
  ('members', 'others', 'auc', 'advantage'),
  [
    # Of 3 * 2 pairs the member's loss is lower in 5; above 0.3 are 1 of 3
    # members and both others.
    ([0.1, 0.2, 0.5], [0.4, 0.6], 5 / 6, 2 / 3),
    ([0.1, 0.2], [0.3, 0.4, 0.5], 1.0, 1.0),
    ([0.1, 0.2], [0.1, 0.2], 0.5, 0.0),
  ],
)
def test_the_attack_by_hand(members, others, auc, advantage):
  report = membership_inference.attack(np.array(members), np.array(others))
  assert report.auc == pytest.approx(auc)
  assert report.attacker_advantage == pytest.approx(advantage)
  assert (report.members, report.non_members) == (len(members), len(others))
  found = report.to_json()
  assert found['auc'] == report.auc
  assert 'no guarantee' in found['meaning']


def test_the_curve_of_two_gaussians():
  """AUC Phi(mu / sqrt 2), advantage 2 Phi(mu / 2) - 1 at the middle."""
  rng = np.random.default_rng(0)
  report = membership_inference.attack(
    rng.normal(0.0, 1.0, 40_000), rng.normal(1.0, 1.0, 40_000)
  )
  assert report.auc == pytest.approx(stats.norm.cdf(2**-0.5), abs=0.005)
  expected = 2 * stats.norm.cdf(0.5) - 1
  assert report.attacker_advantage == pytest.approx(expected, abs=0.01)
