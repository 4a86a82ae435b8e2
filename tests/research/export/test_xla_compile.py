"""Programs compile for each target; costs are what closed forms say."""

import dataclasses
import os

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla

from research.export import xla_compile, xla_program
from tests.research.export import xla_programs

CPU = xla_compile.TARGETS['cpu']
TPU = xla_compile.TARGETS['tpu_v5e']
H100 = xla_compile.TARGETS['h100']

needs_compiler = pytest.mark.skipif(
  not CPU.python.exists(), reason='.venv-xla-cpu missing'
)


def compile_for(target, program, directory, layers=(), steps=1, execute=False):
  xla_program.write(program, directory, layers)
  return xla_compile.compile_program(target, directory, layers, steps, execute)


@pytest.fixture
def product_in_a_loop():
  """Seven products of [8, 16] and [16, 16], chained."""

  @tf.function(jit_compile=True, autograph=False)
  def function(x, w):
    return tf.while_loop(
      lambda i, _: i < 7, lambda i, x: (i + 1, tf.linalg.matmul(x, w)), (0, x)
    )[1:]

  program = xla_programs.one_operation('a', None)
  program.function = function
  program.example_arguments = (tf.ones([8, 16]), tf.eye(16))
  program.argument_names = ('x', 'w')
  return program


@needs_compiler
def test_operations_in_a_loop_count_each_time(product_in_a_loop, tmp_path):
  report = compile_for(CPU, product_in_a_loop, tmp_path)
  products = 7 * 2 * 8 * 16 * 16
  # The counter's addition and comparison are operations, too.
  assert products <= report['flops'] <= products + 4 * 8
  assert report['loops_counted']
  assert report['product_types'] == ['f32']
  # Each product reads x and w and writes its result.
  each = 4 * (2 * 8 * 16 + 16 * 16)
  assert 7 * each <= report['bytes_accessed'] <= 2 * 7 * each
  # jax may align buffers, but not lose any.
  assert report['memory']['arguments'] >= 4 * (8 * 16 + 16 * 16)
  assert report['memory']['outputs'] >= 4 * 8 * 16
  assert report['executable_bytes'] > 0
  assert report['compile_seconds'] > 0
  assert set(report['versions']) == {'jax', 'jaxlib'}


@needs_compiler
def test_a_loop_of_unknown_length_counts_as_the_clients_steps(
  product_in_a_loop, tmp_path
):
  @tf.function(jit_compile=True, autograph=False)
  def function(x, w, steps):
    return tf.while_loop(
      lambda i, _: i < steps,
      lambda i, x: (i + 1, tf.linalg.matmul(x, w)),
      (0, x),
    )[1:]

  product_in_a_loop.function = function
  product_in_a_loop.example_arguments += (tf.constant(7),)
  product_in_a_loop.argument_names += ('steps',)
  report = compile_for(CPU, product_in_a_loop, tmp_path, steps=11)
  products = 11 * 2 * 8 * 16 * 16
  assert products <= report['flops'] <= products + 4 * 12
  assert not report['loops_counted']


@needs_compiler
def test_every_form_is_written(product_in_a_loop, tmp_path):
  compile_for(CPU, product_in_a_loop, tmp_path)
  text = (tmp_path / xla_compile.HLO_TEXT).read_text()
  assert text.startswith('HloModule') and ' dot(' in text
  stablehlo = (tmp_path / xla_compile.STABLEHLO).read_text()
  assert 'stablehlo.dot' in stablehlo
  assert 'HloModule' in (tmp_path / xla_compile.OPTIMIZED).read_text()
  assert {path.name for path in tmp_path.iterdir()} == {
    xla_program.HLO,
    xla_compile.HLO_TEXT,
    xla_compile.STABLEHLO,
    xla_compile.OPTIMIZED,
    xla_compile.REPORT,
  }


@needs_compiler
@pytest.mark.parametrize(
  'build, arguments',
  [
    (xla_programs.linear_regression, {}),
    (xla_programs.linear_regression, {'clients': (6,)}),
    (xla_programs.keras, {'name': 'mcmahan_2nn', 'clients': (3,)}),
    (xla_programs.keras, {'name': 'mcmahan_cnn', 'steps': 2, 'batch': 2}),
    (xla_programs.transformer, {'layers': 1, 'length': 8}),
  ],
)
def test_a_current_jax_computes_what_tensorflow_does(
  build, arguments, tmp_path
):
  program = build(**arguments)
  expected = xla_program.run(program, tmp_path)
  start = [np.asarray(value) for value in program.example_arguments]
  moved = max(
    np.abs(after - before).max()
    for after, before in zip(expected, start, strict=False)
  )
  found = compile_for(CPU, program, tmp_path, execute=True)
  assert found['loops_counted']
  difference = xla_program.largest_difference(
    expected, tmp_path / xla_program.RESULTS
  )
  # The steps moved the weights by far more than the two differ.
  assert moved > 1e-3
  assert difference <= 1e-6


@needs_compiler
def test_an_operation_that_the_cpu_lacks_is_named(tmp_path):
  def odd(x):
    return xla.custom_call(
      [x],
      target_name='no_such_kernel',
      dtype=tf.float32,
      shape=[3],
      backend_config='',
    )

  program = xla_programs.one_operation('odd_layer', odd, tf.zeros([3]))
  with pytest.raises(
    xla_program.UnsupportedOperationError,
    match='for this CPU refuses the program: custom-call of Keras layer odd_',
  ):
    compile_for(CPU, program, tmp_path, ['odd_layer'])


