"""Spans of tagged words, and how many of them are found.

The definition is that of the CoNLL-2000 evaluation and of seqeval (Nakayama
2018) in its default mode: a span begins at B, or where its type differs from
that of the word before, so that a stray I begins one too; a span is found if
its type, its first and its last word are right.
"""

import collections
from collections.abc import Mapping, Sequence

import numpy as np

Span = tuple[str, int, int]


def spans(tags: Sequence[str]) -> set[Span]:
  """Returns the spans of a sentence: type, first and last position.

  Args:
    tags: 'O', or 'B-' or 'I-' and a type, for each word.
  """
  found, start, current = set(), 0, None
  for position, tag in enumerate([*tags, 'O']):
    prefix, _, kind = tag.partition('-')
    kind = kind or None
    if current is not None and (prefix == 'B' or kind != current):
      found.add((current, start, position - 1))
      current = None
    if current is None and kind is not None:
      start, current = position, kind
  return found


def count(
  predicted: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> dict[str, np.ndarray]:
  """Counts the spans of sentences.

  Args:
    predicted: Integers [sentences, length], positions in `names`.
    labels: Likewise; negative where a token has no tag.
    names: The tags.

  Returns:
    `<what>/<type>` to int64 [sentences], for what in found, predicted, true.
  """
  kinds = sorted({name.partition('-')[2] for name in names} - {''})
  counts = {
    f'{what}/{kind}': np.zeros(len(labels), np.int64)
    for what in ('found', 'predicted', 'true')
    for kind in kinds
  }
  for row in range(len(labels)):
    has_tag = labels[row] >= 0
    true = spans([names[tag] for tag in labels[row][has_tag]])
    guessed = spans([names[tag] for tag in predicted[row][has_tag]])
    for what, some in (
      ('found', true & guessed),
      ('predicted', guessed),
      ('true', true),
    ):
      for kind, number in collections.Counter(k for k, _, _ in some).items():
        counts[f'{what}/{kind}'][row] = number
  return counts


def scores(found: int, predicted: int, true: int) -> Mapping[str, float]:
  """Precision, recall and their harmonic mean F1; 0 where there are none."""
  precision = found / predicted if predicted else 0.0
  recall = found / true if true else 0.0
  total = predicted + true
  return {
    'precision': precision,
    'recall': recall,
    'f1': 2 * found / total if total else 0.0,
  }
