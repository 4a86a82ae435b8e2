"""The command that exports client programs."""

import json

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import emnist, export_xla
from research.export import xla_compile, xla_program
from research.runtime import client_program

needs_compiler = pytest.mark.skipif(
  not xla_compile.TARGETS['cpu'].python.exists(),
  reason='.venv-xla-cpu missing',
)
DIGITS = ('--dataset=synthetic_digits', '--model=logistic_regression')


@pytest.fixture(name='asked')
def _asked(monkeypatch):
  """What the runtime's client programs were asked for."""
  asked = []
  real = client_program.build

  def build(task, process, *, num_clients, batches):
    asked.append((task, process, num_clients, list(batches)))
    return real(task, process, num_clients=num_clients, batches=batches)

  monkeypatch.setattr(client_program, 'build', build)
  return asked


def run(*arguments):
  """Runs the command in this process, past the handling of its errors."""
  with flagsaver.flagsaver():
    export_xla.main(export_xla.parse(['export_xla', *arguments]))


@needs_compiler
def test_programs_of_flags_are_exported(asked, tmp_path, capsys):
  run(
    '--target=cpu',
    f'--output_dir={tmp_path}',
    *DIGITS,
    '--clients_per_round=3',
    '--client_batch_size=8',
    '--client_epochs_per_round=2',
    '--examples_per_client=20',
  )
  output = capsys.readouterr().out
  for name, clients in (('one_client', 1), ('3_clients', 3)):
    assert f'{name} for this CPU, by jax 0.' in output
    report = json.loads((tmp_path / name / 'report.json').read_text())
    # A step multiplies [8, 64] and [64, 10], forward and for the gradient;
    # two epochs have four steps of 8 examples and two of 4.
    assert report['loops_counted']
    assert report['flops'] >= clients * 40 * 2 * (2 * 64 * 10)
  assert output.count("of TensorFlow's") == 2
  manifest = json.loads((tmp_path / 'manifest.json').read_text())
  assert manifest['target'] == 'cpu'
  assert manifest['flags']['client_batch_size'] == 8
  assert manifest['batch_sizes'] == [8, 8, 4, 8, 8, 4]
  assert manifest['clients_per_round'] == 3
  programs = manifest['programs']
  assert programs['one_client']['num_clients'] == 1
  arguments = {a['name']: a for a in programs['3_clients']['arguments']}
  assert arguments['batches/begin']['shape'] == [3]
  task, process, _, batches = asked[0]
  assert task.name == 'digit_recognition'
  assert batches == [8, 8, 4, 8, 8, 4]
  assert 'weights' in str(process.next.type_signature)
  assert [number for _, _, number, _ in asked] == [1, 3]


def test_a_runs_flags_are_taken(asked, tmp_path, monkeypatch):
  given = []
  monkeypatch.setattr(export_xla, 'export', lambda *a: given.append(a))
  with flagsaver.flagsaver():
    flags.FLAGS(['x', *DIGITS, '--client_batch_size=7'])
    saved = {'binary': emnist.BINARY, 'flags': export_xla.flag_values.values()}
  (tmp_path / 'config.json').write_text(json.dumps(saved))
  run('--target=h100', f'--run_dir={tmp_path}', '--clients_per_round=40')
  ((target, directory, found, layers, manifest),) = given
  assert target.chip == 'NVIDIA H100 SXM'
  assert directory == tmp_path / 'xla_h100'
  assert list(found) == ['one_client', '16_clients']
  assert 'logits' in layers
  assert manifest['flags']['dataset'] == 'synthetic_digits'
  sizes = sorted(asked[0][0].data.train.num_examples.values())
  median = sizes[(len(sizes) - 1) // 2]
  expected = [7] * (median // 7) + [median % 7] * bool(median % 7)
  assert manifest['batch_sizes'] == expected


def test_a_target_and_somewhere_to_write_are_needed():
  with pytest.raises(flags.IllegalFlagValueError, match='cpu, tpu_v5e, h100'):
    run('--output_dir=there', *DIGITS)
  with pytest.raises(flags.IllegalFlagValueError, match='Give --output_dir'):
    run('--target=cpu', *DIGITS)


def test_an_operation_that_xla_lacks_ends_in_one_line(
  asked, tmp_path, monkeypatch
):
  def refuse(*unused):
    raise xla_program.UnsupportedOperationError('Foo of Keras layer dense')

  monkeypatch.setattr(xla_program, 'write', refuse)
  with pytest.raises(
    flags.IllegalFlagValueError, match='--target=cpu: Foo of Keras layer dense'
  ):
    run('--target=cpu', f'--output_dir={tmp_path}', *DIGITS)


def test_other_results_are_an_error(tmp_path):
  directory = tmp_path / 'one_client'
  directory.mkdir()
  ones = np.ones([3], np.float32)
  np.savez(directory / xla_program.RESULTS, result_0=ones * (1 + 1e-5))
  with pytest.raises(
    xla_compile.CompilerError, match='one_client: the results'
  ):
    export_xla._check([ones], directory, 1)
