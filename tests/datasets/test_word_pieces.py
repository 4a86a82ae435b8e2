"""Word pieces beside a reference in plain Python and beside real ids."""

import dataclasses
import unicodedata

import numpy as np
import pytest

from datasets import download, federated_data, text, word_pieces

# Taken before the fixture that gives each test a cache of its own.
CACHE = download.cache_directory()
VOCAB = (
  *('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'the', 'play', '##ing'),
  *('##ed', 'un', '##want', 'cafe', '!', 'p', '##l', '##lay', '[', ']', 'sep'),
)
PIECES = word_pieces.WordPieces(VOCAB)
# As tokenizer.json of all-MiniLM-L6-v2, whose vocabulary is that of
# bert-base-uncased, gives them.
REAL = {
  "The Rock's naïve, UNAFFABLE re-make: 100% résumé!": [
    *(101, 1996, 2600, 1005, 1055, 15743, 1010, 14477, 20961, 3468, 2128),
    *(1011, 2191, 1024, 2531, 1003, 13746, 999, 102),
  ],
  f'東京 tower \u200b&amp; x{"y" * 100}': [
    *(101, 1879, 1755, 3578, 1004, 23713, 1025, 100, 102),
  ],
  "don't\tstop\n:-) ½ ﬁne İstanbul": [
    *(101, 2123, 1005, 1056, 2644, 1024, 1011, 1007, 1092, 1984, 2638),
    *(9960, 102),
  ],
}
REAL_WORDS = ['Hutchinson', '-', '\u200b', 'U.N.', 'won']
# content_hash of what it gives for the test split of movie_reviews.
REAL_HASH = '8def3736c0280a03fcd8e000c9e53cd844c80e9647f90d17e5652ae895ed0401'


def _reference(sentence):
  """Greedy longest match of Devlin et al., for letters, spaces and '!'."""
  plain = unicodedata.normalize('NFD', sentence.lower())
  plain = ''.join(c for c in plain if unicodedata.category(c) != 'Mn')
  ids = []
  for word in plain.replace('!', ' ! ').split():
    pieces, start = [], 0
    while start < len(word):
      for end in range(len(word), start, -1):
        piece = ('##' if start else '') + word[start:end]
        if piece in VOCAB:
          break
      else:
        pieces = [1]
        break
      pieces.append(VOCAB.index(piece))
      start = end
    ids += pieces
  return ids


def test_ids_by_hand():
  got = PIECES.encode(['The  playing, CAFÉ!', '', 'unwanted played'], 9)
  assert got.ids.dtype == np.int32
  assert got.ids.tolist() == [
    [2, 5, 6, 7, 1, 11, 12, 3, 0],
    [2, 3, 0, 0, 0, 0, 0, 0, 0],
    [2, 9, 10, 8, 6, 8, 3, 0, 0],
  ]
  assert (got.truncated, got.lost, got.tags) == (0, 0, None)
  assert got.lengths.tolist() == [8, 2, 7]


def test_ids_equal_a_reference_in_plain_python():
  rng = np.random.default_rng(0)
  parts = ['the', 'play', 'ing', 'ed', 'un', 'want', 'café', '!', ' ', 'p', 'L']
  sentences = [''.join(rng.choice(parts, 12)) for _ in range(500)]
  expected = [_reference(sentence) for sentence in sentences]
  assert 1 in sum(expected, []) and len(set(sum(expected, []))) > 9
  assert [ids.tolist() for ids in PIECES.pieces(sentences)] == expected


def test_the_name_of_a_special_piece_is_plain_text():
  got = PIECES.encode(['the [SEP]'], 8).ids[0].tolist()
  assert got == [2, 5, 16, 18, 17, 3, 0, 0]


def test_case_and_accents_are_kept_where_asked():
  cased = word_pieces.WordPieces((*VOCAB, 'The', 'Café'), lowercase=False)
  assert cased.pieces(['The Café'])[0].tolist() == [len(VOCAB), len(VOCAB) + 1]


def test_truncation_keeps_both_ends_and_is_counted():
  got = PIECES.encode(['the the', 'the play the', 'the unwanted the'], 4)
  assert got.ids.tolist() == [[2, 5, 5, 3], [2, 5, 6, 3], [2, 5, 9, 3]]
  assert (got.truncated, got.lost) == (2, 1 + 3)
  with pytest.raises(ValueError, match='max_length must be 3 or more'):
    PIECES.encode(['the'], 2)


def test_the_first_piece_of_a_word_carries_its_tag():
  words = [('The', 'unwanted', '\u200b', 'play!'), ('played', 'unwanted')]
  got = PIECES.encode_words(words, [[5, 6, 7, 8], [1, 2]], 6)
  assert got.ids.tolist() == [[2, 5, 9, 10, 8, 3], [2, 6, 8, 9, 10, 3]]
  assert got.tags.tolist() == [
    [-1, 5, 6, -1, -1, -1],
    [-1, 1, -1, 2, -1, -1],
  ]
  # Of the first the unknown word and 'play!'; of the second a mere piece.
  assert (got.truncated, got.lost) == (2, 2)
  whole = PIECES.encode_words(words, [[5, 6, 7, 8], [1, 2]], 10)
  assert whole.ids[0].tolist() == [2, 5, 9, 10, 8, 1, 6, 12, 3, 0]
  assert whole.tags[0].tolist() == [-1, 5, 6, -1, -1, 7, 8, -1, -1, -1]
  assert (whole.truncated, whole.lost) == (0, 0)
  with pytest.raises(ValueError, match='Sentence 0 has 1 words and 2 tags'):
    PIECES.encode_words([('the',)], [[1, 2]], 6)


def test_vocabularies_that_cannot_be(tmp_path):
  for vocab, expected in (
    (VOCAB[:4], r'lacks \[MASK\]'),
    (('a', *VOCAB), r'\[PAD\] must be the first piece.*it has the id 1'),
    ((*VOCAB, 'the'), r"\['the'\] are repeated"),
  ):
    with pytest.raises(ValueError, match=expected):
      word_pieces.WordPieces(vocab)
  path = tmp_path / 'vocab.txt'
  path.write_text('\n'.join(VOCAB) + '\n')
  read = word_pieces.WordPieces.from_vocab_file(path)
  assert read.vocab == VOCAB
  ids = (read.pad_id, read.unknown_id, read.cls_id, read.sep_id, read.mask_id)
  assert ids == (0, 1, 2, 3, 4) and read.size == 19
  path.write_text('a\nb\n')
  for name in (path, tmp_path / 'none.txt'):
    with pytest.raises(federated_data.DataError, match=str(name)):
      word_pieces.WordPieces.from_vocab_file(name)


def _data(train, test, **changes):
  def split(clients):
    return federated_data.Split.from_client_arrays(
      {
        client: {'x': _objects(x), 'y': y if y is not None else _zeros(x)}
        for client, (x, y) in clients.items()
      }
    )

  data = text.load(text.TextConfig('synthetic_amazon_reviews'))
  return dataclasses.replace(
    data, train=split(train), test=split(test), **changes
  )


def _objects(values):
  array = np.empty(len(values), object)
  array[:] = values
  return array


def _zeros(values):
  return np.zeros(len(values), np.int32)


def test_a_data_set_is_padded_to_its_longest_example():
  y = np.asarray([1, 0], np.int32)
  data = _data(
    {'b': (['the', 'the play'], y), 'a': (['play'], y[:1])},
    {'c': (['the ' * 7], y[:1])},
  )
  made, lengths = word_pieces.tokenise(data, PIECES, 64)
  # The longest has 9 ids.
  assert made.train.element_spec['x'].shape == (16,)
  assert made.train.client_ids == ('b', 'a')
  assert made.train.client('b')['x'][1].tolist() == [2, 5, 6, 3, *[0] * 12]
  assert made.train.client('b')['y'].tolist() == [1, 0]
  assert made.test.client('c')['x'][0].tolist() == [2, *[5] * 7, 3, *[0] * 7]
  assert (lengths.longest, lengths.mean, lengths.total_examples) == (9, 4.75, 4)
  assert lengths.line() == (
    'tokens per example: mean 4.8, longest 9; none of 4 examples cut'
  )
  made, lengths = word_pieces.tokenise(data, PIECES, 6)
  assert made.train.element_spec['x'].shape == (6,)
  assert lengths.line() == (
    'tokens per example: mean 4.8, longest 9; 1 of 4 examples (25.0 %) cut at '
    '6, 3 tokens lost'
  )


def test_tags_of_a_data_set_follow_its_pieces():
  tags = _objects([np.asarray(t, np.int32) for t in ([4, 2], [3])])
  words = [('unwanted', 'the'), ('played',)]
  data = _data({'a': (words, tags)}, {'b': (words[1:], tags[1:])})
  made, lengths = word_pieces.tokenise(data, PIECES, 5, 'tagging')
  client = made.train.client('a')
  assert client['x'].tolist() == [[2, 9, 10, 8, 3], [2, 6, 8, 3, 0]]
  assert client['y'].tolist() == [[-1, 4, -1, -1, -1], [-1, 3, -1, -1, -1]]
  assert made.test.client('b')['y'].tolist() == [[-1, 3, -1, -1, -1]]
  assert lengths.line().endswith(
    '1 of 3 examples (33.3 %) cut at 5, 1 words lost'
  )


def test_running_text_is_cut_into_full_blocks():
  data = _data(
    {'a': (['the play the', 'play', 'the play'], None), 'b': ([], None)},
    {'c': (['the'], None)},
  )
  made, lengths = word_pieces.tokenise(data, PIECES, 6, 'language')
  client = made.train.client('a')
  # the play the [SEP] | play [SEP] the play
  assert client['x'].tolist() == [[2, 5, 6, 5, 3, 3], [2, 6, 3, 5, 6, 3]]
  assert client['y'].tolist() == [0, 0]
  assert made.train.num_examples == {'a': 2, 'b': 0}
  assert made.test.client('c')['x'].tolist() == [[2, 5, 3, 0, 0, 0]]
  assert (lengths.total_examples, lengths.truncated) == (3, 0)
  with pytest.raises(ValueError, match="given 'speech'"):
    word_pieces.tokenise(data, PIECES, 6, 'speech')


@pytest.mark.parametrize('kind', ['shakespeare', 'conll2003', 'nyt_editorials'])
def test_twins_become_batches_of_ids(kind):
  config = text.TextConfig(f'synthetic_{kind}')
  made, _ = word_pieces.tokenise(
    text.load(config), PIECES, 24, text.kind(config)
  )
  client = made.train.client_ids[0]
  for batch in made.train.dataset(client, batch_size=4, seed=[1]):
    assert batch['x'].dtype == batch['y'].dtype == np.int32
    assert set(batch['x'][:, 0].numpy().tolist()) == {2}


def test_buckets_are_few():
  assert word_pieces.bucket_lengths(64) == (16, 32, 48, 64)
  assert word_pieces.bucket_lengths(40) == (16, 32, 40)
  assert word_pieces.bucket_lengths(8) == (8,)
  with pytest.raises(ValueError, match='1 or more, given 0'):
    word_pieces.bucket_lengths(0)


def _real_pieces():
  path = CACHE / 'encoder_minilm_l6' / 'vocab.txt'
  if not path.exists():
    pytest.skip('not fetched: python -m models.pretrained minilm_l6')
  return word_pieces.WordPieces.from_vocab_file(path)


def test_ids_equal_those_of_a_real_checkpoint():
  pieces = _real_pieces()
  for sentence, expected in REAL.items():
    got = pieces.encode([sentence], 32).ids[0]
    assert got[: len(expected)].tolist() == expected
    assert not got[len(expected) :].any()
  got = pieces.encode_words([REAL_WORDS], [[1, 2, 3, 4, 5]], 12)
  # The word without pieces, which the checkpoint leaves out, is unknown.
  assert got.ids[0].tolist() == [
    *(101, 17165, 1011, 100, 1057, 1012, 1050, 1012, 2180, 102, 0, 0)
  ]
  assert got.tags[0].tolist() == [-1, 1, 2, 3, 4, -1, -1, -1, 5, -1, -1, -1]


def test_all_ids_of_movie_reviews_equal_those_of_the_checkpoint():
  pieces = _real_pieces()
  if not (CACHE / 'text_movie_reviews.npz').exists():
    pytest.skip('not fetched: python -m datasets.fetch movie_reviews')
  data = text.load(text.TextConfig('movie_reviews', cache_dir=str(CACHE)))
  made, lengths = word_pieces.tokenise(data, pieces, 128)
  assert (lengths.longest, round(lengths.mean, 1)) == (79, 26.9)
  ids = made.test.pooled()['x']
  found = federated_data.content_hash(
    {'ids': ids[ids != 0], 'lengths': (ids != 0).sum(axis=1, dtype=np.int32)}
  )
  assert found == REAL_HASH
