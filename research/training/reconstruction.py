"""Evaluates models whose local part each client makes from its own examples.

Singhal et al. 2021, "Federated Reconstruction: Partially Local Federated
Learning", arXiv:2102.03448. The server's model has no local part that means
something: a client reconstructs it from its training examples, and is evaluated
on its test examples.
"""

import numpy as np

from datasets import federated_data
from research.algorithms import local_training, partly_local, registry
from research.tasks import task as task_lib
from research.training import cohorts, evaluation, personalization

# Keeps the draw of clients apart from other draws of the same seed.
_STREAM = 0x726563

# Clients of a split that are evaluated at most.
MOST_CLIENTS = 100


def settings(
  task: task_lib.Task, algorithm: registry.Settings, config: cohorts.Config
) -> personalization.Settings:
  """How a client reconstructs: as in training, from all of its examples.

  Args:
    task: What is learned.
    algorithm: Of an algorithm that `has_local_layers`.
    config: The clients' local work.

  Returns:
    Settings of a `FineTuner` of the local part alone.
  """
  hparams = algorithm.hparams
  partition = partly_local.Partition.of_layers(
    task.layers(), hparams['local_layers']
  )
  return personalization.Settings(
    epochs=hparams['reconstruction_epochs'],
    learning_rate=hparams['reconstruction_learning_rate'],
    batch_size=config.client_batch_size,
    seed=config.seed,
    variables=partition.local,
  )


def check(data: federated_data.FederatedData) -> None:
  """Raises unless models with a local part can be evaluated on data.

  Args:
    data: The clients.

  Raises:
    UnsuitableError: If no client of the test or validation data has training
      examples to reconstruct from.
  """
  splits = {'test': data.test, 'validation': data.validation}
  for name, split in splits.items():
    if split is not None and not personalization.candidates(data, split):
      raise local_training.UnsuitableError(
        f'No client of {data.name} ({data.partition}) has training and {name} '
        'examples: a model with a local part is evaluated on the latter once '
        'it is reconstructed from the former. Use data whose clients have '
        'both, as those of --partition=natural, without '
        '--validation_by=clients.'
      )


class Evaluator(evaluation.Evaluator):
  """Evaluates each client with the local part that it reconstructs."""

  def __init__(
    self, task: task_lib.Task, reconstruction: personalization.Settings
  ):
    """Builds a model to carry the weights.

    Args:
      task: What is learned.
      reconstruction: See `settings`.
    """
    super().__init__(task)
    self._reconstruct = personalization.FineTuner(task, self, reconstruction)
    self._seed = reconstruction.seed

  def evaluate(self, split: federated_data.Split) -> dict[str, float]:
    """Returns each metric's mean over the examples of some clients.

    Args:
      split: Has clients that have training examples too; at most
        `MOST_CLIENTS` of them are taken, always the same ones.
    """
    clients = personalization.candidates(self._task.data, split)
    if len(clients) > MOST_CLIENTS:
      rng = np.random.default_rng([_STREAM, self._seed])
      chosen = np.sort(rng.choice(len(clients), MOST_CLIENTS, replace=False))
      clients = [clients[i] for i in chosen]
    parts = []
    for client_id in clients:
      with personalization.adapted(self.model, self._reconstruct, client_id):
        parts.append(self.per_example(split.subset([client_id])))
    return {
      name: float(
        np.mean(np.concatenate([p[name] for p in parts]), dtype=np.float64)
      )
      for name in parts[0]
    }
