"""MNIST by real writer: 539 training and 297 test writers of NIST.

MNIST's own files do not say who wrote a digit; the label files of QMNIST
(Yadav and Bottou 2019, https://arxiv.org/abs/1905.10498) do.
"""

import collections
import dataclasses
import gzip
import hashlib
import io
import os
import pathlib

import numpy as np
import pandas as pd

from datasets import download, federated_data, image_sets, mnist

DIRECTORY_VARIABLE = 'TFF_RESEARCH_QMNIST_DIR'
ADDRESS = 'https://raw.githubusercontent.com/facebookresearch/qmnist/master/'
LABEL_FILES = {
  'train': 'qmnist-train-labels.tsv.gz',
  'test': 'qmnist-test-labels.tsv.gz',
}
SHA256 = {
  'train': '063229afb535986df50a905c6fa03b716f503bd859d2d9bc8a9b4e2c6a2ccee4',
  'test': 'fe2001449c9580376e16fad7a14cc4f525644b6ffeadc47dc249938529002904',
}
_CLASS, _SERIES, _WRITER = 0, 1, 2


def load(
  data_dir: str | None, cache_dir: str | None
) -> federated_data.FederatedData:
  """Returns MNIST with one client per writer, such as 'hsf0_writer0039'.

  Args:
    data_dir: May hold MNIST's files, the label files, or both; what it does
      not hold is fetched. All of them have known checksums.
    cache_dir: See `download.cache_directory`.

  Returns:
    The data.

  Raises:
    DataError: If a file cannot be had or is not the right one.
  """
  tables = {split: _read_labels(split, data_dir, cache_dir) for split in SHA256}
  pooled = image_sets.load(mnist.MNIST, _image_directory(data_dir), cache_dir)
  splits = {}
  for split, table in tables.items():
    arrays = getattr(pooled, split).client(split)
    table = table[: len(arrays['y'])]
    if not np.array_equal(table[:, _CLASS], arrays['y']):
      raise federated_data.DataError(
        f'{LABEL_FILES[split]} does not have the labels of MNIST.'
      )
    splits[split] = federated_data.Split.from_arrays(arrays, by_writer(table))
  hashes = ' '.join([pooled.content_sha256, *SHA256.values()])
  return dataclasses.replace(
    pooled,
    partition='natural',
    source=dataclasses.replace(
      pooled.source,
      title='MNIST by writer (QMNIST labels)',
      licence='CC BY-SA 3.0 (images), BSD-3-Clause (writer ids)',
      citation=(
        f'{pooled.source.citation} Writers: C. Yadav, L. Bottou. Cold case: '
        'the lost MNIST digits. NeurIPS 2019.'
      ),
      url='https://github.com/facebookresearch/qmnist',
    ),
    content_sha256=hashlib.sha256(hashes.encode()).hexdigest(),
    **splits,
  )


def by_writer(table: np.ndarray) -> collections.OrderedDict[str, np.ndarray]:
  """Groups rows by writer, in the order of series and writer number.

  Args:
    table: [n, >= 3] integers as in QMNIST's label files: class, series, writer.

  Returns:
    The rows of each writer, in their order.
  """
  keys, inverse = np.unique(
    table[:, [_SERIES, _WRITER]], axis=0, return_inverse=True
  )
  rows = np.split(
    np.argsort(inverse, kind='stable'), np.cumsum(np.bincount(inverse))[:-1]
  )
  return collections.OrderedDict(
    (f'hsf{series}_writer{writer:04d}', row)
    for (series, writer), row in zip(keys.tolist(), rows, strict=True)
  )


def _image_directory(data_dir: str | None) -> str | None:
  """Returns data_dir unless it holds the label files and no images."""
  if data_dir is None:
    return None
  directory = pathlib.Path(data_dir).expanduser()
  only_labels = not any(directory.glob('*-ubyte*')) and any(
    (directory / name).exists() for name in LABEL_FILES.values()
  )
  return None if only_labels else data_dir


def _read_labels(
  split: str, data_dir: str | None, cache_dir: str | None
) -> np.ndarray:
  path = _find_labels(LABEL_FILES[split], split, data_dir, cache_dir)
  found = download.file_hash(path)
  if found != SHA256[split]:
    raise federated_data.DataError(
      f'{path} has sha256 {found}, not {SHA256[split]}; get the right one from '
      f'{ADDRESS}{path.name}'
    )
  text = gzip.decompress(path.read_bytes())
  return pd.read_csv(io.BytesIO(text), sep='\t', header=None).to_numpy()


def _find_labels(
  name: str, split: str, data_dir: str | None, cache_dir: str | None
) -> pathlib.Path:
  if data_dir is not None:
    path = pathlib.Path(data_dir).expanduser() / name
    if path.exists():
      return path
  if os.environ.get(DIRECTORY_VARIABLE):
    path = pathlib.Path(os.environ[DIRECTORY_VARIABLE]).expanduser() / name
    if path.exists():
      return path
    raise federated_data.DataError(
      f'{DIRECTORY_VARIABLE}={path.parent} has no file {name}; get it from '
      f'{ADDRESS}{name}'
    )
  try:
    return download.fetch(
      ADDRESS + name,
      download.cache_directory(cache_dir),
      sha256=SHA256[split],
    )
  except download.DownloadError as error:
    raise download.DownloadError(
      f'The writers of MNIST need {name}: {error} Get it from {ADDRESS}{name} '
      f'and name its directory with --data_dir or {DIRECTORY_VARIABLE}.'
    ) from error
