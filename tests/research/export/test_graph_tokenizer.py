"""The tokeniser in the graph gives the ids of training, whatever the text."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_text
from tokenizers import models

from datasets import word_pieces
from research.export import graph_tokenizer

VOCABULARY = (
  *('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '[', ']', 'mask', 'cls'),
  *('stra', '##ß', '##e', 'strasse', 'ﬁ', '##ne', 'fine', 'zurich', 'Zürich'),
  *('σ', '##σ', 'ο', '##ο', '##δ', 'i', '##i', 'ı', '##ı', 't', '##t', 'A'),
  *('中', '文', 'a', 'b', '##b', '##a', '.', ',', '!', '“', '[unused1]', '’'),
)
TEXTS = (
  'straße STRASSE Straße',
  'ﬁne fine ﬁ',
  'a [MASK] b [CLS] [SEP] [unused1] mask',
  'Zürich zurich ZÜRICH Zu\u0308rich',
  'ΟΔΟΣ ΟΣ Σ ΟΣ.',
  'İI ıi TIT',
  '中文a中 b文',
  'a\u3000b\xa0a\u2028b\u2029 a\x85b\ta\x0bb\x0ca',
  'a\u200bb\ufeff\ufffd\x00a\x01b\ue000 a',
  'a' * 100 + ' ' + 'a' * 101 + ' ' + 'b' * 5000,
  'ab.ab,“a”’b!!',
  '',
  '  \n ',
  '\U0001f600 a \U000e0001b',
)
WORDS = (
  ['straße', 'a.b', '\u200b', 'zurich'],
  ['\x01'],
  [],
  ['ab'] * 10,
  ['zz', 'a' * 101, 'ab', 'ﬁ', '中文', 'a', 'b', 'a'],
)


def make(lowercase=True, max_length=12):
  pieces = word_pieces.WordPieces(VOCABULARY, lowercase=lowercase)
  return pieces, graph_tokenizer.GraphTokenizer(pieces, max_length)


def in_graph(function):
  spec = tf.TensorSpec([None], tf.string)
  return tf.function(function, input_signature=[spec], autograph=False)


@pytest.mark.parametrize('lowercase', [True, False])
@pytest.mark.parametrize('max_length', [3, 5, 12, 6000])
def test_ids_are_those_of_training(lowercase, max_length):
  pieces, tokenizer = make(lowercase, max_length)
  found = in_graph(tokenizer.encode)(tf.constant(TEXTS)).numpy()
  wanted = pieces.encode(TEXTS, max_length)
  longest = min(int(wanted.lengths.max()), max_length)
  np.testing.assert_array_equal(found, wanted.ids[:, :longest])
  assert found.dtype == np.int32


def test_the_three_cases_where_tensorflow_text_alone_differs():
  """Its own tokeniser folds case; ours and that of training do not."""
  pieces, tokenizer = make()
  texts = ['straße', 'ﬁne', '[MASK]']
  theirs = tensorflow_text.BertTokenizer(
    tf.lookup.StaticVocabularyTable(
      tf.lookup.KeyValueTensorInitializer(
        VOCABULARY, tf.range(len(VOCABULARY), dtype=tf.int64)
      ),
      1,
    ),
    lower_case=True,
  ).tokenize(texts)
  shown = [
    [VOCABULARY[i] for i in ids] for ids in theirs.merge_dims(1, 2).to_list()
  ]
  assert shown == [['strasse'], ['fine'], ['[', 'mask', ']']]
  ours = [
    [VOCABULARY[i] for i in ids if i] for ids in tokenizer.encode(texts).numpy()
  ]
  wanted = [['stra', '##ß', '##e'], ['ﬁ', '##ne'], ['[', 'mask', ']']]
  assert [row[1:-1] for row in ours] == wanted
  training = [[VOCABULARY[i] for i in ids] for ids in pieces.pieces(texts)]
  assert training == wanted


def test_a_mask_is_read_where_it_is_asked_for():
  _, tokenizer = make(max_length=20)
  (ids,) = tokenizer.encode(
    tf.constant(['a [MASK]b[MASK] [mask] \ue000']), reads_masks=True
  )
  assert [VOCABULARY[i] for i in ids] == [
    *('[CLS]', 'a', '[MASK]', 'b', '[MASK]', '[', 'mask', ']', '[SEP]')
  ]


@pytest.mark.parametrize('max_length', [3, 6, 12, 40])
def test_words_are_cut_as_in_training(max_length):
  pieces, tokenizer = make(max_length=max_length)
  texts = tf.constant([' \xa0'.join(words) + ' ' for words in WORDS])
  words, ids, first = in_graph(tokenizer.encode_words)(texts)
  tags = [list(range(len(sentence))) for sentence in WORDS]
  wanted = pieces.encode_words(WORDS, tags, max_length)
  np.testing.assert_array_equal(ids, wanted.ids[:, : ids.shape[1]])
  assert not wanted.ids[:, ids.shape[1] :].any()
  assert [[w.decode() for w in row] for row in words.to_list()] == list(WORDS)
  for row, starts in zip(wanted.tags, first.to_list(), strict=True):
    fitting = [start for start in starts if start < max_length - 1]
    assert fitting == np.flatnonzero(row >= 0).tolist()


def test_bytes_that_are_no_text_are_left_out():
  _, tokenizer = make()
  ids = tokenizer.encode(tf.constant([b'a \xff\xfeb', b'a b']))
  np.testing.assert_array_equal(ids[0], ids[1])


def test_no_text_gives_no_row():
  _, tokenizer = make()
  assert in_graph(tokenizer.encode)(tf.constant([], tf.string)).shape[0] == 0


def test_the_language_of_the_machine_does_not_matter():
  """ICU makes TITLE tıtle where the machine speaks Turkish."""
  program = """
