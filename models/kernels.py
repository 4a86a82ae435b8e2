"""Which variables of a model are kernels: its matrices, without its vectors."""

import tensorflow as tf

from models import lora

_MATRIX = 2
# Attention keeps these by head, as matrices.
_VECTORS = frozenset(['bias', 'offset'])


def name(variable: tf.Variable) -> str:
  """A variable's name without its layer's."""
  return variable.name.split(':')[0].split('/')[-1]


def is_kernel(variable: tf.Variable) -> bool:
  """Whether a variable is a kernel or a table of embeddings.

  Args:
    variable: Of a layer; LoRA's matrices are a part of the one that they change
      and none of their own.
  """
  own = name(variable)
  is_matrix = len(variable.shape) >= _MATRIX
  return is_matrix and own not in _VECTORS and not own.startswith(lora.PREFIX)
