"""Own texts in CSV, JSONL and CoNLL columns, and errors that say where."""

import json

import pytest

from datasets import federated_data, text, text_file

ROWS = [
  {'client_id': c, 'text': f'text {k}, "quoted"', 'label': ('no', 'yes')[k % 2]}
  for k, c in enumerate('abababacab')
]
SENTENCES = """-DOCSTART- -X- O

EU NNP B-ORG
rejects VBZ O

Peter NNP B-PER
Blackburn NNP I-PER

-DOCSTART- -X- O

Africa NNP B-LOC
"""


def _write(path, rows=ROWS):
  if path.suffix == '.jsonl':
    path.write_text('\n'.join(json.dumps(row) for row in rows) + '\n')
  else:
    import pandas as pd

    pd.DataFrame(rows).to_csv(path, index=False)
  return str(path)


def _load(file, **settings):
  return text.load(text.TextConfig('file', data_file=str(file), **settings))


def _expect_error(file, *parts, **settings):
  with pytest.raises(federated_data.DataError) as caught:
    _load(file, **settings)
  said = str(caught.value)
  assert str(file) in said and '\n' not in said
  for part in parts:
    assert part in said, said


@pytest.mark.parametrize('suffix', ['.csv', '.jsonl'])
def test_both_formats_give_the_same_clients(tmp_path, suffix):
  data = _load(_write(tmp_path / f'mine{suffix}'))
  assert data.train.client_ids == ('a', 'b', 'c')
  assert data.class_names == ('no', 'yes') and data.num_classes == 2
  for client in 'abc':
    parts = [split.client(client) for split in (data.train, data.test)]
    got = [(x, int(y)) for p in parts for x, y in zip(*p.values(), strict=True)]
    mine = [row for row in ROWS if row['client_id'] == client]
    assert sorted(got) == [
      (row['text'], int(row['label'] == 'yes')) for row in mine
    ]
    assert len(parts[1]['y']) == round(0.2 * len(mine))


def test_own_names_of_columns_and_a_split_column(tmp_path):
  parts = ['train', 'train', 'test', 'validation', 'test']
  rows = [
    {'who': 1, 'said': f'text {k}', 'part': part, 'what': k % 2, 'more': [1]}
    for k, part in enumerate(parts)
  ]
  data = _load(
    _write(tmp_path / 'mine.jsonl', rows),
    client_column='who',
    text_column='said',
    label_column='what',
    split_column='part',
  )
  assert data.train.client('1')['x'].tolist() == ['text 0', 'text 1']
  assert data.validation.client('1')['y'].tolist() == [1]
  assert data.test.client('1')['x'].tolist() == ['text 2', 'text 4']


def test_without_a_label_it_is_for_language_models(tmp_path):
  data = _load(_write(tmp_path / 'mine.csv'), label_column=None)
  assert data.class_names == () and data.num_classes == 0
  assert not data.train.pooled()['y'].any()


def test_an_artificial_partition(tmp_path):
  data = _load(_write(tmp_path / 'a.csv'), partition='iid', num_clients=2)
  assert list(data.train.num_examples.values()) == [4, 4]


@pytest.mark.parametrize('suffix', ['.csv', '.jsonl'])
def test_bad_cells_are_located(tmp_path, suffix):
  path = tmp_path / f'mine{suffix}'
  place = 'row 3 (line 4)' if suffix == '.csv' else 'line 3'
  for column, bad, problem in (
    ('text', '  ', 'the cell is empty'),
    ('label', '', 'the cell is empty'),
    ('client_id', '', 'the cell is empty'),
  ):
    rows = [dict(row) for row in ROWS]
    rows[2][column] = bad
    _expect_error(_write(path, rows), place, f'column {column!r}', problem)
  _expect_error(_write(path), "'user'", client_column='user')


def test_bad_json_lines_are_located(tmp_path):
  path = tmp_path / 'mine.jsonl'
  file = _write(path)
  whole = path.read_text()
  path.write_text(whole.replace('}\n', '}\n\n', 1) + '{"text": \n')
  _expect_error(file, 'line 12: is not JSON')
  path.write_text(whole + '[1]\n')
  _expect_error(file, "line 11: must be a JSON object, given '[1]'")
  rows = [dict(row) for row in ROWS]
  del rows[4]['text']
  _expect_error(_write(path, rows), "line 5, column 'text'", "'client_id'")
  rows[4]['text'] = 7
  _expect_error(_write(path, rows), "line 5, column 'text'", '7 is not text')
  path.write_bytes(b'\xff\xfe')
  _expect_error(file, 'as UTF-8')
  path.write_text('\n')
  _expect_error(file, 'no row')


def test_other_files_are_refused(tmp_path):
  _expect_error(
    tmp_path / 'a.xlsx', 'must be one of .csv, .jsonl, .conll, .txt'
  )
  _expect_error(tmp_path / 'none.csv', 'no such file')


def test_columns_by_document(tmp_path):
  path = tmp_path / 'mine.conll'
  path.write_text(SENTENCES)
  data = _load(path, test_fraction=0.3)
  assert data.class_names == ('O', 'B-LOC', 'B-ORG', 'B-PER', 'I-PER')
  assert data.train.num_examples == {'document_0001': 1, 'document_0002': 1}
  both = [s.client('document_0001') for s in (data.train, data.test)]
  got = {p['x'][0]: p['y'][0].tolist() for p in both}
  assert got == {('EU', 'rejects'): [2, 0], ('Peter', 'Blackburn'): [3, 4]}
  assert data.train.client('document_0002')['y'][0].tolist() == [1]


def test_columns_without_documents_are_one_client(tmp_path):
  path = tmp_path / 'mine.txt'
  path.write_text('\n\na\tX\r\n\r\nb\tY\n \nc\tX')
  texts, tags, documents = text_file.read_columns(path)
  assert (texts, tags) == (['a', 'b', 'c'], [['X'], ['Y'], ['X']])
  assert set(documents) == {'document_0001'}
  assert _load(path).class_names == ('X', 'Y')


def test_bad_columns_are_located(tmp_path):
  path = tmp_path / 'mine.conll'
  path.write_text(SENTENCES.replace('Blackburn NNP', 'Blackburn'))
  _expect_error(path, 'line 7: 2 columns where 3 as before')
  path.write_text('word\n')
  _expect_error(path, 'line 1: 1 columns where a word and a tag')
  path.write_text('-DOCSTART- O\n\n')
  _expect_error(path, 'has no sentence')
  path.write_text(SENTENCES)
  with pytest.raises(ValueError, match='test_fraction must be between'):
    _load(path, test_fraction=0)
