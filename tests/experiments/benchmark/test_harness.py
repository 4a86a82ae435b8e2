"""The harness: turns, failures, and a run of it from end to end."""

import json
import sys
import types

import numpy as np
import pytest

from experiments.benchmark import harness, plot, workloads
from tests.experiments import binary


def _launch(name, weight=1.0, fail_at=0):
  module = 'tests.experiments.benchmark.fake_arm'
  command = (sys.executable, '-m', module, str(weight), str(fail_at))
  return harness.Launch(name, command)


def _measure(tmp_path, *launches, pairs=3):
  return harness.measure(launches, [np.zeros(2)], pairs, tmp_path)


def test_every_arm_has_a_turn_in_each_repetition(tmp_path):
  results = _measure(tmp_path, _launch('one'), _launch('other', 1.25))
  assert list(results) == ['one', 'other']
  for result in results.values():
    assert not result.error
    assert len(result.seconds) == 3
    # A round takes microseconds: as many as a turn may have.
    assert {len(turn) for turn in result.seconds} == {9}
    assert result.cold_start_seconds > 0
    assert result.construction_seconds == 1.5
    # Python with NumPy, and nothing like TensorFlow.
    assert 10 < result.peak_megabytes < 200
  # After round 1 the weights are 1 and 1.25 from a start of 0.
  assert results['one'].max_difference == 0
  assert results['other'].max_difference == 0.25
  assert results['other'].relative_difference == pytest.approx(0.25)


def test_idle_cores_are_processor_time_between_turns(monkeypatch):
  """0.5 s of 2 s before the first turn, 0.25 s of 1 s before the second."""
  clock = iter([12.0, 13.0, 14.0, 99.0])
  used = iter([5.5, 6.5, 6.75, 99.0])
  arm = object.__new__(harness.Arm)
  arm.result = harness.Result()
  arm._idle_since, arm._idle = (10.0, 5.0), [0.0, 0.0]
  arm._rounds_per_turn = 1
  monkeypatch.setattr(arm, '_ask', lambda command: {'seconds': [1.0]})
  monkeypatch.setattr(arm, '_cpu_seconds', lambda: next(used))
  monkeypatch.setattr(arm, '_tree', list)
  monkeypatch.setattr(arm, 'close', lambda: None)
  monkeypatch.setattr(
    harness, 'time', types.SimpleNamespace(perf_counter=lambda: next(clock))
  )
  arm.turn()
  arm.turn()
  assert arm.finish().idle_cores == 0.25


@pytest.mark.parametrize('fail_at', [1, 3, 5])
def test_an_arm_that_fails_does_not_stop_the_others(tmp_path, fail_at):
  """In round 1, in the warm-up, and in its first turn."""
  failing = _launch('failing', fail_at=fail_at)
  results = _measure(tmp_path, failing, _launch('sound'))
  assert 'this arm fails on purpose' in results['failing'].error
  assert results['failing'].seconds == []
  assert len(results['sound'].seconds) == 3
  assert results['sound'].max_difference == 0


@pytest.mark.timeout(60)
def test_an_arm_that_hangs_is_ended(tmp_path, monkeypatch):
  monkeypatch.setattr(harness, '_LONGEST_SECONDS', 0.5)
  command = (sys.executable, '-c', 'import time; time.sleep(3600)')
  results = _measure(tmp_path, harness.Launch('hanging', command))
  assert 'hanging ended' in results['hanging'].error


def test_children_count(tmp_path):
  """A child that holds 200 MB, of an arm that holds next to nothing."""
  child = 'x = bytearray(200_000_000); print(1, flush=True); input()'
  parent = (
    'import subprocess, sys\n'
    'from tests.experiments.benchmark import fake_arm\n'
    f'child = subprocess.Popen([sys.executable, "-c", {child!r}],'
    ' stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n'
    'child.stdout.readline()\n'
    'fake_arm.main("1", "0")\n'
    'child.stdin.close()\n'
  )
  launch = harness.Launch('parent', (sys.executable, '-c', parent))
  megabytes = _measure(tmp_path, launch)['parent'].peak_megabytes
  assert 200 < megabytes < 400


@pytest.mark.slow
def test_two_rounds_of_all_arms(tmp_path):
  output = tmp_path / 'output'
  result = binary.run(
    'benchmark.rounds',
    *('--workloads=tiny_private', '--all_plans', '--pairs=2'),
    f'--output={output}',
  )
  assert result.returncode == 0, result.stderr
  assert (output / 'rounds.png').stat().st_size > 10_000
  results = json.loads((output / 'results.json').read_text())
  assert results['machine']['cores'] > 0
  arms = results['workloads']['tiny_private']['arms']
  assert {'stock_reduce', 'stock_iterator', 'bare_vmap_xla'} <= set(arms)
  assert sum(name.startswith('in_process_') for name in arms) == 6
  for name, arm in arms.items():
    assert not arm['error'], name
    assert len(arm['seconds']) == 2
    if name != workloads.WITHOUT_PRIVACY:
      # Ours clips a ten thousandth lower than stock TFF.
      assert arm['relative_difference'] < 2e-4, name
    assert f'{name} ' in result.stdout


def _results(names):
  arm = {'seconds': [[1.0]], 'median_seconds': 1.0}
  ratio = {'median': 2.0, 'low': 1.0, 'high': 3.0}
  return {
    'workloads': {
      name: {
        'workload': {'clients': workloads.get(name).clients},
        'arms': {'stock_reduce': arm, 'peer_pfl_2': {'seconds': []}},
        'ratios_to_bare': {'stock_reduce': ratio},
      }
      for name in names
    }
  }


@pytest.mark.parametrize(
  'draw, names',
  [
    (plot.draw, ['A', 'C']),
    (plot.draw_sweep, ['sweep:1x10k', 'sweep:10x10k', 'sweep:1x1M']),
  ],
)
def test_plot_has_a_panel_per_workload_or_size(
  tmp_path, monkeypatch, draw, names
):
  canvases = []
  monkeypatch.setattr(
    plot, '_save', lambda canvas, path: canvases.append(canvas)
  )
  draw(_results(names), tmp_path / 'plot.png')
  titles = [axis.get_title() for axis in canvases[0].axes]
  expected = {
    plot.draw: ['Workload A', 'Workload C'],
    plot.draw_sweep: ['10k parameters', '1M parameters'],
  }
  assert titles == expected[draw]


def test_an_unknown_workload_is_refused(tmp_path):
  result = binary.run(
    'benchmark.rounds', '--workloads=Z', f'--output={tmp_path}'
  )
  assert result.returncode == 2
  assert "no workload 'Z'" in result.stderr
