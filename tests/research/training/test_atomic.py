"""Files and directories appear complete or not at all."""

import json
import os

import pytest

from research.training import atomic


def test_write_replaces_and_leaves_no_temporary(tmp_path):
  path = tmp_path / 'a.json'
  atomic.write_text(path, 'old')
  atomic.write_json(path, {'b': 1, 'a': 'µ'})

  assert json.loads(path.read_text('utf-8')) == {'b': 1, 'a': 'µ'}
  assert list(json.loads(path.read_text('utf-8'))) == ['b', 'a']
  assert list(tmp_path.iterdir()) == [path]


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / 'a'
  atomic.write_bytes(path, b'old')

  def fail(descriptor):
    raise OSError('no space left')

  monkeypatch.setattr(os, 'fsync', fail)
  with pytest.raises(OSError, match='no space'):
    atomic.write_bytes(path, b'new')

  assert path.read_bytes() == b'old'
  assert list(tmp_path.iterdir()) == [path]


def test_data_is_synced_before_the_rename(tmp_path, monkeypatch):
  events = []
  fsync, replace = os.fsync, os.replace
  monkeypatch.setattr(
    os, 'fsync', lambda fd: (events.append('fsync'), fsync(fd))
  )
  monkeypatch.setattr(
    os, 'replace', lambda a, b: (events.append('replace'), replace(a, b))
  )
  atomic.write_bytes(tmp_path / 'a', b'x')
  assert events == ['fsync', 'replace', 'fsync']


def test_new_directory_replaces_the_old_one(tmp_path):
  path = tmp_path / 'model'
  for text in ('old', 'new'):
    with atomic.new_directory(path) as temporary:
      (temporary / 'inner').mkdir()
      (temporary / 'inner' / text).write_text(text)
      assert path.exists() == (text == 'new')

  assert [p.name for p in (path / 'inner').iterdir()] == ['new']
  assert list(tmp_path.iterdir()) == [path]


def test_failed_new_directory_keeps_the_old_one(tmp_path):
  path = tmp_path / 'model'
  with atomic.new_directory(path) as temporary:
    (temporary / 'old').write_text('old')

  with (
    pytest.raises(RuntimeError, match='stop'),
    atomic.new_directory(path) as temporary,
  ):
    (temporary / 'new').write_text('new')
    raise RuntimeError('stop')

  assert [p.name for p in path.iterdir()] == ['old']
  assert list(tmp_path.iterdir()) == [path]


def test_leftovers_go_and_everything_else_stays(tmp_path):
  kept = tmp_path / 'plots' / 'loss.png'
  kept.parent.mkdir()
  kept.write_bytes(b'')
  (tmp_path / '.lock').write_bytes(b'')
  (tmp_path / 'plots' / '.loss.png.tmp-77').write_bytes(b'')
  (tmp_path / '.model.tmp-77' / 'variables').mkdir(parents=True)

  removed = atomic.remove_leftovers(tmp_path)

  assert sorted(p.name for p in removed) == [
    '.loss.png.tmp-77',
    '.model.tmp-77',
  ]
  assert sorted(p.name for p in tmp_path.rglob('*')) == [
    '.lock',
    'loss.png',
    'plots',
  ]
  assert atomic.remove_leftovers(tmp_path / 'absent') == []
