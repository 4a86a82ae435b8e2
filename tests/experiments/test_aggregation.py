"""Aggregation by flags, in the binary."""

import pytest

from research.training import metrics
from tests.experiments import binary

FLAGS = (
  *binary.TINY,
  '--aggregator=trimmed_mean',
  '--trimmed_fraction=0.3',
  '--clipping=adaptive',
  '--clip_norm=0.5',
  '--compression=stochastic',
  '--rotation=hadamard',
  '--compression_bits=4',
  '--total_rounds=2',
  '--noexport',
)


def run(directory):
  result = binary.run('emnist', *FLAGS, f'--root_output_dir={directory}')
  assert result.returncode == 0, result.stderr
  return directory / 'emnist' / 'metrics.csv'


@pytest.fixture(scope='module')
def metrics_csv(tmp_path_factory):
  return run(tmp_path_factory.mktemp('first'))


def test_bits_are_columns_of_the_metrics(metrics_csv):
  for row in metrics.read(metrics_csv):
    # 650 weights padded to 1024; two numbers, and the rotation's hash.
    assert row['upload_bits_per_client'] == 4 * 1024 + 3 * 32
    # The model, learning rate and the round's key; the clipping norm twice, to
    # clip and to say whether the update was above it.
    assert row['download_bits_per_client'] == 32 * (650 + 4)
    assert row['rejected_clients'] == 0
    assert row['train_loss'] > 0


@pytest.mark.slow
def test_the_same_flags_give_the_same_bits(metrics_csv, tmp_path):
  assert run(tmp_path).read_bytes() == metrics_csv.read_bytes()
