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


@pytest.mark.parametrize('model', ['logistic_regression', 'mcmahan_cnn'])
def test_the_gpu_agrees_with_the_cpu(tmp_path, model):
  rows = {}
  for device in ('cpu', 'gpu'):
    command = [
      *(sys.executable, '-m', 'experiments.emnist'),
      *('--dataset=synthetic_mnist', f'--model={model}', '--total_rounds=3'),
      *(f'--device={device}', '--noexport', f'--root_output_dir={tmp_path}'),
      f'--experiment_name={device}',
    ]
    # The tests hide GPUs from TensorFlow.
    environment = {**os.environ, 'PYTHONPATH': os.getcwd()}
    environment.pop('CUDA_VISIBLE_DEVICES', None)
    subprocess.run(command, env=environment, check=True, timeout=500)
    run = pathlib.Path(tmp_path, device)
    config = json.loads((run / 'config.json').read_text())
    assert config['runtime']['device'] == device
    rows[device] = pd.read_csv(run / 'metrics.csv')
  np.testing.assert_allclose(
    rows['gpu']['train_loss'], rows['cpu']['train_loss'], rtol=1e-3
  )
