"""Word pieces of BERT: texts become ids, equal to those of a checkpoint.

Clean, lower-case, split at spaces and punctuation, then cut each word into the
longest pieces of the vocabulary, as Devlin et al. 2019
(https://arxiv.org/abs/1810.04805) do. The words [CLS], [SEP] and such within a
text are plain text, so that no text can pass for structure.
"""

import collections
import dataclasses
import itertools
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

# The library else warns, and stops using threads, whenever a process forks.
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'true')

import numpy as np  # noqa: E402  (the library reads the variable above)
import tokenizers  # noqa: E402
from tokenizers import models, normalizers, pre_tokenizers  # noqa: E402

from datasets import federated_data, text_records  # noqa: E402

SPECIAL = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')
NO_TAG = -1
LONGEST_WORD = 100
_LENGTHS_STEP = 8
_BUCKETS_STEP = 16
_BATCH = 4_096


@dataclasses.dataclass(frozen=True)
class Encoded:
  """Ids of examples.

  Attributes:
    ids: int32 [n, length]: [CLS], pieces, [SEP], then padding.
    truncated: How many examples lost pieces because they were too long.
    tags: int32 [n, length]: at the first piece of each word its tag, elsewhere
      `NO_TAG`; None where no tags were given.
    lost: How many pieces were lost or, with tags, how many words.
    lengths: int32 [n]: ids of each example before it was cut.
  """

  ids: np.ndarray
  truncated: int
  tags: np.ndarray | None
  lost: int
  lengths: np.ndarray


@dataclasses.dataclass(frozen=True)
class Lengths:
  """How long the examples of a data set are, in ids, [CLS] and [SEP] too.

  Attributes:
    limit: The length at which examples were cut.
    longest: Of the examples before they were cut.
    mean: Likewise.
    total_examples: Of all splits.
    truncated: Examples that lost something.
    lost: What they lost: pieces, or words where there are tags.
    unit: 'tokens' or 'words'.
  """

  limit: int
  longest: int
  mean: float
  total_examples: int
  truncated: int
  lost: int
  unit: str

  def line(self) -> str:
    """Returns one line for people."""
    text = f'tokens per example: mean {self.mean:.1f}, longest {self.longest}; '
    if not self.truncated:
      return text + f'none of {self.total_examples:,} examples cut'
    share = 100 * self.truncated / self.total_examples
    return text + (
      f'{self.truncated:,} of {self.total_examples:,} examples ({share:.1f} %) '
      f'cut at {self.limit}, {self.lost:,} {self.unit} lost'
    )


