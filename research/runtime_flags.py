"""The flags of the runtime: where and how the computations run."""

import dataclasses

from absl import flags

from models import mixed_precision
from research import flag_values
from research.runtime import accelerators
from research.runtime import registry as runtimes
from research.tasks import task as task_lib

FLAGS = flag_values.FLAGS
define = flag_values.define
enum = flag_values.enum
refuse_unused = flag_values.refuse_unused


class RuntimeFlags:
  """Where and how the computations run."""

  def __init__(self):
    for name, default, choices, text in (
      (
        'runtime',
        runtimes.DEFAULT,
        sorted(runtimes.RUNTIMES),
        "in_process is this process's TensorFlow, stock TFF's own C++ worker "
        'on the CPU.',
      ),
      ('device', 'auto', accelerators.DEVICES, 'Where in_process computes.'),
      ('xla', 'auto', runtimes.XLA, "Whether XLA compiles the clients' work."),
      (
        'client_plan',
        'auto',
        runtimes.CLIENT_PLANS,
        "How a round's clients are trained in_process: one by one, in parallel "
        'loops, or vectorised.',
      ),
    ):
      enum(name, default, choices, text, free=True)
    for name, text in (
      ('clients_per_chunk', 'Clients vectorised together; automatic if None.'),
      ('max_concurrent_clients', 'Clients trained at once; one per core.'),
    ):
      define('integer', name, None, text, lower_bound=1, free=True)
    text = 'Refuse to run on the CPU.'
    define('boolean', 'require_accelerator', False, text, free=True)
    enum(
      'mixed_precision',
      mixed_precision.NONE,
      [mixed_precision.NONE, *mixed_precision.FORMATS],
      "Number format of the clients' work; their weights stay float32.",
    )

  def get(self) -> runtimes.Runtime:
    """Returns the runtime, not yet started.

    Raises:
      flags.IllegalFlagValueError: If the runtime does not know a flag, or the
        device is not there.
    """
    fields = [
      field.name for field in dataclasses.fields(runtimes.RuntimeConfig)
    ]
    config = runtimes.RuntimeConfig(
      **{name: FLAGS[name].value for name in fields}
    )
    if config.runtime == 'stock':
      _refuse_for_stock(config)
    elif config.client_plan == 'loop':
      refuse_unused(['clients_per_chunk'], 'by --client_plan=loop')
    try:
      accelerators.resolve(
        config.device, accelerators.probe(), config.require_accelerator
      )
    except accelerators.AcceleratorError as error:
      raise flags.IllegalFlagValueError(str(error)) from error
    return runtimes.build(config)

  def apply(self, task: task_lib.Task) -> task_lib.Task:
    """Returns the task in the number format that the flags ask for.

    Raises:
      ValueError: If the model does not allow it.
    """
    return task_lib.in_mixed_precision(task, FLAGS.mixed_precision)


def _refuse_for_stock(config: runtimes.RuntimeConfig) -> None:
  """Raises if a flag asks for what TFF's worker can't do."""
  advice = 'use --runtime=in_process.'
  if config.xla == 'on':
    raise flags.IllegalFlagValueError(
      '--runtime=stock --xla=on: the stock worker ignores XLA: its binary has '
      f'no XLA compiler; {advice}'
    )
  if config.device not in ('auto', 'cpu'):
    raise flags.IllegalFlagValueError(
      f'--runtime=stock --device={config.device}: the stock worker is built '
      f'for the CPU; {advice}'
    )
  if config.require_accelerator:
    raise flags.IllegalFlagValueError(
      '--runtime=stock --require_accelerator: the stock worker is built for '
      f'the CPU; {advice}'
    )
  refuse_unused(['client_plan', 'clients_per_chunk'], 'by --runtime=stock')
