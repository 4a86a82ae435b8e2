"""A GPU computes what the CPU does; runs where there is one."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

pytestmark = pytest.mark.skipif(
  not os.path.exists('/dev/nvidia0'), reason='no NVIDIA GPU'
)


def train(root, name, *flags, **variables):
  """Trains three rounds; returns the run's directory."""
  command = [
    *(sys.executable, '-m', 'experiments.emnist', '--total_rounds=3'),
    *('--dataset=synthetic_mnist', '--noexport', *flags),
    *(f'--root_output_dir={root}', f'--experiment_name={name}'),
  ]
  environment = {**os.environ, 'PYTHONPATH': os.getcwd(), **variables}
  # The tests hide GPUs from TensorFlow.
  environment.pop('CUDA_VISIBLE_DEVICES', None)
  subprocess.run(command, env=environment, check=True, timeout=500)
  return pathlib.Path(root, name)


@pytest.mark.parametrize('model', ['logistic_regression', 'mcmahan_cnn'])
def test_the_gpu_agrees_with_the_cpu(tmp_path, model):
  rows = {}
  for device in ('cpu', 'gpu'):
    run = train(tmp_path, device, f'--model={model}', f'--device={device}')
    config = json.loads((run / 'config.json').read_text())
    assert config['runtime']['device'] == device
    assert config['runtime']['deterministic'] == (device == 'cpu')
    rows[device] = pd.read_csv(run / 'metrics.csv')
  np.testing.assert_allclose(
    rows['gpu']['train_loss'], rows['cpu']['train_loss'], rtol=1e-3
  )


def test_two_runs_have_the_same_bits_when_they_are_asked_to(tmp_path):
  flags = ('--model=mcmahan_cnn', '--device=gpu')
  first, second = (
    train(tmp_path, name, *flags, TF_DETERMINISTIC_OPS='1') for name in 'ab'
  )
  text = (first / 'metrics.csv').read_text()
  assert text == (second / 'metrics.csv').read_text()


def test_a_rotation_is_undone(tmp_path):
  """Clients draw it in XLA, and the server outside."""
  flags = ('--model=logistic_regression', '--compression=uniform')
  rows = {
    name: pd.read_csv(train(tmp_path, name, *flags, *more) / 'metrics.csv')
    for name, more in (
      ('plain', ()),
      ('rotated', ('--rotation=hadamard',)),
    )
  }
  np.testing.assert_allclose(
    rows['rotated']['train_loss'], rows['plain']['train_loss'], rtol=0.05
  )
