"""The load test counts what a server does."""

import contextlib
import http.server
import threading

import numpy as np
import pytest

from research.serving import load


@contextlib.contextmanager
def server(statuses):
  """Answers with the statuses in turn; yields the URL and the bodies."""
  bodies, lock = [], threading.Lock()

  class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_POST(self):
      with lock:
        status = statuses[len(bodies) % len(statuses)]
        size = int(self.headers['Content-Length'])
        bodies.append(self.rfile.read(size))
      if status is None:
        self.close_connection = True
        return
      self.send_response(status)
      self.send_header('Content-Length', '0')
      self.end_headers()

    def log_message(self, *_):
      pass

  listener = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  thread = threading.Thread(target=listener.serve_forever)
  thread.start()
  try:
    yield f'http://127.0.0.1:{listener.server_port}/x', bodies
  finally:
    listener.shutdown()
    thread.join()
    listener.server_close()


def test_requests_are_bounded_and_counted():
  with server([200, 200, 500, None]) as (url, bodies):
    outcome = load.run(url, b'body', load.Load(40, 60, 3))
  assert bodies == [b'body'] * 40
  assert len(outcome.latencies) == 20
  assert outcome.errors == {'500': 10, 'RemoteDisconnected': 10}
  assert (outcome.latencies > 0).all()


def test_seconds_are_bounded():
  with server([200]) as (url, bodies):
    outcome = load.run(url, b'', load.Load(10**6, 0.2, 2))
  assert 0 < len(bodies) < 10**6
  assert not outcome.errors


def test_the_summary():
  latencies = np.arange(1, 101) / 1000
  outcome = load.Outcome(2.0, latencies, {'503': 2})
  assert outcome.summary(4) == (
    '100 answers in 2.00 s; 50.0 requests/s (200.0 examples/s); '
    'p50 50.50 ms, p99 99.01 ms; 2 errors (503: 2)'
  )
  assert load.Outcome(1.0, np.array([]), {}).summary() == (
    '0 answers in 1.00 s; 0 errors'
  )


@pytest.mark.parametrize(
  'url', ['http://192.0.2.1:80/x', 'https://127.0.0.1/x', '127.0.0.1:80']
)
def test_other_machines_are_refused(url):
  with pytest.raises(ValueError):
    load.run(url, b'', load.Load(1, 1, 1))
