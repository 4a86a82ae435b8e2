"""Runs an exported model: python form_process.py MODEL IN OUT.

Needs NumPy and the runtime that the model is for, nothing of this project and
no TensorFlow: OpenVINO for the directory of a SavedModel (its default
signature), ai-edge-litert for a .tflite file, onnxruntime for a .onnx file. All
of them compute on one thread of the CPU.

IN is an .npz with arrays named `<any name>/<batch size>`; OUT the .npz to
write: `runtime`, and arrays `<that name>/<batch size>/<output>`. IN may have

- `timed`, keys of arrays, which are run `repetitions` times more (but not for
  longer than 3 seconds, if that is 10 times), and have `<key>/seconds` in OUT;
- `largest`, names of outputs: for arrays named `test...`, which may be many,
  only the position of the largest value along the last axis is kept, as int32.
"""

import pathlib
import sys
import time

import numpy as np

_SECONDS = 3.0
_FEWEST = 10


def main(model: str, inputs_file: str, outputs_file: str) -> None:
  load = {'.tflite': _litert, '.onnx': _onnxruntime}.get(
    pathlib.Path(model).suffix, _openvino
  )
  run, runtime = load(model)
  outputs = {'runtime': np.array(runtime)}
  with np.load(inputs_file) as inputs:
    given = dict(inputs)
  timed = given.pop('timed', np.array([], str)).tolist()
  largest = given.pop('largest', np.array([], str)).tolist()
  repetitions = int(given.pop('repetitions', 0))
  for key, array in given.items():
    for name, value in run(array).items():
      if key.startswith('test') and name in largest:
        value = value.argmax(axis=-1).astype(np.int32)
      outputs[f'{key}/{name}'] = value
    if key in timed:
      outputs[f'{key}/seconds'] = _time(run, array, repetitions)
  np.savez(outputs_file, **outputs)


def _time(run, array, repetitions):
  """Seconds of each run, float64 [runs]."""
  seconds, end = [], time.perf_counter() + _SECONDS
  while len(seconds) < repetitions:
    begin = time.perf_counter()
    if len(seconds) >= _FEWEST and begin >= end:
      break
    run(array)
    seconds.append(time.perf_counter() - begin)
  return np.array(seconds)


def _openvino(directory):
  import openvino

  core = openvino.Core()
  model = core.compile_model(
    core.read_model(directory),
    'CPU',
    {
      # The default may compute in bfloat16, which is off by 1e-3.
      'INFERENCE_PRECISION_HINT': 'f32',
      'INFERENCE_NUM_THREADS': 1,
    },
  )

  def run(array):
    # Copied: the next run writes into the same memory.
    return {
      port.get_any_name(): np.array(value)
      for port, value in model([array]).items()
    }

  return run, f'OpenVINO {openvino.__version__.split("-")[0]}'


def _litert(file):
  import importlib.metadata

  from ai_edge_litert import interpreter as litert

  interpreter = litert.Interpreter(model_path=file, num_threads=1)
  signature = interpreter.get_signature_runner()
  (given,) = signature.get_input_details().values()
  places = {
    name: detail['index']
    for name, detail in signature.get_output_details().items()
  }
  is_fixed = given['shape_signature'][0] == 1
  shape = []

  def run_once(array):
    if shape != list(array.shape):
      shape[:] = array.shape
      interpreter.resize_tensor_input(given['index'], shape, strict=True)
      interpreter.allocate_tensors()
    interpreter.set_tensor(given['index'], array)
    interpreter.invoke()
    return {name: interpreter.get_tensor(at) for name, at in places.items()}

  def run(array):
    if not is_fixed:
      return run_once(array)
    rows = [run_once(array[i : i + 1]) for i in range(len(array))]
    return {name: np.concatenate([r[name] for r in rows]) for name in places}

  return run, f'LiteRT {importlib.metadata.version("ai-edge-litert")}'


def _onnxruntime(file):
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = options.inter_op_num_threads = 1
  session = onnxruntime.InferenceSession(
    file, options, providers=['CPUExecutionProvider']
  )
  (given,) = session.get_inputs()
  names = [output.name for output in session.get_outputs()]

  def run(array):
    return dict(
      zip(names, session.run(names, {given.name: array}), strict=True)
    )

  return run, f'onnxruntime {onnxruntime.__version__}'


if __name__ == '__main__':
  main(*sys.argv[1:])
