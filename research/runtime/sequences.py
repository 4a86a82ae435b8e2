"""What takes the place of a client's dataset while its work is traced.

Each class has the `reduce` of `replay.Batches`. A batch is the list of its
components in the order of tf.nest, as tf.data gives it to a function.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from research import compat

Step = Callable[[Sequence[tf.Tensor], Sequence[tf.Tensor]], list]
# Components of one batch from the batch's example indices, or of one element
# from its index.
Fetch = Callable[[tf.Tensor], list[tf.Tensor]]


def nest_order(element_type: tff.Type) -> list[int]:
  """Positions in TFF's order of the components in the order of tf.nest."""
  count = iter(range(10**6))

  def numbered(type_signature: tff.Type) -> Any:
    if isinstance(type_signature, tff.StructType):
      return compat.Struct(
        [
          (name, numbered(member))
          for name, member in compat.iter_elements(type_signature)
        ]
      )
    return next(count)

  structure = compat.type_to_py_container(numbered(element_type), element_type)
  return tf.nest.flatten(structure)


def _loop(
  count: tf.Tensor | int,
  body: Callable[..., Sequence[tf.Tensor]],
  state: Sequence[tf.Tensor],
  shapes: Sequence[tf.TensorShape],
) -> list[tf.Tensor]:
  """Applies `body(t, *state)` for t = 0 ... count - 1."""

  def step(t: tf.Tensor, *state: tf.Tensor) -> list:
    return [t + 1, *body(t, *state)]

  final = tf.while_loop(
    lambda t, *state: t < count,
    step,
    [tf.constant(0), *state],
    shape_invariants=[tf.TensorShape([]), *shapes],
  )
  return list(final[1:])


def _differ(state: Sequence[tf.Tensor], own: tf.Tensor) -> list[tf.Tensor]:
  """Tells pfor that the state will differ between clients.

  It would find out by itself, by tracing again.

  Args:
    state: The state.
    own: A scalar of the client's own, at least 0.
  """
  return [tf.where(own >= 0, value, value) for value in state]


class Ragged:
  """Batches of any sizes, one after the other.

  The sizes are those of `lengths`, so no batch is padded or dropped.
  """

  def __init__(
    self,
    fetch: Fetch,
    rows: tf.Tensor,
    starts: tf.Tensor,
    first: tf.Tensor,
    last: tf.Tensor,
  ):
    """Describes one client's batches.

    Args:
      fetch: Gets a batch by its example indices.
      rows: int32 [all examples of all clients' batches].
      starts: int32 [all batches + 1], where each batch begins in `rows`.
      first: The client's first batch.
      last: The batch after its last one.
    """
    self._fetch = fetch
    self._rows, self._starts = rows, starts
    self._first, self._last = first, last

  def reduce(self, step: Step, state, shapes) -> list[tf.Tensor]:
    """See `replay.Batches`."""

    # Inlined, a step's ops are on a cycle with the loop's own, and whether
    # TensorFlow then gives a gradient its oneDNN kernel is a matter of chance.
    @tf.function(autograph=False, experimental_attributes={'_noinline': True})
    def body(t: tf.Tensor, *state: tf.Tensor) -> list:
      begin = self._starts[self._first + t]
      end = self._starts[self._first + t + 1]
      return step(state, self._fetch(self._rows[begin:end]))

    return _loop(self._last - self._first, body, state, shapes)


@dataclasses.dataclass(frozen=True)
class Form:
  """What is fixed when a function is traced for a group of clients.

  Attributes:
    lengths: Sizes of the batches of each segment; None where they may change.
    is_single: Per segment, whether every client has exactly one batch.
    is_uniform: Whether all clients have equally many batches.
    is_repeated: Whether there may be more than one period.
    counts: Batches of each segment, where the program is for no others.
    repeats: Periods, likewise.
  """

  lengths: tuple[int | None, ...]
  is_single: tuple[bool, ...]
  is_uniform: bool
  is_repeated: bool
  counts: tuple[int, ...] | None = None
  repeats: int | None = None


