"""Every form of every kind of task runs where nothing of ours is."""

import ast
import dataclasses
import json
import pathlib

import numpy as np
import pytest
from absl import flags

from models import quantization
from research.export import (
  calibration,
  form_examples,
  form_exporter,
  form_parity,
  form_process,
  forms,
  forms_table,
  parity,
  saved_model,
  tflite,
)
from research.tasks import emnist
from research.training import run_directory
from tests.research.export import form_tasks

pytestmark = pytest.mark.skipif(
  not parity.serving_python().exists(), reason='serving environment missing'
)

TFLITE = ('tflite', 'tflite_dynamic', 'tflite_float16', 'tflite_int8')
CONFIG = {'seed': 0}
_CASES = {
  'images': lambda: form_tasks.images(),
  'clusters': lambda: form_tasks.images('clustering'),
  'reconstructions': lambda: form_tasks.images('reconstruction'),
  'numbers': lambda: form_tasks.table('linear'),
  'rows': lambda: form_tasks.table('logistic'),
  'reviews': lambda: form_tasks.texts('sequence_classification'),
  'tags': lambda: form_tasks.texts('token_classification'),
  'masks': lambda: form_tasks.texts('masked_language_modelling'),
}


@pytest.fixture(autouse=True)
def few_repetitions(monkeypatch):
  """How long anything takes is of no interest here."""
  monkeypatch.setattr(form_parity, '_REPETITIONS', 5)


@pytest.fixture(scope='module', params=list(_CASES))
def case(request):
  return request.param, *_CASES[request.param]()


def export(root, task, model, names=TFLITE, most=200):
  run = run_directory.RunDirectory(root, 'run')
  run.path.mkdir(exist_ok=True)
  saved_model.export(task, model, run.model)
  learned = task.quantization is not None
  found = None if learned else calibration.choose(task, CONFIG, None)
  request = form_exporter.Request(names, most, found)
  return run, form_exporter.export(run, task, model, request)


def test_all_forms_of_all_tasks(case, tmp_path):
  name, task, model = case
  names = (forms.SAVED_MODEL, *TFLITE)
  run, reports = export(tmp_path, task, model, names)
  assert not form_exporter.failures(reports)
  assert form_exporter.read(run, model) == reports
  for form, report in reports.items():
    print(form_exporter.summary(form, report))
    assert report['bytes'] > 0
    assert report['examples'] == min(200, task.data.test.total_examples)
    assert set(report['latency']) == {'1', '8' if name == 'masks' else '32'}
    runtime = 'OpenVINO' if form == forms.SAVED_MODEL else 'LiteRT 2.3.0'
    assert report['runtime'].startswith(runtime)
  assert reports['tflite']['max_difference'] <= 1e-5
  assert reports['saved_model']['agreement'] == pytest.approx(1, abs=1e-6)
  # Rounding can't be seen nowhere.
  exact, rounded = reports['tflite'], reports['tflite_int8']
  assert rounded['max_abs_difference'] > 10 * exact['max_abs_difference']
  counts = rounded['operations']
  assert not form_parity.float_matrix_products(counts)
  if name in ('reviews', 'tags', 'masks'):
    # Six dense layers and two products in each of two layers, and the heads.
    assert counts['FULLY_CONNECTED']['int8'] >= 12
    assert counts['BATCH_MATMUL'] == {'int8': 4}
    for part in ('SOFTMAX', 'RSQRT', 'SQUARED_DIFFERENCE'):
      assert set(counts[part]) == {'float32'}


@pytest.mark.parametrize('symmetric', [True, False])
def test_a_quantized_model_is_judged_by_its_answers(tmp_path, symmetric):
  data = form_tasks.images()[0].data
  task = emnist.build('digit_recognition', data, 'mcmahan_cnn', seed=0)
  settings = quantization.Settings(symmetric_weights=symmetric)
  task = task.quantized(settings)
  model = form_tasks.measured(task)
  _, reports = export(tmp_path, task, model, ['tflite', 'tflite_int8'])
  assert reports['tflite']['passed']
  assert reports['tflite']['bound'].startswith('equal labels')
  int8 = reports['tflite_int8']
  assert int8['calibration'] == 'learned in training'
  assert reports['tflite']['model_agreement'] >= 0.95
  (text,) = forms_table.explanations({'tflite': reports['tflite']})
  assert 'with itself when the ranges' in text
  assert int8['passed'] == symmetric
  if not symmetric:
    assert '--nosymmetric_weights: LiteRT loads no' in int8['reasons'][-1]


