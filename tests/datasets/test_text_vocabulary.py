"""Vocabularies that are trained here."""

import hashlib
import subprocess
import sys

import pytest

from datasets import text, text_vocabulary, word_pieces

CODE = """
import hashlib
from datasets import text, text_vocabulary
data = text.load(text.TextConfig('synthetic_shakespeare'))
texts = data.train.pooled()['x'].tolist()
vocab = text_vocabulary.build_vocab(texts, 150)
print(hashlib.sha256(repr(vocab).encode()).hexdigest())
"""


def test_frequent_words_become_pieces():
  texts = ['low low low lower newest newest newest ab']
  # l, o, w, e, r, n, s, t, a, b; each at the start of a word and within.
  vocab = text_vocabulary.build_vocab(texts, 45)
  assert vocab[:5] == word_pieces.SPECIAL
  assert vocab[5:15] == tuple('abelnorstw')
  assert vocab[15:25] == tuple(f'##{c}' for c in 'abelnorstw')
  assert {'low', 'newest'} <= set(vocab[25:])
  pieces = word_pieces.WordPieces(vocab)
  assert [vocab[k] for k in pieces.pieces(['NEWEST low'])[0]] == [
    'newest',
    'low',
  ]


def test_size_and_alphabet_are_limited():
  texts = ['aaaa aaab aabb abcd xyz', 'aaaa \u00e9']
  vocab = text_vocabulary.build_vocab(texts, 12)
  # A quarter of 12 characters, the most frequent and then the first ones.
  assert vocab == (*word_pieces.SPECIAL, *'abc', '##a', '##b', '##c', '##aa')
  with pytest.raises(ValueError, match='size must be 9 or more'):
    text_vocabulary.build_vocab(texts, 8)


def test_another_process_makes_the_same_vocabulary():
  data = text.load(text.TextConfig('synthetic_shakespeare'))
  texts = data.train.pooled()['x'].tolist()
  vocab = text_vocabulary.build_vocab(texts[::-1], 150)
  here = hashlib.sha256(repr(vocab).encode()).hexdigest()
  assert 'soldier' in vocab
  for _ in range(2):
    run = subprocess.run(
      [sys.executable, '-c', CODE],
      capture_output=True,
      text=True,
      check=True,
      env={'TF_CPP_MIN_LOG_LEVEL': '3', 'PYTHONPATH': '.'},
    )
    assert run.stdout.strip() == here