class Regular:
  """Batches of sizes that a group of clients shares, to be vectorised.

  A client has `repeats` equal periods; in one period come `counts[0]` batches
  of `lengths[0]` examples, then `counts[1]` of `lengths[1]`, and so on. Where
  the counts differ, the rule for vectorised loops lets each client stop after
  its own.
  """

  def __init__(
    self,
    fetch: Fetch,
    rows: tf.Tensor,
    begin: tf.Tensor,
    counts: tf.Tensor,
    lengths: tf.Tensor,
    longest: tf.Tensor,
    repeats: tf.Tensor,
    form: Form,
  ):
    """Describes one client's batches; only `begin` and `counts` are its own.

    Args:
      fetch: Gets a batch by its example indices.
      rows: int32 [all examples of all clients' batches].
      begin: Where the client's batches begin in `rows`.
      counts: int32 [segments], the client's batches of each size.
      lengths: int32 [segments], the sizes.
      longest: int32 [segments], the largest `counts` of the group.
      repeats: Periods.
      form: What of this is fixed.
    """
    self._fetch = fetch
    self._rows, self._begin, self._counts = rows, begin, counts
    self._longest, self._repeats, self._form = longest, repeats, form
    self._lengths = [
      lengths[i] if fixed is None else fixed
      for i, fixed in enumerate(form.lengths)
    ]

  def reduce(self, step: Step, state, shapes) -> list[tf.Tensor]:
    """See `replay.Batches`."""
    state = _differ(state, self._begin)
    shapes = [tf.TensorShape([]), *shapes]

    def one_period(unused_t: tf.Tensor, *state: tf.Tensor) -> list:
      for segment in range(len(self._lengths)):
        state = self._segment(step, segment, state, shapes)
      return state

    state = [self._begin, *state]
    if not self._form.is_repeated:
      return one_period(tf.constant(0), *state)[1:]
    repeats = self._form.repeats or self._repeats
    return _loop(repeats, one_period, state, shapes)[1:]

  def _segment(self, step, segment, state, shapes):
    length = self._lengths[segment]

    def body(unused_t: tf.Tensor, begin: tf.Tensor, *state) -> list:
      positions = begin + tf.range(length)
      if not self._form.is_uniform:
        # A client that has stopped is computed too, and dropped.
        positions = tf.minimum(positions, tf.shape(self._rows)[0] - 1)
      new = step(state, self._fetch(tf.gather(self._rows, positions)))
      return [begin + length, *new]

    if self._form.is_single[segment]:
      return body(tf.constant(0), *state)
    counts = self._longest if self._form.is_uniform else self._counts
    if self._form.counts:
      counts = self._form.counts
    return _loop(counts[segment], body, state, shapes)


class Blocks:
  """Batches of one size that lie one after the other, to be vectorised.

  All clients have equally many: [batches, examples, ...] of each component.
  """

  def __init__(
    self,
    finish: Callable[[Sequence[tf.Tensor]], list[tf.Tensor]],
    components: Sequence[tf.Tensor],
    own: tf.Tensor,
  ):
    """Describes one client's batches.

    Args:
      finish: From a batch's rows of the components to the batch.
      components: Its rows, [batches, examples, ...].
      own: Any integer scalar of the client's own, at least 0.
    """
    self._finish, self._components, self._own = finish, components, own

  def reduce(self, step: Step, state, shapes) -> list[tf.Tensor]:
    """See `replay.Batches`."""

    def body(t: int | tf.Tensor, *state: tf.Tensor) -> list:
      return step(state, self._finish([array[t] for array in self._components]))

    count = self._components[0].shape[0]
    if count == 1:
      return body(0, *state)
    return _loop(count, body, _differ(state, self._own), shapes)


class Selected:
  """The elements that `federated_select` gives a client for its keys."""

  def __init__(
    self,
    keys: tf.Tensor,
    values: Sequence[tf.Tensor],
    select: Callable[[Sequence[Any]], list],
    element_type: tff.Type,
  ):
    """Stores what is selected from.

    Args:
      keys: int32 [keys of the client].
      values: The server's value, flat.
      select: From the server's flat value and a key to a flat element.
      element_type: TFF type of the element.
    """
    self._keys, self._values, self._select = keys, values, select
    self._order = nest_order(element_type)

  def reduce(self, step: Step, state, shapes) -> list[tf.Tensor]:
    """See `replay.Batches`."""

    def body(t: tf.Tensor, *state: tf.Tensor) -> list:
      element = self._select([*self._values, self._keys[t]])
      return step(state, [element[i] for i in self._order])

    return _loop(tf.shape(self._keys)[0], body, state, shapes)


