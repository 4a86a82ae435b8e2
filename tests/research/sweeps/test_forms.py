"""Reports on exported forms, put side by side."""

import json
import math

import pytest

from research.sweeps import comparison, forms

NAMES = ('tflite', 'tflite_int8')


def report(directory, name, **values):
  path = directory / 'forms' / f'{name}.json'
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(values))


@pytest.fixture
def runs(tmp_path):
  """Two seeds of a line whose weights have 8 bits, and one line without."""
  found = {}
  lines = [
    (comparison.Line('qat', '8', ()), [(0, 0.9, 0.8), (1, 0.94, 0.9)]),
    (comparison.Line('float', None, ()), [(0, 0.95, 0.5)]),
  ]
  for line, seeds in lines:
    for seed, trained, int8 in seeds:
      directory = tmp_path / line.run_name(seed)
      report(
        directory,
        'tflite',
        model_accuracy=trained,
        accuracy=trained,
        bytes=4_000_000,
        passed=True,
      )
      report(
        directory,
        'tflite_int8',
        model_accuracy=trained,
        accuracy=int8,
        bytes=1_000_000,
        gzip_bytes=250_000,
        passed=int8 > 0.6,
      )
      found[line, seed] = directory
  return found


def test_means_and_deviations_over_seeds(runs):
  found = forms.final(forms.read(runs, NAMES))
  rows = {(row['name'], row['form']): row for _, row in found.iterrows()}
  assert list(found['form']) == ['trained', *NAMES] * 2
  int8 = rows['qat', 'tflite_int8']
  assert int8['mean'] == pytest.approx(0.85)
  assert int8['deviation'] == pytest.approx(math.sqrt(2 * 0.05**2))
  assert (int8['seeds'], int8['megabytes'], int8['failed']) == (2, 1.0, 0)
  assert int8['gzip_megabytes'] == 0.25
  assert rows['qat', 'trained']['mean'] == pytest.approx(0.92)
  assert rows['float', 'tflite_int8']['failed'] == 1


def test_forms_that_could_not_be_made_have_no_number(runs):
  directory = next(iter(runs.values()))
  report(directory, 'tflite', passed=False, reasons=['no'])
  found = forms.read(runs, NAMES)
  row = found[(found['form'] == 'tflite') & (found['seed'] == 0)].iloc[0]
  assert math.isnan(row['quality']) and not row['passed']


def test_only_runs_without_reports_are_missing(runs, tmp_path):
  directories = {line.run_name(seed): d for (line, seed), d in runs.items()}
  assert not forms.missing(directories, NAMES)
  assert list(forms.missing(directories, [*NAMES, 'onnx'])) == [*directories]


def test_numbers_have_errors_instead_of_accuracies(tmp_path):
  report(tmp_path, 'tflite', model_rmse=2.0, rmse=3.0, bytes=1, passed=True)
  found = forms.read({(comparison.Line('a', None, ()), 0): tmp_path}, NAMES[:1])
  assert list(found['quality']) == [2.0, 3.0]


def test_plot_and_table(runs, tmp_path):
  found = forms.read(runs, NAMES)
  assert forms.draw(found, 'weight_bits', tmp_path).stat().st_size > 5000
  assert forms.write(found, tmp_path).read_text().startswith('name,value,form')
  plain = found[found['value'].isna()]
  assert forms.draw(plain, 'weight_bits', tmp_path) is None
