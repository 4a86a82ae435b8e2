"""TFF's worker: what it is given, and that it never survives its parent."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import psutil
import tensorflow as tf
import tensorflow_federated as tff

from datasets import federated_data
from research import compat
from research.runtime import stock
from tests import toy


def test_client_data_becomes_the_batches_of_the_split(stock_runtime):
  task = toy.linear_task(toy.random_clients((7,)))
  batches = federated_data.client_batches(
    7, batch_size=3, epochs=2, seed=[1], max_examples=None
  )
  arrays = task.data.train.client('client_0')
  argument = stock_runtime.client_data(task.data.train, 'client_0', batches)
  to_dataset = stock.build_dataset_computation(task)

  @tff.tensorflow.computation(to_dataset.type_signature.parameter)
  def end_to_end(client):
    empty = tf.zeros([0, 3])
    dataset = to_dataset(client)
    features = dataset.map(lambda batch: batch['x'])
    sizes = dataset.map(lambda batch: tf.shape(batch['x'])[:1])
    join = lambda old, new: tf.concat([old, new], axis=0)  # noqa: E731
    return (
      features.reduce(empty, join),
      sizes.reduce(tf.zeros([0], tf.int32), join),
    )

  features, sizes = end_to_end(argument)
  expected = np.concatenate([arrays['x'][batch] for batch in batches])
  np.testing.assert_array_equal(features, expected)
  assert list(sizes) == [3, 3, 1, 3, 3, 1]


def test_leaving_the_runtime_ends_its_worker():
  with stock.StockRuntime():
    before = compat.worker_pids()

    @tff.tensorflow.computation
    def three():
      return np.int32(3)

    assert three() == 3
    (worker,) = set(compat.worker_pids()) - set(before)
    assert psutil.pid_exists(worker)
  assert compat.worker_pids() == []
  assert not psutil.pid_exists(worker)


def test_a_runtime_that_computes_nothing_ends_without_a_word():
  script = 'from research.runtime import stock\nwith stock.StockRuntime(): pass'
  result = subprocess.run(
    [sys.executable, '-W', 'ignore', '-c', script],
    capture_output=True,
    text=True,
  )
  assert (result.returncode, result.stderr) == (0, '')


def test_a_worker_whose_parent_is_gone_never_starts(tmp_path):
  marker = tmp_path / 'started'
  launcher = compat._LAUNCHER
  result = subprocess.run(
    [sys.executable, '-I', '-S', launcher, '1', '/usr/bin/touch', str(marker)]
  )
  assert result.returncode == 1
  assert not marker.exists()


def test_a_launched_process_dies_with_its_parent():
  script = textwrap.dedent(f"""
    import os, subprocess, sys, time
    child = subprocess.Popen(
      [sys.executable, '-I', '-S', {str(compat._LAUNCHER)!r}, str(os.getpid()),
       '/bin/sleep', '60'], stdout=subprocess.DEVNULL)
    print(child.pid, flush=True)
    time.sleep(60)
  """)
  parent = subprocess.Popen(
    [sys.executable, '-c', script], stdout=subprocess.PIPE, text=True
  )
  child = int(parent.stdout.readline())
  deadline = time.monotonic() + 10
  while psutil.Process(child).name() != 'sleep' and time.monotonic() < deadline:
    time.sleep(0.05)
  os.kill(parent.pid, signal.SIGKILL)
  parent.wait()
  while psutil.pid_exists(child) and time.monotonic() < deadline:
    if psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
      break
    time.sleep(0.05)
  assert (
    not psutil.pid_exists(child)
    or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
  )
