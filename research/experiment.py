"""A run from flags to an exported model: what every binary shares."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import flags, logging

from research import (
  flag_values,
  initial_model,
  provenance,
  runtime_flags,
  statistics_flags,
)
from research import flags as flags_lib
from research.algorithms import local_training, registry, stateful
from research.export import exporter, parity, saved_model
from research.privacy import audit_report
from research.runtime import planner
from research.runtime import registry as runtimes
from research.tasks import task as task_lib
from research.training import checkpoint as checkpoint_lib
from research.training import client_states as client_states_lib
from research.training import estimate as estimate_lib
from research.training import (
  evaluation,
  interrupts,
  plots,
  private_rounds,
  reconstruction,
  run_directory,
  sampling,
)
from research.training import faults as faults_lib
from research.training import loop as loop_lib
from research.training import metrics as metrics_lib
from research.training import progress as progress_lib
from research.training import trackers as trackers_lib

# What `comparison.constant_class_accuracy` reads of config.json.
_CONSTANT_CLASS = 'constant_class_accuracy'


def describe(task: task_lib.Task) -> str:
  """One line about a task's data."""
  data = task.data
  sizes = [f'{data.train.total_examples} training']
  if data.validation is not None:
    sizes.append(f'{data.validation.total_examples} validation')
  sizes.append(f'{data.test.total_examples} test')
  wanted = {
    'regression': f'target {", ".join(data.target_names)}',
    'tagging': f'{data.num_classes} tags',
    'masked_language_modelling': 'tokens to guess',
  }.get(task.kind, f'{data.num_classes} classes')
  return (
    f'{data.name}: {len(data.train.client_ids)} clients ({data.partition}), '
    f'{", ".join(sizes)} examples, {wanted}'
  )


@dataclasses.dataclass(frozen=True)
class FlagGroups:
  """The flag groups of a binary, besides those of its task."""

  algorithm: flags_lib.AlgorithmFlags
  training: flags_lib.TrainingFlags
  runtime: runtime_flags.RuntimeFlags
  output: flags_lib.OutputFlags


