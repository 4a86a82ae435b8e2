"""Loads a server on this machine with requests, within bounds."""

import collections
import dataclasses
import http.client
import ipaddress
import itertools
import socket
import threading
import time
import urllib.parse

import numpy as np

_TIMEOUT_SECONDS = 30


@dataclasses.dataclass(frozen=True)
class Load:
  """How much is asked; what ends first, ends it.

  Attributes:
    requests: At most.
    seconds: After these no request is sent.
    concurrency: Connections, each with one request at a time.
  """

  requests: int
  seconds: float
  concurrency: int


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What came of it.

  Attributes:
    seconds: From the first request to the last answer.
    latencies: Of the answers with status 200, in seconds, float64 [answers].
    errors: Other statuses, and exceptions by name, with how often they came.
  """

  seconds: float
  latencies: np.ndarray
  errors: dict[str, int]

  def summary(self, batch_size: int = 1) -> str:
    """In words, with milliseconds."""
    answers, errors = len(self.latencies), sum(self.errors.values())
    parts = [f'{answers} answers in {self.seconds:.2f} s']
    if answers:
      p50, p99 = np.percentile(self.latencies, [50, 99]) * 1000
      rate = answers / self.seconds
      parts.append(
        f'{rate:.1f} requests/s ({rate * batch_size:.1f} examples/s)'
      )
      parts.append(f'p50 {p50:.2f} ms, p99 {p99:.2f} ms')
    shown = ', '.join(f'{name}: {n}' for name, n in self.errors.items())
    parts.append(f'{errors} errors' + (f' ({shown})' if shown else ''))
    return '; '.join(parts)


def run(url: str, body: bytes, load: Load) -> Outcome:
  """Sends the same request again and again.

  Args:
    url: Of a server on this machine.
    body: What is posted.
    load: How much.

  Returns:
    The latencies and the errors.

  Raises:
    ValueError: If the URL is not one of http on a loopback address.
  """
  target = check_loopback(url)
  numbers, lock = itertools.count(), threading.Lock()
  latencies, errors = [], collections.Counter()
  begin = time.perf_counter()
  end = begin + load.seconds

  def work():
    connection = None
    # A count is one step of the interpreter, and so has no number twice.
    while next(numbers) < load.requests and time.perf_counter() < end:
      start = time.perf_counter()
      try:
        if connection is None:
          connection = http.client.HTTPConnection(
            target.hostname, target.port or 80, timeout=_TIMEOUT_SECONDS
          )
        connection.request('POST', target.path, body)
        response = connection.getresponse()
        response.read()
        failed = None if response.status == 200 else str(response.status)
      except (OSError, http.client.HTTPException) as error:
        failed, connection = type(error).__name__, None
      with lock:
        if failed:
          errors[failed] += 1
        else:
          latencies.append(time.perf_counter() - start)
    if connection is not None:
      connection.close()

  threads = [threading.Thread(target=work) for _ in range(load.concurrency)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  seconds = time.perf_counter() - begin
  return Outcome(seconds, np.array(latencies), dict(errors))


def check_loopback(url: str) -> urllib.parse.SplitResult:
  """Splits a URL.

  Raises:
    ValueError: If it is not one of http on a loopback address.
  """
  target = urllib.parse.urlsplit(url)
  if target.scheme != 'http' or not target.hostname:
    raise ValueError(f'{url!r} is not the URL of an HTTP server')
  found = {
    entry[4][0] for entry in socket.getaddrinfo(target.hostname, target.port)
  }
  if not all(ipaddress.ip_address(each).is_loopback for each in found):
    raise ValueError(
      f'{target.hostname} is not this machine: load is for 127.0.0.1 and ::1'
    )
  return target
