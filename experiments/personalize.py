"""Fine-tunes a finished run's model on each client; metrics before and after.

  python -m experiments.personalize --run_dir=runs/emnist
  python -m experiments.personalize --run_dir=runs/emnist \\
    --fine_tuning_epochs=5 --fine_tuning_learning_rate=0.01

Each client that has training and test examples trains the global model on the
first and is evaluated on the second (Wang et al. 2019, arXiv:1910.10252). After
--algorithm=ditto it is each client's own model that is compared; after
--algorithm=fed_recon it is the local part that the client reconstructs.
Writes personalization.csv and a plot into the run directory.
"""

import csv
import importlib
import io
import pathlib
from collections.abc import Sequence

import tensorflow_federated as tff
import tqdm
from absl import flags

from research import cli, finished_run, flag_values, privacy_flags
from research.algorithms import registry
from research.training import (
  atomic,
  personalization,
  plots,
  reconstruction,
  run_directory,
)

FLAGS = flags.FLAGS

_RUN_DIR = flags.DEFINE_string(
  'run_dir', None, 'The run directory.', required=True
)
_EPOCHS = flags.DEFINE_integer(
  'fine_tuning_epochs', 1, 'Passes of a client.', lower_bound=1
)
_RATE = flags.DEFINE_float(
  'fine_tuning_learning_rate',
  None,
  "Of a client's SGD; --client_learning_rate of the run by default.",
  lower_bound=0.0,
)
_CLIENTS = flags.DEFINE_integer(
  'max_clients', None, 'Only the first so many clients.', lower_bound=1
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'CSV file; personalization.csv in the run by default.'
)


def _write(path: pathlib.Path, outcomes: list[personalization.Outcome]) -> None:
  text = io.StringIO()
  names = list(outcomes[0].before)
  writer = csv.writer(text, lineterminator='\n')
  columns = [f'{when}_{name}' for name in names for when in ('before', 'after')]
  writer.writerow(['client', 'train_examples', 'test_examples', *columns])
  for outcome in outcomes:
    values = [
      value[name] for name in names for value in (outcome.before, outcome.after)
    ]
    writer.writerow(
      [
        outcome.client_id,
        outcome.train_examples,
        outcome.test_examples,
        *values,
      ]
    )
  atomic.write_text(path, text.getvalue())


def _adaptation(
  run: finished_run.FinishedRun,
) -> personalization.OwnModels | personalization.FineTuner:
  """What gives a client the model that the run's algorithm means for it."""
  algorithm = registry.ALGORITHMS[FLAGS.algorithm]
  if algorithm.has_own_models or algorithm.has_local_layers:
    flag_values.refuse_unused(
      [flag.name for flag in (_EPOCHS, _RATE)],
      f'by --algorithm={FLAGS.algorithm}',
    )
  if algorithm.has_own_models:
    return personalization.OwnModels(
      run.task, run.evaluator, run.directory.client_states
    )
  if algorithm.has_local_layers:
    settings = _reconstruction(run)
  else:
    rate = _RATE.value
    settings = personalization.Settings(
      epochs=_EPOCHS.value,
      learning_rate=FLAGS.client_learning_rate if rate is None else rate,
      batch_size=FLAGS.client_batch_size,
      seed=FLAGS.seed,
    )
  return personalization.FineTuner(run.task, run.evaluator, settings)


def _reconstruction(run: finished_run.FinishedRun) -> personalization.Settings:
  groups = importlib.import_module(run.config['binary']).GROUPS
  _, settings, _ = groups.algorithm.get(
    tff.learning.LoopImplementation.DATASET_REDUCE
  )
  return reconstruction.settings(run.task, settings, groups.training.get())


def main(argv: Sequence[str]) -> None:
  """Fine-tunes, prints a table, and writes a CSV file and a plot."""
  flag_values.refuse_arguments(argv)
  privacy_flags.refuse_release(
    "metrics of its clients' own models tell of them"
  )
  run = finished_run.load(run_directory.RunDirectory.existing(_RUN_DIR.value))
  clients = personalization.candidates(run.task.data)
  if not clients:
    raise flags.IllegalFlagValueError(
      f'No client of {run.task.data.name} ({run.task.data.partition}) has '
      'training and test examples: personalisation wants data whose clients '
      'have both, as those of --partition=natural.'
    )
  adapt = _adaptation(run)
  if isinstance(adapt, personalization.OwnModels):
    clients = [client for client in clients if adapt.has(client)]
    if not clients:
      raise flags.IllegalFlagValueError(
        f'No client with test examples has a model of its own in {run.path}: '
        'train for more rounds.'
      )
    print("Each client's own model, as training left it.")
  elif registry.ALGORITHMS[FLAGS.algorithm].has_local_layers:
    print("Each client's reconstructed local part, and the initial one before.")
  clients = clients[: _CLIENTS.value]
  outcomes = list(
    tqdm.tqdm(
      personalization.compare(run.task, run.evaluator, clients, adapt),
      total=len(clients),
      unit='client',
    )
  )
  path = pathlib.Path(_OUTPUT.value or run.path / 'personalization.csv')
  _write(path, outcomes)
  plot = run.directory.plots / 'personalization.png'
  name = list(outcomes[0].before)[-1]
  plots.before_and_after(
    [outcome.before[name] for outcome in outcomes],
    [outcome.after[name] for outcome in outcomes],
    name,
    plot,
  )
  print(f'{run.path} after round {run.round_num}: {len(clients)} clients')
  print('metric      before     after    helped    harmed')
  for name, values in personalization.summary(outcomes).items():
    print(name.ljust(8) + ''.join(f'{v:>10.4f}' for v in values.values()))
  print(f'clients     {path}\nplot        {plot}')


if __name__ == '__main__':
  cli.run(main, flag_values.parse_with_run)
