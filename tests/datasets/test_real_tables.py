"""Real tables: parsing on small frames, and the real ones where fetched."""

import io
import lzma
import pickle
import zipfile

import numpy as np
import pandas as pd
import pytest

from datasets import download, federated_data, real_tables

# Taken before the fixture that gives each test a cache of its own.
CACHE = download.cache_directory()
# Clients, examples and features, each of the published table.
FORMS = {
  'exam': (65, 4_059, 3),
  'chem97': (2_410, 31_022, 3),
  'hsb82': (160, 7_185, 4),
  'radon': (85, 919, 2),
  'insteval': (2_972, 73_421, 3),
  'abide': (17, 1_084, 68),
  'bike_sharing': (24, 17_379, 5),
}


@pytest.mark.parametrize('name', FORMS)
def test_the_real_table_is_whole(name):
  if not (CACHE / f'table_{name}.npz').exists():
    pytest.skip(f'not fetched: python -m datasets.fetch {name}')
  data = real_tables.load(name, str(CACHE))
  clients, examples, features = FORMS[name]
  assert len(data.train.client_ids) == clients
  assert data.train.total_examples + data.test.total_examples == examples
  assert data.train.element_spec['x'].shape == (features,)
  assert len(data.feature_names) == features
  if name == 'exam':
    # The slope of normexam by standLRT is 0.595 in Goldstein et al. 1993.
    parts = [data.train.pooled(), data.test.pooled()]
    x, y = (np.concatenate([p[k] for p in parts]) for k in 'xy')
    slope = np.polyfit(x[:, 0].astype(float), y[:, 0].astype(float), 1)[0]
    assert abs(slope - 0.595) < 5e-4


def frame():
  return pd.DataFrame(
    {
      'school': [2, 1, 2, 10],
      'standLRT': [0.5, 1.5, 2.5, 3.5],
      'schavg': [1.0, 2.0, 3.0, 4.0],
      'sex': ['F', 'M', 'M', 'F'],
      'normexam': [10.0, 20.0, 30.0, 40.0],
      'other': ['a', 'b', 'c', 'd'],
    }
  )


def test_words_become_indicators_and_rows_go_by_client():
  arrays = real_tables._arrays(real_tables.TABLES['exam'], frame())
  np.testing.assert_array_equal(
    arrays['x'], [[1.5, 2, 0], [0.5, 1, 1], [2.5, 3, 0], [3.5, 4, 1]]
  )
  np.testing.assert_array_equal(arrays['y'], [[20], [10], [30], [40]])
  assert arrays['client'].tolist() == [b'1', b'2', b'2', b'10']
  assert arrays['names'].tolist() == [b'standLRT', b'schavg', b'sex=F']


def test_ratings_become_classes_and_other_columns_features():
  rated = pd.DataFrame(
    {
      'subject_id': [1, 2, 3],
      'site': ['B', 'A', 'A'],
      'rater_1': [0, 0, 0],
      'rater_2': [0, 0, 0],
      'rater_3': [1.0, 0.0, -1.0],
      'cnr': [3.0, 4.0, 5.0],
    }
  )
  table = real_tables.TABLES['abide']
  text = rated.to_csv(sep='\t', index=False).encode()
  arrays = real_tables._arrays(table, table.read(text))
  np.testing.assert_array_equal(arrays['x'], [[5], [3]])
  np.testing.assert_array_equal(arrays['y'], [0, 1])
  assert list(table.classes.values()) == ['exclude', 'accept']


def test_a_pickle_that_runs_something_is_refused(tmp_path, monkeypatch):
  class Evil:
    def __reduce__(self):
      return print, ('run',)

  table = real_tables.TABLES['exam']
  archive = tmp_path / 'package.whl'
  with zipfile.ZipFile(archive, 'w') as package:
    package.writestr(table.member, lzma.compress(pickle.dumps(Evil())))

  class Fetched:
    def __enter__(self):
      return archive

    def __exit__(self, *exception):
      pass

  monkeypatch.setattr(download, 'package_archive', lambda *_: Fetched())
  with pytest.raises(federated_data.DataError, match='asks for builtins.print'):
    real_tables.load('exam', str(tmp_path))


def test_only_parts_of_frames_are_unpickled():
  unpickled = real_tables._FrameUnpickler(io.BytesIO())
  unpickled.find_class('pandas.core.frame', 'DataFrame')
  with pytest.raises(pickle.UnpicklingError, match='os.system'):
    unpickled.find_class('os', 'system')


def test_another_table_is_refused(tmp_path, monkeypatch):
  table = real_tables.TABLES['exam']
  monkeypatch.setattr(
    real_tables,
    '_fetch',
    lambda *_: real_tables._arrays(table, frame()),
  )
  with pytest.raises(federated_data.DataError, match='not the complete'):
    real_tables.load('exam', str(tmp_path))