class Mapped:
  """A sequence with a function applied to each element."""

  def __init__(
    self,
    source: Any,
    function: Callable[[Sequence[Any]], list],
    source_type: tff.Type,
    element_type: tff.Type,
  ):
    """Stores the sequence, the function, and the types before and after."""
    self._source, self._function = source, function
    self._from, self._to = nest_order(source_type), nest_order(element_type)

  def reduce(self, step: Step, state, shapes) -> list[tf.Tensor]:
    """See `replay.Batches`."""

    def mapped(
      state: Sequence[tf.Tensor], element: Sequence[tf.Tensor]
    ) -> list:
      result = self._function(_in_tff_order(element, self._from))
      return step(state, [result[i] for i in self._to])

    return self._source.reduce(mapped, state, shapes)


class Dataset:
  """A dataset of tf.data, where computations run op by op."""

  def __init__(self, variant: tf.Tensor, element_type: tff.Type):
    """Stores a dataset.

    Args:
      variant: Its variant tensor.
      element_type: TFF type of its elements.
    """
    structure = compat.type_to_tf_structure(element_type)
    self._dataset = tf.data.experimental.from_variant(variant, structure)

  def reduce(self, step: Step, state, shapes) -> list[tf.Tensor]:
    """See `replay.Batches`."""
    del shapes
    return list(
      self._dataset.reduce(
        tuple(state),
        lambda state, element: tuple(step(state, tf.nest.flatten(element))),
      )
    )

  def map(
    self,
    function: Callable[[Sequence[Any]], list],
    source_type: tff.Type,
    element_type: tff.Type,
  ) -> tf.Tensor:
    """Applies a function on flat values to each element; see `Mapped`.

    Returns:
      The variant tensor of the new dataset.
    """
    before, after = nest_order(source_type), nest_order(element_type)
    structure = compat.type_to_tf_structure(element_type)

    def mapped(*element: Any) -> Any:
      flat = tf.nest.flatten(element)
      result = function(_in_tff_order(flat, before))
      return tf.nest.pack_sequence_as(structure, [result[i] for i in after])

    return tf.data.experimental.to_variant(self._dataset.map(mapped))


def fold(
  source: Any,
  zero: Sequence[tf.Tensor],
  function: Callable[[Sequence[Any]], list],
  element_type: tff.Type,
) -> list[tf.Tensor]:
  """Applies `function([*state, *element])` to each element of a sequence.

  Args:
    source: The sequence.
    zero: The first state, flat.
    function: Returns the new state, flat.
    element_type: TFF type of the elements.

  Returns:
    The last state.
  """
  order = nest_order(element_type)
  return source.reduce(
    lambda state, element: function([*state, *_in_tff_order(element, order)]),
    zero,
    [value.shape for value in zero],
  )


def total(source: Any, element_type: tff.Type) -> list[tf.Tensor]:
  """The sum of a sequence's elements, flat in TFF's order."""
  order = nest_order(element_type)
  types = _leaves(element_type)
  zero = [tf.zeros(t.shape, tf.dtypes.as_dtype(t.dtype)) for t in types]
  return source.reduce(
    lambda state, element: [
      value + part
      for value, part in zip(state, _in_tff_order(element, order), strict=True)
    ],
    zero,
    [value.shape for value in zero],
  )


def _leaves(type_signature: tff.Type) -> Iterator[tff.TensorType]:
  if isinstance(type_signature, tff.StructType):
    for _, member in compat.iter_elements(type_signature):
      yield from _leaves(member)
  else:
    yield type_signature


def _in_tff_order(
  element: Sequence[tf.Tensor], order: Sequence[int]
) -> list[tf.Tensor]:
  result = [None] * len(order)
  for value, position in zip(element, order, strict=True):
    result[position] = value
  return result
