"""Files and directories that appear complete or not at all.

Everything is built under a temporary name beside its target, fsynced and then
renamed. A process that dies on the way leaves only a temporary entry, which
`remove_leftovers` recognises by its name.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

Path = str | os.PathLike[str]

_TEMPORARY = re.compile(r'\..+\.tmp-\d+')


def temporary_path(path: Path) -> pathlib.Path:
  """The temporary name that this process uses while it builds `path`."""
  path = pathlib.Path(path)
  return path.with_name(f'.{path.name}.tmp-{os.getpid()}')


def write_bytes(path: Path, data: bytes) -> None:
  """Replaces the content of the file `path` by `data`."""
  path = pathlib.Path(path)
  temporary = temporary_path(path)
  try:
    with open(temporary, 'wb') as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise
  sync_directory(path.parent)


def write_text(path: Path, text: str) -> None:
  """Replaces the content of the file `path` by `text` in UTF-8."""
  write_bytes(path, text.encode('utf-8'))


def write_json(path: Path, value: Any) -> None:
  """Replaces the content of the file `path` by `value` as indented JSON.

  Args:
    path: The file.
    value: Anything that `json.dumps` takes; the order of keys is kept.

  Raises:
    TypeError: If `value` can't be written as JSON.
  """
  write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + '\n')


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[pathlib.Path]:
  """Builds a directory under a temporary name and renames it at the end.

  Args:
    path: The directory; a directory that is there already is replaced, and a
      reader may for a moment find none.

  Yields:
    The temporary directory to fill. When the body raises it is removed and
    `path` is left as it was.
  """
  path = pathlib.Path(path)
  temporary = temporary_path(path)
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir(parents=True)
  try:
    yield temporary
    for folder, _, names in os.walk(temporary):
      for name in names:
        _sync(os.path.join(folder, name))
      _sync(folder)
    if path.exists():
      remove_directory(path)
    os.rename(temporary, path)
  except BaseException:
    shutil.rmtree(temporary, ignore_errors=True)
    raise
  sync_directory(path.parent)


def remove_directory(path: Path) -> None:
  """Removes a directory so that a half-removed one never bears its name."""
  doomed = temporary_path(str(path) + '.removed')
  shutil.rmtree(doomed, ignore_errors=True)
  os.rename(path, doomed)
  shutil.rmtree(doomed)


def remove_leftovers(directory: Path) -> list[pathlib.Path]:
  """Removes the temporary entries of processes that died, at any depth.

  Only the one process that may write in `directory` may call this: it also
  takes away what another process is writing at the moment.

  Args:
    directory: The directory to clean; it need not exist.

  Returns:
    The paths that were removed.
  """
  removed = []
  for folder, folders, files in os.walk(directory):
    for name in filter(_TEMPORARY.fullmatch, files):
      os.remove(os.path.join(folder, name))
      removed.append(pathlib.Path(folder, name))
    for name in list(filter(_TEMPORARY.fullmatch, folders)):
      folders.remove(name)
      shutil.rmtree(os.path.join(folder, name))
      removed.append(pathlib.Path(folder, name))
  return removed


def sync_directory(path: Path) -> None:
  """Makes renames in a directory durable."""
  _sync(path)


def _sync(path: Path) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
