"""The one type of federated data: splits of named clients.

A `Split` hands out one client at a time, as NumPy arrays or as a
`tf.data.Dataset` of batches. Both follow `client_batches`, so every runtime
and every NumPy reference meets the same examples in the same order.
"""

import collections
import dataclasses
import functools
import hashlib
import types
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

KEYS = ('x', 'y')


class DataError(RuntimeError):
  """Data that is missing, damaged or not of the promised form."""


def client_batches(
  num_examples: int,
  *,
  batch_size: int | None,
  epochs: int = 1,
  seed: Sequence[int] | None,
  max_examples: int | None = None,
) -> list[np.ndarray]:
  """Says which examples a client sees, batch by batch.

  This is the split of local data into batches in ClientUpdate of McMahan et
  al. 2017 (https://arxiv.org/abs/1602.05629, Algorithm 1): each epoch goes
  through all examples once, in a fresh order, and ends with a smaller batch
  where the batch size does not divide them.

  Args:
    num_examples: How many examples the client has.
    batch_size: Examples per batch; 0 or None is one batch of everything
      (McMahan's B = infinity).
    epochs: Passes over the data.
    seed: Non-negative integers that decide the order, or None for the stored
      order in every epoch.
    max_examples: Keep at most so many examples, the same ones in all epochs:
      a random choice under a seed, the first ones without.

  Returns:
    One int64 array of example indices per batch.

  Raises:
    ValueError: If an argument is negative.
  """
  for name, value in (
    ('num_examples', num_examples),
    ('batch_size', batch_size or 0),
    ('epochs', epochs),
    ('max_examples', max_examples or 0),
    ('seed', min(seed, default=0) if seed is not None else 0),
  ):
    if value < 0:
      raise ValueError(f'{name} must not be negative, given {value}.')
  rng = None if seed is None else np.random.default_rng([int(s) for s in seed])
  kept = np.arange(num_examples, dtype=np.int64)
  if max_examples is not None and max_examples < num_examples:
    kept = (kept if rng is None else rng.permutation(kept))[:max_examples]
  step = batch_size or max(len(kept), 1)
  batches = []
  for _ in range(epochs):
    order = kept if rng is None else rng.permutation(kept)
    batches.extend(order[i : i + step] for i in range(0, len(order), step))
  return batches


def content_hash(arrays: Mapping[str, np.ndarray]) -> str:
  """Returns the sha256 of named arrays: names, dtypes, shapes and values."""
  digest = hashlib.sha256()
  for name in sorted(arrays):
    array = np.ascontiguousarray(arrays[name])
    array = array.astype(array.dtype.newbyteorder('<'), copy=False)
    digest.update(f'{name} {array.dtype.str} {array.shape}\n'.encode())
    digest.update(array.data if array.size else b'')
  return digest.hexdigest()


