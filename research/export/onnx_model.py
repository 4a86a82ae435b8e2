"""Models as ONNX files, by tf2onnx.

The packages are the extra `onnx`: make env EXTRAS=onnx.
"""

import tensorflow as tf

# The newest that tf2onnx knows whole.
_OPSET = 17


def check_installed() -> None:
  """Raises if a package lacks.

  Raises:
    ImportError: Saying how to install it.
  """
  try:
    import tf2onnx  # noqa: F401
  except ImportError as error:
    raise ImportError(
      f'--forms=onnx needs tf2onnx ({error}): make env EXTRAS=onnx'
    ) from error


def convert(function: tf.types.experimental.GenericFunction) -> bytes:
  """Converts a function of one tensor.

  Args:
    function: A tf.function with an input signature, whose outputs have names.

  Returns:
    The content of the file; inputs and outputs have the function's names.
  """
  import tf2onnx

  ((spec,), _) = function.get_concrete_function().structured_input_signature
  model, _ = tf2onnx.convert.from_function(
    function, input_signature=[spec], opset=_OPSET
  )
  return model.SerializeToString()
