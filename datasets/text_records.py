"""Texts with their labels and clients: what every text reader returns."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from datasets import federated_data

SPLITS = ('train', 'validation', 'test')
TRAIN, VALIDATION, TEST = range(3)
CLASSIFICATION, TAGGING, LANGUAGE = 'classification', 'tagging', 'language'


@dataclasses.dataclass(frozen=True)
class Records:
  """The examples of a text set, in the order of its files.

  Attributes:
    texts: One string per example; for tagging, its words joined by one space.
    labels: int32 [examples]; for tagging, int32 [words of all examples].
    clients: The natural client of each example; empty where there are none.
    splits: uint8 [examples] of TRAIN, VALIDATION and TEST; all TRAIN where the
      set is published without a test split.
  """

  texts: Sequence[str]
  labels: np.ndarray
  clients: Sequence[str]
  splits: np.ndarray

  @classmethod
  def of(
    cls,
    texts: Sequence[str],
    labels: Sequence[int] | None = None,
    clients: Sequence[str] = (),
    splits: Sequence[int] | None = None,
  ) -> 'Records':
    """Makes records of lists; absent labels and splits are zeros."""
    zeros = np.zeros(len(texts), np.uint8)
    return cls(
      texts,
      np.asarray(zeros if labels is None else labels, np.int32),
      clients,
      zeros if splits is None else np.asarray(splits, np.uint8),
    )


def pack(records: Records) -> dict[str, np.ndarray]:
  """Returns records as plain arrays, without Python objects, for a cache."""
  names = list(dict.fromkeys(records.clients))
  positions = {name: k for k, name in enumerate(names)}
  return {
    **_pack_strings('text', records.texts),
    **_pack_strings('client_name', names),
    'client': np.asarray([positions[c] for c in records.clients], np.int32),
    'label': records.labels.astype(np.int32),
    'split': records.splits.astype(np.uint8),
  }


def unpack(arrays: Mapping[str, np.ndarray]) -> Records:
  """Undoes `pack`."""
  names = _unpack_strings('client_name', arrays)
  return Records(
    _unpack_strings('text', arrays),
    arrays['label'],
    [names[k] for k in arrays['client'].tolist()],
    arrays['split'],
  )


def examples(records: Records, kind: str) -> dict[str, np.ndarray]:
  """Returns 'x' and 'y' of all records, as `text.load` describes them."""
  if kind != TAGGING:
    return {'x': objects(records.texts), 'y': records.labels.astype(np.int32)}
  words = [tuple(text.split(' ')) for text in records.texts]
  cuts = np.cumsum([len(sentence) for sentence in words])[:-1]
  tags = np.split(records.labels.astype(np.int32), cuts)
  return {'x': objects(words), 'y': objects(tags)}


def objects(values: Sequence[object]) -> np.ndarray:
  """Returns a one-dimensional array of anything, tuples and arrays among it."""
  array = np.empty(len(values), object)
  for position, value in enumerate(values):
    array[position] = value
  return array


def group(
  clients: Sequence[str], rows: np.ndarray
) -> collections.OrderedDict[str, np.ndarray]:
  """Groups rows by their client, in the order in which clients appear."""
  groups = collections.OrderedDict()
  for row in rows.tolist():
    groups.setdefault(clients[row], []).append(row)
  for client, members in groups.items():
    groups[client] = np.asarray(members, np.int64)
  return groups


def split(
  arrays: Mapping[str, np.ndarray], clients: Mapping[str, np.ndarray]
) -> federated_data.Split | None:
  """Returns the split of these rows, or None where there is no client."""
  if not clients:
    return None
  return federated_data.Split.from_arrays(arrays, clients)


def _pack_strings(key: str, strings: Sequence[str]) -> dict[str, np.ndarray]:
  encoded = [string.encode() for string in strings]
  return {
    key: np.frombuffer(b''.join(encoded), np.uint8),
    f'{key}_ends': np.cumsum([len(e) for e in encoded], dtype=np.int64),
  }


def _unpack_strings(key: str, arrays: Mapping[str, np.ndarray]) -> list[str]:
  content, ends = arrays[key].tobytes(), arrays[f'{key}_ends'].tolist()
  starts = [0, *ends[:-1]]
  return (
    [
      content[start:end].decode()
      for start, end in zip(starts, ends, strict=True)
    ]
    if ends
    else []
  )