class Split:
  """The clients of one split (train, validation or test), loaded lazily."""

  def __init__(
    self,
    num_examples: Mapping[str, int],
    load: Callable[[str], Mapping[str, np.ndarray]],
  ):
    """Makes a split.

    Args:
      num_examples: The clients in their order, with their example counts.
      load: Returns one client's arrays 'x' and 'y', equal in length.

    Raises:
      ValueError: If there is no client at all.
    """
    if not num_examples:
      raise ValueError('A split needs at least one client, given none.')
    self._num_examples = types.MappingProxyType(
      {str(c): int(n) for c, n in num_examples.items()}
    )
    self._client_ids = tuple(self._num_examples)
    self._positions = {c: i for i, c in enumerate(self._client_ids)}
    self._load = load

  @classmethod
  def from_arrays(
    cls,
    arrays: Mapping[str, np.ndarray],
    client_indices: Mapping[str, np.ndarray],
  ) -> 'Split':
    """Makes a split of rows of pooled arrays.

    The rows are put in client order once, so that a client is a slice (a
    read-only view) ever after.

    Args:
      arrays: 'x' and 'y' of all examples, equal in length.
      client_indices: Which rows belong to each client.
    """
    rows = [np.asarray(i, np.int64) for i in client_indices.values()]
    order = np.concatenate([*rows, np.zeros(0, np.int64)])
    in_order = np.array_equal(order, np.arange(len(arrays['y'])))
    ordered = {}
    for key in KEYS:
      array = np.asarray(arrays[key])
      ordered[key] = array.view() if in_order else array[order]
      ordered[key].flags.writeable = False
    ends = np.cumsum([len(r) for r in rows])
    slices = {
      str(client): slice(int(end) - len(row), int(end))
      for client, row, end in zip(client_indices, rows, ends, strict=True)
    }
    return cls(
      {client: s.stop - s.start for client, s in slices.items()},
      lambda client: {key: ordered[key][slices[client]] for key in KEYS},
    )

  @classmethod
  def from_client_arrays(
    cls, clients: Mapping[str, Mapping[str, np.ndarray]]
  ) -> 'Split':
    """Makes a split of arrays that are given client by client."""
    clients = {str(c): arrays for c, arrays in clients.items()}
    return cls({c: len(a['y']) for c, a in clients.items()}, clients.get)

  @property
  def client_ids(self) -> tuple[str, ...]:
    """The clients, in an order that never changes."""
    return self._client_ids

  def position(self, client_id: str) -> int:
    """Returns where a client is in `client_ids`.

    Raises:
      KeyError: If there is no such client.
    """
    self._check_known([client_id])
    return self._positions[client_id]

  @property
  def num_examples(self) -> Mapping[str, int]:
    """Examples per client; no data is read for it."""
    return self._num_examples

  @property
  def total_examples(self) -> int:
    """Examples of all clients together."""
    return sum(self._num_examples.values())

  def client(self, client_id: str) -> collections.OrderedDict:
    """Returns one client's arrays 'x' [n, ...] and 'y' [n] in stored order.

    Raises:
      KeyError: If there is no such client; the text names some that exist.
      DataError: If the arrays are not what the split has promised.
    """
    self._check_known([client_id])
    arrays = self._load(client_id)
    lengths = {key: len(arrays[key]) for key in KEYS}
    if set(lengths.values()) != {self._num_examples[client_id]}:
      raise DataError(
        f'Client {client_id!r} has {lengths} examples where '
        f'{self._num_examples[client_id]} are promised.'
      )
    return collections.OrderedDict((key, arrays[key]) for key in KEYS)

  @functools.cached_property
  def element_spec(self) -> collections.OrderedDict:
    """One example as tf.TensorSpec, without the batch dimension."""
    arrays = self.client(self.client_ids[0])
    return collections.OrderedDict(
      (key, tf.TensorSpec(array.shape[1:], tf.as_dtype(array.dtype), name=key))
      for key, array in arrays.items()
    )

  def dataset(
    self,
    client_id: str,
    *,
    batch_size: int | None,
    seed: Sequence[int] | None,
    epochs: int = 1,
    max_examples: int | None = None,
  ) -> tf.data.Dataset:
    """Returns a client's batches, in exactly the order of `client_batches`.

    The serialised graph holds the client's data once, whatever the epochs.

    Args:
      client_id: One of `client_ids`.
      batch_size: See `client_batches`, as for all that follow.
      seed: Decides the order; None is the stored order.
      epochs: Passes over the data.
      max_examples: Cap on the examples that are used.

    Returns:
      A dataset of OrderedDict(x=[None, ...], y=[None]).
    """
    arrays = self.client(client_id)
    batches = client_batches(
      self._num_examples[client_id],
      batch_size=batch_size,
      epochs=epochs,
      seed=seed,
      max_examples=max_examples,
    )
    ends = np.cumsum([len(batch) for batch in batches], dtype=np.int32)
    starts = np.concatenate([np.zeros(1, np.int32), ends[:-1]])[: len(ends)]
    rows = tf.constant(
      np.concatenate([*batches, np.zeros(0, np.int64)]).astype(np.int32)
    )
    tensors = {key: tf.constant(array) for key, array in arrays.items()}

    def gather(start, end):
      batch = rows[start:end]
      return collections.OrderedDict(
        (key, tf.gather(tensors[key], batch)) for key in KEYS
      )

    return tf.data.Dataset.from_tensor_slices((starts, ends)).map(gather)

  def pooled(self) -> collections.OrderedDict:
    """Returns all clients' examples in the order of `client_ids`."""
    clients = [self.client(client_id) for client_id in self.client_ids]
    if len(clients) == 1:
      return clients[0]
    return collections.OrderedDict(
      (key, np.concatenate([client[key] for client in clients])) for key in KEYS
    )

  def subset(self, client_ids: Sequence[str]) -> 'Split':
    """Returns the split of these clients only, in the order given.

    Raises:
      KeyError: If one of them is not a client of this split.
    """
    self._check_known(client_ids)
    return Split({c: self._num_examples[c] for c in client_ids}, self._load)

  def _check_known(self, client_ids: Sequence[str]) -> None:
    unknown = [c for c in client_ids if c not in self._num_examples]
    if unknown:
      some = ', '.join(repr(c) for c in self.client_ids[:5])
      dots = ', ...' if len(self._num_examples) > 5 else ''
      raise KeyError(
        f'no client {unknown[0]!r}; the {len(self._num_examples)} clients of '
        f'this split are {some}{dots}'
      )


@dataclasses.dataclass(frozen=True)
class Source:
  """Where data comes from, for model cards.

  Attributes:
    title: Its name in words.
    licence: Under which terms it is published.
    citation: The paper to cite.
    url: Its page for people.
  """

  title: str
  licence: str
  citation: str
  url: str


@dataclasses.dataclass(frozen=True)
class FederatedData:
  """A data set that is divided among clients.

  Attributes:
    name: Its name as the flag has it.
    partition: How its training examples are divided among clients.
    train: Training clients.
    validation: Examples or clients held out of training, or None.
    test: Test clients; a single client 'test' where nothing divides them.
    num_classes: Labels are 0 .. num_classes - 1; 0 where 'y' is numbers.
    class_names: One name per label.
    source: Where it comes from.
    content_sha256: Hash of the raw data, whatever the partition.
    feature_names: One name per feature of a table; empty for images.
    target_names: One name per number that is to be explained; empty for
      classes.
  """

  name: str
  partition: str
  train: Split
  validation: Split | None
  test: Split
  num_classes: int
  class_names: tuple[str, ...]
  source: Source
  content_sha256: str
  feature_names: tuple[str, ...] = ()
  target_names: tuple[str, ...] = ()
