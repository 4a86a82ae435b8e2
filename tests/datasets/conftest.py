"""What the data tests share: a loopback server and a small EMNIST database."""

import base64
import hashlib
import http.server
import lzma
import sqlite3
import threading

import numpy as np
import pytest
import tensorflow as tf

from datasets import download


class LoopbackServer:
  """Serves one content under any path, as told by the attributes.

  Attributes:
    content: The whole content.
    mode: 'whole'; 'cut' closes the connection half-way; 'short' announces and
      sends half, as a broken proxy does; 'corrupt' changes one byte.
    send_md5: Whether to send the whole content's MD5 as Google's storage does.
    requests: How many came.
  """

  def __init__(self):
    self.content, self.mode, self.send_md5, self.requests = (
      b'',
      'whole',
      False,
      0,
    )
    owner = self

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_GET(self):
        owner.requests += 1
        body, half = owner.content, len(owner.content) // 2
        if owner.mode == 'corrupt':
          body = body[:half] + bytes([body[half] ^ 0xFF]) + body[half + 1 :]
        announced = half if owner.mode == 'short' else len(body)
        self.send_response(200)
        self.send_header('Content-Length', str(announced))
        if owner.send_md5:
          md5 = hashlib.md5(owner.content).digest()
          value = f'crc32c=AAAAAA==,md5={base64.b64encode(md5).decode()}'
          self.send_header('x-goog-hash', value)
        self.end_headers()
        self.wfile.write(
          body[:half] if owner.mode in ('cut', 'short') else body
        )

      def log_message(self, *_):
        pass

    self.server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    self.thread = threading.Thread(
      target=self.server.serve_forever, args=(0.01,)
    )
    self.thread.start()

  def url(self, name: str) -> str:
    return f'http://127.0.0.1:{self.server.server_address[1]}/{name}'

  def close(self):
    self.server.shutdown()
    self.thread.join()
    self.server.server_close()


@pytest.fixture
def server():
  server = LoopbackServer()
  yield server
  server.close()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
  """Keeps every test away from the user's cache and label files."""
  cache = tmp_path_factory.mktemp('cache')
  monkeypatch.setenv(download.CACHE_VARIABLE, str(cache))
  monkeypatch.delenv('TFF_RESEARCH_QMNIST_DIR', raising=False)
  return cache


# Examples by split, client and label; clients are not stored in order.
EMNIST_EXAMPLES = {
  'digits_only_train': {'f0002_01': [3, 1, 4], 'f0001_00': [1, 5]},
  'digits_only_test': {'f0002_01': [9], 'f0001_00': [2]},
  'all_train': {'f0002_01': [3, 61, 1, 4], 'f0001_00': [1, 5], 'f0003_9': [36]},
  'all_test': {'f0002_01': [9], 'f0001_00': [2], 'f0003_9': [10, 35]},
}
EMNIST_COUNTS = {'digits_only': (2, 5, 2), 'all': (3, 7, 4)}


def emnist_pixels(client: str, label: int) -> np.ndarray:
  rng = np.random.default_rng([label, *client.encode()])
  return rng.random((28, 28), np.float32)


def write_emnist(path, examples):
  """Writes a database of the form that TFF publishes."""
  connection = sqlite3.connect(path)
  connection.execute(
    'CREATE TABLE examples (split_name TEXT, client_id TEXT, '
    'serialized_example_proto BLOB)'
  )
  connection.execute(
    'CREATE TABLE client_metadata (client_id TEXT, split_name TEXT, '
    'num_examples INTEGER)'
  )
  for split, clients in examples.items():
    for client, labels in clients.items():
      connection.execute(
        'INSERT INTO client_metadata VALUES (?, ?, ?)',
        (client, split, len(labels)),
      )
      for label in labels:
        pixels = emnist_pixels(client, label).ravel().tolist()
        example = tf.train.Example()
        example.features.feature['pixels'].float_list.value.extend(pixels)
        example.features.feature['label'].int64_list.value.append(label)
        connection.execute(
          'INSERT INTO examples VALUES (?, ?, ?)',
          (split, client, example.SerializeToString()),
        )
  connection.commit()
  connection.close()


@pytest.fixture(scope='session')
def emnist_file(tmp_path_factory):
  path = tmp_path_factory.mktemp('emnist') / 'emnist_all.sqlite'
  write_emnist(path, EMNIST_EXAMPLES)
  return path


@pytest.fixture(scope='session')
def emnist_lzma(emnist_file):
  return lzma.compress(emnist_file.read_bytes(), format=lzma.FORMAT_ALONE)
