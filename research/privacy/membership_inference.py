"""Membership inference: can one tell from a model who was trained on?

It is the threshold attack of tensorflow-privacy, with the same result. That
package has left its attacks out since version 0.9, and the one that they went
to does not load beside a present scikit-learn, whose ROC curve both use.
"""

import dataclasses
from typing import Any

import numpy as np
from sklearn import metrics

MEANING = (
  'An attacker who knows the loss of an example guesses that it was trained on '
  'if the loss is low. AUC 0.5 and advantage 0 are as good as guessing; 1 is '
  'certainty. The result is that of this attack alone: a stronger one may do '
  'better, so that a low value is no guarantee, and a high one may only show '
  'that test examples are of other people. It is about examples, not clients, '
  "and it is computed from clients' data without noise: no privacy guarantee "
  'covers it, so keep it to yourself.'
)


@dataclasses.dataclass(frozen=True)
class Report:
  """The result of the attack.

  Attributes:
    members: Examples that were trained on.
    non_members: Examples that were not.
    auc: Area under the ROC curve, 0.5 for guesses.
    attacker_advantage: The largest difference between true and false positive
      rate.
    false_positive_rates: Of the ROC curve, rising.
    true_positive_rates: Of the ROC curve.
  """

  members: int
  non_members: int
  auc: float
  attacker_advantage: float
  false_positive_rates: np.ndarray
  true_positive_rates: np.ndarray

  def to_json(self) -> dict[str, Any]:
    """The numbers, and what they mean."""
    names = ('members', 'non_members', 'auc', 'attacker_advantage')
    return {name: getattr(self, name) for name in names} | {'meaning': MEANING}


def attack(member_losses: np.ndarray, other_losses: np.ndarray) -> Report:
  """Attacks a model by a threshold on the loss.

  Yeom et al. 2018, "Privacy Risk in Machine Learning", arXiv:1709.01604.

  Args:
    member_losses: Float [examples that were trained on].
    other_losses: Float [examples that were not].

  Returns:
    The report.
  """
  losses = np.concatenate([member_losses, other_losses])
  is_member = np.arange(len(losses)) < len(member_losses)
  false_positives, true_positives, _ = metrics.roc_curve(is_member, -losses)
  return Report(
    members=len(member_losses),
    non_members=len(other_losses),
    auc=float(metrics.auc(false_positives, true_positives)),
    attacker_advantage=float(np.max(true_positives - false_positives)),
    false_positive_rates=false_positives,
    true_positive_rates=true_positives,
  )