class Experiment:
  """One run: its task, learning process, loop and directory.

  Use as `with Experiment.start(...) as experiment: experiment.train()`.
  """

  def __init__(
    self,
    run: run_directory.RunDirectory,
    task: task_lib.Task,
    loop: loop_lib.TrainingLoop,
    output: flags_lib.OutputConfig,
    config: dict[str, Any],
    privacy: private_rounds.PrivateRounds | None = None,
  ):
    """Use `start`."""
    self.run = run
    self.task = task
    self.loop = loop
    self._output = output
    self._config = config
    self._privacy = privacy
    self.audit: audit_report.Report | None = None

  @classmethod
  @contextlib.contextmanager
  def start(
    cls,
    binary: str,
    build_task: Callable[[], task_lib.Task],
    groups: FlagGroups,
  ) -> Iterator['Experiment']:
    """Makes a run from flags, in a started runtime and a locked directory.

    Args:
      binary: Module of the binary, which commands on the finished run import.
      build_task: Builds the task from flags.
      groups: The other flags.

    Yields:
      The experiment.

    Raises:
      flags.IllegalFlagValueError: If flags do not fit together or to the data.
      run_directory.ResumeError: If the directory has a run with other flags.
      run_directory.RunLockedError: If another process writes there.
      audit_report.ViolationError: At the end of the block, if the run's audit
        contradicts its guarantee.
    """
    output = groups.output.get()
    runtime = groups.runtime.get()
    try:
      run = run_directory.RunDirectory(
        output.root_output_dir, output.experiment_name
      )
    except ValueError as error:
      raise flags.IllegalFlagValueError(str(error)) from error
    advice = f'The same command resumes the run in {run.path}.'
    lock = contextlib.nullcontext() if output.dry_run else run
    # The runtime is entered first: it configures TensorFlow, which can't be
    # done once a first operation has run.
    with interrupts.exit_tidily(advice), lock, runtime:
      try:
        algorithm = groups.algorithm.get(runtime.loop_implementation)
        task = initial_model.apply(build_task(), flags.FLAGS.initial_model)
        task = groups.runtime.apply(task)
        sampler = groups.training.sampler(task.data.train.client_ids)
        privacy = groups.algorithm.privacy(task, sampler, run)
        if privacy:
          algorithm = _with_noise(groups.algorithm, algorithm, privacy)
      except ValueError as error:
        raise flags.IllegalFlagValueError(str(error)) from error
      print(describe(task), flush=True)
      config = {
        'binary': binary,
        'flags': flag_values.values(),
        'seed': groups.training.get().seed,
        'device': provenance.device(),
        'data_sha256': task.data.content_sha256,
        'versions': provenance.versions(),
        'git_revision': provenance.git_revision(),
      }
      if task.initial_weights_sha256:
        config['initial_weights_sha256'] = task.initial_weights_sha256
      if flags.FLAGS.from_config:
        saved = flag_values.read_saved(flags.FLAGS.from_config)
        flag_values.check_same_data(saved, config['data_sha256'])
      saved = run.read_config()
      config = _continued(run, saved, config)
      loop = _build_loop(
        task,
        sampler,
        runtime,
        algorithm,
        groups.training.get(),
        run,
        groups.algorithm.faults(task),
        privacy,
      )
      config |= provenance.runtime_entries(runtime, saved, _rounds_done(run))
      if privacy:
        config['privacy'] = _same_privacy(saved, privacy.entry())
      started = cls(run, task, loop, output, config, privacy)
      yield started
      if started.audit:
        started.audit.check()

  def train(self) -> Any:
    """Trains from the newest checkpoint to the last round.

    Returns:
      The final state.
    """
    done, state = self.loop.restore()
    is_new = _CONSTANT_CLASS not in self._config
    if is_new and self.task.kind == 'classification':
      constant = evaluation.constant_class_accuracy(self.task.data.test)
      self._config[_CONSTANT_CLASS] = constant
    if self._privacy:
      self._privacy.resume(metrics_lib.last_round(self.run.metrics_csv))
    self.run.write_config(self._config)
    total = self.loop.last_round_from(done)
    if total < self.loop.config.total_rounds:
      print(
        f'The run ends after round {total}: the next one would exceed '
        f'--max_epsilon={flags.FLAGS.max_epsilon:g}.'
      )
    rows = metrics_lib.read(self.run.metrics_csv) if done else []
    if done and self.loop.stopped_early(rows) == done:
      print(f'{self.run.path} ended early, after round {done}.')
    elif done == total:
      print(f'{self.run.path} has all of its {total} rounds.')
    elif done:
      print(f'Resuming {self.run.path} after round {done} of {total}.')
    with contextlib.ExitStack() as stack:
      trackers = trackers_lib.create(
        self._output.trackers,
        self.run.path,
        self._output.experiment_name,
        self._config['flags'],
        done if done else -1,
      )
      for tracker in trackers:
        stack.callback(tracker.close)
      return self.loop.run(
        (done, state),
        metrics_lib.MetricsCsv(self.run.metrics_csv, self.loop.columns),
        _timing_csv(self.run.timing_csv),
        trackers,
        stack.enter_context(progress_lib.Progress(total, done)),
        self._export_round if self._output.export_every else None,
      )

  def _export_round(self, round_num: int, state: Any) -> None:
    """Exports the SavedModel of a round if it is due (`--export_every`)."""
    if round_num % self._output.export_every == 0:
      model = self.loop.evaluator.model
      self.loop.evaluator.set_weights(
        self.loop.process.get_model_weights(state)
      )
      saved_model.export(self.task, model, self.run.export_of(round_num))

  def plot(self, state: Any) -> None:
    """Draws learning curves, the clients' data, and centroids of images."""
    rows = metrics_lib.read(self.run.metrics_csv)
    data = self.task.data
    plots.learning_curves(rows, self.run.plots)
    if not self.may_tell_of_clients:
      return
    plots.examples_per_client(
      data.train, self.run.plots / 'examples_per_client.png'
    )
    if self.task.kind in ('classification', 'clustering'):
      plots.label_histogram(
        data.train,
        data.num_classes,
        self.run.plots / 'labels_per_client.png',
        self.task.class_names or data.class_names,
      )
    shape = self.task.example_shape
    if self.task.kind == 'clustering' and len(shape) == 3:
      (found,) = self.loop.process.get_model_weights(state).trainable
      images = np.reshape(found, [-1, *shape])
      plots.centroids(images, self.run.plots / 'centroids.png')

  @property
  def may_tell_of_clients(self) -> bool:
    """Whether clients' data may show in anything but the model."""
    if self._privacy is None:
      return True
    return self._privacy.settings.allow_unaccounted_release

  def export(self, state: Any) -> None:
    """Exports the model of a state with its parity report and model card."""
    self.loop.evaluator.set_weights(self.loop.process.get_model_weights(state))
    report = exporter.export_run(
      self.run,
      self.task,
      self.loop.evaluator.model,
      self._config,
      self.loop.last_round,
    )
    print(parity.summary(report))

  def finish(self, state: Any) -> None:
    """Audits, draws, exports if asked to, and prints where everything is."""
    if self._privacy:
      self.audit = self._privacy.audit(
        self.loop.process, state, self.run.audit_json
      )
    self.plot(state)
    if self._output.export:
      self.export(state)
    print(self.summary())

  def summary(self) -> str:
    """The last row of metrics.csv and the paths of a finished run."""
    last = metrics_lib.read(self.run.metrics_csv)[-1]
    table = [
      (name, _shown(value)) for name, value in last.items() if value is not None
    ]
    table += [('metrics', str(self.run.metrics_csv))]
    table += [('plots', str(self.run.plots))]
    if self._output.export:
      table += [('model', str(self.run.model))]
      table += [('model card', str(self.run.model_card_md))]
    if self.audit:
      table += [('audit', self.audit.line())]
    return '\n'.join(f'{name:<26}{value}' for name, value in table)

  def dry_run(self) -> str:
    """Returns the estimated time, memory, data and privacy as text."""
    done = self.loop.restore()[0]
    rounds = max(self.loop.config.total_rounds - done, 0)
    lines = estimate_lib.estimate(self.loop, rounds).lines()
    if self._privacy:
      lines.append(self._privacy.forecast())
    return '\n'.join(lines)


