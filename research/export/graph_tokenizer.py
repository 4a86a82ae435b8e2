"""BERT's tokeniser as graph operations, equal to `datasets.word_pieces`.

TensorFlow Text's own BertTokenizer folds case (ß becomes ss, the ligature ﬁ
becomes fi), where BERT's tokeniser, and so training, only lower-cases: the
steps are put together here. What still differs are characters that one of the
two does not know yet: the Unicode tables of Rust's `tokenizers`, of RE2 and of
ICU have different ages. Of 1.1 million code points 663 differ, all of rare
scripts; a test counts them.

TensorFlow Text is imported when a tokeniser is made, not with this module: only
models of texts need it.
"""

import tensorflow as tf

from datasets import word_pieces

DIFFERENCES = (
  'The tokeniser in the graph gives the ids of training for ß, ligatures, '
  'accents, CJK and [MASK] in a text. 663 of 1.1 million code points differ: '
  'punctuation, marks and capitals of rare scripts that are newer than the '
  'Unicode tables of one of the two libraries.'
)
_SPACES = r'[\s\x{85}\x{a0}\p{Z}]'
_SPACES_OF_CONTROL = r'[\t\n\r]'
_REMOVED = r'[\p{C}\x{fffd}]'
_PUNCTUATION = r'([!-/:-@\[-`{-~]|\p{P})'
# The blocks that BERT calls Chinese characters.
_CHINESE = (
  r'([\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2B73F}'
  r'\x{2B740}-\x{2B81F}\x{2B920}-\x{2CEAF}\x{F900}-\x{FAFF}'
  r'\x{2F800}-\x{2FA1F}])'
)
# Stands for [MASK] until words are split; no text has it once it is cleaned.
_MARK = '\ue000'


class GraphTokenizer:
  """From texts to token ids.

  Attributes:
    max_length: Ids of a text at most, [CLS] and [SEP] too.
  """

  def __init__(self, pieces: word_pieces.WordPieces, max_length: int):
    """Compiles the vocabulary, which becomes a constant of the graph.

    Args:
      pieces: What cut the texts of training.
      max_length: As in training.
    """
    import tensorflow_text

    self.max_length = max_length
    self._pieces = pieces
    self._normalise = tensorflow_text.normalize_utf8
    self._word_pieces = tensorflow_text.FastWordpieceTokenizer(
      list(pieces.vocab),
      # Of UTF-8; longer words than 100 characters are taken out before.
      max_bytes_per_word=4 * word_pieces.LONGEST_WORD,
      token_out_type=tf.int32,
      no_pretokenization=True,
    )

  def encode(self, texts: tf.Tensor, reads_masks: bool = False) -> tf.Tensor:
    """Makes ids.

    Args:
      texts: string [batch].
      reads_masks: Whether [MASK] in a text is that token, not plain text.

    Returns:
      int32 [batch, length of the longest]: [CLS], pieces, [SEP], padding.
    """
    ids = self._ids(self._words(texts, reads_masks)).merge_dims(1, 2)
    return self._framed(ids)

  def encode_words(
    self, texts: tf.Tensor
  ) -> tuple[tf.RaggedTensor, tf.Tensor, tf.RaggedTensor]:
    """Makes ids of texts whose words, between spaces, are to be tagged.

    Args:
      texts: string [batch].

    Returns:
      The words, string [batch, (words)]; ids as of `encode`; and the position
      of each word's first piece among them, int32 [batch, (words)], which is
      beyond the last piece for words that were cut off.
    """
    texts = tf.strings.regex_replace(_valid(texts), _SPACES, ' ')
    words = tf.strings.split(texts)
    ids = self._ids(self._words(words.flat_values)).merge_dims(1, 2)
    # A word without any piece, such as a control character, is unknown.
    is_empty = tf.cast(tf.equal(ids.row_lengths(), 0), tf.int64)
    unknown = tf.fill([tf.reduce_sum(is_empty)], self._pieces.unknown_id)
    ids = tf.concat(
      [ids, tf.RaggedTensor.from_row_lengths(unknown, is_empty)], axis=1
    )
    counts = words.with_flat_values(tf.cast(ids.row_lengths(), tf.int32))
    ids = words.with_flat_values(ids).merge_dims(1, 2)
    return words, self._framed(ids), _starts(counts)

  def _words(
    self, texts: tf.Tensor, reads_masks: bool = False
  ) -> tf.RaggedTensor:
    """Cleans, lower-cases and splits: string [batch, (words)]."""
    replace = tf.strings.regex_replace
    texts = replace(_valid(texts), _SPACES_OF_CONTROL, ' ')
    texts = replace(texts, _REMOVED, '')
    texts = replace(texts, _SPACES, ' ')
    if reads_masks:
      texts = replace(texts, r'\[MASK\]', f' {_MARK} ')
    texts = replace(texts, _CHINESE, r' \1 ')
    if self._pieces.lowercase:
      texts = replace(self._normalise(texts, 'NFD'), r'\p{Mn}', '')
      # ICU lower-cases these by their neighbours or by the machine's language.
      texts = replace(replace(texts, 'Σ', 'σ'), 'I', 'i')
      texts = tf.strings.lower(texts, encoding='utf-8')
    return tf.strings.split(replace(texts, _PUNCTUATION, r' \1 '))

  def _ids(self, words: tf.RaggedTensor) -> tf.RaggedTensor:
    """Ids of each word: int32 [batch, (words), (pieces)]."""
    flat = words.flat_values
    length = tf.strings.length(flat, unit='UTF8_CHAR')
    flat = tf.where(length > word_pieces.LONGEST_WORD, '[UNK]', flat)
    flat = tf.where(tf.equal(flat, _MARK), '[MASK]', flat)
    return words.with_flat_values(self._word_pieces.tokenize(flat))

  def _framed(self, ids: tf.RaggedTensor) -> tf.Tensor:
    ids = ids[:, : self.max_length - 2]
    column = tf.ones([ids.nrows(), 1], tf.int32)
    framed = tf.concat(
      [column * self._pieces.cls_id, ids, column * self._pieces.sep_id], axis=1
    )
    return framed.to_tensor(self._pieces.pad_id)


def _valid(texts: tf.Tensor) -> tf.Tensor:
  """Texts in UTF-8; bytes that are none become what cleaning removes."""
  return tf.strings.unicode_transcode(texts, 'UTF-8', 'UTF-8')


def _starts(counts: tf.RaggedTensor) -> tf.RaggedTensor:
  """Where the first of so many pieces is in its row, behind [CLS]."""
  before = tf.cumsum(counts.flat_values, exclusive=True)
  total = tf.concat([before, [tf.reduce_sum(counts.flat_values)]], axis=0)
  before_row = tf.gather(total, counts.row_starts())
  return counts.with_flat_values(
    1 + before - tf.gather(before_row, counts.value_rowids())
  )
