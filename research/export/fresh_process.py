"""Runs a SavedModel in a process of its own: python fresh_process.py D IN OUT.

Needs TensorFlow and NumPy, for texts also TensorFlow Text, nothing of this
project and not TFF. D is the SavedModel; IN an .npz with arrays named
`<signature>/<batch size>`; OUT the .npz to write, with arrays
`<signature>/<batch size>/<output>`.
"""

import sys

import numpy as np
import tensorflow as tf


def main(directory: str, inputs_file: str, outputs_file: str) -> None:
  outputs = {}
  with np.load(inputs_file) as inputs:
    if any(inputs[key].dtype.kind == 'U' for key in inputs.files):
      # Registers the operations of tokenisers, before the model is loaded.
      import tensorflow_text  # noqa: F401
    model = tf.saved_model.load(directory)
    for key in inputs.files:
      signature, _ = key.split('/')
      serve = model.signatures[signature]
      (name,) = serve.structured_input_signature[1]
      result = serve(**{name: tf.constant(inputs[key])})
      for name, value in result.items():
        array = value.numpy()
        # Texts of one width: arrays of objects can't be stored.
        is_text = array.dtype == object
        outputs[f'{key}/{name}'] = array.astype(bytes) if is_text else array
  outputs['runtime'] = np.array(f'TensorFlow {tf.__version__}')
  np.savez(outputs_file, **outputs)


if __name__ == '__main__':
  main(*sys.argv[1:])
