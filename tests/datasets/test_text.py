"""Text sets by name: twins, partitions, refusals, and fetching."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from sklearn import linear_model
from sklearn.feature_extraction import text as sklearn_text

from datasets import fetch, text, text_records, text_sets, text_synthetic

TWINS = [n for n in text.TEXT_DATASETS if n.startswith('synthetic_')]


def _load(dataset, **settings):
  return text.load(text.TextConfig(dataset, **settings))


def test_every_name_has_a_kind_and_a_line():
  assert list(text.KINDS) == list(text.TEXT_DATASETS)
  assert set(text.KINDS.values()) == {'classification', 'tagging', 'language'}
  for line in text.TEXT_DATASETS.values():
    assert '\n' not in line and len(line) < 80


@pytest.mark.parametrize('dataset', TWINS)
def test_a_twin_has_the_form_of_its_set(dataset):
  data = _load(dataset)
  form = text_sets.SETS[dataset.removeprefix('synthetic_')]
  assert data.partition == form.partition
  assert data.class_names == form.class_names
  assert (data.validation is not None) == (form.kind == 'tagging')
  for split in (data.train, data.test):
    for client in split.client_ids:
      x, y = split.client(client).values()
      if form.kind == 'tagging':
        assert [len(words) for words in x] == [len(tags) for tags in y]
        assert all(isinstance(words, tuple) for words in x)
      else:
        assert y.dtype == np.int32 and all(isinstance(t, str) for t in x)
  if form.kind == 'classification':
    y = np.concatenate([data.train.pooled()['y'], data.test.pooled()['y']])
    assert set(y.tolist()) == set(range(data.num_classes))
  if form.test == 'clients':
    assert not set(data.train.client_ids) & set(data.test.client_ids)
  if form.test == 'last':
    assert data.train.client_ids == data.test.client_ids


@pytest.mark.parametrize('name', ['movie_reviews', 'newsgroups'])
def test_a_linear_model_of_words_learns_a_twin(name):
  data = _load(f'synthetic_{name}')
  words = sklearn_text.CountVectorizer()
  train, test = data.train.pooled(), data.test.pooled()
  model = linear_model.LogisticRegression(max_iter=200)
  model.fit(words.fit_transform(train['x']), train['y'])
  assert model.score(words.transform(test['x']), test['y']) > 0.95
  assert len(words.vocabulary_) < 150


def test_a_word_of_the_tagging_twin_has_one_tag():
  pooled = _load('synthetic_conll2003').train.pooled()
  tags = {}
  for words, of_words in zip(pooled['x'], pooled['y'], strict=True):
    for word, tag in zip(words, of_words, strict=True):
      tags.setdefault(word, set()).add(int(tag))
  assert all(len(seen) == 1 for seen in tags.values())
  assert set.union(*tags.values()) == set(range(9))


def test_topics_of_twins_have_words_of_their_own():
  words = text_synthetic._TOPIC_WORDS
  assert len(words) == len(set(words)) >= 80
  others = set(text_synthetic._FILLERS)
  assert not others & {
    *words,
    *text_synthetic._NEGATIVE,
    *text_synthetic._POSITIVE,
  }


def test_twins_are_the_same_in_another_process():
  code = (
    'from datasets import text\n'
    'for n in text.TEXT_DATASETS:\n'
    '  if n[:5] == "synth":\n'
    '    d = text.load(text.TextConfig(n, seed=3))\n'
    '    print(d.content_sha256, d.train.client_ids[-1],'
    ' list(d.train.num_examples.values()))\n'
  )
  run = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    check=True,
    env={'PYTHONHASHSEED': '7', 'TF_CPP_MIN_LOG_LEVEL': '3', 'PYTHONPATH': '.'},
  )
  here = []
  for dataset in TWINS:
    data = _load(dataset, seed=3)
    sizes = list(data.train.num_examples.values())
    here.append(f'{data.content_sha256} {data.train.client_ids[-1]} {sizes}')
  assert run.stdout.splitlines() == here


def test_newsgroups_go_by_a_dirichlet_draw_of_labels():
  data = _load('synthetic_newsgroups', seed=1)
  again = _load(
    'synthetic_newsgroups', partition='dirichlet', dirichlet_alpha=1.0, seed=1
  )
  assert len(data.train.client_ids) == 100
  assert data.train.num_examples == again.train.num_examples
  even = _load('synthetic_newsgroups', partition='iid')
  assert max(even.train.num_examples.values()) == 12
  assert max(data.train.num_examples.values()) > 16


def test_artificial_partitions_keep_every_text():
  natural = _load('synthetic_chitchat')
  data = _load('synthetic_chitchat', partition='iid', num_clients=7)
  assert data.partition == 'iid' and len(data.train.client_ids) == 7
  assert sorted(data.train.pooled()['x']) == sorted(natural.train.pooled()['x'])
  assert data.test.client_ids == natural.test.client_ids
  tagged = _load('synthetic_conll2003', partition='quantity_skew')
  documents = _load('synthetic_conll2003').train
  assert tagged.train.total_examples == documents.total_examples
  assert tagged.train.client_ids != documents.client_ids


def test_validation_data_is_held_out():
  whole = _load('synthetic_amazon_reviews')
  data = _load('synthetic_amazon_reviews', validation_examples=50)
  assert data.validation.total_examples == 50
  assert data.train.total_examples == whole.train.total_examples - 50
  by = {'validation_examples': 50, 'validation_by': 'clients'}
  data = _load('synthetic_amazon_reviews', **by)
  assert not set(data.validation.client_ids) & set(data.train.client_ids)
  with pytest.raises(ValueError, match='validation_examples must be 0'):
    _load('synthetic_conll2003', validation_examples=5)


@pytest.mark.parametrize(
  ('settings', 'expected'),
  [
    ({'dataset': 'imbd'}, "dataset must be one of movie_reviews.*'imbd'"),
    ({'partition': 'writer'}, 'partition must be one of natural, iid'),
    ({'partition': 'natural'}, 'it has no clients of its own; use one of iid'),
    (
      {'dataset': 'synthetic_shakespeare', 'partition': 'dirichlet'},
      'no single label to divide by; use one of natural, iid, quantity_skew',
    ),
    ({'data_dir': '.'}, 'data_dir is not used'),
    ({'data_file': 'a.csv'}, 'data_file goes with'),
    ({'dataset': 'file'}, 'data_file goes with'),
    ({'validation_examples': -1}, 'must not be negative, given -1'),
    ({'validation_by': 'words'}, 'validation_by must be one of'),
  ],
)
def test_refusals_say_what_would_be_right(settings, expected):
  with pytest.raises(ValueError, match=expected):
    _load(**{'dataset': 'synthetic_imdb'} | settings)


def test_the_kind_of_a_file_is_told_by_its_suffix_and_columns():
  config = text.TextConfig('file', data_file='a.CSV')
  assert text.kind(config) == text_records.CLASSIFICATION
  no_label = dataclasses.replace(config, label_column=None)
  assert text.kind(no_label) == text_records.LANGUAGE
  columns = dataclasses.replace(config, data_file='a.conll')
  assert text.kind(columns) == text_records.TAGGING


def test_texts_are_fetched_by_name(capsys, tmp_path):
  assert fetch.main(['synthetic_tweets', 'synthetic_imdb:shards']) == 0
  out = capsys.readouterr().out.splitlines()
  assert 'synthetic_tweets: 1200 training examples of 100 clients' in out[0]
  assert '(shards)' in out[1]
  assert fetch.main(['tweets', '--data_dir', str(tmp_path)]) == 1
  assert str(tmp_path) in capsys.readouterr().err
