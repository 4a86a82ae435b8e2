"""experiments/serve.py: a real server on a free port of this machine."""

import concurrent.futures
import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse

import numpy as np
import pytest
import tensorflow as tf

from tests.experiments import binary, server
from tests.research.export import conftest as export_conftest
from tests.research.serving import conftest as serving_conftest

PREDICT = '/v1/models/first:predict'
LIMITS = ('--max_body_bytes=100000', '--max_batch_size=16')


@pytest.fixture(scope='module')
def run_dir(tmp_path_factory):
  """All that a server needs of a run."""
  directory = tmp_path_factory.mktemp('runs') / 'first'
  serving_conftest.export(
    export_conftest.make_task(), directory / 'model' / '1'
  )
  return directory


@pytest.fixture(scope='module')
def serving(run_dir):
  with server.running(run_dir, *LIMITS) as running:
    yield running


@pytest.fixture(scope='module')
def direct(run_dir):
  return tf.saved_model.load(str(run_dir / 'model' / '1')).signatures


def images(batch, seed=0):
  shape = [batch, 8, 8, 1]
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_answers_are_those_of_the_saved_model(serving, direct):
  image = images(16)
  status, answer = serving.request(PREDICT, {'instances': image.tolist()})
  assert status == 200
  expected = direct['serving_default'](image=tf.constant(image))
  for name, value in expected.items():
    found = np.array([row[name] for row in answer['predictions']])
    np.testing.assert_array_equal(found.astype(value.dtype.name), value)
  examples = [{'image': each.ravel().tolist()} for each in image]
  status, answer = serving.request(
    '/v1/models/first/versions/1:classify',
    {'signature_name': 'classify', 'examples': examples},
  )
  assert status == 200
  scores = [[score for _, score in row] for row in answer['results']]
  np.testing.assert_array_equal(np.float32(scores), expected['probabilities'])


def test_status_and_page(serving):
  status, answer = serving.request('/v1/models/first')
  assert status == 200
  assert answer['model_version_status'][0]['state'] == 'AVAILABLE'
  parts = urllib.parse.urlsplit(serving.url)
  connection = http.client.HTTPConnection(parts.hostname, parts.port)
  connection.request('GET', '/')
  page = connection.getresponse()
  assert page.status == 200
  assert page.headers['Content-Type'].startswith('text/html')
  assert "default-src 'none'" in page.headers['Content-Security-Policy']
  text = page.read().decode()
  connection.close()
  assert 'http://' not in text and 'https://' not in text


def test_many_ask_at_once(serving, direct):
  """Each gets the answer to its own question."""
  batches = [images(2, seed) for seed in range(24)]

  def ask(image):
    return serving.request(PREDICT, {'instances': image.tolist()})

  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    answers = list(pool.map(ask, batches))
  for image, (status, answer) in zip(batches, answers, strict=True):
    assert status == 200
    expected = direct['serving_default'](image=tf.constant(image))['logits']
    found = [row['logits'] for row in answer['predictions']]
    np.testing.assert_array_equal(np.float32(found), expected)


@pytest.mark.parametrize(
  'body, status, message',
  [
    (b'{"instances": [', 400, 'JSON Parse error'),
    (b'\xff', 400, 'JSON Parse error'),
    (b'[' * 50_000, 400, 'JSON Parse error'),
    ({'instances': [[[0]]]}, 400, 'must be of shape'),
    ({'instances': images(17).tolist()}, 400, '17 examples'),
    ({'signature_name': '汉', 'instances': [0]}, 400, '"汉" not found'),
    (b' ' * 100_001, 413, 'larger than 100000 bytes'),
    (b' ' * 20_000_000, 413, 'larger than 100000 bytes'),
  ],
)
def test_errors_are_json(serving, body, status, message):
  found, answer = serving.request(PREDICT, body)
  assert (found, list(answer)) == (status, ['error'])
  assert message in answer['error']


def raw(serving, text):
  """Sends bytes that are no good request; gives what comes back."""
  parts = urllib.parse.urlsplit(serving.url)
  address = (parts.hostname, parts.port)
  with socket.create_connection(address, timeout=30) as connection:
    connection.sendall(text)
    answer = b''
    while part := connection.recv(65536):
      answer += part
  return answer


@pytest.mark.parametrize(
  'text, status',
  [
    (b'garbage\r\n\r\n', b'400'),
    (b'GET / HTTP/1.1\r\nX: ' + b'x' * 20_000 + b'\r\n\r\n', b'431'),
  ],
)
def test_what_is_no_http_is_refused_in_json(serving, text, status):
  head, _, body = raw(serving, text).partition(b'\r\n\r\n')
  assert head.split()[1] == status
  assert list(json.loads(body)) == ['error']
  assert serving.request('/v1/models/first')[0] == 200


