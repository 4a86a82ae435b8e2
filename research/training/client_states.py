"""The states of a run's clients on disk, in step with its checkpoints.

`<directory>/<client>/round_000012.npz` is a client's state after round 12, the
client being its position among the training clients. A round writes the states
of its own clients alone, before its checkpoint: states of later rounds than the
checkpoint that a run goes on from are those of a round that never ended, and
are dropped. A file is there as a whole or not at all.
"""

import io
import pathlib
import re
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from research.training import atomic, fault_injection
from research.training import checkpoint as checkpoint_lib

_ROUND = re.compile(r'round_(\d{6,})\.npz')


class ClientStates:
  """Reads and writes the states of clients; one process may write at a time."""

  def __init__(self, directory: atomic.Path, initial: Any):
    """Describes a directory; nothing is touched yet.

    Args:
      directory: Where the files lie; made by the first `write`.
      initial: The state of a client that was never asked: nested arrays.
    """
    self._directory = pathlib.Path(directory)
    self._initial = initial

  def _folder(self, client: int) -> pathlib.Path:
    return self._directory / f'{client:06d}'

  def rounds(self, client: int) -> list[int]:
    """The rounds after which a client's state is there, oldest first."""
    return _rounds(self._folder(client))

  def clients(self) -> list[int]:
    """The clients that have a state."""
    if not self._directory.is_dir():
      return []
    names = (path.name for path in self._directory.iterdir())
    return sorted(int(name) for name in names if name.isdigit())

  def read(self, client: int) -> Any:
    """The newest state of a client.

    Args:
      client: Its position among the training clients.

    Returns:
      It; the initial one if the client was never asked.

    Raises:
      ValueError: If its file holds something else.
    """
    rounds = self.rounds(client)
    if not rounds:
      return self._initial
    path = _path(self._folder(client), rounds[-1])
    try:
      leaves = checkpoint_lib.read_arrays(path)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
      raise ValueError(f'{path} is no state of a client ({error}).') from error
    shapes = [leaf.shape for leaf in leaves]
    expected = [np.shape(leaf) for leaf in tf.nest.flatten(self._initial)]
    if shapes != expected:
      raise ValueError(
        f'{path} has leaves of shapes {shapes}; this model has {expected}.'
      )
    return tf.nest.pack_sequence_as(self._initial, leaves)

  def write(
    self,
    round_num: int,
    states: Mapping[int, Any],
    checkpoints: Sequence[int],
  ) -> None:
    """Writes the states of a round's clients, and drops what none needs.

    Args:
      round_num: The round that made them.
      states: By client, in the form of the initial one.
      checkpoints: The rounds that a run can still go on from; of each, a client
        keeps its newest state until then.
    """
    for client, state in states.items():
      folder = self._folder(client)
      folder.mkdir(parents=True, exist_ok=True)
      leaves = [np.asarray(leaf) for leaf in tf.nest.flatten(state)]
      buffer = io.BytesIO()
      checkpoint_lib.write_arrays(buffer, leaves)
      atomic.write_bytes(_path(folder, round_num), buffer.getvalue())
      fault_injection.reached('client_state')
      rounds = _rounds(folder)
      needed = {round_num}
      for checkpoint in checkpoints:
        needed |= {max((r for r in rounds if r <= checkpoint), default=None)}
      for old in set(rounds) - needed:
        _path(folder, old).unlink()

  def go_back_to(self, round_num: int) -> None:
    """Drops the states of later rounds, and what a killed process left."""
    atomic.remove_leftovers(self._directory)
    for client in self.clients():
      for later in self.rounds(client):
        if later > round_num:
          _path(self._folder(client), later).unlink()


def _path(folder: pathlib.Path, round_num: int) -> pathlib.Path:
  return folder / f'round_{round_num:06d}.npz'


def _rounds(folder: pathlib.Path) -> list[int]:
  if not folder.is_dir():
    return []
  matches = [_ROUND.fullmatch(path.name) for path in folder.iterdir()]
  return sorted(int(match[1]) for match in matches if match)
