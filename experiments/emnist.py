"""Federated training on EMNIST and what has its form.

McMahan's CNN on MNIST in his non-IID partition:

  python -m experiments.emnist --dataset=mnist --partition=shards

Paper runs are flag files, which go first:

  python -m experiments.emnist --flagfile=experiments/papers/...
"""

from collections.abc import Sequence

from absl import flags

from datasets import load
from models import emnist as models
from research import (
  cli,
  experiment,
  flag_values,
  quantization_flags,
  runtime_flags,
)
from research import flags as flags_lib
from research.tasks import emnist as tasks
from research.tasks import task as task_lib

BINARY = 'experiments.emnist'

_TASK = flag_values.enum(
  'task', 'digit_recognition', tasks.TASKS, 'What is learned.'
)
_MODEL = flag_values.enum(
  'model', None, models.MODELS, "Model; the task's usual one by default."
)
_NUM_CLASSES = flag_values.define(
  'integer', 'num_classes', None, "Outputs of the model; the data's by default."
)
_NUM_CLUSTERS = flag_values.define(
  'integer',
  'num_clusters',
  None,
  'For --task=clustering; as many as the data has classes by default.',
  lower_bound=2,
)
_DATA = flags_lib.DataFlags()
_QUANTIZATION = quantization_flags.QuantizationFlags()
GROUPS = experiment.FlagGroups(
  algorithm=flags_lib.AlgorithmFlags(),
  training=flags_lib.TrainingFlags(total_rounds=100, client_batch_size=10),
  runtime=runtime_flags.RuntimeFlags(),
  output=flags_lib.OutputFlags(experiment_name='emnist'),
)
flags.adopt_module_key_flags(flag_values)


def build_task() -> task_lib.Task:
  """Builds the task that the flags describe."""
  name, seed = _TASK.value, flags.FLAGS.seed
  size, other = 'num_classes', 'num_clusters'
  if tasks.TASKS[name].kind == 'clustering':
    size, other = other, size
  flag_values.refuse_unused([other], f'by --task={name}')
  data = load.load(_DATA.get(tasks.TASKS[name].dataset, seed))
  if flags.FLAGS[size].value is None:
    # Saved with the run, whose model may meet data with fewer classes later.
    flags.FLAGS[size].value = data.num_classes
  task = tasks.build(
    name,
    data,
    _MODEL.value,
    seed,
    num_classes=_NUM_CLASSES.value,
    num_clusters=_NUM_CLUSTERS.value,
  )
  return _QUANTIZATION.apply(task)


def main(argv: Sequence[str]) -> None:
  """Trains, draws, exports, and says where everything is."""
  flag_values.refuse_arguments(argv)
  flag_values.apply_from_config()
  with experiment.Experiment.start(BINARY, build_task, GROUPS) as run:
    if flags.FLAGS.dry_run:
      print(run.dry_run())
      return
    state = run.train()
    run.finish(state)


if __name__ == '__main__':
  cli.run(main)
