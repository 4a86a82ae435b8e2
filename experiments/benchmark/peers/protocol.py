"""What the benchmark says to a measured process, and how it answers.

Standard library and NumPy only: it runs in every peer's environment. Lines come
on standard input: `rounds N` runs N rounds, `save PATH` writes the weights, the
end of the input ends the process. Each is answered by one line of JSON on what
was standard output; whatever else is printed goes to standard error. Between
commands the process blocks, so that it costs no time.
"""

import json
import os
import sys
import time

import numpy as np


def private_stdout():
  """Returns standard output as a file; from now on prints go to stderr."""
  out = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  return out


class Server:
  """The measured process's side."""

  def __init__(self, out, weights, followers=(), facts=None):
    """Takes commands once `rounds` is iterated.

    Args:
      out: Where answers go, of `private_stdout`.
      weights: Returns the global weights as arrays in the order of the Keras
        model, in TensorFlow's layout; None in a follower.
      followers: Processes of the same arm whose `stdin` gets each `rounds`.
      facts: A dict that is part of the answer to each `rounds`.
    """
    self._weights = weights
    self._followers = followers
    self._out = out
    self._facts = facts or {}

  def rounds(self):
    """Yields once per round to be done; the time until the next is a round's.

    The generator ends when the parent closes the input.
    """
    for line in sys.stdin:
      command, _, argument = line.strip().partition(' ')
      if command == 'rounds':
        for follower in self._followers:
          follower.stdin.write(line)
          follower.stdin.flush()
        seconds = []
        for _ in range(int(argument)):
          start = time.perf_counter()
          yield
          seconds.append(time.perf_counter() - start)
        self._say({'seconds': seconds, **self._facts})
      elif command == 'save':
        arrays = [np.asarray(array) for array in self._weights()]
        np.savez(argument, *arrays)
        self._say({'saved': argument})
    for follower in self._followers:
      follower.stdin.close()
      follower.wait()

  def _say(self, answer):
    self._out.write(json.dumps(answer) + '\n')
    self._out.flush()


def load_job(path):
  """Reads what the harness wrote for a peer.

  Returns:
    The workload's attributes as a dict, x [clients, examples, ...],
    y [clients, examples], and the initial weights in TensorFlow's layout.
  """
  with np.load(path) as file:
    job = json.loads(str(file['job']))
    count = sum(name.startswith('weight_') for name in file.files)
    weights = [file[f'weight_{i}'] for i in range(count)]
    return job, file['x'], file['y'], weights
