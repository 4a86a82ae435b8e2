"""Personalisation: the global model beside one of the client's own.

By fine-tuning: Wang et al. 2019, "Federated Evaluation of On-device
Personalization", arXiv:1910.10252, Section 2. A client's metrics on its test
data are taken with the global model and again after some epochs of SGD on its
training data. Or with the models that clients kept in training.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from datasets import federated_data
from research.tasks import task as task_lib
from research.training import atomic, client_states, evaluation

# Keeps the order of fine-tuning apart from other draws of the same seed.
_STREAM = 0x66696E


@dataclasses.dataclass(frozen=True)
class Settings:
  """How a client fine-tunes.

  Attributes:
    epochs: Passes over its training examples.
    learning_rate: Of SGD.
    batch_size: Examples per step; 0 is all at once.
    seed: Decides the order of the examples.
    variables: Positions of those that are trained among the model's trainable
      ones; None is all of them.
  """

  epochs: int
  learning_rate: float
  batch_size: int
  seed: int = 0
  variables: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
  """One client.

  Attributes:
    client_id: Its name.
    train_examples: What it fine-tuned on.
    test_examples: What it was evaluated on.
    before: Mean metrics on its test examples with the global model.
    after: The same with its own model.
  """

  client_id: str
  train_examples: int
  test_examples: int
  before: dict[str, float]
  after: dict[str, float]


def candidates(
  data: federated_data.FederatedData, split: federated_data.Split | None = None
) -> list[str]:
  """The clients that have training examples and others.

  Args:
    data: The clients.
    split: Where they have others; None is the test data.

  Returns:
    Their names, in the split's order.
  """
  train, other = data.train.num_examples, (split or data.test).num_examples
  return [c for c in other if other[c] and train.get(c)]


class FineTuner:
  """Fine-tunes an evaluator's model on one client, when it is called."""

  def __init__(
    self,
    task: task_lib.Task,
    evaluator: evaluation.Evaluator,
    settings: Settings,
  ):
    """Prepares the fine-tuning.

    Args:
      task: What is learned.
      evaluator: Its model is trained.
      settings: How.
    """
    self._task = task
    self._evaluator = evaluator
    self._settings = settings
    self._loss = task.build_loss()
    self._step = tf.function(self._train_step, reduce_retracing=True)

  def _train_step(self, batch):
    batch = self._task.preprocess(batch)
    model = self._evaluator.model
    with tf.GradientTape() as tape:
      loss = self._loss(batch['y'], model(batch['x'], training=True))
    variables = model.trainable_variables
    if self._settings.variables is not None:
      variables = [variables[i] for i in self._settings.variables]
    gradients = tape.gradient(loss, variables)
    for variable, gradient in zip(variables, gradients, strict=True):
      # The gradient of an embedding has only the rows that were read.
      dense = tf.convert_to_tensor(gradient)
      variable.assign_sub(self._settings.learning_rate * dense)

  def __call__(self, client_id: str) -> None:
    """Trains the model on from the weights that it has."""
    split = self._task.data.train
    arrays = split.client(client_id)
    batches = federated_data.client_batches(
      split.num_examples[client_id],
      batch_size=self._settings.batch_size,
      epochs=self._settings.epochs,
      seed=[_STREAM, self._settings.seed, split.position(client_id)],
    )
    for batch in batches:
      self._step({k: tf.constant(a[batch]) for k, a in arrays.items()})


class OwnModels:
  """Gives an evaluator's model the weights that a client kept (Ditto)."""

  def __init__(
    self,
    task: task_lib.Task,
    evaluator: evaluation.Evaluator,
    directory: atomic.Path,
  ):
    """Finds the models.

    Args:
      task: What is learned.
      evaluator: Its model gets the weights.
      directory: The run's `client_states`.
    """
    self._split = task.data.train
    self._variables = evaluator.model.trainable_variables
    self._states = client_states.ClientStates(
      directory, [v.numpy() for v in self._variables]
    )

  def has(self, client_id: str) -> bool:
    """Whether a client was ever asked, and so has a model of its own."""
    return bool(self._states.rounds(self._split.position(client_id)))

  def __call__(self, client_id: str) -> None:
    """Puts the client's weights into the model."""
    own = self._states.read(self._split.position(client_id))
    for variable, value in zip(self._variables, own, strict=True):
      variable.assign(value)


@contextlib.contextmanager
def adapted(
  model: tf.keras.Model, adapt: Callable[[str], None], client_id: str
) -> Iterator[None]:
  """Adapts a model to a client, and gives it its own weights again.

  Args:
    model: The model.
    adapt: Changes it for a client.
    client_id: The client.
  """
  initial = [variable.numpy() for variable in model.variables]
  try:
    adapt(client_id)
    yield
  finally:
    for variable, value in zip(model.variables, initial, strict=True):
      variable.assign(value)


def compare(
  task: task_lib.Task,
  evaluator: evaluation.Evaluator,
  client_ids: Sequence[str],
  adapt: Callable[[str], None],
) -> Iterator[Outcome]:
  """Yields the outcome of each client.

  Args:
    task: What is learned.
    evaluator: Has the global weights, and has them again after each client.
    client_ids: Some of `candidates`.
    adapt: Changes the evaluator's model for a client.
  """
  for client_id in client_ids:
    split = task.data.test.subset([client_id])
    before = evaluator.evaluate(split)
    with adapted(evaluator.model, adapt, client_id):
      after = evaluator.evaluate(split)
    yield Outcome(
      client_id,
      task.data.train.num_examples[client_id],
      task.data.test.num_examples[client_id],
      before,
      after,
    )


def summary(outcomes: list[Outcome]) -> dict[str, dict[str, float]]:
  """By metric, means over clients, and the share of clients that it helps.

  A client whose metric stays as it is counts as not helped.
  """
  found = {}
  for name in outcomes[0].before:
    before = np.array([outcome.before[name] for outcome in outcomes])
    after = np.array([outcome.after[name] for outcome in outcomes])
    gain = before - after if name == 'loss' else after - before
    found[name] = {
      'before': float(before.mean()),
      'after': float(after.mean()),
      'helped': float((gain > 0).mean()),
      'harmed': float((gain < 0).mean()),
    }
  return found
