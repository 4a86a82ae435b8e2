"""WordPiece vocabularies for models that are trained from scratch."""

import collections
import itertools
from collections.abc import Iterable, Mapping

from tokenizers import models, trainers

from datasets import word_pieces


def build_vocab(
  texts: Iterable[str], size: int, *, lowercase: bool = True
) -> tuple[str, ...]:
  """Makes a vocabulary for a model that is trained from scratch.

  It looks at the texts of all training clients together, so it is not private:
  a word of one client alone may get a piece of its own.

  Args:
    texts: The texts, in any order.
    size: How many pieces at most, special ones too. The rarest characters are
      left out where all of them, at the start of a word and within, would take
      more than half of it.
    lowercase: Whether texts become lower-case and lose their accents.

  Returns:
    The pieces, special ones first: a function of the texts alone.

  Raises:
    ValueError: If `size` leaves no room for characters.
  """
  least = len(word_pieces.SPECIAL) + 4
  if size < least:
    raise ValueError(
      f'size must be {least} or more, special pieces and a few characters; '
      f'given {size}.'
    )
  model = models.WordPiece(unk_token='[UNK]')
  pipeline = word_pieces.pipeline(model, lowercase)
  words = collections.Counter()
  for text in texts:
    normal = pipeline.normalizer.normalize_str(text)
    split = pipeline.pre_tokenizer.pre_tokenize_str(normal)
    words.update(
      word for word, _ in split if len(word) <= word_pieces.LONGEST_WORD
    )
  alphabet = _alphabet(words, size // 4)
  known = {w: n for w, n in sorted(words.items()) if set(w) <= set(alphabet)}
  # In a fixed order: the library gives ids to characters, and breaks ties
  # between pairs by these ids, in an order that differs from run to run.
  fixed = [
    *word_pieces.SPECIAL,
    *alphabet,
    *(f'##{character}' for character in alphabet),
  ]
  pipeline.train_from_iterator(
    itertools.chain.from_iterable(
      itertools.repeat(word, count) for word, count in known.items()
    ),
    trainers.WordPieceTrainer(
      vocab_size=size, special_tokens=fixed, show_progress=False
    ),
  )
  ids = pipeline.get_vocab()
  return tuple(sorted(ids, key=ids.get))


def _alphabet(words: Mapping[str, int], limit: int) -> list[str]:
  """Returns the most frequent characters, sorted."""
  counts = collections.Counter()
  for word, count in words.items():
    for character in word:
      counts[character] += count
  ranked = sorted(counts, key=lambda c: (-counts[c], c))
  return sorted(ranked[:limit])
