"""Writes a round's client work as HLO and compiles it for a chip, here.

The chip need not be there: its vendor's compiler is, in an environment that the
command makes (about 1 GB; Python 3.11). Of a run, or of a binary's flags:

  python -m experiments.export_xla --target=tpu_v5e --run_dir=runs/first
  python -m experiments.export_xla --target=h100 --output_dir=h100 \\
    --binary=experiments.emnist --dataset=digits --model=mcmahan_cnn

Two programs are written: the work of one client, and that of several clients
vectorised (`--clients_per_chunk`). All shapes are static: they are those of a
client with the median number of examples, or `--examples_per_client`.
"""

import importlib
import pathlib
import statistics
import types
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow_federated as tff
from absl import flags

from datasets import federated_data
from research import cli, flag_values, provenance
from research.export import xla_compile, xla_program
from research.runtime import client_program
from research.tasks import task as task_lib
from research.training import atomic
from research.training import loop as loop_lib

FLAGS = flags.FLAGS
MANIFEST = 'manifest.json'

# How far TensorFlow's XLA and a current one may be apart on the CPU.
TOLERANCE = 1e-6

_TARGET = flags.DEFINE_enum(
  'target', None, list(xla_compile.TARGETS), 'The chip.'
)
_RUN_DIR = flags.DEFINE_string('run_dir', None, 'A run, for its flags.')
_BINARY = flags.DEFINE_string(
  'binary', 'experiments.emnist', 'Whose flags are given, without --run_dir.'
)
_OUTPUT_DIR = flags.DEFINE_string(
  'output_dir', None, 'Where files go; xla_TARGET in the run by default.'
)
_EXAMPLES = flags.DEFINE_integer(
  'examples_per_client',
  None,
  'Examples of a client; the median of the training clients by default.',
  lower_bound=1,
)
_CHUNK = 16


def parse(argv: list[str]) -> list[str]:
  """Parses the flags of this command with those of a run or a binary."""
  names = [argument.lstrip('-').partition('=') for argument in argv]
  if not any(name == 'run_dir' for name, _, _ in names):
    given = [value for name, _, value in names if name == 'binary']
    importlib.import_module(given[-1] if given else _BINARY.default)
  rest = flag_values.parse_with_run(argv)
  if 'from_config' in FLAGS:
    flag_values.apply_from_config()
  return rest


def batch_sizes(task: task_lib.Task, config: loop_lib.LoopConfig) -> list[int]:
  """The sizes of a client's batches in one round, epoch after epoch."""
  sizes = [size for size in task.data.train.num_examples.values() if size]
  examples = _EXAMPLES.value or statistics.median_low(sizes)
  batches = federated_data.client_batches(
    examples,
    batch_size=config.client_batch_size,
    epochs=config.client_epochs_per_round,
    seed=None,
    max_examples=config.max_examples_per_client,
  )
  return [len(batch) for batch in batches]


def programs(
  task: task_lib.Task,
  process: tff.learning.templates.LearningProcess,
  clients: Sequence[int],
  batches: Sequence[int],
) -> dict[str, tuple[int, xla_program.ClientProgram]]:
  """The client programs for each of some numbers of clients, by name."""
  return {
    'one_client' if number == 1 else f'{number}_clients': (
      number,
      client_program.build(task, process, num_clients=number, batches=batches),
    )
    for number in clients
  }


