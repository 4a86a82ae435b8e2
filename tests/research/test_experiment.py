"""How an experiment starts its runtime, and what config.json says of it."""

import json
import subprocess
import sys

import pytest
from absl import flags, logging

from research import experiment, provenance
from research.runtime import accelerators
from tests.experiments import binary


class Described:
  """A runtime of which nothing but its description is asked."""

  def __init__(self, **changes):
    self.text = {
      'name': 'stock',
      'device': 'cpu',
      'reason': 'It has no kernels for one.',
      'deterministic': True,
      'decisions': [],
    } | changes

  def describe(self):
    return dict(self.text)


def test_a_timing_file_of_another_version_is_put_aside(tmp_path):
  path = tmp_path / 'timing.csv'
  path.write_text('round,seconds\n1,2.5\n')
  assert experiment._timing_csv(path).last_round == -1
  assert (tmp_path / 'timing.old.csv').read_text() == 'round,seconds\n1,2.5\n'
  kept = experiment._timing_csv(path)
  kept.append({'round': 1})
  assert experiment._timing_csv(path).last_round == 1


@pytest.fixture
def entries(monkeypatch):
  def call(runtime, saved=None, done=0, gpus=(), device='auto'):
    found = accelerators.Accelerators(gpus=gpus)
    monkeypatch.setattr(accelerators, 'probe', lambda: found)
    with binary.parsed('emnist', f'--device={device}'):
      return provenance.runtime_entries(runtime, saved, done)

  return call


def test_an_idle_gpu_is_on_stderr_and_in_the_config(entries, capsys):
  found = entries(Described(), gpus=('GPU:0',))
  error = capsys.readouterr().err
  assert error.startswith(
    'WARNING: This run is on the CPU: TensorFlow sees GPU'
  )
  assert 'It has no kernels for one.' in error
  noted = found['runtime']['accelerators']
  assert noted['visible'] == ['GPU:0']
  assert noted['warning'] in error
  # No GPU, a GPU that is used, and a CPU that was asked for are fine.
  entries(Described())
  entries(Described(device='gpu'), gpus=('GPU:0',))
  entries(Described(), gpus=('GPU:0',), device='cpu')
  assert not capsys.readouterr().err


def test_decisions_are_kept(entries):
  decision = {'map': 'client_update', 'plan': 'scan', 'reason': 'convolutions'}
  found = entries(Described(decisions=[decision]))
  assert found['runtime']['decisions'] == [decision]


def test_a_run_that_goes_on_elsewhere_says_where_it_was(entries, monkeypatch):
  warnings = []
  monkeypatch.setattr(
    logging, 'warning', lambda form, *values: warnings.append(form % values)
  )
  first = entries(Described())
  again = entries(Described(), json.loads(json.dumps(first)), done=2)
  assert again == first and not warnings
  other = entries(Described(name='in_process'), first, done=2)
  assert other['runtime']['name'] == 'in_process'
  (earlier,) = other['earlier_runtimes']
  assert (earlier['name'], earlier['up_to_round']) == ('stock', 2)
  assert 'the last bits of results may differ' in warnings[0]
  back = entries(Described(), other, done=5)
  assert [e['up_to_round'] for e in back['earlier_runtimes']] == [2, 5]
  assert entries(Described(), back, done=6) == back
  # Nothing was trained there: nothing to tell.
  assert 'earlier_runtimes' not in entries(Described(name='x'), first, done=0)


class Order:
  """A runtime that is left before anything is trained."""

  loop_implementation = None

  def __init__(self):
    self.events = []

  def __enter__(self):
    self.events.append('enter')

  def __exit__(self, *exception):
    self.events.append('exit')


def test_the_runtime_is_entered_before_the_task_is_built(monkeypatch, tmp_path):
  runtime = Order()

  def build_task():
    runtime.events.append('task')
    raise ValueError('stop here')

  with binary.parsed('emnist', f'--root_output_dir={tmp_path}') as (emnist, _):
    monkeypatch.setattr(emnist.GROUPS.runtime, 'get', lambda: runtime)
    start = experiment.Experiment.start('x', build_task, emnist.GROUPS)
    with pytest.raises(flags.Error, match='stop here'), start:
      pass
  assert runtime.events == ['enter', 'task', 'exit']


def test_nothing_initialises_tensorflow_before_the_runtime(tmp_path):
  """Threads can be set only until then; in a process of its own."""
  script = f"""
import sys
from absl import flags
from tensorflow.python.eager import context
from experiments import emnist
from research.runtime import stock

def enter(self):
  print('initialised' if context.context()._initialized else 'fresh')
  sys.exit(0)

stock.StockRuntime.__enter__ = enter
flags.FLAGS(['x', '--runtime=stock', '--dataset=synthetic_digits',
             '--model=logistic_regression', '--root_output_dir={tmp_path}'])
emnist.main(['x'])
"""
  child = subprocess.run(
    [sys.executable, '-c', script],
    cwd=binary.ROOT,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert child.stdout.splitlines() == ['fresh'], child.stderr