def test_four_bits_as_a_float_file_say_why_there_is_none(tmp_path):
  data = form_tasks.images()[0].data
  task = emnist.build('digit_recognition', data, 'mcmahan_2nn', seed=0)
  task = task.quantized(quantization.Settings(weight_bits=4))
  model = form_tasks.measured(task)
  _, reports = export(tmp_path, task, model, ['tflite', 'tflite_int8'])
  assert reports['tflite_int8']['passed']
  assert not reports['tflite']['passed']
  reason, hint = reports['tflite']['reasons']
  assert '\n' not in reason
  assert hint.startswith('--weight_bits=4')


@pytest.fixture(scope='module')
def rows():
  return form_tasks.table('logistic')


def test_accuracy_is_that_of_the_evaluation(rows, tmp_path):
  task, model = rows
  _, reports = export(tmp_path, task, model, ['tflite'], most=10_000)
  report = reports['tflite']
  data = task.data.test.pooled()
  logits = model(task.preprocess_features(data['x'])).numpy()
  accuracy = np.mean(logits.argmax(axis=1) == data['y'])
  assert report['accuracy'] == report['model_accuracy'] == accuracy
  assert report['examples'] == len(data['y'])


def test_other_weights_are_found(rows, tmp_path):
  """A file of another model has a report that says so."""
  task, model = rows
  run, _ = export(tmp_path, task, model, ['tflite'])
  examples = form_examples.draw(task, model, 200)
  other = task.build_keras_model()
  for variable, value in zip(other.variables, model.variables, strict=True):
    variable.assign(-value)
  path = run.path / 'forms' / 'tflite.tflite'
  path.write_bytes(forms.FORMS['tflite'].convert(forms.Source(task, other)))
  report = form_parity.check(forms.FORMS['tflite'], path, examples)
  assert not report['passed']
  assert any('beyond 1e-05' in reason for reason in report['reasons'])
  assert any('agreement is 0.' in reason for reason in report['reasons'])
  header, lines = forms_table.table({'tflite': {**report, 'bytes': 1}})
  assert lines[0][0] == '`tflite` **failed**'
  assert len(lines[0]) == len(header)


def test_what_can_not_be_made_or_run_is_a_failure(rows, tmp_path, monkeypatch):
  task, model = rows
  changes = {
    'tflite': lambda source: b'no model at all',
    'tflite_int8': lambda source: 1 / 0,
  }
  monkeypatch.setattr(
    forms,
    'FORMS',
    {
      name: dataclasses.replace(form, convert=changes.get(name, form.convert))
      for name, form in forms.FORMS.items()
    },
  )
  run, reports = export(tmp_path, task, model, [*changes, 'tflite_float16'])
  first, second = form_exporter.failures(reports)
  assert first.startswith('tflite: form_process.py could not run')
  assert second.startswith('tflite_int8: can not be made: ZeroDivisionError')
  assert reports['tflite_float16']['passed']
  saved = json.loads((run.path / 'forms' / 'tflite_int8.json').read_text())
  assert saved['passed'] is False
  text = ' '.join(forms_table.explanations(reports))
  assert '**Form `tflite_int8` fails its check**: can not be made' in text


def test_int8_that_is_float_is_a_failure(rows, tmp_path, monkeypatch):
  task, model = rows
  form = dataclasses.replace(
    forms.FORMS['tflite_int8'], convert=forms.FORMS['tflite'].convert
  )
  monkeypatch.setattr(forms, 'FORMS', {**forms.FORMS, 'tflite_int8': form})
  _, reports = export(tmp_path, task, model, ['tflite_int8'])
  assert form_exporter.failures(reports) == [
    'tflite_int8: not int8: 1 FULLY_CONNECTED in float32'
  ]