def export(
  target: xla_compile.Target,
  directory: pathlib.Path,
  found: Mapping[str, tuple[int, xla_program.ClientProgram]],
  layers: Sequence[str],
  manifest: Mapping[str, Any],
) -> None:
  """Writes programs and their manifest, compiles them, prints the reports.

  Args:
    target: The chip; on the CPU the programs also run, in TensorFlow and in a
      current jax.
    directory: Where files go.
    found: The programs and their numbers of clients, by name.
    layers: The names of the model's layers.
    manifest: What is known of the experiment, with `clients_per_round` and
      `batch_sizes`.

  Raises:
    xla_program.UnsupportedOperationError: If the chip can't run an operation.
    xla_compile.CompilerError: If a compiler fails, or the results of the CPU
      differ.
  """
  described = {}
  for name, (number, program) in found.items():
    (directory / name).mkdir(parents=True, exist_ok=True)
    described[name] = {'num_clients': number}
    described[name] |= xla_program.write(program, directory / name, layers)
  atomic.write_json(directory / MANIFEST, {**manifest, 'programs': described})
  xla_compile.make_environment(target)
  for name, (number, program) in found.items():
    here = target.platform == 'cpu'
    expected = xla_program.run(program, directory / name) if here else None
    report = xla_compile.compile_program(
      target,
      directory / name,
      layers,
      steps=len(manifest['batch_sizes']),
      execute=here,
    )
    lines = xla_compile.describe(
      target, report, number, manifest['clients_per_round']
    )
    versions = ', '.join(f'{k} {v}' for k, v in report['versions'].items())
    print(f'{name} for {target.chip}, by {versions}')
    print(''.join(f'  {line}\n' for line in lines), end='')
    if here:
      examples = number * sum(manifest['batch_sizes'])
      _check(expected, directory / name, examples)
  if target.platform != 'cpu':
    print(f'Compiled only: nothing ran on {target.chip}.')
  print(f'programs and manifest: {directory}')


def _check(
  expected: Sequence[Any], directory: pathlib.Path, examples: int
) -> None:
  """Raises if jax's results are not TensorFlow's, per example summed over."""
  difference = xla_program.largest_difference(
    expected, directory / xla_program.RESULTS
  )
  print(f"  jax's results   within {difference:.1e} of TensorFlow's")
  if not difference <= TOLERANCE * examples:
    raise xla_compile.CompilerError(
      f'{directory.name}: the results of jax differ from those of TensorFlow '
      f'by {difference:.1e}, more than {TOLERANCE * examples:.0e}'
    )


def _directory() -> pathlib.Path:
  """Where files go."""
  if not _TARGET.value:
    raise flags.IllegalFlagValueError(
      f'Give --target: {", ".join(xla_compile.TARGETS)}.'
    )
  if _OUTPUT_DIR.value:
    return pathlib.Path(_OUTPUT_DIR.value).expanduser().absolute()
  if not _RUN_DIR.value:
    raise flags.IllegalFlagValueError('Give --output_dir or --run_dir.')
  run = pathlib.Path(_RUN_DIR.value).expanduser().absolute()
  return run / f'xla_{_TARGET.value}'


def _build(
  binary: types.ModuleType,
) -> tuple[
  task_lib.Task,
  tff.learning.templates.LearningProcess,
  loop_lib.LoopConfig,
]:
  """The task, what learns it and the loop's settings."""
  groups = binary.GROUPS
  algorithm, settings, _ = groups.algorithm.get(
    tff.learning.LoopImplementation.DATASET_REDUCE
  )
  task = groups.runtime.apply(binary.build_task())
  process = algorithm.build_for(task, settings)
  return task, process, groups.training.get()


def main(argv: Sequence[str]) -> None:
  """Writes, compiles and describes the programs."""
  flag_values.refuse_arguments(argv)
  directory = _directory()
  binary = _BINARY.value
  if _RUN_DIR.value:
    path = pathlib.Path(_RUN_DIR.value).expanduser() / 'config.json'
    binary = flag_values.read_saved(path)['binary']
  try:
    task, process, config = _build(importlib.import_module(binary))
  except ValueError as error:
    raise flags.IllegalFlagValueError(str(error)) from error
  batches = batch_sizes(task, config)
  chunk = min(FLAGS.clients_per_chunk or _CHUNK, config.clients_per_round)
  manifest = {
    'target': _TARGET.value,
    'binary': binary,
    'flags': flag_values.values(),
    'versions': provenance.versions(),
    'git_revision': provenance.git_revision(),
    'clients_per_round': config.clients_per_round,
    'batch_sizes': batches,
  }
  found = programs(task, process, sorted({1, chunk}), batches)
  layers = xla_program.layer_names(task.build_keras_model())
  target = xla_compile.TARGETS[_TARGET.value]
  try:
    export(target, directory, found, layers, manifest)
  except (
    xla_program.UnsupportedOperationError,
    xla_compile.CompilerError,
  ) as error:
    raise flags.IllegalFlagValueError(
      f'--target={_TARGET.value}: {error}'
    ) from error


if __name__ == '__main__':
  cli.run(main, parse)