def _shown(value: metrics_lib.Cell) -> str:
  if not isinstance(value, float):
    return str(value)
  return f'{value:.4f}' if abs(value) >= 1e-3 or not value else f'{value:.3g}'


def _timing_csv(path: pathlib.Path) -> metrics_lib.MetricsCsv:
  """Opens timing.csv; one of another version is put aside, not refused."""
  try:
    return metrics_lib.MetricsCsv(path, loop_lib.TIMING_COLUMNS)
  except ValueError:
    path.replace(path.with_suffix('.old.csv'))
    return metrics_lib.MetricsCsv(path, loop_lib.TIMING_COLUMNS)


def _rounds_done(run: run_directory.RunDirectory) -> int:
  return max(
    checkpoint_lib.CheckpointManager(run.checkpoints).rounds(), default=0
  )


def _continued(
  run: run_directory.RunDirectory,
  saved: dict[str, Any] | None,
  config: dict[str, Any],
) -> dict[str, Any]:
  """Checks that `config` continues what is in the directory, if anything.

  Returns:
    `config` with the versions and revision of the run's first start.
  """
  if saved is None:
    return config
  run_directory.check_resume(
    saved, config, flag_values.free_names(), _rounds_done(run)
  )
  first = ('versions', 'git_revision', 'device', _CONSTANT_CLASS)
  return config | {name: saved[name] for name in first if name in saved}


def _same_privacy(
  saved: dict[str, Any] | None, entry: dict[str, Any]
) -> dict[str, Any]:
  """Returns `entry` if it is that of the run so far."""
  before = (saved or {}).get('privacy', entry)
  if before != entry:
    raise run_directory.ResumeError(
      f'The run has {before}, these flags give {entry}: a run keeps its noise. '
      'Give the flags that it was started with, --total_rounds included if '
      '--target_epsilon finds the noise.'
    )
  return entry


def _with_noise(
  group: flags_lib.AlgorithmFlags,
  chosen: tuple[registry.Algorithm, registry.Settings, loop_lib.Schedules],
  privacy: private_rounds.PrivateRounds,
) -> tuple[registry.Algorithm, registry.Settings, loop_lib.Schedules]:
  """Puts the noise multiplier that was found into the aggregator."""
  algorithm, settings, schedule = chosen
  aggregator = group.private_aggregator(privacy.settings.noise_multiplier)
  settings = dataclasses.replace(settings, model_aggregator=aggregator)
  return algorithm, settings, schedule


def _check_early_stopping(
  config: loop_lib.LoopConfig,
  task: task_lib.Task,
) -> None:
  patience = config.early_stopping_evaluations
  if patience is None:
    return
  if task.data.validation is None:
    raise flags.IllegalFlagValueError(
      f'--early_stopping_evaluations={patience} looks at the validation loss: '
      'give --validation_examples.'
    )


def _build_loop(
  task: task_lib.Task,
  sampler: sampling.ClientSampler,
  runtime: runtimes.Runtime,
  chosen: tuple[registry.Algorithm, registry.Settings, loop_lib.Schedules],
  config: loop_lib.LoopConfig,
  run: run_directory.RunDirectory,
  faults: faults_lib.Faults,
  privacy: private_rounds.PrivateRounds | None,
) -> loop_lib.TrainingLoop:
  algorithm, settings, schedule = chosen
  logging.info('Algorithm of %s', algorithm.paper)
  settings = dataclasses.replace(
    settings,
    participation=config.clients_per_round / len(task.data.train.client_ids),
  )
  try:
    registry.check_kind(flags.FLAGS.algorithm, task.kind, task.build_loss())
    if algorithm.has_local_layers:
      reconstruction.check(task.data)
    _check_early_stopping(config, task)
    statistics_flags.refuse_unused(task.has_statistics)
    process = algorithm.build_for(task, settings)
    process = runtime.prepare(process, task)
  except (local_training.UnsuitableError, planner.PlanError) as error:
    raise flags.IllegalFlagValueError(str(error)) from error
  checkpoints = checkpoint_lib.CheckpointManager(
    run.checkpoints, config.checkpoints_kept
  )
  client_states = None
  if isinstance(process, stateful.StatefulProcess):
    client_states = client_states_lib.ClientStates(
      run.client_states, process.initial_client_state()
    )
  evaluator = None
  if algorithm.has_local_layers:
    evaluator = reconstruction.Evaluator(
      task, reconstruction.settings(task, settings, config)
    )
  return loop_lib.TrainingLoop(
    config,
    task,
    process,
    schedule,
    sampler,
    runtime,
    checkpoints,
    client_states,
    faults,
    privacy,
    evaluator,
  )
