"""A server of `experiments.serve` as a process of its own, always ended."""

import contextlib
import json
import queue
import re
import subprocess
import threading
import urllib.error
import urllib.request

from tests.experiments import binary

_START_SECONDS = 120
_END_SECONDS = 30


class Server:
  """A running server.

  Attributes:
    process: Its process.
    url: Where it listens.
  """

  def __init__(self, process, url):
    self.process = process
    self.url = url

  def request(self, path, body=None):
    """Gives the status and the JSON of the answer."""
    if body is not None and not isinstance(body, bytes):
      body = json.dumps(body).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
      with opener.open(self.url + path, body, timeout=60) as answer:
        return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
      return error.code, json.load(error)


@contextlib.contextmanager
def running(run_dir, *flags, **variables):
  """Serves a run on a free port."""
  process = subprocess.Popen(
    binary.command('serve', f'--run_dir={run_dir}', '--port=0', *flags),
    cwd=binary.ROOT,
    env=binary.environment(**variables),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  lines = queue.Queue()

  def read():
    for line in process.stdout:
      lines.put(line)
    lines.put(None)

  reader = threading.Thread(target=read)
  reader.start()
  try:
    seen = []
    while not (url := re.search(r' at (http://\S+)', ''.join(seen))):
      line = lines.get(timeout=_START_SECONDS)
      assert line is not None, ''.join(seen)
      seen.append(line)
    yield Server(process, url[1])
  finally:
    process.terminate()
    try:
      process.wait(_END_SECONDS)
    finally:
      process.kill()
      process.wait()
      reader.join()
      process.stdout.close()
