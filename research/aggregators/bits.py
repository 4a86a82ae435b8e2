"""Bits that a client sends and receives in a round, read off TFF's types."""

import collections
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from research import compat

UPLOAD = 'upload_bits_per_client'
DOWNLOAD = 'download_bits_per_client'


def of_type(type_signature: tff.Type) -> int:
  """Bits of a tensor or a structure of tensors: elements times element size.

  Args:
    type_signature: Its type; all shapes must be known.

  Returns:
    The bits; a boolean counts as 8, since that is how it is kept.

  Raises:
    ValueError: If a shape is not fully known.
  """
  if isinstance(type_signature, tff.FederatedType):
    return of_type(type_signature.member)
  if isinstance(type_signature, tff.StructType):
    members = compat.iter_elements(type_signature)
    return sum(of_type(member) for _, member in members)
  shape = type_signature.shape
  if shape is None or None in shape:
    raise ValueError(f'the bits of {type_signature} depend on its shape')
  elements = int(np.prod(shape, dtype=np.int64))
  return 8 * np.dtype(type_signature.dtype).itemsize * elements


def download(next_fn: tff.Computation) -> int:
  """Bits that the server sends to each client in a round.

  Every value that the computation broadcasts counts once: the model weights,
  and scalars such as the clients' learning rate or a clipping norm.

  Args:
    next_fn: `next` of a learning process, or any computation.

  Returns:
    The bits.
  """
  blocks, sent = compat.blocks, {}
  body = compat.call_dominant(next_fn).result
  for _, value in body.locals if isinstance(body, blocks.Block) else ():
    if (
      isinstance(value, blocks.Call)
      and isinstance(value.function, blocks.Intrinsic)
      and value.function.uri == 'federated_broadcast'
    ):
      argument = value.argument
      sent[argument.compact_representation()] = of_type(argument.type_signature)
  return sum(sent.values())


def add_upload(measurements: tff.Value, number: int) -> tff.Value:
  """Adds bits to what measurements have as a client's, if they do.

  Args:
    measurements: Named, at the server; in a federated computation.
    number: Bits that a client sends besides.

  Returns:
    The measurements.
  """

  @tff.tensorflow.computation
  def more(before):
    return before + number

  found = _named(measurements)
  if UPLOAD in found:
    found[UPLOAD] = tff.federated_map(more, found[UPLOAD])
  return tff.federated_zip(found)


class MeasureUploadFactory(tff.aggregators.WeightedAggregationFactory):
  """Adds the bits of a client's model update to an aggregator's measurements.

  The model update in the form in which it is sent counts. Its weight (one
  number) and the training metrics, which every form sends alike, do not.
  """

  def __init__(
    self,
    inner: tff.aggregators.WeightedAggregationFactory,
    upload_bits: Callable[[tff.Type], int],
  ):
    """Wraps an aggregator whose measurements have names.

    Args:
      inner: Aggregates; its measurements stay where they are.
      upload_bits: From the type of an update to the bits of its encoding.
    """
    self._inner = inner
    self._upload_bits = upload_bits

  def create(self, value_type, weight_type):
    process = self._inner.create(value_type, weight_type)
    number = self._upload_bits(value_type)

    @tff.tensorflow.computation
    def upload_bits():
      return tf.constant(number, tf.int64)

    @tff.federated_computation(
      process.initialize.type_signature.result,
      tff.FederatedType(value_type, tff.CLIENTS),
      tff.FederatedType(weight_type, tff.CLIENTS),
    )
    def next_fn(state, value, weight):
      output = process.next(state, value, weight)
      measurements = _named(output.measurements)
      measurements[UPLOAD] = tff.federated_eval(upload_bits, tff.SERVER)
      return tff.templates.MeasuredProcessOutput(
        output.state, output.result, tff.federated_zip(measurements)
      )

    return tff.templates.AggregationProcess(process.initialize, next_fn)


def _named(measurements: tff.Value) -> collections.OrderedDict:
  elements = compat.iter_elements(measurements.type_signature.member)
  return collections.OrderedDict(
    (name, measurements[name]) for name, _ in elements
  )
