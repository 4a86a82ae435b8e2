"""Checkpoints that are complete, checked by hash, or not there.

One directory per round, `round_000012/`, holds `state.npz` (the leaves of the
state, readable by `numpy.load`) and `manifest.json` (round, kinds of the
leaves, the caller's extra values and the SHA-256 of both files). It is built
under a temporary name and renamed. The same state gives the same bytes.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from absl import logging

from research.training import atomic, fault_injection

_reached = fault_injection.reached

_STATE = 'state.npz'
_MANIFEST = 'manifest.json'
_ROUND = re.compile(r'round_(\d{6,})')
# A zip member stores its time of writing: without a fixed one, equal states
# would give different bytes.
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)

Leaf = np.ndarray | np.generic | bool | int | float | str | bytes


class CorruptCheckpointError(ValueError):
  """A checkpoint is torn or does not match its hashes."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """What one checkpoint holds.

  Attributes:
    round_num: The number of rounds that had been done.
    leaves: The leaves of the state with the types and dtypes they were saved
      with.
    extra: The caller's JSON values.
  """

  round_num: int
  leaves: list[Leaf]
  extra: dict[str, Any]


class CheckpointManager:
  """Saves and restores the checkpoints of one run.

  Reading needs no lock and changes nothing on disk. Only one process at a time
  may save.
  """

  def __init__(self, directory: atomic.Path, keep: int = 3):
    """Describes the checkpoints in a directory; nothing is touched yet.

    Args:
      directory: Where the checkpoints lie; made by the first `save`.
      keep: How many of the newest checkpoints to keep.

    Raises:
      ValueError: If `keep` is less than 1.
    """
    if keep < 1:
      raise ValueError(f'keep={keep}: at least 1 checkpoint must be kept')
    self._directory = pathlib.Path(directory)
    self._keep = keep
    self._skipped: set[int] = set()
    self._is_clean = False

  def rounds(self) -> list[int]:
    """The rounds that have a checkpoint, oldest first; none is opened."""
    if not self._directory.is_dir():
      return []
    matches = [
      _ROUND.fullmatch(path.name) for path in self._directory.iterdir()
    ]
    return sorted(int(match[1]) for match in matches if match)

  def path(self, round_num: int) -> pathlib.Path:
    """The directory of the checkpoint of a round."""
    return self._directory / f'round_{round_num:06d}'

  def save(
    self,
    round_num: int,
    leaves: Sequence[Leaf],
    extra: Mapping[str, Any] | None = None,
  ) -> pathlib.Path:
    """Saves a state, then removes what is older than the newest `keep`.

    Saving the same state of the same round again does nothing.

    Args:
      round_num: The number of rounds that have been done, at least 0.
      leaves: The leaves of the state: arrays and scalars of any numeric, bool,
        bytes (S) or string (U) dtype, Python scalars, str and bytes.
      extra: Values that JSON can hold, with text as keys, given back by
        `load_latest`.

    Returns:
      The directory of the checkpoint.

    Raises:
      TypeError: If a leaf can't be stored exactly, or `extra` is not JSON.
      ValueError: If this round, or a later one, has a good checkpoint that
        differs.
    """
    path = self.path(round_num)
    encoded = [_encode(leaf) for leaf in leaves]
    extra = json.loads(json.dumps(dict(extra or {})))
    if not self._is_clean:
      atomic.remove_leftovers(self._directory)
      self._is_clean = True
    later = {r for r in self.rounds() if r >= round_num} - self._skipped
    if later == {round_num} and self._holds(round_num, encoded, extra):
      return path
    if later:
      raise ValueError(
        f'round {round_num} is to be saved in {self._directory}, which holds '
        f'another state of round {max(later)}: call load_latest first and go '
        'on from there, or choose another directory'
      )
    with atomic.new_directory(path) as temporary:
      with open(temporary / _STATE, 'wb') as file:
        write_arrays(file, [array for array, _ in encoded], _half_written(file))
      manifest = {
        'round': round_num,
        'leaves': [kind for _, kind in encoded],
        'extra': extra,
        'state_sha256': _file_sha256(temporary / _STATE),
      }
      manifest['sha256'] = _manifest_sha256(manifest)
      atomic.write_json(temporary / _MANIFEST, manifest)
      _reached('checkpoint_rename')
    self._prune(round_num)
    return path

  def load_latest(self) -> Checkpoint | None:
    """Loads the newest checkpoint that is complete and matches its hashes.

    Every newer one that is not is named in a warning, and the one before it
    is tried.

    Returns:
      The checkpoint, or None when there is no good one.
    """
    for round_num in reversed(self.rounds()):
      try:
        return self._load(round_num)
      except (CorruptCheckpointError, FileNotFoundError) as error:
        self._skipped.add(round_num)
        logging.warning('Skipped checkpoint %s', error)
    if self._skipped:
      logging.warning(
        'No checkpoint in %s is usable: starting at round 0', self._directory
      )
    return None

  def _load(self, round_num: int) -> Checkpoint:
    path = self.path(round_num)
    manifest = _read_manifest(path / _MANIFEST)
    if manifest['round'] != round_num:
      raise CorruptCheckpointError(
        f'{path}: its manifest is that of round {manifest["round"]}'
      )
    state = path / _STATE
    if _file_sha256(state) != manifest['state_sha256']:
      raise CorruptCheckpointError(
        f'{state}: its SHA-256 is not the one in the manifest'
      )
    arrays = read_arrays(state)
    leaves = list(map(_decode, arrays, manifest['leaves']))
    return Checkpoint(round_num, leaves, manifest['extra'])

  def _holds(
    self, round_num: int, encoded: Sequence['_Encoded'], extra: Mapping
  ) -> bool:
    saved = self._load(round_num)
    before = [_encode(leaf) for leaf in saved.leaves]
    return json.dumps(saved.extra) == json.dumps(extra) and _contents(
      before
    ) == _contents(encoded)

  def _prune(self, saved_round: int) -> None:
    # What was found corrupt counts for nothing: it goes first, so that it
    # never pushes out a good one.
    rounds = self.rounds()
    good = [r for r in rounds if r not in self._skipped - {saved_round}]
    for round_num in set(rounds) - set(good[-self._keep :]):
      atomic.remove_directory(self.path(round_num))
    self._skipped.clear()


_Encoded = tuple[np.ndarray, str]


def _encode(leaf: Leaf) -> _Encoded:
  """Turns a leaf into an array that npy stores exactly, and its kind."""
  # NumPy drops the zero bytes at the end of a bytes or str value.
  if isinstance(leaf, bytes):
    return np.frombuffer(leaf, np.uint8), 'bytes'
  if isinstance(leaf, str):
    return np.frombuffer(leaf.encode('utf-8'), np.uint8), 'str'
  array = np.asarray(leaf, order='C')
  if array.dtype.hasobject or array.dtype.kind == 'V':
    raise TypeError(
      f'a leaf of dtype {array.dtype} can not be saved exactly: give '
      'numbers, bool, bytes (dtype S) or strings (dtype U)'
    )
  # np.float64 is also a Python float, so this comes first.
  if isinstance(leaf, np.generic):
    return array, 'scalar'
  return array, 'python' if isinstance(leaf, bool | int | float) else 'array'


def _decode(array: np.ndarray, kind: str) -> Leaf:
  if kind == 'bytes':
    return array.tobytes()
  if kind == 'str':
    return array.tobytes().decode('utf-8')
  if kind == 'python':
    return array.item()
  return array[()] if kind == 'scalar' else array


def _contents(encoded: Sequence[_Encoded]) -> list[tuple]:
  return [(k, a.dtype.str, a.shape, a.tobytes()) for a, k in encoded]


def _half_written(file: BinaryIO) -> Callable[[], None]:
  def half_written():
    file.flush()
    _reached('checkpoint_write')

  return half_written


def _member(index: int) -> str:
  return f'leaf_{index:05d}'


def write_arrays(
  file: BinaryIO,
  arrays: Sequence[np.ndarray],
  halfway: Callable[[], None] = lambda: None,
) -> None:
  """Writes arrays as an uncompressed .npz whose bytes depend on them alone."""
  with zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as archive:
    for i, array in enumerate(arrays):
      info = zipfile.ZipInfo(f'{_member(i)}.npy', _ZIP_TIME)
      with archive.open(info, 'w', force_zip64=True) as member:
        np.lib.format.write_array(member, array, allow_pickle=False)
      if i == len(arrays) // 2:
        halfway()


def read_arrays(file: atomic.Path | BinaryIO) -> list[np.ndarray]:
  """Reads what `write_arrays` wrote."""
  with np.load(file, allow_pickle=False) as archive:
    return [archive[_member(i)] for i in range(len(archive.files))]


def _file_sha256(path: pathlib.Path) -> str:
  with open(path, 'rb') as file:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
      digest.update(chunk)
  return digest.hexdigest()


def _manifest_sha256(manifest: Mapping[str, Any]) -> str:
  content = {k: v for k, v in manifest.items() if k != 'sha256'}
  return hashlib.sha256(
    json.dumps(content, sort_keys=True).encode('utf-8')
  ).hexdigest()


def _read_manifest(path: pathlib.Path) -> dict[str, Any]:
  try:
    manifest = json.loads(path.read_bytes())
  except ValueError as error:
    raise CorruptCheckpointError(f'{path}: not JSON ({error})') from error
  if not isinstance(manifest, dict) or manifest.get(
    'sha256'
  ) != _manifest_sha256(manifest):
    raise CorruptCheckpointError(f'{path}: its SHA-256 does not match')
  return manifest
