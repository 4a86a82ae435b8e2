"""Runs a WSGI application behind waitress until it is told to end."""

import json
import signal
import socket
import time
from collections.abc import Callable

import waitress
from waitress import channel, task, wasyncore

# Bytes of a request that are read so that its sender gets an answer, in units
# of the limit of the application.
_READ = 4
_MOST_CONNECTIONS = 100
_MOST_HEADER_BYTES = 16 * 2**10
# Seconds for a request that is slow to come, and for the last answers to go.
_IDLE_SECONDS = 30
_GRACE_SECONDS = 10
_POLL_SECONDS = 0.5


class _JsonErrorTask(task.ErrorTask):
  """Answers what is no request of HTTP, or far too large, in JSON."""

  def execute(self):
    error = self.request.error
    body = json.dumps({'error': f'{error.reason}: {error.body}'}).encode()
    self.status = f'{error.code} {error.reason}'
    self.response_headers.append(('Content-Type', 'application/json'))
    self.set_close_on_finish()
    self.content_length = len(body)
    self.write(body)


class _Channel(channel.HTTPChannel):
  error_task_class = _JsonErrorTask


def serve(
  application: Callable,
  host: str,
  port: int,
  body_bytes: int,
  threads: int,
  started: Callable[[str], None],
) -> None:
  """Serves until SIGTERM or SIGINT; requests in work are answered before.

  Args:
    application: A WSGI application, safe to call from several threads.
    host: The address to listen at.
    port: The port; 0 is any free one.
    body_bytes: What the application takes at most. Larger bodies reach it, so
      that it can say so, up to four times this size.
    threads: Requests that are worked on at a time.
    started: Called with the server's URL once it listens.

  Raises:
    OSError: If the address or the port can't be had.
  """
  family = socket.AF_INET6 if ':' in host else socket.AF_INET
  listener = socket.create_server((host, port), family=family)
  sockets = {}
  server = waitress.create_server(
    application,
    map=sockets,
    sockets=[listener],
    threads=threads,
    max_request_body_size=_READ * body_bytes,
    max_request_header_size=_MOST_HEADER_BYTES,
    connection_limit=_MOST_CONNECTIONS,
    channel_timeout=_IDLE_SECONDS,
    ident=None,
  )
  server.channel_class = _Channel
  stops = []
  before = {
    number: signal.signal(number, lambda *_: stops.append(True))
    for number in (signal.SIGTERM, signal.SIGINT)
  }
  try:
    shown = f'[{host}]' if family == socket.AF_INET6 else host
    started(f'http://{shown}:{listener.getsockname()[1]}')
    while not stops:
      wasyncore.loop(timeout=_POLL_SECONDS, map=sockets, count=1)
    _drain(server, sockets)
  finally:
    server.task_dispatcher.shutdown()
    server.close()
    wasyncore.close_all(sockets)
    for number, handler in before.items():
      signal.signal(number, handler)


def _drain(server, sockets: dict) -> None:
  """Accepts nothing new, and lets the answers in work go out."""
  server.accepting = False
  server.del_channel()
  server.socket.close()
  end = time.monotonic() + _GRACE_SECONDS
  while time.monotonic() < end and any(
    isinstance(each, channel.HTTPChannel)
    and (each.requests or each.total_outbufs_len)
    for each in sockets.values()
  ):
    wasyncore.loop(timeout=_POLL_SECONDS / 5, map=sockets, count=1)
