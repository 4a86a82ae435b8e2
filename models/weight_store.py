"""Weights in files that are named by their content.

A graph that holds large weights as constants is copied wherever it goes: to
TFF's compiler, to its worker, into each trace. A variable that is made here
reads its initial value from a file instead, and weights that are never trained
need not be part of what a server sends or a checkpoint keeps.
"""

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from datasets import download


class WeightStore:
  """A folder of weights; a file never changes."""

  def __init__(self, directory: str | os.PathLike | None = None):
    """Describes a folder; nothing is touched yet.

    Args:
      directory: The folder; None is one in the cache directory.
    """
    if directory is None:
      directory = download.cache_directory() / 'weights'
    self._directory = pathlib.Path(directory).absolute()

  def put(self, array: np.ndarray) -> pathlib.Path:
    """Stores an array once.

    Args:
      array: Of any shape; stored as float32.

    Returns:
      The file, whose name is the SHA-256 of its bytes.
    """
    content = np.ascontiguousarray(array, '<f4').tobytes()
    digest = hashlib.sha256(content).hexdigest()
    path = self._directory / f'{digest}.f32'
    if not path.exists() or download.file_hash(path) != digest:
      self._directory.mkdir(parents=True, exist_ok=True)
      with download.atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return path


@contextlib.contextmanager
def creation_order() -> Iterator[list[tf.Variable]]:
  """Collects the weights that are made in a `with` block, in their order.

  Variables of integers are counters of Keras.
  """
  made = []

  def remember(next_creator, **kwargs):
    variable = next_creator(**kwargs)
    if variable.dtype.is_floating:
      made.append(variable)
    return variable

  with tf.variable_creator_scope(remember):
    yield made


@contextlib.contextmanager
def initial_values(
  files: Sequence[pathlib.Path],
) -> Iterator[None]:
  """Lets the weights that are made in a `with` block start from files.

  Args:
    files: One of `WeightStore.put` for each variable, in the order in which
      they are made.

  Raises:
    ValueError: At the end, if other than so many variables were made.
  """
  waiting = list(files)

  def from_file(next_creator, **kwargs):
    if not tf.as_dtype(kwargs.get('dtype') or tf.float32).is_floating:
      return next_creator(**kwargs)
    if not waiting:
      raise ValueError(f'More than {len(files)} variables are made.')
    path, shape = os.fspath(waiting.pop(0)), kwargs['shape']

    def read():
      raw = tf.io.decode_raw(tf.io.read_file(path), tf.float32)
      return tf.reshape(raw, shape)

    return next_creator(**{**kwargs, 'initial_value': read})

  with tf.variable_creator_scope(from_file):
    yield
  if waiting:
    raise ValueError(
      f'{len(files) - len(waiting)} variables are made, not {len(files)}.'
    )