import tensorflow as tf
from tests.research.export import test_graph_tokenizer as here
assert tf.strings.lower('I', encoding='utf-8').numpy().decode() == 'ı'
print(*here.make()[1].encode(tf.constant(['TIT'])).numpy()[0])
"""
  pieces, _ = make()
  result = subprocess.run(
    [sys.executable, '-c', program],
    env={**os.environ, 'LC_ALL': 'tr_TR.UTF-8', 'PYTHONUTF8': '1'},
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr
  wanted = pieces.encode(['tit'], 5).ids[0]
  assert result.stdout.split() == [str(i) for i in wanted]


def differing(lowercase, code_points):
  """The code points around which the words of the two are not the same."""
  pieces, tokenizer = make(lowercase)
  del pieces
  split = in_graph(tokenizer._words)
  pipeline = word_pieces.pipeline(
    models.WordPiece({'[UNK]': 0}, unk_token='[UNK]'), lowercase
  )
  found, code_points = [], list(code_points)
  for start in range(0, len(code_points), 50_000):
    part = code_points[start : start + 50_000]
    texts = [f'xA{chr(code)}By' for code in part]
    for code, text, words in zip(
      part, texts, split(tf.constant(texts)).to_list(), strict=True
    ):
      normal = pipeline.normalizer.normalize_str(text)
      wanted = [w for w, _ in pipeline.pre_tokenizer.pre_tokenize_str(normal)]
      if [word.decode() for word in words] != wanted:
        found.append(code)
  return found


@pytest.mark.parametrize('lowercase, count', [(True, 663), (False, 149)])
def test_code_points_that_differ_are_counted(lowercase, count):
  everything = [*range(0xD800), *range(0xE000, 0x110000)]
  found = differing(lowercase, everything)
  assert len(found) == count
  # None of Latin, Greek, Cyrillic, Hebrew, CJK, kana or Hangul.
  assert not [c for c in found if c < 0x61D]
  assert not [c for c in found if 0x3000 <= c < 0xA700]
  assert f'{663} of 1.1 million' in graph_tokenizer.DIFFERENCES


def test_only_models_of_texts_import_tensorflow_text():
  program = """
import sys
from research.export import exporter, graph_tokenizer, text_signatures
assert 'tensorflow_text' not in sys.modules
"""
  subprocess.run([sys.executable, '-c', program], check=True)