def test_forms_of_other_weights_are_removed(rows, tmp_path):
  task, model = rows
  run, reports = export(tmp_path, task, model, ['tflite'])
  assert form_exporter.read(run, model) == reports
  before = model.get_weights()
  model.trainable_variables[0].assign_add(
    np.full(model.trainable_variables[0].shape, 1e-3, np.float32)
  )
  try:
    assert form_exporter.read(run, model) == {}
  finally:
    model.set_weights(before)
  assert not list((run.path / 'forms').iterdir())


def test_r_squared_by_hand():
  wanted = np.array([[1.0], [2.0], [3.0]])
  # Deviations 1, 0, 1; errors 0, 0.5, 0.5.
  found = np.array([[1.0], [2.5], [2.5]])
  assert form_parity.r_squared(wanted, found) == pytest.approx(1 - 0.5 / 2)
  assert form_parity.r_squared(wanted, wanted) == 1
  both = np.concatenate([wanted, wanted], axis=1)
  one = np.concatenate([wanted, found], axis=1)
  assert form_parity.r_squared(both, one) == pytest.approx(0.75)
  constant = np.ones([3, 1])
  assert form_parity.r_squared(constant, constant) == 1
  assert form_parity.r_squared(constant, found) == -np.inf


def test_no_number_keeps_no_bound():
  report = {'max_difference': np.nan, 'agreement': np.nan}
  assert len(form_parity._reasons(forms.FORMS['tflite'], report)) == 2
  exact = {'max_difference': 1e-5, 'agreement': 0.99}
  assert not form_parity._reasons(forms.FORMS['tflite'], exact)
  below = {'max_difference': 2e-5, 'agreement': 0.9899}
  assert len(form_parity._reasons(forms.FORMS['tflite'], below)) == 2
  assert len(form_parity._reasons(forms.FORMS['tflite_int8'], below)) == 1


@pytest.mark.parametrize(
  ('model_agreement', 'agreement', 'passes'),
  [
    (1.0, 0.99, True),
    (1.0, 0.9899, False),
    (0.98, 0.9701, True),
    (0.98, 0.9699, False),
    (0.7, 0.95, True),
    (0.7, 0.9499, False),
    (np.nan, 0.9899, False),
  ],
)
def test_no_form_is_asked_for_more_than_the_model_has_with_itself(
  model_agreement, agreement, passes
):
  report = {
    'max_difference': 1.0,
    'agreement': agreement,
    'model_agreement': model_agreement,
  }
  form = forms.FORMS['tflite_int8'].of_quantized()
  assert (not form_parity._reasons(form, report)) == passes


def test_wider_ranges_move_answers_and_come_back(monkeypatch):
  data = form_tasks.images()[0].data
  task = emnist.build('digit_recognition', data, 'mcmahan_2nn', seed=0)
  assert (
    form_examples.draw(task, task.build_keras_model(), 50).widened_answers
    is None
  )
  task = task.quantized(quantization.Settings())
  model = form_tasks.measured(task)
  before = [end.numpy() for end in quantization.ranges(model)]
  tiny = form_examples.draw(task, model, 50)
  np.testing.assert_array_equal(tiny.answers, tiny.widened_answers)
  # As wide as this, everything is rounded to zero, whose first class wins.
  monkeypatch.setattr(form_examples, 'WIDENING', 1e6)
  large = form_examples.draw(task, model, 50)
  np.testing.assert_array_equal(large.answers, tiny.answers)
  assert not large.widened_answers.any()
  assert large.answers.any()
  np.testing.assert_array_equal(
    [end.numpy() for end in quantization.ranges(model)], before
  )


def as_bytes(array):
  return {row.tobytes() for row in np.ascontiguousarray(array)}


