"""Compiles an HLO program for a target: python xla_compile_process.py REQUEST.

Runs in an environment of requirements/xla_*.txt, with nothing of this project
and no TensorFlow. It uses private parts of the jax that those files pin: a
program that TensorFlow traced has no other way into a current XLA. REQUEST is a
JSON file with

  platform: cpu, tpu or cuda.
  topology: tpu: the name of a topology with the chip, as v5e:2x2.
  target_config: cuda: the text of XLA's GpuTargetConfigProto for the chip.
  hlo: The serialised HLO module.
  steps: Local steps of a client.
  arguments: cpu: .npz with arg_0, ...; null does not run the program.
  results: cpu: .npz to write, with result_0, ...
  hlo_text, stablehlo, optimized_hlo, report: Files to write.

The report has `compile_seconds`, `executable_bytes`, `memory` (bytes), `flops`
(of the program as written), `bytes_accessed` (of the program as the target's
compiler fused it), `product_types` (what is multiplied), `loops_counted`
(whether each loop's length is known), `vendor_costs` (the compiler's own, which
count the body of a loop once) and `versions`; or `error` with the compiler's
words and `instructions`, those that they are about.
"""

import importlib.metadata
import json
import sys
import time

import hlo_text
import jax
import numpy as np
from jax._src import compiler, xla_bridge
from jax._src.interpreters import mlir
from jax._src.lib import _jax, xla_client
from jax._src.lib.mlir import ir
from jax.experimental import topologies
from jaxlib import _hlo

_PACKAGES = ('jax', 'jaxlib', 'libtpu', 'jax-cuda12-pjrt')
_MEMORY = {
  'arguments': 'argument_size_in_bytes',
  'outputs': 'output_size_in_bytes',
  'temporaries': 'temp_size_in_bytes',
  'code': 'generated_code_size_in_bytes',
}


def _costs(client, module, steps, name=None, arguments=()):
  """What running a computation takes, its loops counted as often as they run.

  XLA counts the body of a loop once. A loop of unknown length is taken for the
  one over a client's steps, unless it is inside of another one.

  Returns:
    {'flops': ..., 'bytes accessed': ...}, and whether the length of each loop
    is known.
  """
  name = name or module.entry
  total, known = _single_pass(client, module, name), True
  for loop in module.loops(name, arguments):
    trip_count = loop.trip_count
    if trip_count is None:
      trip_count, known = steps, False
    once = _single_pass(client, module, loop.body)
    inner, inner_known = _costs(client, module, 1, loop.body, loop.arguments)
    known &= inner_known
    for key in total:
      total[key] += trip_count * inner[key] - once[key]
  return total, known


def _single_pass(client, module, name):
  """XLA's costs of one computation, as if it were the whole program."""
  part = _hlo.hlo_module_from_text(module.part(name))
  costs = _jax.hlo_module_cost_analysis(client, part)
  return {key: costs.get(key, 0.0) for key in ('flops', 'bytes accessed')}


def _device(request):
  """The device to compile for; only that of `cpu` exists."""
  if request['platform'] == 'cpu':
    return xla_bridge.get_backend('cpu').local_devices()[0]
  if request['platform'] == 'tpu':
    topology = topologies.get_topology_desc(
      platform='tpu', topology_name=request['topology']
    )
  else:
    topology = topologies.get_topology_desc(
      platform='cuda',
      topology_name='one_chip',
      topology='1x1x1',
      target_config=request['target_config'],
    )
  return topology.devices[0]


def _compile(device, module):
  options = compiler.get_compile_options(
    num_replicas=1,
    num_partitions=1,
    device_assignment=np.array([[device.id]]),
  )
  devices = _jax.DeviceList((device,))
  client = device.client
  if device.platform == 'cpu':
    return client.compile_and_load(module, devices, options)
  return client.compile(module, devices, options)


def _report(executable, written, steps, seconds):
  client = xla_bridge.get_backend('cpu')
  optimized = hlo_text.Module(executable.hlo_modules()[0].to_string())
  flops, flops_known = _costs(client, written, steps)
  fused, fused_known = _costs(client, optimized, steps)
  memory = executable.get_compiled_memory_stats()
  try:
    vendor = executable.cost_analysis()
  except _jax.JaxRuntimeError:
    # XLA:GPU has none.
    vendor = {}
  return {
    'compile_seconds': seconds,
    'executable_bytes': len(executable.serialize()),
    'memory': {key: getattr(memory, name) for key, name in _MEMORY.items()},
    'flops': flops['flops'],
    'bytes_accessed': fused['bytes accessed'],
    'product_types': written.product_types(),
    'loops_counted': flops_known and fused_known,
    'vendor_costs': {k: v for k, v in vendor.items() if '{' not in k},
  }


def _run(executable, arguments_file, results_file):
  with np.load(arguments_file) as stored:
    arguments = [stored[f'arg_{i}'] for i in range(len(stored.files))]
  results = executable.execute_sharded([jax.device_put(a) for a in arguments])
  arrays = results.disassemble_into_single_device_arrays()
  np.savez(
    results_file,
    **{f'result_{i}': np.asarray(array[0]) for i, array in enumerate(arrays)},
  )


def _versions():
  found = {}
  for name in _PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def _write(path, text):
  with open(path, 'w') as file:
    file.write(text)


def main(request_file):
  with open(request_file) as file:
    request = json.load(file)
  # TensorFlow's int64 stays int64.
  jax.config.update('jax_enable_x64', True)
  with open(request['hlo'], 'rb') as file:
    computation = xla_client.XlaComputation(file.read())
  text = computation.get_hlo_module().to_string()
  _write(request['hlo_text'], text)
  written = hlo_text.Module(text)
  device = _device(request)
  executable = None
  with mlir.make_ir_context():
    module = ir.Module.parse(
      _jax.mlir.xla_computation_to_mlir_module(computation)
    )
    _write(request['stablehlo'], str(module))
    start = time.perf_counter()
    try:
      executable = _compile(device, module)
      seconds = time.perf_counter() - start
    except _jax.JaxRuntimeError as error:
      message = str(error)
      report = {'error': message, 'instructions': written.about(message)}
  if executable is not None:
    report = _report(executable, written, request['steps'], seconds)
    _write(request['optimized_hlo'], executable.hlo_modules()[0].to_string())
    if request['arguments']:
      _run(executable, request['arguments'], request['results'])
  report['versions'] = _versions()
  _write(request['report'], json.dumps(report, indent=1))


if __name__ == '__main__':
  main(*sys.argv[1:])
