"""Runs a SavedModel in OpenVINO: python openvino_process.py D IN OUT.

Needs openvino and NumPy, nothing of this project and no TensorFlow. D is the
SavedModel, whose default signature is run; IN an .npz with arrays named
`<any name>/<batch size>`; OUT the .npz to write, with arrays
`<that name>/<batch size>/<output>`.
"""

import sys

import numpy as np
import openvino


def main(directory: str, inputs_file: str, outputs_file: str) -> None:
  core = openvino.Core()
  # The default may compute in bfloat16, which is off by 1e-3.
  model = core.compile_model(
    core.read_model(directory), 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'}
  )
  outputs = {}
  with np.load(inputs_file) as inputs:
    for key in inputs.files:
      result = model([inputs[key]])
      for port, value in result.items():
        outputs[f'{key}/{port.get_any_name()}'] = value
  version = openvino.__version__.split('-')[0]
  outputs['runtime'] = np.array(f'OpenVINO {version}')
  np.savez(outputs_file, **outputs)


if __name__ == '__main__':
  main(*sys.argv[1:])