def test_a_missing_environment_is_said(product_in_a_loop, tmp_path):
  target = dataclasses.replace(CPU, requirements='xla_none')
  with pytest.raises(xla_compile.CompilerError, match='does not start'):
    compile_for(target, product_in_a_loop, tmp_path)


def test_a_compiler_that_dies_is_said(product_in_a_loop, tmp_path, monkeypatch):
  python = tmp_path / 'python'
  python.write_text('#!/bin/sh\necho out of luck >&2\nexit 3\n')
  python.chmod(0o755)
  monkeypatch.setattr(xla_compile.Target, 'python', python)
  with pytest.raises(xla_compile.CompilerError, match=r'status 3: out of luck'):
    compile_for(CPU, product_in_a_loop, tmp_path)


def test_an_environment_that_can_not_be_made_is_said():
  target = dataclasses.replace(CPU, requirements='xla_none')
  with pytest.raises(xla_compile.CompilerError, match='no requirements/xla_no'):
    xla_compile.make_environment(target)
  assert not target.environment.exists()


@needs_compiler
def test_a_python_for_the_rest_of_the_project_does_not_matter(monkeypatch):
  monkeypatch.setenv('PYTHON', 'python2')
  xla_compile.make_environment(CPU)


def report(**changed):
  return {
    'compile_seconds': 1.23,
    'executable_bytes': 75068,
    'memory': {'arguments': 2e6, 'outputs': 3e6, 'temporaries': 4e9, 'code': 0},
    'flops': 1e9,
    'bytes_accessed': 1e9,
    'product_types': ['f32'],
    'loops_counted': True,
    'versions': {},
  } | changed


def test_the_roofline_is_the_larger_bound():
  # 1e9 bytes at 819 GB/s are 1.221 ms, 1e9 operations far less.
  limit = xla_compile.roofline(TPU, report())
  assert limit['seconds'] == pytest.approx(1.2210e-3, rel=1e-4)
  assert limit['bound'] == 'memory'
  # 1e15 operations at 67 TFLOP/s are 14.93 s; of bfloat16 at 989, 1.011 s.
  limit = xla_compile.roofline(H100, report(flops=1e15))
  assert limit['seconds'] == pytest.approx(14.9254, rel=1e-4)
  assert limit['bound'] == 'compute'
  assert limit['peak'] == '67 TFLOP/s: float32 without tensor cores'
  limit = xla_compile.roofline(H100, report(flops=1e15, product_types=['bf16']))
  assert limit['seconds'] == pytest.approx(1.01112, rel=1e-4)
  mixed = report(flops=1e15, product_types=['bf16', 'f32'])
  assert xla_compile.roofline(H100, mixed)['seconds'] > 14
  assert xla_compile.roofline(CPU, report()) is None


def test_a_report_is_described():
  lines = '\n'.join(xla_compile.describe(TPU, report(), 16, 40))
  assert 'compile time    1.2 s' in lines
  assert 'executable      75.1 kB' in lines
  assert 'arguments 2 MB, outputs 3 MB, temporaries 4 GB' in lines
  assert 'does not fit' not in lines
  assert 'unknown' not in lines
  # 40 clients are three programs of 16.
  assert '0.00366 s per round of 40 client(s), 0.00122 s per program' in lines
  assert "bfloat16 products, XLA's default for float32 there; 819 GB/s" in lines


def test_what_does_not_fit_is_said():
  memory = {'arguments': 2e9, 'outputs': 3e9, 'temporaries': 12e9, 'code': 0}
  lines = '\n'.join(
    xla_compile.describe(TPU, report(memory=memory, loops_counted=False), 1, 1)
  )
  assert 'does not fit into 16 GB' in lines
  assert "a loop of unknown length counts as a client's steps" in lines


PROGRAMS = {
  'linear_regression': lambda: xla_programs.linear_regression(clients=(16,)),
  'cnn': lambda: xla_programs.keras('mcmahan_cnn'),
  'vectorised_cnn': lambda: xla_programs.keras('mcmahan_cnn', clients=(4,)),
  'mlp': lambda: xla_programs.keras('mcmahan_2nn', clients=(16,)),
  'transformer': lambda: xla_programs.transformer(clients=(4,)),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(PROGRAMS))
@pytest.mark.parametrize('target', [TPU, H100], ids=['tpu_v5e', 'h100'])
def test_programs_compile_for_accelerators(target, name, tmp_path):
  xla_compile.make_environment(target)
  found = compile_for(target, PROGRAMS[name](), tmp_path)
  assert found['executable_bytes'] > 1000
  assert found['loops_counted']
  assert found['flops'] > 0 and found['bytes_accessed'] > 0
  assert xla_compile.roofline(target, found)['seconds'] > 0
  if target is TPU:
    assert found['vendor_costs']['flops'] > 0
  print(os.linesep.join(xla_compile.describe(target, found, 1, 10)))


@pytest.mark.slow
def test_an_operation_that_the_tpu_lacks_is_named(tmp_path):
  xla_compile.make_environment(TPU)

  def spectrum(x):
    return tf.math.real(tf.signal.fft(tf.cast(x, tf.complex128)))

  program = xla_programs.one_operation('spectrum', spectrum, tf.zeros([4, 8]))
  with pytest.raises(
    xla_program.UnsupportedOperationError,
    match=r'TPU v5e refuses the program: fft of Keras layer spectrum \(model/',
  ):
    compile_for(TPU, program, tmp_path, ['spectrum'])
