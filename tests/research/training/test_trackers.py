"""TensorBoard files as TensorBoard reads them; stand-ins of W&B and MLflow."""

import sys
import types

import pytest
import tensorflow as tf
from tensorboard.backend.event_processing import event_accumulator

from research.training import trackers


def _points(directory, tag='loss'):
  events = event_accumulator.EventAccumulator(
    str(directory), {event_accumulator.TENSORS: 0}
  )
  events.Reload()
  return [
    (event.step, float(tf.make_ndarray(event.tensor_proto)))
    for event in events.Tensors(tag)
  ]


def _write(directory, rounds, restored, scale=1.0):
  tracker = trackers.TensorBoard(directory, restored)
  for r in rounds:
    tracker.write(r, {'loss': r * scale, 'test_loss': None})
  tracker.close()


def test_tensorboard_shows_what_was_written(tmp_path):
  _write(tmp_path, [0, 1, 2], -1)
  assert _points(tmp_path) == [(0, 0.0), (1, 1.0), (2, 2.0)]


def test_tensorboard_forgets_what_came_after_the_restored_round(tmp_path):
  _write(tmp_path, [1, 2, 3, 4], -1)
  (path,) = tmp_path.iterdir()
  path.write_bytes(path.read_bytes()[:-5])
  _write(tmp_path, [3, 4, 5], 2, scale=10.0)

  assert _points(tmp_path) == [(1, 1.0), (2, 2.0), (3, 30), (4, 40), (5, 50)]
  for path in tmp_path.iterdir():
    events = event_accumulator.EventAccumulator(str(path))
    assert events.Reload()
  assert not list(tmp_path.glob('.*'))


def test_tensorboard_starts_afresh_without_a_checkpoint(tmp_path):
  _write(tmp_path, [0, 1], -1)
  _write(tmp_path, [0, 1], -1, scale=7.0)
  assert _points(tmp_path) == [(0, 0.0), (1, 7.0)]


def test_tensorboard_event_is_in_the_file_at_once(tmp_path):
  tracker = trackers.TensorBoard(tmp_path, -1)
  tracker.write(1, {'loss': 0.5})
  assert _points(tmp_path) == [(1, 0.5)]
  tracker.close()


class _Wandb(types.ModuleType):
  """Keeps what it is told, one list of steps per run id."""

  def __init__(self):
    super().__init__('wandb')
    self.starts = []
    self.logged = []
    self.finished = 0

  def init(self, **arguments):
    self.starts.append(arguments)
    return types.SimpleNamespace(
      id=arguments['id'] or 'new-id',
      log=lambda values, step: self.logged.append((step, values)),
      finish=lambda: setattr(self, 'finished', self.finished + 1),
    )


class _MLflow(types.ModuleType):
  def __init__(self):
    super().__init__('mlflow')
    self.starts = []
    self.params = []
    self.logged = []
    self.finished = 0

  def start_run(self, run_id, run_name):
    self.starts.append((run_id, run_name))
    info = types.SimpleNamespace(run_id=run_id or 'new-id')
    return types.SimpleNamespace(info=info)

  def log_params(self, params):
    self.params.append(params)

  def log_metrics(self, values, step):
    self.logged.append((step, values))

  def end_run(self):
    self.finished += 1


@pytest.mark.parametrize('package', [_Wandb(), _MLflow()])
def test_other_trackers_go_on_with_their_run(tmp_path, monkeypatch, package):
  name = package.__name__
  monkeypatch.setitem(sys.modules, name, package)
  for r, rounds in ((1, 10), (2, 20)):
    (tracker,) = trackers.create(
      [name], tmp_path, 'run', {'total_rounds': rounds}, r - 1
    )
    tracker.write(r, {'loss': 0.5, 'test_loss': None})
    tracker.close()

  assert package.logged == [(1, {'loss': 0.5}), (2, {'loss': 0.5})]
  assert package.finished == 2
  if name == 'wandb':
    assert [start['id'] for start in package.starts] == [None, 'new-id']
    assert package.starts[0]['name'] == 'run'
    assert package.starts[0]['config'] == {'total_rounds': 10}
  else:
    assert package.starts == [(None, 'run'), ('new-id', 'run')]
    assert package.params == [{'total_rounds': 10}]


@pytest.mark.parametrize('name', ['wandb', 'mlflow'])
def test_missing_package_is_named(tmp_path, monkeypatch, name):
  monkeypatch.setitem(sys.modules, name, None)
  with pytest.raises(ImportError, match=f'pip install {name}'):
    trackers.create([name], tmp_path, 'run', {}, -1)


def test_unknown_tracker_is_named(tmp_path):
  with pytest.raises(ValueError, match=r"\['comet'\]; there are"):
    trackers.create(['tensorboard', 'comet'], tmp_path, 'run', {}, -1)
  assert not list(tmp_path.iterdir())
