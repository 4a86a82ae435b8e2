"""Whole sweeps of a fake binary that needs no TensorFlow."""

import json
import math

import pandas as pd
import pytest
from absl import flags

from research.sweeps import processes, results, search
from research.sweeps import record as record_lib
from research.sweeps import space as space_lib
from research.sweeps import sweep as sweep_lib
from research.training import run_directory

BINARY = 'tests.research.sweeps.fake_binary'


def start(
  directory,
  *grid,
  seeds=(0,),
  kind='grid',
  trials=None,
  criterion=None,
  search_seed=0,
  decisive=None,
):
  (directory / 'runs').mkdir(exist_ok=True)
  space = space_lib.Space(
    tuple(space_lib.typed(d, 'float') for d in space_lib.parse(grid))
  )
  record = record_lib.Record(
    directory / 'sweep.json',
    record_lib.Settings(
      binary=BINARY,
      search=kind,
      grid=record_lib.grid_of(space),
      trials=trials,
      search_seed=search_seed,
      seeds=seeds,
      flags=decisive or {'batch': 10},
    ),
    criterion or results.Criterion(None, None, 'last'),
    search.planned(space, kind, trials, search_seed),
  )
  return sweep_lib.Sweep(
    directory, record, space, ['--batch=10'], ['--batch=10']
  )


def run(sweep, number=2):
  with processes.LocalQueue(number, grace_seconds=5) as queue:
    sweep.run(queue)
  return sweep.finish()


def calls(directory):
  """Names of the runs that were started, each as often as it was."""
  lines = (directory / 'runs' / 'calls').read_text().splitlines()
  return sorted(line.split()[0] for line in lines)


def test_a_grid_with_failures_goes_on_where_it_stopped(tmp_path, capsys):
  (tmp_path / 'runs').mkdir()
  (tmp_path / 'runs' / 'fail').touch()
  grid = ('x=1,7,9,3',)
  sweep = start(tmp_path, *grid, seeds=(0, 4))
  text = run(sweep, number=1)
  logs = [f'{tmp_path}/logs/cell_001_seed{seed}.log' for seed in (0, 4)]
  assert sweep.failed() == logs
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 8
  assert lines[0].startswith('[1/8] cell 0 seed ')
  assert sum('FAILED, exit code 1: out of luck' in line for line in lines) == 2
  assert sum('test_accuracy diverged' in line for line in lines) == 2
  assert lines[-1].startswith('[8/8] cell 3 seed ')
  assert 'best so far cell 3 with 3.02' in lines[-1]
  table = pd.read_csv(tmp_path / 'results.csv', keep_default_na=False)
  assert list(table['status']) == ['finished', 'failed', 'diverged', 'finished']
  assert list(table['best']) == ['', '', '', 'best']
  assert list(table['values']) == ['1.0 1.04', '- -', 'nan nan', '3.0 3.04']
  assert float(table['test_accuracy_mean'][3]) == pytest.approx(3.02)
  # Deviations of +-0.02 from the mean of two: 0.02 * sqrt(2).
  assert float(table['test_accuracy_std'][3]) == pytest.approx(0.02 * 2**0.5)
  assert 'x=3' in text and '--extra_flag=--validation_examples' in text
  assert (tmp_path / 'sweep.png').read_bytes().startswith(b'\x89PNG')

  (tmp_path / 'runs' / 'fail').unlink()
  sweep = start(tmp_path, *grid, seeds=(0, 4))
  run(sweep)
  assert not sweep.failed()
  repeated = [name for name in calls(tmp_path) if '001' in name]
  assert repeated == ['cell_001_seed0'] * 2 + ['cell_001_seed4'] * 2
  assert len(calls(tmp_path)) == 10
  table = pd.read_csv(tmp_path / 'results.csv', keep_default_na=False)
  assert list(table['best']) == ['', 'best', '', '']
  best = (tmp_path / 'best.flags').read_text().splitlines()
  assert best[-2:] == ['--batch=10', '--x=7']


def test_runs_get_shared_and_swept_flags(tmp_path):
  run(start(tmp_path, 'x=1'))
  (line,) = (tmp_path / 'runs' / 'calls').read_text().splitlines()
  assert line.split()[1:] == [
    '--batch=10',
    '--x=1',
    '--seed=0',
    f'--root_output_dir={tmp_path}/runs',
    '--experiment_name=cell_000_seed0',
  ]


