"""The runtime's flags: what they build and what they refuse."""

import re
import sys
import types

import pytest
from absl import flags

from research.runtime import accelerators, registry
from tests.experiments import binary

NOTHING = accelerators.Accelerators()
GPU = accelerators.Accelerators(gpus=('GPU:0',))


def get(monkeypatch, found, *arguments):
  monkeypatch.setattr(accelerators, 'probe', lambda: found)
  with binary.parsed('emnist', *arguments) as (emnist, _):
    return emnist.GROUPS.runtime.get()


@pytest.fixture
def fake_in_process(monkeypatch):
  """Stands in for the in-process runtime; keeps what it is built with."""
  module = types.ModuleType('research.runtime.in_process')
  module.InProcessRuntime = lambda **kwargs: kwargs
  monkeypatch.setitem(sys.modules, module.__name__, module)
  import research.runtime

  monkeypatch.setattr(research.runtime, 'in_process', module, raising=False)


@pytest.mark.parametrize(
  'arguments, message',
  [
    (
      ['--xla=on'],
      'ignores XLA: its binary has no XLA compiler; use --runtime=',
    ),
    (['--device=gpu'], 'the stock worker is built for the CPU'),
    (['--device=tpu'], 'the stock worker is built for the CPU'),
    (['--require_accelerator'], 'the stock worker is built for the CPU'),
    (['--client_plan=vmap'], '--client_plan is not used by --runtime=stock'),
    (['--client_plan=auto'], '--client_plan is not used by --runtime=stock'),
    (['--clients_per_chunk=3'], '--clients_per_chunk is not used by --runtime'),
  ],
)
def test_stock_refuses_what_it_would_ignore(monkeypatch, arguments, message):
  with pytest.raises(flags.IllegalFlagValueError, match=re.escape(message)):
    get(monkeypatch, GPU, '--runtime=stock', *arguments)


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--device=gpu'], 'TensorFlow sees neither a GPU nor a TPU'),
    (['--require_accelerator'], 'the work would run on the CPU'),
    (
      ['--client_plan=loop', '--clients_per_chunk=3'],
      '--clients_per_chunk is not used by --client_plan=loop',
    ),
  ],
)
@pytest.mark.usefixtures('fake_in_process')
def test_in_process_refuses_what_is_not_there(monkeypatch, arguments, message):
  with pytest.raises(flags.IllegalFlagValueError, match=message):
    get(monkeypatch, NOTHING, '--runtime=in_process', *arguments)


@pytest.mark.usefixtures('fake_in_process')
def test_every_flag_reaches_the_in_process_runtime(monkeypatch):
  given = {
    'device': 'gpu',
    'xla': 'on',
    'client_plan': 'vmap',
    'clients_per_chunk': 7,
    'max_concurrent_clients': 3,
    'require_accelerator': True,
  }
  arguments = [f'--{name}={value}' for name, value in given.items()]
  built = get(monkeypatch, GPU, '--runtime=in_process', *arguments)
  assert built == given


def test_stock_trains_a_client_per_core_unless_told(monkeypatch):
  monkeypatch.setattr('os.sched_getaffinity', lambda pid: range(5))
  built = get(monkeypatch, NOTHING, '--runtime=stock')
  assert built.describe()['max_concurrent_clients'] == 5
  built = get(
    monkeypatch, NOTHING, '--runtime=stock', '--max_concurrent_clients=3'
  )
  assert built.describe()['max_concurrent_clients'] == 3
  assert built.describe()['device'] == 'cpu'


def test_the_default_is_a_runtime_that_exists():
  assert registry.DEFAULT in registry.RUNTIMES
