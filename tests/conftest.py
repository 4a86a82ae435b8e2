"""Settings that every test shares: quiet TensorFlow, no network by accident."""

import os

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('CUDA_VISIBLE_DEVICES', '-1')
os.environ.setdefault('MPLBACKEND', 'Agg')

import pytest  # noqa: E402  (TensorFlow reads the variables above at import)


@pytest.fixture(scope='module')
def stock_runtime():
  """A started stock runtime; its worker ends with the module."""
  from research.runtime import stock

  with stock.StockRuntime() as runtime:
    yield runtime