class WordPieces:
  """A vocabulary, and what cuts texts into its pieces.

  Attributes:
    vocab: The pieces; a piece's id is its position.
    lowercase: Whether texts become lower-case and lose their accents.
    size: How many pieces there are.
    pad_id: Id of [PAD]: 0.
    unknown_id: Id of [UNK].
    cls_id: Id of [CLS].
    sep_id: Id of [SEP].
    mask_id: Id of [MASK].
  """

  def __init__(self, vocab: Sequence[str], *, lowercase: bool = True):
    """Takes a vocabulary.

    Args:
      vocab: The pieces in the order of their ids.
      lowercase: Whether it is of lower-case texts without accents.

    Raises:
      ValueError: If a piece is there twice, a special one is missing or [PAD]
        is not the first.
    """
    self.vocab, self.lowercase = tuple(vocab), lowercase
    self.size = len(self.vocab)
    ids = {piece: k for k, piece in enumerate(self.vocab)}
    if len(ids) != self.size:
      twice = [p for p, n in collections.Counter(vocab).items() if n > 1]
      raise ValueError(
        f'The vocabulary must have every piece once; {twice[:5]} are repeated.'
      )
    missing = [piece for piece in SPECIAL if piece not in ids]
    if missing:
      raise ValueError(
        f'The vocabulary of {self.size} pieces lacks {", ".join(missing)}; it '
        f'must have {", ".join(SPECIAL)}.'
      )
    if ids['[PAD]'] != 0:
      raise ValueError(
        '[PAD] must be the first piece of the vocabulary, id 0, by which '
        f'models know padding; it has the id {ids["[PAD]"]}.'
      )
    self.pad_id, self.unknown_id, self.cls_id, self.sep_id, self.mask_id = (
      ids[piece] for piece in SPECIAL
    )
    self._tokenizer = pipeline(
      models.WordPiece(
        ids, unk_token='[UNK]', max_input_chars_per_word=LONGEST_WORD
      ),
      lowercase,
    )

  @classmethod
  def from_vocab_file(
    cls, path: str | pathlib.Path, lowercase: bool = True
  ) -> 'WordPieces':
    """Reads vocab.txt of a checkpoint: one piece a line.

    Args:
      path: The file.
      lowercase: See `__init__`.

    Returns:
      The word pieces.

    Raises:
      DataError: If the file isn't there or isn't a vocabulary.
    """
    try:
      lines = pathlib.Path(path).expanduser().read_text('utf-8').split('\n')
      if lines[-1] == '':
        lines.pop()
      return cls([line.rstrip('\r') for line in lines], lowercase=lowercase)
    except (OSError, ValueError) as error:
      raise federated_data.DataError(
        f'{path} cannot be read as a vocabulary: {error}'
      ) from error

  def pieces(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns the ids of each text's pieces, without special ones."""
    return [np.asarray(e.ids, np.int32) for e in self._encodings(texts)]

  def encode(self, texts: Sequence[str], max_length: int) -> Encoded:
    """Makes ids of texts.

    Args:
      texts: The texts.
      max_length: Ids for each, [CLS] and [SEP] too; 3 or more. What is longer
        loses pieces at its end, what is shorter is padded.

    Returns:
      The ids, [n, max_length].
    """
    _check_max_length(max_length)
    pieces = self.pieces(texts)
    lengths = np.asarray([len(p) + 2 for p in pieces], np.int32)
    ids = np.full((len(pieces), max_length), self.pad_id, np.int32)
    for row, piece in zip(ids, pieces, strict=True):
      self.frame(row, piece)
    over = np.maximum(lengths - max_length, 0)
    return Encoded(ids, int((over > 0).sum()), None, int(over.sum()), lengths)

  def encode_words(
    self,
    words: Sequence[Sequence[str]],
    tags: Sequence[Sequence[int]],
    max_length: int,
  ) -> Encoded:
    """Makes ids of sentences whose words have tags.

    Args:
      words: The words of each sentence. One that has no piece, such as a
        control character, counts as unknown.
      tags: Their tags.
      max_length: See `encode`.

    Returns:
      The ids and tags, [n, max_length]. A word whose first piece doesn't fit is
      lost, and its tag with it.
    """
    _check_max_length(max_length)
    shape = (len(words), max_length)
    ids = np.full(shape, self.pad_id, np.int32)
    out = np.full(shape, NO_TAG, np.int32)
    lengths, lost, truncated = [], 0, 0
    encodings = self._encodings([list(sentence) for sentence in words])
    for row, encoding in enumerate(encodings):
      _check_tags(row, words[row], tags[row])
      pieces, first = self._aligned(encoding, len(words[row]))
      lengths.append(len(pieces) + 2)
      self.frame(ids[row], pieces)
      fits = first < max_length - 2
      out[row, 1 + first[fits]] = np.asarray(tags[row], np.int32)[fits]
      lost += int((~fits).sum())
      truncated += len(pieces) + 2 > max_length
    return Encoded(ids, truncated, out, lost, np.asarray(lengths, np.int32))

  def _encodings(self, texts: Sequence) -> Iterator[tokenizers.Encoding]:
    """Yields the library's encodings, of strings or of lists of words."""
    for start in range(0, len(texts), _BATCH):
      batch = list(texts[start : start + _BATCH])
      yield from self._tokenizer.encode_batch(
        batch,
        is_pretokenized=not isinstance(batch[0], str),
        add_special_tokens=False,
      )

  def _aligned(
    self, encoding: tokenizers.Encoding, num_words: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns a sentence's pieces, and where each word's first one is."""
    of_word = [[] for _ in range(num_words)]
    for piece, word in zip(encoding.ids, encoding.word_ids, strict=True):
      of_word[word].append(piece)
    of_word = [pieces or [self.unknown_id] for pieces in of_word]
    counts = [len(pieces) for pieces in of_word]
    first = np.cumsum([0, *counts[:-1]]) if counts else np.zeros(0, np.int64)
    return np.asarray(list(itertools.chain(*of_word)), np.int32), first

  def frame(self, row: np.ndarray, pieces: np.ndarray) -> None:
    """Writes [CLS], as many pieces as fit, and [SEP] into a row."""
    kept = pieces[: len(row) - 2]
    row[0], row[1 + len(kept)] = self.cls_id, self.sep_id
    row[1 : 1 + len(kept)] = kept


def tokenise(
  data: federated_data.FederatedData,
  pieces: WordPieces,
  max_length: int,
  kind: str = text_records.CLASSIFICATION,
) -> tuple[federated_data.FederatedData, Lengths]:
  """Makes ids of the texts of a data set.

  Args:
    data: As `text.load` returns it.
    pieces: The word pieces.
    max_length: Ids of an example at most.
    kind: 'classification', 'tagging' or 'language', as `text.kind` says.

  Returns:
    The data with 'x' int32 [n, L], and how long its examples are. L is the
    longest example of all splits, rounded up to a multiple of 8, and at most
    `max_length`. 'y' stays, or for tagging is int32 [n, L]: a word's tag at its
    first piece and `NO_TAG` elsewhere. Of language data a client's texts, in
    their order and with [SEP] between them, are cut into blocks of
    `max_length` that each get their own [CLS] and [SEP]: nothing is lost and
    only the client's last block has padding. These blocks are the examples.

  Raises:
    ValueError: If `max_length` is below 3 or the kind is unknown.
  """
  _check_max_length(max_length)
  encode = {
    text_records.CLASSIFICATION: _encode_texts,
    text_records.TAGGING: _encode_tagged,
    text_records.LANGUAGE: _encode_language,
  }
  if kind not in encode:
    raise ValueError(
      f'kind must be one of {", ".join(encode)}, given {kind!r}.'
    )
  splits = {
    name: getattr(data, name)
    for name in text_records.SPLITS
    if getattr(data, name) is not None
  }
  encoded = {
    name: encode[kind](split, pieces, max_length)
    for name, split in splits.items()
  }
  parts = [part for part, _, _ in encoded.values()]
  lengths = np.concatenate([part.lengths for part in parts])
  longest = int(lengths.max(initial=0))
  padded = _LENGTHS_STEP * math.ceil(longest / _LENGTHS_STEP)
  length = min(max_length, padded)
  made = {
    name: _split(part, labels, counts, length)
    for name, (part, labels, counts) in encoded.items()
  }
  summary = Lengths(
    limit=max_length,
    longest=longest,
    mean=float(lengths.mean()),
    total_examples=len(lengths),
    truncated=sum(part.truncated for part in parts),
    lost=sum(part.lost for part in parts),
    unit='words' if kind == text_records.TAGGING else 'tokens',
  )
  return dataclasses.replace(data, **made), summary


def bucket_lengths(longest: int) -> tuple[int, ...]:
  """Returns the lengths that batches may be trimmed to: few, for few shapes.

  Args:
    longest: The length of the untrimmed examples.

  Returns:
    Multiples of 16 below `longest`, and `longest`.
  """
  if longest < 1:
    raise ValueError(f'longest must be 1 or more, given {longest}.')
  return (*range(_BUCKETS_STEP, longest, _BUCKETS_STEP), longest)


def pipeline(model: models.WordPiece, lowercase: bool) -> tokenizers.Tokenizer:
  """Returns BERT's cleaning and splitting in front of a model."""
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.normalizer = normalizers.BertNormalizer(
    clean_text=True,
    handle_chinese_chars=True,
    strip_accents=None,
    lowercase=lowercase,
  )
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  return tokenizer


def _encode_texts(
  split: federated_data.Split, pieces: WordPieces, max_length: int
) -> tuple[Encoded, np.ndarray, Mapping[str, int]]:
  pooled = split.pooled()
  encoded = pieces.encode(pooled['x'].tolist(), max_length)
  return encoded, pooled['y'], split.num_examples


def _encode_tagged(
  split: federated_data.Split, pieces: WordPieces, max_length: int
) -> tuple[Encoded, np.ndarray, Mapping[str, int]]:
  pooled = split.pooled()
  encoded = pieces.encode_words(
    pooled['x'].tolist(), pooled['y'].tolist(), max_length
  )
  return encoded, encoded.tags, split.num_examples


def _encode_language(
  split: federated_data.Split, pieces: WordPieces, max_length: int
) -> tuple[Encoded, np.ndarray, Mapping[str, int]]:
  """Encodes each client's running text, in blocks."""
  texts = iter(pieces.pieces(split.pooled()['x'].tolist()))
  step, counts, blocks = max_length - 2, {}, []
  separator = np.asarray([pieces.sep_id], np.int32)
  for client, count in split.num_examples.items():
    parts = [
      part
      for text in itertools.islice(texts, count)
      for part in (text, separator)
    ]
    stream = np.concatenate([*parts[:-1], np.zeros(0, np.int32)])
    cut = [stream[k : k + step] for k in range(0, len(stream), step)]
    counts[client] = len(cut)
    blocks.extend(cut)
  ids = np.full((len(blocks), max_length), pieces.pad_id, np.int32)
  for row, block in zip(ids, blocks, strict=True):
    pieces.frame(row, block)
  lengths = np.asarray([len(block) + 2 for block in blocks], np.int32)
  zeros = np.zeros(len(blocks), np.int32)
  return Encoded(ids, 0, None, 0, lengths), zeros, counts


def _split(
  encoded: Encoded, labels: np.ndarray, counts: Mapping[str, int], length: int
) -> federated_data.Split:
  """Gives encoded examples back to their clients, cut to a length."""
  ends = np.cumsum(list(counts.values()))
  rows = {
    client: np.arange(end - count, end)
    for (client, count), end in zip(counts.items(), ends.tolist(), strict=True)
  }
  arrays = {
    'x': np.ascontiguousarray(encoded.ids[:, :length]),
    'y': labels if labels.ndim == 1 else labels[:, :length],
  }
  return federated_data.Split.from_arrays(arrays, rows)


def _check_max_length(max_length: int) -> None:
  if max_length < 3:
    raise ValueError(
      'max_length must be 3 or more, [CLS], a piece and [SEP]; given '
      f'{max_length}.'
    )


def _check_tags(row: int, words: Sequence[str], tags: Sequence[int]) -> None:
  if len(words) != len(tags):
    raise ValueError(
      f'Sentence {row} has {len(words)} words and {len(tags)} tags; each word '
      'needs one tag.'
    )
