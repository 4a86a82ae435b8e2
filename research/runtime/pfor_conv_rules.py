"""Vectorisation rules for convolutions whose filters differ between clients.

TensorFlow's pfor convolves the images of all clients with one filter. Once
clients train, each has a filter of its own: all of them together are one
grouped convolution, in which a client's channels form a group.

The CPU kernels of TensorFlow have no gradients of grouped convolutions. There,
each convolution runs client by client with TensorFlow's own kernel, in a loop
around this one operation: equal bits, but no faster than a loop over clients.
"""

import functools
import importlib
from collections.abc import Callable

import tensorflow as tf
from tensorflow.python.ops import control_flow_util

# `from ... import pfor` would give the function of that name.
pfor = importlib.import_module('tensorflow.python.ops.parallel_for.pfor')

_FILTER_CHANNELS = 2
_FILTER_OUTPUTS = 3


def build(grouped: bool | None) -> dict[str, Callable]:
  """Makes the converters.

  Operands may differ between clients or not, in any combination. Strides,
  dilations, paddings (SAME, VALID and EXPLICIT), data formats and groups that
  the convolution has itself are kept.

  Args:
    grouped: True for grouped convolutions, False for a loop over the clients;
      None for grouped ones where XLA compiles the graph that is being traced.

  Returns:
    The converters by type of operation.
  """
  rules = {
    'Conv2D': _conv2d,
    'Conv2DBackpropInput': _conv2d_backprop_input,
    'Conv2DBackpropFilter': _conv2d_backprop_filter,
  }
  return {
    **{
      name: functools.partial(rule, grouped=grouped)
      for name, rule in rules.items()
    },
    'DepthwiseConv2dNative': _depthwise,
    'DepthwiseConv2dNativeBackpropInput': _depthwise_backprop_input,
    'DepthwiseConv2dNativeBackpropFilter': _depthwise_backprop_filter,
  }


def _conv2d(pfor_input, grouped: bool | None):
  images, filters = pfor_input.inputs
  if not filters.is_stacked:
    return pfor._convert_flatten_batch(pfor_input, 'Conv2D', dims=[0])
  axis = _channel_axis(pfor_input)
  if not images.is_stacked and _equal(
    images.t.shape[axis], pfor_input.op.inputs[1].shape[_FILTER_CHANNELS]
  ):
    # The filters of all clients are one filter with more outputs.
    operands = [images.t, _merge(filters.t, _FILTER_OUTPUTS)]
    return _apply(pfor_input, operands, axis)
  if not _use_groups(grouped):
    return pfor._fallback_converter(pfor_input)
  pfor_input.stack_inputs([0])
  operands = [
    _merge(pfor_input.stacked_input(0), axis),
    _merge(filters.t, _FILTER_OUTPUTS),
  ]
  return _apply(pfor_input, operands, axis)


def _conv2d_backprop_input(pfor_input, grouped: bool | None):
  sizes, filters, _ = pfor_input.inputs
  if not filters.is_stacked and not sizes.is_stacked:
    return pfor._convert_flatten_batch_shape_input(
      pfor_input, 'Conv2DBackpropInput', flatten_dims=[2], shape_dim=0
    )
  if not _use_groups(grouped):
    return pfor._fallback_converter(pfor_input)
  axis = _channel_axis(pfor_input)
  pfor_input.stack_inputs([2])
  operands = [
    _multiply(pfor_input.unstacked_input(0), axis, pfor_input),
    _merge(filters.t, _FILTER_OUTPUTS),
    _merge(pfor_input.stacked_input(2), axis),
  ]
  return _apply(pfor_input, operands, axis)


def _conv2d_backprop_filter(pfor_input, grouped: bool | None):
  images, sizes, _ = pfor_input.inputs
  axis = _channel_axis(pfor_input)
  shared = not images.is_stacked and _equal(
    images.t.shape[axis], pfor_input.output(0).shape[_FILTER_CHANNELS]
  )
  if not shared and not _use_groups(grouped):
    return pfor._fallback_converter(pfor_input)
  pfor_input.stack_inputs([2] if shared else [0, 2])
  operands = [
    images.t if shared else _merge(pfor_input.stacked_input(0), axis),
    _multiply(pfor_input.unstacked_input(1), _FILTER_OUTPUTS, pfor_input),
    _merge(pfor_input.stacked_input(2), axis),
  ]
  return _apply(pfor_input, operands, _FILTER_OUTPUTS)


def _depthwise(pfor_input):
  # TensorFlow's rules are right, but want all operands to be stacked.
  pfor_input.stack_inputs([0, 1])
  return pfor._convert_depthwise_conv2d_native(pfor_input)


def _depthwise_backprop_input(pfor_input):
  pfor_input.stack_inputs([1, 2])
  return pfor._convert_depthwise_conv2d_native_backprop_input(pfor_input)


def _depthwise_backprop_filter(pfor_input):
  pfor_input.stack_inputs([0, 2])
  return pfor._convert_depthwise_conv2d_native_backprop_filter(pfor_input)


def _use_groups(grouped: bool | None) -> bool:
  return is_for_xla() if grouped is None else grouped


def is_for_xla() -> bool:
  """Whether XLA compiles the graph that is being traced."""
  return control_flow_util.GraphOrParentsInXlaContext(
    tf.compat.v1.get_default_graph()
  )


def _channel_axis(pfor_input) -> int:
  return 1 if pfor_input.get_attr('data_format') == b'NCHW' else 3


def _equal(size: int | None, other: int | None) -> bool:
  """Whether two sizes are known to be equal: the convolution has one group."""
  return size is not None and size == other


def _merge(stacked: tf.Tensor, axis: int) -> tf.Tensor:
  """Moves the clients into an axis, client by client, as groups want it."""
  return pfor._flatten_with_inner_dim(stacked, axis + 1, 5)


def _multiply(sizes: tf.Tensor, axis: int, pfor_input) -> tf.Tensor:
  """Multiplies one of four sizes by the number of clients."""
  factors = [1, 1, 1, 1]
  factors[axis] = pfor_input.pfor.loop_len_vector[0]
  return sizes * tf.cast(tf.stack(factors), sizes.dtype)


def _apply(pfor_input, operands: list[tf.Tensor], axis: int):
  """Runs the operation on merged operands and unstacks its output's axis."""
  merged = pfor._create_op(
    pfor_input.op_type,
    operands,
    [pfor_input.output(0).dtype],
    attrs=pfor_input.op.node_def.attr,
  ).outputs[0]
  clients = pfor_input.pfor.loop_len_vector[0]
  return pfor.wrap(pfor._unflatten_with_inner_dim(merged, axis, 4, clients))
