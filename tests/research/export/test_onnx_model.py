"""ONNX files agree with the model in onnxruntime."""

import pytest

from research.export import (
  form_exporter,
  form_parity,
  forms,
  onnx_model,
  parity,
)
from tests.research.export import form_tasks, test_forms

pytest.importorskip('tf2onnx', reason='needs the extra onnx')
pytestmark = pytest.mark.skipif(
  not parity.serving_python().exists(), reason='serving environment missing'
)


@pytest.mark.parametrize('name', list(test_forms._CASES))
def test_onnxruntime_agrees(name, tmp_path, monkeypatch):
  monkeypatch.setattr(form_parity, '_REPETITIONS', 5)
  task, model = test_forms._CASES[name]()
  _, reports = test_forms.export(tmp_path, task, model, ['onnx'])
  assert not form_exporter.failures(reports)
  assert reports['onnx']['runtime'].startswith('onnxruntime 1.')
  assert reports['onnx']['max_difference'] <= 1e-5


def test_names_are_kept():
  import onnx

  task, model = form_tasks.table('logistic')
  content = onnx_model.convert(forms.Source(task, model).serve())
  graph = onnx.load_from_string(content).graph
  assert [value.name for value in graph.input] == ['features']
  assert {value.name for value in graph.output} == {
    *('class', 'logits', 'probabilities'),
  }