def test_an_interrupted_run_is_run_again_and_no_other(tmp_path):
  class Interrupting(processes.LocalQueue):
    """Raises once the second run has begun and the first is done."""

    def wait(self, timeout_seconds):
      ended = super().wait(0.05)
      log = tmp_path / 'logs' / 'cell_001_seed0.log'
      if not ended and log.exists() and 'training' in log.read_text():
        raise KeyboardInterrupt
      return ended

  (tmp_path / 'runs').mkdir()
  (tmp_path / 'runs' / 'sleep').touch()
  with (
    pytest.raises(KeyboardInterrupt),
    Interrupting(1, grace_seconds=5) as queue,
  ):
    start(tmp_path, 'x=1,5,2').run(queue)
  assert queue.running == ()
  assert calls(tmp_path) == ['cell_000_seed0', 'cell_001_seed0']
  (tmp_path / 'runs' / 'sleep').unlink()
  run(start(tmp_path, 'x=1,5,2'))
  assert calls(tmp_path) == [
    'cell_000_seed0',
    *['cell_001_seed0'] * 2,
    'cell_002_seed0',
  ]


def test_more_values_and_seeds_extend_a_sweep(tmp_path):
  run(start(tmp_path, 'x=1,3'))
  run(start(tmp_path, 'x=2,1,3', seeds=(0, 1)))
  assert calls(tmp_path) == sorted(
    f'cell_00{cell}_seed{seed}' for cell in range(3) for seed in range(2)
  )
  table = pd.read_csv(tmp_path / 'results.csv')
  assert list(table['x']) == [1, 3, 2]


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'grid': ['x=1,2']}, '--grid has no longer --x=3'),
    ({'grid': ['x=1,3', 'y=1,2']}, '--grid has no longer --x=1'),
    ({'seeds': (1,)}, r'--seeds: was \[0\], now \[1\]'),
    ({'decisive': {'batch': 20}}, '--extra_flag=--batch: was 10, now 20'),
    ({'kind': 'random', 'trials': 2}, '--search: was grid, now random'),
  ],
)
def test_another_sweep_in_the_same_folder_is_refused(
  changes, message, tmp_path
):
  start(tmp_path, 'x=1,3')._record.save()
  grid = changes.pop('grid', ['x=1,3'])
  with pytest.raises(run_directory.ResumeError, match=message) as error:
    start(tmp_path, *grid, **changes)
  assert 'choose another --experiment_name' in str(error.value)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'grid': ['x=linear:0:5']}, '--grid: was'),
    ({'trials': 5}, '--trials: was 6, now 5'),
    ({'search_seed': 1}, '--search_seed: was 0, now 1'),
    ({'seeds': (0, 1)}, '--seeds: was'),
    (
      {'criterion': results.Criterion('test_loss', None, 'last')},
      '--metric: was test_accuracy, now test_loss',
    ),
  ],
)
def test_what_chose_the_cells_of_a_bayesian_search_stays(
  changes, message, tmp_path
):
  criterion = results.Criterion('test_accuracy', 'max', 'last')
  first = {'kind': 'bayesian', 'trials': 6, 'criterion': criterion}
  start(tmp_path, 'x=linear:0:4', **first)._record.save()
  start(tmp_path, 'x=linear:0:4', **first | {'trials': 7})
  grid = changes.pop('grid', ['x=linear:0:4'])
  with pytest.raises(run_directory.ResumeError, match=message):
    start(tmp_path, *grid, **first | changes)


def test_a_bayesian_sweep_chooses_by_results_not_by_speed(tmp_path):
  """Twice with two processes, once interrupted: the same cells."""
  arguments = {'kind': 'bayesian', 'trials': 7}
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  whole.mkdir()
  parts.mkdir()
  run(start(whole, 'x=linear:0:4', **arguments))
  # The random start and one cell more, then the rest.
  run(start(parts, 'x=linear:0:4', **arguments | {'trials': 5}))
  run(start(parts, 'x=linear:0:4', **arguments))
  cells = [
    json.loads((directory / 'sweep.json').read_text())['cells']
    for directory in (whole, parts)
  ]
  assert cells[0] == cells[1] and len(cells[0]) == 7
  # Accuracy is x: the model goes to the upper end.
  assert max(float(cell['x']) for cell in cells[0][4:]) > 3.9


def test_a_metric_that_no_run_has_ends_the_sweep(tmp_path):
  criterion = results.Criterion('accuracy', None, 'last')
  with pytest.raises(flags.IllegalFlagValueError, match='test_accuracy, test_'):
    run(start(tmp_path, 'x=1,2,3,4', criterion=criterion), number=1)
  assert calls(tmp_path) == ['cell_000_seed0']


def test_no_result_at_all(tmp_path):
  (tmp_path / 'runs').mkdir()
  (tmp_path / 'runs' / 'fail').touch()
  assert run(start(tmp_path, 'x=7')) == 'No run has a result.'
  (tmp_path / 'nan').mkdir()
  sweep = start(tmp_path / 'nan', 'x=9')
  assert 'diverged' in run(sweep)
  assert not sweep.failed() and not (tmp_path / 'nan/best.flags').exists()
  assert math.isnan(sweep.results()[0].mean)