def test_ranges_are_of_training_clients_alone(rows):
  task, _ = rows
  found = calibration.choose(task, CONFIG, None)
  assert len(found.examples) == calibration.NUM_EXAMPLES
  assert found.source.startswith('200 examples of ')
  train, test = (
    as_bytes(split.pooled()['x'].astype(np.float32))
    for split in (task.data.train, task.data.test)
  )
  assert as_bytes(found.examples) <= train
  assert not as_bytes(found.examples) & (test - train)
  again = calibration.choose(task, CONFIG, None)
  np.testing.assert_array_equal(found.examples, again.examples)


def test_private_runs_need_public_examples(rows, tmp_path):
  task, _ = rows
  private = {**CONFIG, 'privacy': {'mechanism': 'gaussian'}}
  with pytest.raises(flags.IllegalFlagValueError, match='does not cover'):
    calibration.choose(task, private, None)
  public = np.random.default_rng(0).normal(size=[5, *task.example_shape])
  np.savez(tmp_path / 'public.npz', x=public)
  found = calibration.choose(task, private, tmp_path / 'public.npz')
  np.testing.assert_array_equal(found.examples, public.astype(np.float32))
  assert found.source == '5 examples of public.npz'


@pytest.mark.parametrize(
  'name, content, message',
  [
    ('lacking.npy', None, 'no .npy, .npz'),
    ('wide.npy', np.zeros([3, 99]), 'of shape'),
    ('other.npz', np.zeros([3, 99]), 'no .npy, .npz with an array x'),
  ],
)
def test_unfit_files_are_refused(rows, tmp_path, name, content, message):
  if name.endswith('npy') and content is not None:
    np.save(tmp_path / name, content)
  elif content is not None:
    np.savez(tmp_path / name, y=content)
  with pytest.raises(flags.IllegalFlagValueError, match=message):
    calibration.choose(rows[0], CONFIG, tmp_path / name)


def test_texts_of_a_file_are_cut_into_ids(tmp_path):
  task, _ = form_tasks.texts('sequence_classification')
  (tmp_path / 'public.txt').write_text('the film\na time to be\n')
  found = calibration.choose(task, CONFIG, tmp_path / 'public.txt')
  assert found.examples.shape == (2, task.max_length)
  assert found.examples.dtype == np.int32
  assert (found.examples[:, 0] == task.pieces.cls_id).all()
  with pytest.raises(flags.IllegalFlagValueError, match='a .txt of texts'):
    np.save(tmp_path / 'ids.npy', found.examples)
    calibration.choose(task, CONFIG, tmp_path / 'ids.npy')


def test_floats_are_rounded_to_levels_of_pixels():
  task, _ = form_tasks.images()
  x = np.zeros([1, *task.example_shape], np.float32)
  x[0, 0, 0], x[0, 1, 1] = 1.0, 128.4 / 255
  given, _ = form_examples.as_given(task, {'x': x, 'y': np.zeros(1)})
  assert given.dtype == np.uint8
  assert (given[0, 0, 0], given[0, 1, 1], given[0, 2, 2]) == (255, 128, 0)


def test_the_process_that_runs_forms_shares_no_code():
  """It imports a runtime, NumPy and Python's own, and no TensorFlow."""
  tree = ast.parse(pathlib.Path(form_process.__file__).read_text())
  imported = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      imported |= {alias.name.split('.')[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      imported.add(node.module.split('.')[0])
  assert imported == {
    *('ai_edge_litert', 'importlib', 'numpy', 'onnxruntime', 'openvino'),
    *('pathlib', 'sys', 'time'),
  }


def test_unknown_forms_are_refused():
  with pytest.raises(ValueError, match='tflow; there are saved_model, tflite'):
    forms.check_names(['tflow'])


def test_counts_that_are_not_int8_are_named():
  counts = {
    'FULLY_CONNECTED': {'float32 by int8': 1, 'int8': 3},
    'CONV_2D': {'float32': 2},
    'SOFTMAX': {'float32': 1},
  }
  assert form_parity.float_matrix_products(counts) == [
    '1 FULLY_CONNECTED in float32 by int8',
    '2 CONV_2D in float32',
  ]
  assert set(tflite.MATRIX_PRODUCTS) >= {'FULLY_CONNECTED', 'CONV_2D'}
