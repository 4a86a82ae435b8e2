"""Spans by hand; 10,000 random sentences were once compared with seqeval."""

import numpy as np
import pytest

from research.training import spans

NAMES = ('O', 'B-PER', 'I-PER', 'B-LOC', 'I-LOC')


@pytest.mark.parametrize(
  'tags, expected',
  [
    ('', []),
    ('O O', []),
    ('B-PER', [('PER', 0, 0)]),
    ('O B-PER I-PER O', [('PER', 1, 2)]),
    # To the end of the sentence.
    ('O B-PER I-PER', [('PER', 1, 2)]),
    # A stray I begins a span, after O and at the start.
    ('I-PER O I-LOC I-LOC', [('PER', 0, 0), ('LOC', 2, 3)]),
    # B after B of the same type, and after I.
    ('B-PER B-PER', [('PER', 0, 0), ('PER', 1, 1)]),
    ('B-PER I-PER B-PER', [('PER', 0, 1), ('PER', 2, 2)]),
    # Another type begins another span, even with I.
    ('B-PER I-LOC', [('PER', 0, 0), ('LOC', 1, 1)]),
    ('I-PER I-LOC I-PER', [('PER', 0, 0), ('LOC', 1, 1), ('PER', 2, 2)]),
    # Of the same type I goes on, whatever began the span.
    ('I-PER I-PER', [('PER', 0, 1)]),
    # A type may have a hyphen.
    ('B-A-B I-A-B I-A', [('A-B', 0, 1), ('A', 2, 2)]),
  ],
)
def test_spans(tags, expected):
  assert spans.spans(tags.split()) == set(expected)


def test_counts_of_sentences():
  # PER(0-1) LOC(3) against PER(0) LOC(3); unlabelled tokens are left out.
  labels = [[1, 2, 0, 3], [1, -1, 2, -1], [-1, -1, -1, -1]]
  predicted = [[1, 0, 0, 3], [1, 3, 2, 1], [1, 1, 1, 1]]
  found = spans.count(np.array(predicted), np.array(labels), NAMES)
  assert {name: values.tolist() for name, values in found.items()} == {
    'found/PER': [0, 1, 0],
    'predicted/PER': [1, 1, 0],
    'true/PER': [1, 1, 0],
    'found/LOC': [1, 0, 0],
    'predicted/LOC': [1, 0, 0],
    'true/LOC': [1, 0, 0],
  }


def test_scores():
  found = spans.scores(found=3, predicted=4, true=6)
  assert found['precision'] == pytest.approx(3 / 4)
  assert found['recall'] == pytest.approx(1 / 2)
  # 2 * (3/4 * 1/2) / (3/4 + 1/2)
  assert found['f1'] == pytest.approx(0.6)
  nothing = {'precision': 0, 'recall': 0, 'f1': 0}
  for counts in ((0, 0, 0), (0, 5, 0), (0, 0, 5), (0, 2, 3)):
    assert spans.scores(*counts) == nothing
