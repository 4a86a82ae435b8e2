"""Runs a WSGI application behind waitress until it is told to end."""

import json
import logging
import signal
import socket
import time
from collections.abc import Callable

import waitress
from waitress import channel, task, utilities, wasyncore

_MOST_CONNECTIONS = 100
_MOST_HEADER_BYTES = 16 * 2**10
# Seconds for a request that is slow to come, for the last answers to go, and
# for the rest of a request that was refused.
_IDLE_SECONDS = 30
_GRACE_SECONDS = 10
_LINGER_SECONDS = 5
_POLL_SECONDS = 0.5


class _JsonErrorTask(task.ErrorTask):
  """Answers in JSON what is no request of HTTP, or is too large."""

  def execute(self):
    error, limit = self.request.error, self.channel.adj.max_request_body_size
    told = f'{error.reason}: {error.body}'
    if isinstance(error, utilities.RequestEntityTooLarge):
      told = f'the body is larger than {limit - 1} bytes'
    body = json.dumps({'error': told}).encode()
    self.status = f'{error.code} {error.reason}'
    self.response_headers.append(('Content-Type', 'application/json'))
    self.set_close_on_finish()
    self.channel.lingers = True
    self.content_length = len(body)
    self.write(body)


class _Channel(channel.HTTPChannel):
  """A connection whose sender gets the answer to a request that was refused.

  Closed with bytes unread, a connection is reset, and what was sent before is
  lost with it: here the rest of the request is read and thrown away.

  Attributes:
    lingers: Whether a request was refused before all of it was read.
  """

  error_task_class = _JsonErrorTask
  lingers = False
  _end: float | None = None

  def handle_close(self):
    if not (self.lingers and self.connected) or self._end is not None:
      super().handle_close()
      return
    self._end = time.monotonic() + _LINGER_SECONDS
    self.will_close = False
    try:
      self.socket.shutdown(socket.SHUT_WR)
    except OSError:
      super().handle_close()

  def readable(self):
    if self._end is None:
      return super().readable()
    if time.monotonic() >= self._end:
      self.handle_close()
    return self.connected

  def writable(self):
    return self._end is None and super().writable()

  def handle_read(self):
    if self._end is None:
      super().handle_read()
      return
    try:
      self.recv(self.adj.recv_bytes)
    except OSError:
      self.handle_close()


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
    body_bytes: Size of a request's body at most; larger ones are refused with
      the status 413 before they are read.
    threads: Requests that are worked on at a time.
    started: Called with the server's URL once it listens.

  Raises:
    OSError: If the address or the port can't be had.
  """
  # It warns of each request that waits for a thread.
  logging.getLogger('waitress.queue').setLevel(logging.ERROR)
  family = socket.AF_INET6 if ':' in host else socket.AF_INET
  listener = socket.create_server((host, port), family=family)
  sockets = {}
  server = waitress.create_server(
    application,
    map=sockets,
    sockets=[listener],
    threads=threads,
    max_request_body_size=body_bytes + 1,
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