def test_only_the_saved_model_is_loaded(run_dir, tmp_path):
  """Nothing of what trains; nothing that could run what a request brings."""
  program = """
import sys
from absl import flags
from experiments import serve
flags.FLAGS(['serve', f'--run_dir={sys.argv[1]}'])
serve.load()
names = {name for name in sys.modules if name.split('.')[0] in
         ('research', 'models', 'datasets', 'tensorflow_federated')}
print(sorted(n for n in names if not n.startswith('research.serving')))
"""
  result = subprocess.run(
    [sys.executable, '-c', program, str(run_dir)],
    cwd=binary.ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  # The package `datasets` alone keeps TensorFlow's start quiet.
  assert result.stdout.splitlines()[-1] == "['datasets', 'research']"


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it(run_dir, number):
  with server.running(run_dir) as running:
    assert running.request('/v1/models/first')[0] == 200
    running.process.send_signal(number)
    assert running.process.wait(30) == 0
    with pytest.raises(OSError):
      running.request('/v1/models/first')


def waiting_task(folder):
  """A model that makes the file `begun` and waits for the file `go`."""
  task = export_conftest.make_task()

  def look(turn, _):
    # A name that changes keeps the look in the loop.
    other = tf.strings.join([str(folder), '/', tf.as_string(turn)])
    found = tf.io.matching_files(tf.stack([str(folder / 'go'), other]))
    return turn + 1, tf.size(found)

  def wait(image):
    begun = tf.io.write_file(str(folder / 'begun'), '')
    with tf.control_dependencies([begun]):
      start = tf.constant(0), tf.constant(0)
      _, found = tf.while_loop(lambda _, found: found < 1, look, start)
    return tf.cast(image, tf.float32) / tf.cast(255 * found, tf.float32)

  task.preprocess_features = wait
  return task


def until(condition, seconds=60):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.05)


def test_a_request_in_work_is_answered_before_the_end(tmp_path):
  """And new ones are not taken any more."""
  serving_conftest.export(
    waiting_task(tmp_path), tmp_path / 'slow' / 'model' / '1'
  )
  with (
    server.running(tmp_path / 'slow') as running,
    concurrent.futures.ThreadPoolExecutor(1) as pool,
  ):
    body = {'instances': images(1).tolist()}
    answer = pool.submit(running.request, '/v1/models/slow:predict', body)
    until((tmp_path / 'begun').exists)
    running.process.terminate()

    def refuses():
      try:
        running.request('/v1/models/slow')
      except OSError:
        return True
      return False

    until(refuses, 8)
    assert not answer.done() and running.process.poll() is None
    (tmp_path / 'go').touch()
    assert answer.result()[0] == 200
    assert running.process.wait(30) == 0


@pytest.mark.parametrize(
  'change, message',
  [
    (lambda run: shutil.rmtree(run / 'model'), 'has no model'),
    (lambda run: run.rename(run.with_name('a b')), 'give a --model_name'),
  ],
)
def test_what_can_not_be_served_is_one_line(run_dir, tmp_path, change, message):
  shutil.copytree(run_dir, tmp_path / 'run')
  change(tmp_path / 'run')
  (found,) = tmp_path.iterdir()
  result = binary.run('serve', f'--run_dir={found}', '--port=0')
  assert result.returncode == 2
  (line,) = [x for x in result.stderr.splitlines() if x.startswith('error:')]
  assert message in line


def test_a_port_that_is_taken_is_one_line(serving, run_dir):
  port = urllib.parse.urlsplit(serving.url).port
  result = binary.run('serve', f'--run_dir={run_dir}', f'--port={port}')
  assert result.returncode == 2 and 'in use' in result.stderr


def test_load(serving):
  result = binary.run(
    'serve_load',
    f'--url={serving.url}',
    '--model_name=first',
    '--requests=50',
    '--concurrency=4',
    '--batch_size=2',
  )
  assert result.returncode == 0, result.stderr
  line = result.stdout.splitlines()[-1]
  assert line.startswith('50 answers in') and line.endswith('; 0 errors')
  assert 'p99' in line


def test_load_is_for_this_machine_alone():
  result = binary.run(
    'serve_load', '--url=http://192.0.2.1:8501', '--model_name=first'
  )
  assert result.returncode == 2 and 'is not this machine' in result.stderr
