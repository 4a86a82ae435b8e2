"""Federated linear, ridge, logistic and Poisson regression on tables.

  python -m experiments.linear_regression --dataset=exam --clients_per_round=65

Beside what every run leaves are coefficients.csv with standard errors and the
pooled solution, and clients.csv with R2 and RMSE.
"""

from collections.abc import Sequence

from absl import flags

from research import (
  cli,
  experiment,
  flag_values,
  quantization_flags,
  regression_flags,
  runtime_flags,
)
from research import flags as flags_lib
from research.tasks import task as task_lib
from research.training import regression_report

BINARY = 'experiments.linear_regression'

_DATA = regression_flags.DataFlags()
_MODEL = regression_flags.ModelFlags()
_QUANTIZATION = quantization_flags.QuantizationFlags()
GROUPS = experiment.FlagGroups(
  algorithm=flags_lib.AlgorithmFlags(),
  training=flags_lib.TrainingFlags(total_rounds=100, client_batch_size=0),
  runtime=runtime_flags.RuntimeFlags(),
  output=flags_lib.OutputFlags(experiment_name='linear_regression'),
)
flags.adopt_module_key_flags(flag_values)


def build_task() -> task_lib.Task:
  """Builds the task that the flags describe."""
  return _QUANTIZATION.apply(_MODEL.build_task(_DATA, flags.FLAGS.seed))


def main(argv: Sequence[str]) -> None:
  """Trains, compares with the pooled solution, draws and exports."""
  flag_values.refuse_arguments(argv)
  flag_values.apply_from_config()
  with experiment.Experiment.start(BINARY, build_task, GROUPS) as run:
    if flags.FLAGS.dry_run:
      print(run.dry_run())
      return
    state = run.train()
    run.finish(state)
    if not run.may_tell_of_clients:
      return
    run.loop.evaluator.set_weights(run.loop.process.get_model_weights(state))
    values = flags.FLAGS
    descent = values.algorithm == 'fed_avg' and values.client_optimizer == 'sgd'
    report = regression_report.write(
      run.run,
      run.task,
      run.loop.evaluator,
      values.client_learning_rate if descent else None,
    )
    print(report)


if __name__ == '__main__':
  cli.run(main)
