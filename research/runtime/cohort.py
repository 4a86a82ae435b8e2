"""The examples of a round's clients as a few arrays, without tf.data."""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from research import compat
from research.runtime import sequences


@dataclasses.dataclass(frozen=True, eq=False)
class ClientBatches:
  """One client's batches: an argument where TFF expects a sequence.

  Attributes:
    examples: Name to array [examples, ...].
    order: int32 indices of examples, batch after batch.
    lengths: int32 [batches], the size of each batch.
    preprocess: Maps a raw batch to the model's; None is identity.
  """

  examples: Mapping[str, np.ndarray]
  order: np.ndarray
  lengths: np.ndarray
  preprocess: Callable[[Any], Any] | None = None


class RaggedElementsError(ValueError):
  """Elements of a dataset have shapes that no array can hold."""


@dataclasses.dataclass(frozen=True, eq=False)
class Cohort:
  """All clients' batches.

  Attributes:
    components: Arrays [examples of all clients, ...].
    rows: int32, indices into the components, batch after batch.
    starts: int32 [batches + 1], where each batch begins in `rows`.
    clients: int32 [clients + 1], where each client begins in `starts`.
    finish: From a batch's rows of the components to the batch, flat.
  """

  components: list[np.ndarray]
  rows: np.ndarray
  starts: np.ndarray
  clients: np.ndarray
  finish: Callable[[Sequence[tf.Tensor]], list[tf.Tensor]]

  def __len__(self) -> int:
    return len(self.clients) - 1

  @functools.cached_property
  def tensors(self) -> list[tf.Tensor]:
    """All arrays on the device, as `Layout.batches` takes them."""
    arrays = [*self.components, self.rows, self.starts, self.clients]
    return [tf.convert_to_tensor(array) for array in arrays]

  def padded_tensors(self, least: tuple[int, int]) -> list[tf.Tensor]:
    """Components and rows on the device, of one of few lengths.

    XLA compiles for each length. What is added is never read.

    Args:
      least: Lengths that components and rows have at least.
    """
    if least not in self._padded:
      sizes = [least[0]] * len(self.components) + [least[1]]
      arrays = [*self.components, self.rows]
      self._padded[least] = [
        tf.convert_to_tensor(pad(array, max(size, bucket(len(array)))))
        for array, size in zip(arrays, sizes, strict=True)
      ]
    return self._padded[least]

  @functools.cached_property
  def _padded(self) -> dict[tuple[int, int], list[tf.Tensor]]:
    return {}

  @functools.cached_property
  def block_shape(self) -> tuple[int, int] | None:
    """Batches per client and their size, if all examples lie in this order."""
    sizes, steps = np.diff(self.starts), np.diff(self.clients)
    if not len(sizes) or (sizes != sizes[0]).any() or (steps != steps[0]).any():
      return None
    if not np.array_equal(self.rows, np.arange(len(self.components[0]))):
      return None
    return int(steps[0]), int(sizes[0])

  def blocks(self, clients: int) -> list[tf.Tensor]:
    """Components [clients, batches, examples, ...], for a `block_shape`.

    Args:
      clients: How many to make it, by repeating the last rows.
    """
    if clients not in self._blocks:
      shape = clients, *self.block_shape
      self._blocks[clients] = [
        tf.convert_to_tensor(
          pad(array, math.prod(shape)).reshape([*shape, *array.shape[1:]])
        )
        for array in self.components
      ]
    return self._blocks[clients]

  @functools.cached_property
  def _blocks(self) -> dict[int, list[tf.Tensor]]:
    return {}

  @property
  def layout(self) -> 'Layout':
    """How the arrays are read; a traced function is for one layout."""
    return Layout(
      self.finish,
      tuple((array.dtype.name, array.shape[1:]) for array in self.components),
    )

  @functools.cached_property
  def lengths(self) -> list[np.ndarray]:
    """Sizes of the batches of each client."""
    sizes = np.diff(self.starts)
    return np.split(sizes, self.clients[1:-1])


@dataclasses.dataclass(frozen=True)
class Layout:
  """How a cohort's arrays are read, without the arrays.

  Attributes:
    finish: See `Cohort`.
    components: Data type and shape of an example of each component.
  """

  finish: Callable[[Sequence[tf.Tensor]], list[tf.Tensor]]
  components: tuple[tuple[str, tuple[int, ...]], ...]

  @property
  def width(self) -> int:
    """How many arrays there are."""
    return len(self.components) + 3

  def fetch(
    self, components: Sequence[tf.Tensor], indices: tf.Tensor
  ) -> list[tf.Tensor]:
    """The batch with the given rows of the components."""
    return self.finish([tf.gather(array, indices) for array in components])

  def batches(
    self, arrays: Sequence[tf.Tensor], client: tf.Tensor
  ) -> sequences.Ragged:
    """One client's batches, in a graph that is being traced.

    Args:
      arrays: What `Cohort.tensors` has become in the graph.
      client: The client's position.

    Returns:
      Its batches.
    """
    *components, rows, starts, clients = arrays
    return sequences.Ragged(
      lambda indices: self.fetch(components, indices),
      rows,
      starts,
      clients[client],
      clients[client + 1],
    )


