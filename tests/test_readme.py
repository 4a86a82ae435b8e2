"""Every command and example of the README runs."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / 'README.md').read_text()


def commands() -> list[str]:
  """The indented command lines, continued lines joined."""
  joined = re.sub(r'\\\n\s+', '', TEXT)
  return [
    line.strip().partition('  #')[0].strip()
    for line in joined.splitlines()
    if re.match(r'    (make|\.venv/bin/python) ', line)
  ]


def starting_with(prefix: str) -> list[str]:
  return [command for command in commands() if command.startswith(prefix)]


TRAINING = starting_with(
  '.venv/bin/python -m experiments.emnist'
) + starting_with('.venv/bin/python -m experiments.evaluate')
REGRESSION = starting_with('.venv/bin/python -m experiments.linear_regression')
TEXTS = starting_with('.venv/bin/python -m experiments.bert')
EXPORT_XLA = starting_with('.venv/bin/python -m experiments.export_xla')
SWEEP = starting_with('.venv/bin/python -m experiments.sweep')
REPRODUCE = starting_with('.venv/bin/python -m experiments.reproduce')
PLANNING = starting_with('.venv/bin/python -m experiments.privacy_budget')
# `make test` is what runs this file.
BENCHMARK = starting_with('make benchmark')
MAKE = [
  command
  for command in starting_with('make')
  if command not in ['make test', *BENCHMARK]
]


def shell(command: str, cwd, timeout: float) -> subprocess.CompletedProcess:
  words = shlex.split(command)
  if words[0] == '.venv/bin/python':
    words[0] = sys.executable
  return subprocess.run(
    words,
    cwd=cwd,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    timeout=timeout,
  )


def test_every_command_is_run_by_a_test_below():
  handled = [*TRAINING, *REGRESSION, *TEXTS, *EXPORT_XLA, *SWEEP, *REPRODUCE]
  handled += [*PLANNING, *BENCHMARK, *MAKE, 'make test']
  assert sorted(commands()) == sorted(handled)
  assert len(TRAINING) >= 4 and SWEEP and REPRODUCE and MAKE


def test_the_example_runs_and_learns(tmp_path):
  example, _ = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)
  assert len([line for line in example.splitlines() if line]) <= 22
  path = tmp_path / 'example.py'
  path.write_text(example)
  result = shell(f'{sys.executable} {path}', tmp_path, 300)
  assert result.returncode == 0, result.stderr
  accuracy = [float(line.split()[1]) for line in result.stdout.splitlines()]
  assert len(accuracy) == 5
  assert accuracy[-1] > 0.8


def test_the_program_of_ones_own_runs_and_learns(tmp_path):
  _, example = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)
  path = tmp_path / 'own.py'
  path.write_text(example)
  result = shell(f'{sys.executable} {path}', tmp_path, 300)
  assert result.returncode == 0, result.stderr
  losses = [float(line.split()[1]) for line in result.stdout.splitlines()]
  assert len(losses) == 5
  assert losses[-1] < losses[0] / 5


def write_own_data(folder):
  rng = np.random.default_rng(0)
  table = pd.DataFrame(rng.normal(size=[40, 3]), columns=['a', 'b', 'c'])
  table['user'] = [f'u{i % 4}' for i in range(40)]
  table['label'] = np.arange(40) % 3
  table.to_csv(folder / 'mine.csv', index=False)


def test_the_regression_commands_run(tmp_path):
  write_own_data(tmp_path)
  for command in REGRESSION:
    result = shell(f'{command} --total_rounds=2', tmp_path, 300)
    assert result.returncode == 0, (command, result.stderr)
  assert (tmp_path / 'runs/drift/plots/drift.png').is_file()


def test_the_commands_on_texts_run(tmp_path):
  for command in TEXTS:
    result = shell(command, tmp_path, 300)
    assert result.returncode == 0, (command, result.stderr)
  assert (tmp_path / 'runs/texts/report.json').is_file()
  assert (tmp_path / 'runs/texts/model/1/saved_model.pb').is_file()


def test_the_training_commands_run_in_order(tmp_path):
  write_own_data(tmp_path)
  for number, command in enumerate(TRAINING):
    if 'mine.csv' in command:
      command += ' --total_rounds=2'
    result = shell(command, tmp_path, 300)
    assert result.returncode == 0, (number, command, result.stderr)
  for name in ('first', 'mine'):
    card = (tmp_path / 'runs' / name / 'model_card.md').read_text()
    (example,) = re.findall(r'```python\n(.*?)```', card, re.DOTALL)
    path = tmp_path / 'runs' / name / 'example.py'
    path.write_text(example)
    result = shell(f'{sys.executable} {path}', path.parent, 300)
    assert result.returncode == 0, (name, result.stderr)
    assert 'probabilities' in result.stdout


def test_the_budget_is_planned(tmp_path):
  (command,) = PLANNING
  result = shell(command, tmp_path, 300)
  assert result.returncode == 0, result.stderr
  assert 'add_or_remove_one_client' in result.stdout


def test_a_runs_client_program_is_exported(tmp_path):
  if not (ROOT / '.venv-xla-cpu').exists():
    pytest.skip('.venv-xla-cpu missing')
  (first,) = [line for line in TRAINING if '--experiment_name=first' in line]
  for command in (f'{first} --noexport --total_rounds=1', *EXPORT_XLA):
    result = shell(command, tmp_path, 300)
    assert result.returncode == 0, result.stderr
  assert (tmp_path / 'runs/first/xla_cpu/manifest.json').is_file()


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path):
  (command,) = BENCHMARK
  arguments = f'--workloads=tiny --pairs=2 --output={tmp_path}'
  result = shell(f'{command} ARGS="{arguments}"', ROOT, 1200)
  assert result.returncode == 0, result.stderr
  assert (tmp_path / 'results.json').is_file()


@pytest.mark.slow
def test_the_sweep_finds_a_best_cell(tmp_path):
  (command,) = SWEEP
  result = shell(f'{command} --extra_flag=--total_rounds=2', tmp_path, 500)
  assert result.returncode == 0, result.stderr
  table = pd.read_csv(tmp_path / 'runs' / 'sweep' / 'results.csv')
  assert len(table) == 6
  assert (tmp_path / 'runs' / 'sweep' / 'best.flags').is_file()


@pytest.mark.slow
def test_reproduce_starts(tmp_path):
  for command in REPRODUCE:
    command += f' --ledger={tmp_path}/results.csv' + ''.join(
      f' --extra_flag={flag}'
      for flag in (
        '--dataset=synthetic_mnist',
        '--model=logistic_regression',
        '--total_rounds=1',
        '--noexport',
      )
    )
    result = shell(command, tmp_path, 500)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize('command', MAKE)
def test_the_make_commands_run(command, tmp_path):
  result = shell(f'{command} ARGS=--root_output_dir={tmp_path}', ROOT, 3600)
  assert result.returncode == 0, result.stderr
  (run,) = [p for p in tmp_path.iterdir() if p.is_dir()]
  if 'emnist_qat' in command:
    forms = pd.read_csv(run / 'forms.csv').set_index(['name', 'form'])['mean']
    assert forms['qat', 'tflite_int8'] > forms['float', 'trained'] - 0.005
    assert forms['qat_ranges_stay', 'tflite_int8'] < 0.2
    return
  if 'emnist_dp' in command:
    table = pd.read_csv(run / 'comparison.csv')
    assert table['mean'].min() > 0.85
    assert 0 < table['epsilon'].min() <= 8
    run = run / 'runs' / 'dp_fed_avg_seed0'
  assert (run / 'model' / '1' / 'saved_model.pb').is_file()
