"""Evaluates a finished run, with percentiles of its metrics over clients.

On the run's test data, on test clients that never trained, or on own data:

  python -m experiments.evaluate --run_dir=runs/emnist
  python -m experiments.evaluate --run_dir=runs/emnist --split=train
  python -m experiments.evaluate --run_dir=runs/emnist \\
    --dataset=file --data_file=mine.csv --feature_shape=28,28,1

Every flag of the run can be given anew; the others are taken from the run.
"""

import json
from collections.abc import Sequence

import numpy as np
from absl import flags

from research import cli, finished_run, flag_values, privacy_flags
from research.algorithms import registry
from research.training import atomic, evaluation, run_directory

_RUN_DIR = flags.DEFINE_string(
  'run_dir', None, 'The run directory.', required=True
)
_SPLIT = flags.DEFINE_enum(
  'split',
  'test',
  ['train', 'validation', 'test', 'unseen'],
  'Which clients; unseen are the test clients that are no training clients.',
)
_OUTPUT = flags.DEFINE_string('output', None, 'Also write a JSON file here.')

PERCENTILES = (5, 25, 50, 75, 95)


def summarise(
  evaluator: evaluation.Evaluator, split
) -> dict[str, dict[str, float]]:
  """Returns, by metric, its mean over examples and percentiles over clients."""
  means = evaluator.evaluate(split)
  clients = evaluator.evaluate_clients(split)
  summary = {}
  for name, mean in means.items():
    values = [metrics[name] for metrics in clients.values()]
    percentiles = np.percentile(values, PERCENTILES)
    summary[name] = {'mean': mean} | {
      f'p{percent:02d}': float(value)
      for percent, value in zip(PERCENTILES, percentiles, strict=True)
    }
  return summary


def main(argv: Sequence[str]) -> None:
  """Prints a table, and writes it as JSON if asked to."""
  flag_values.refuse_arguments(argv)
  if registry.ALGORITHMS[flags.FLAGS.algorithm].has_local_layers:
    raise flags.IllegalFlagValueError(
      f'The model of --algorithm={flags.FLAGS.algorithm} lacks its local part, '
      'which each client makes from its own examples: python -m '
      f'experiments.personalize --run_dir={_RUN_DIR.value} evaluates it so.'
    )
  if _SPLIT.value in ('train', 'validation'):
    privacy_flags.refuse_release(
      f"--split={_SPLIT.value} tells of its clients' examples"
    )
  run = finished_run.load(run_directory.RunDirectory.existing(_RUN_DIR.value))
  split = finished_run.select_split(run.task, _SPLIT.value)
  summary = summarise(run.evaluator, split)
  print(
    f'{run.path} after round {run.round_num}, {run.task.data.name} '
    f'({_SPLIT.value}): {split.total_examples} examples, '
    f'{len(split.client_ids)} client(s)'
  )
  if len(split.client_ids) == 1:
    print('With one client the percentiles are its mean.')
  print('metric'.ljust(10) + ''.join(f'{k:>10}' for k in summary['loss']))
  for name, values in summary.items():
    cells = ''.join(f'{value:>10.4f}' for value in values.values())
    print(name.ljust(10) + cells)
  if _OUTPUT.value:
    atomic.write_json(_OUTPUT.value, summary)
    print(json.dumps({'written': _OUTPUT.value}))


if __name__ == '__main__':
  cli.run(main, flag_values.parse_with_run)