def bucket(size: int) -> int:
  """The next power of two: so few shapes are compiled."""
  return 1 << max(size - 1, 0).bit_length()


def pad(array: np.ndarray, size: int) -> np.ndarray:
  """Repeats the last row until there are `size`."""
  if len(array) == size or not len(array):
    return array
  rest = np.broadcast_to(array[-1:], (size - len(array), *array.shape[1:]))
  return np.concatenate([array, rest])


def pack(
  clients: Sequence[Any], element_type: tff.Type | None = None
) -> Cohort:
  """Packs what the clients of a round were given for a sequence.

  Args:
    clients: All `ClientBatches`, or all datasets or lists of elements.
    element_type: TFF type of a batch, which datasets and lists need.

  Returns:
    The cohort.

  Raises:
    RaggedElementsError: If datasets have elements that can't be stacked.
  """
  if clients and all(isinstance(c, ClientBatches) for c in clients):
    return _pack_batches(clients)
  elements = [_elements(client, element_type) for client in clients]
  return _pack_elements(elements, element_type)


def _pack_batches(clients: Sequence[ClientBatches]) -> Cohort:
  names = list(clients[0].examples)
  orders = [client.order for client in clients]
  lengths = [client.lengths for client in clients]
  sizes = [len(client.examples[names[0]]) for client in clients]
  if sum(map(len, orders)) <= sum(sizes):
    # One epoch: in order of their use, no example is looked up later.
    components = [
      np.concatenate(
        [client.examples[name][client.order] for client in clients]
      )
      for name in names
    ]
    rows = np.arange(len(components[0]), dtype=np.int32)
  else:
    components = [
      np.concatenate([client.examples[name] for client in clients])
      for name in names
    ]
    offsets = np.repeat(np.cumsum([0, *sizes[:-1]]), [len(o) for o in orders])
    rows = (np.concatenate(orders) + offsets).astype(np.int32)
  return Cohort(
    components,
    rows,
    _starts(np.concatenate(lengths)),
    _starts([len(sizes) for sizes in lengths]),
    _preprocess(tuple(names), clients[0].preprocess),
  )


def _starts(lengths: Sequence[int]) -> np.ndarray:
  return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


@functools.lru_cache(maxsize=64)
def _preprocess(names: tuple[str, ...], preprocess: Callable | None):
  def finish(batch: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    named = collections.OrderedDict(zip(names, batch, strict=True))
    return tf.nest.flatten(preprocess(named) if preprocess else named)

  return finish


def _whole(batch: Sequence[tf.Tensor]) -> list[tf.Tensor]:
  return list(batch)


def _only_one(batch: Sequence[tf.Tensor]) -> list[tf.Tensor]:
  return [array[0] for array in batch]


def _elements(client: Any, element_type: tff.Type) -> list[list[np.ndarray]]:
  """The elements of a dataset or list, each as its flat components."""
  if isinstance(client, tf.data.Dataset):
    iterator = client.as_numpy_iterator()
  elif isinstance(client, ClientBatches):
    raise TypeError('Give batches for all clients, or datasets for all.')
  else:
    iterator = iter(client)
  container = compat.type_to_tf_structure(element_type)
  tensors = [t.dtype.as_numpy_dtype for t in tf.nest.flatten(container)]
  found = []
  for element in iterator:
    flat = tf.nest.flatten(element)
    found.append(
      [
        np.asarray(value, None if dtype is object else dtype)
        for value, dtype in zip(flat, tensors, strict=True)
      ]
    )
  return found


def _pack_elements(
  clients: Sequence[Sequence[list[np.ndarray]]], element_type: tff.Type
) -> Cohort:
  flat = [element for client in clients for element in client]
  counts = [len(client) for client in clients]
  specs = tf.nest.flatten(compat.type_to_tf_structure(element_type))
  if not flat:
    empty = [
      np.zeros(
        [0, *(size or 0 for size in spec.shape)], spec.dtype.as_numpy_dtype
      )
      for spec in specs
    ]
    none = np.zeros(0, np.int32)
    return Cohort(empty, none, _starts([]), _starts(counts), _only_one)
  if all(spec.shape.rank and spec.shape[0] is None for spec in specs):
    lengths = [{len(value) for value in element} for element in flat]
    if all(len(sizes) == 1 for sizes in lengths):
      components = [
        _join(np.concatenate, values) for values in zip(*flat, strict=True)
      ]
      sizes = [sizes.pop() for sizes in lengths]
      rows = np.arange(sum(sizes), dtype=np.int32)
      return Cohort(components, rows, _starts(sizes), _starts(counts), _whole)
  components = [_join(np.stack, values) for values in zip(*flat, strict=True)]
  rows = np.arange(len(flat), dtype=np.int32)
  ones = np.ones(len(flat), np.int32)
  return Cohort(components, rows, _starts(ones), _starts(counts), _only_one)


def _join(how: Callable, values: Sequence[np.ndarray]) -> np.ndarray:
  try:
    return how(values)
  except ValueError as error:
    shapes = sorted({value.shape for value in values})
    raise RaggedElementsError(
      f'The elements have the shapes {shapes}, which no array can hold.'
    ) from error
