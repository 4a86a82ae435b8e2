"""The training loop: sample, train, evaluate, record, checkpoint."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from research.aggregators import bits, rejection
from research.algorithms import attacks, stateful, weight_constraints
from research.runtime import registry as runtimes
from research.tasks import task as task_lib
from research.training import checkpoint as checkpoint_lib
from research.training import client_states as client_states_lib
from research.training import (
  cohorts,
  early_stopping,
  evaluation,
  fault_injection,
  private_rounds,
  run_directory,
  sampling,
  schedules,
)
from research.training import columns as columns_lib
from research.training import faults as faults_lib
from research.training import metrics as metrics_lib
from research.training import progress as progress_lib
from research.training import trackers as trackers_lib

TIMING_COLUMNS = (
  'round',
  'train_seconds',
  'evaluation_seconds',
  'seconds',
  'client_programs',
)


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  """How long and on what a process trains; attributes are flags.

  Attributes:
    total_rounds: Rounds of the whole run, those before a resume included.
    clients_per_round: Clients per round; their expected number under Poisson
      sampling (how they are drawn is the sampler's business).
    client_epochs_per_round: Passes of a client over its examples per round.
    client_batch_size: Examples per local step; 0 is all at once.
    max_examples_per_client: Cap on a client's examples per epoch.
    rounds_per_evaluation: Rounds between evaluations; there is one when
      `total_rounds` is reached.
    rounds_per_checkpoint: Rounds between checkpoints; the last round has one.
    checkpoints_kept: Newest checkpoints that stay.
    early_stopping_evaluations: End after so many evaluations in a row that
      were no new minimum of the validation loss; None is never.
    seed: What all randomness but privacy noise comes from.
  """

  total_rounds: int
  clients_per_round: int
  client_epochs_per_round: int = 1
  client_batch_size: int = 10
  max_examples_per_client: int | None = None
  rounds_per_evaluation: int = 5
  rounds_per_checkpoint: int = 1
  checkpoints_kept: int = 3
  early_stopping_evaluations: int | None = None
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Schedules:
  """Learning rates by round; None where clients or server have no optimizer."""

  client: schedules.Schedule | None
  server: schedules.Schedule | None

  def items(self) -> list[tuple[str, schedules.Schedule]]:
    """Pairs of a part of TFF's hyperparameters and its schedule."""
    pairs = [('client_work', self.client), ('finalizer', self.server)]
    return [(part, schedule) for part, schedule in pairs if schedule]


def host_leaves(structure: Any) -> list[checkpoint_lib.Leaf]:
  """The leaves of a structure in this process's memory.

  Args:
    structure: Arrays, scalars, and tensors that may lie on an accelerator.

  Returns:
    The same with arrays and NumPy scalars in place of tensors, so that a state
    looks alike whichever runtime it comes from.
  """
  return [
    leaf.numpy() if tf.is_tensor(leaf) else leaf
    for leaf in tf.nest.flatten(structure)
  ]


class TrainingLoop:
  """Trains a process round by round, from its newest checkpoint on."""

  def __init__(
    self,
    config: LoopConfig,
    task: task_lib.Task,
    process: stateful.AnyProcess,
    schedule: Schedules,
    sampler: sampling.ClientSampler,
    runtime: runtimes.Runtime,
    checkpoints: checkpoint_lib.CheckpointManager,
    client_states: client_states_lib.ClientStates | None = None,
    faults: faults_lib.Faults | None = None,
    privacy: private_rounds.PrivateRounds | None = None,
    evaluator: evaluation.Evaluator | None = None,
  ):
    """Prepares the loop; nothing runs yet.

    Args:
      config: Rounds, cohort and local work.
      task: What is learned.
      process: What learns it, prepared by the runtime.
      schedule: Learning rates by round.
      sampler: Draws the cohorts.
      runtime: Turns clients into arguments of `process.next`.
      checkpoints: Where states are kept.
      client_states: Where the clients' states are kept, if they have any.
      faults: Which clients fail, lag or lie; None is none.
      privacy: Wraps the rounds if the process's aggregator is private.
      evaluator: Evaluates states; None is one of the global model.
    """
    self.config = config
    self.task = task
    self.process = process
    self._computation = process.next
    self.evaluator = evaluator or evaluation.Evaluator(task)
    self._schedule = schedule
    self.runtime = runtime
    self._checkpoints = checkpoints
    self._client_states = client_states
    self._faults = faults or faults_lib.Faults()
    self._privacy = privacy
    self._clients = self._faults.poisoned_split(
      task.data.train, task.data.num_classes
    )
    self._sampler = sampler
    self.last_round = config.total_rounds
    self._ahead: concurrent.futures.Executor | None = None
    self._prepared: dict[int, concurrent.futures.Future] = {}
    # By round, as float32: what metrics.csv gives back to a resumed run.
    self._losses: dict[int, np.float32] = {}
    self._rows: list[Mapping[str, Any]] = []

  def restore(self) -> tuple[int, Any]:
    """Returns the newest good checkpoint's round and state, or 0 and a new one.

    Raises:
      run_directory.ResumeError: If the checkpoint is of another model or
        algorithm.
    """
    state = self.process.initialize()
    saved = self._checkpoints.load_latest()
    if saved is None:
      return 0, state
    shapes = [np.shape(leaf) for leaf in saved.leaves]
    expected = [np.shape(leaf) for leaf in host_leaves(state)]
    if shapes != expected:
      raise run_directory.ResumeError(
        f'The checkpoint of round {saved.round_num} has leaves of shapes '
        f'{shapes}, but this model and algorithm have {expected}.'
      )
    return saved.round_num, tf.nest.pack_sequence_as(state, saved.leaves)

  def run(
    self,
    start: tuple[int, Any],
    metrics_csv: metrics_lib.MetricsCsv,
    timing_csv: metrics_lib.MetricsCsv,
    trackers: Sequence[trackers_lib.Tracker],
    progress: progress_lib.Progress,
    after_round: Callable[[int, Any], None] | None = None,
  ) -> Any:
    """Trains until `total_rounds`.

    A row is on disk before the checkpoint of its round, so that a resume finds
    every row up to the checkpoint.

    Args:
      start: What `restore` returned.
      metrics_csv: Gets a row per round; rows after the start are dropped.
      timing_csv: Gets the wall-clock figures.
      trackers: Get the same values as the two files.
      progress: Shown to the user.
      after_round: Called with each round and its state, once its row is on
        disk.

    Returns:
      The final state.

    Raises:
      run_directory.ResumeError: If metrics.csv lacks rows before the start.
    """
    done, state = start
    self.last_round = self.last_round_from(done)
    if self._client_states:
      self._client_states.go_back_to(done)
    metrics_csv.truncate_after(done)
    timing_csv.truncate_after(done)
    if metrics_csv.last_round != (done or -1):
      raise run_directory.ResumeError(
        f'metrics.csv ends at round {metrics_csv.last_round}, but the '
        f'checkpoint is of round {done}: rows are missing. Restore the file, '
        'or choose another --experiment_name.'
      )
    self._rows = metrics_lib.read(metrics_csv.path)
    for row in self._rows:
      self._remember_loss(row)
    if self.stopped_early(self._rows) == done:
      self.last_round = done
    with self._preparing_ahead():
      return self._train(
        start, metrics_csv, timing_csv, trackers, progress, after_round
      )

  def last_round_from(self, done: int) -> int:
    """The last round of a run that goes on after round `done`."""
    total = self.config.total_rounds
    return self._privacy.last_round(done, total) if self._privacy else total

  def stopped_early(self, rows: Sequence[Mapping[str, Any]]) -> int | None:
    """The round after which a run with these rows ended early, if it did."""
    patience = self.config.early_stopping_evaluations
    return early_stopping.last_round(rows, patience)

  def _train(
    self, start, metrics_csv, timing_csv, trackers, progress, after_round
  ) -> Any:
    done, state = start
    for round_num in range(done + 1, self.last_round + 1):
      begin = time.monotonic()
      state, row = self.train_round(state, round_num)
      trained = time.monotonic()
      if self._privacy:
        row = self._privacy.public(row)
      examples, speed = row.get('examples'), None
      if examples is not None:
        speed = examples / max(trained - begin, 1e-9)
      if self._is_due(round_num, self.config.rounds_per_evaluation):
        row.update(self.evaluate(state))
      evaluated = time.monotonic()
      self._rows.append(row)
      if self.stopped_early(self._rows):
        self.last_round = round_num
      fault_injection.reached('round')
      timing = {
        'round': round_num,
        'train_seconds': trained - begin,
        'evaluation_seconds': evaluated - trained,
        'seconds': evaluated - begin,
        'client_programs': self.runtime.programs,
      }
      metrics_csv.append(row)
      timing_csv.append(timing)
      for tracker in trackers:
        tracker.write(round_num, {**row, **timing})
      if after_round:
        after_round(round_num, state)
      if self._is_due(round_num, self.config.rounds_per_checkpoint):
        self._checkpoints.save(round_num, host_leaves(state))
      shown = {
        name: row.get(f'train_{name}')
        for name in columns_lib.metric_names(self.task)
      }
      for name in ('accuracy', 'purity', 'f1', 'perplexity'):
        shown[f'test {name}'] = row.get(f'test_{name}')
      for name in ('epsilon', 'delta'):
        shown[name] = row.get(name)
      progress.update(round_num, shown, speed)
      if round_num == self.last_round:
        break
    return state

  @property
  def columns(self) -> tuple[str, ...]:
    """The columns of metrics.csv."""
    own = getattr(self.process, 'has_own_models', False)
    return columns_lib.columns(
      self.task,
      self._faults.any,
      own,
      is_private=self._privacy is not None,
      is_pruned=weight_constraints.measures_sparsity(self.process),
    )

  def _is_due(self, round_num: int, period: int) -> bool:
    return round_num % period == 0 or round_num == self.last_round

  def train_round(self, state: Any, round_num: int) -> tuple[Any, dict]:
    """Trains one round.

    Clients without examples are not asked. A round without any client leaves
    model and server optimizer as they are.

    Args:
      state: State of the process.
      round_num: Counted from 1.

    Returns:
      The new state, and the round's row of metrics.csv.
    """
    cohort = self._cohort(round_num)
    row = {
      'round': round_num,
      'clients': cohort.clients,
      'empty_clients': cohort.empty,
      'examples': 0,
      rejection.REJECTED: 0,
      **cohort.faults,
    }
    state = self._apply_schedule(state, round_num, row)
    if cohort.argument is None and not self._privacy:
      return state, row
    if self._privacy:
      state = self._privacy.begin(state, round_num)
    output = self._next(state, cohort, round_num)
    if self._privacy:
      row |= self._privacy.end(state, output.state)
    row[bits.DOWNLOAD] = self._download_bits
    row.update(self._train_metrics(output.metrics))
    self._remember_loss(row)
    return output.state, row

  def _next(self, state: Any, cohort: cohorts.Cohort, round_num: int) -> Any:
    data = cohort.argument or []
    if isinstance(self.process, attacks.AttackedProcess):
      return self.process.next(state, data, cohort.instructions)
    if self._client_states is None:
      return self.process.next(state, data)
    # Read only now: the round before may have had the same clients.
    before = [self._client_states.read(client) for client in cohort.asked]
    output = self.process.next(state, data, before)
    after = dict(zip(cohort.asked, output.client_states, strict=True))
    self._client_states.write(round_num, after, self._checkpoints.rounds())
    return output

  def _remember_loss(self, row: Mapping[str, Any]) -> None:
    loss = row.get('train_loss')
    if loss is not None:
      self._losses[row['round']] = np.float32(loss)

  @functools.cached_property
  def _download_bits(self) -> int:
    return bits.download(self._computation)

  @contextlib.contextmanager
  def _preparing_ahead(self):
    """While a round is trained the next one's clients are drawn and packed."""
    with concurrent.futures.ThreadPoolExecutor(1, 'next_cohort') as self._ahead:
      try:
        yield
      finally:
        for future in self._prepared.values():
          future.cancel()
        self._ahead, self._prepared = None, {}

  def _cohort(self, round_num: int) -> cohorts.Cohort:
    prepared = self._prepared.pop(round_num, None)
    cohort = prepared.result() if prepared else self._prepare(round_num)
    following = round_num + 1
    if self._ahead and following <= self.config.total_rounds:
      self._prepared[following] = self._ahead.submit(self._prepare, following)
    return cohort

  def _prepare(self, round_num: int) -> cohorts.Cohort:
    return cohorts.prepare(
      self.config,
      self._clients,
      self._sampler,
      self.runtime,
      self._faults,
      round_num,
      self._privacy.canaries if self._privacy else None,
    )

  def _apply_schedule(self, state: Any, round_num: int, row: dict) -> Any:
    losses = ()
    kinds = [rule.kind for _, rule in self._schedule.items()]
    if schedules.PLATEAU in kinds:
      losses = [self._losses.get(before) for before in range(1, round_num)]
    rates = {
      part: rule(round_num, losses) for part, rule in self._schedule.items()
    }
    row['client_learning_rate'] = rates.get('client_work')
    row['server_learning_rate'] = rates.get('finalizer')
    if all(rule.is_constant for _, rule in self._schedule.items()):
      return state
    hparams = self.process.get_hparams(state)
    for part, rate in rates.items():
      hparams[part]['learning_rate'] = rate
    return self.process.set_hparams(state, hparams)

  def _train_metrics(self, metrics: Mapping[str, Any]) -> dict:
    metrics = tf.nest.pack_sequence_as(metrics, host_leaves(metrics))
    train, aggregator = metrics['client_work']['train'], metrics['aggregator']
    row = {
      'examples': train['num_examples'],
      rejection.REJECTED: aggregator[rejection.REJECTED],
      bits.UPLOAD: aggregator.get(bits.UPLOAD),
    }
    server = metrics.get('finalizer')
    if isinstance(server, Mapping) and weight_constraints.SPARSITY in server:
      row[weight_constraints.SPARSITY] = server[weight_constraints.SPARSITY]
    # Keras' mean over no examples is 0, which would look like a result.
    if train['num_examples']:
      for kind in ('train', columns_lib.PERSONAL):
        found = metrics['client_work'].get(kind, {})
        row |= {
          f'{kind}_{name}': found[name]
          for name in columns_lib.metric_names(self.task)
          if name in found
        }
    return row

  def evaluate(self, state: Any) -> dict[str, float]:
    """Evaluates a state on validation and test data.

    Args:
      state: State of the process.

    Returns:
      `<split>_<metric>` to its mean over the split's examples.
    """
    self.evaluator.set_weights(self.process.get_model_weights(state))
    splits = {
      'validation': self.task.data.validation,
      'test': self.task.data.test,
    }
    return {
      f'{split_name}_{name}': value
      for split_name, split in splits.items()
      if split is not None
      for name, value in self.evaluator.evaluate(split).items()
    }
