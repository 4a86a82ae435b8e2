"""From a trained model to what a run directory offers: SavedModel and card."""

import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from models import quantization
from research.algorithms import partly_local, registry
from research.export import (
  form_exporter,
  model_card,
  parity,
  saved_model,
  text_signatures,
)
from research.tasks import task as task_lib
from research.training import metrics as metrics_lib
from research.training import run_directory

_UNVERSIONED = ('saved_model.pb', 'fingerprint.pb')
_UNVERSIONED_FOLDERS = ('variables', 'assets', 'token_ids')


def export_run(
  run: run_directory.RunDirectory,
  task: task_lib.Task,
  model: tf.keras.Model,
  config: Mapping[str, Any],
  round_num: int,
  request: form_exporter.Request | None = None,
) -> dict[str, Any]:
  """Exports a model, checks it, and writes the model card.

  Reports on other forms stay in the card as long as they are of these weights.

  Args:
    run: The run; its `model` directory and model card are replaced, and its
      `encoder` if the task's settings ask for it.
    task: What was learned.
    model: The task's Keras model with the trained weights.
    config: The run's config.json.
    round_num: The round that the weights are of.
    request: What other forms are made, too.

  Returns:
    The parity report of the SavedModel. Forms that fail do not raise: see
    `form_exporter.read`.

  Raises:
    parity.ParityError: If the exported model differs from the trained one;
      an earlier exported model then stays.
  """
  exported = saved_model.export(
    task,
    model,
    run.model,
    verify=lambda directory: parity.check(task, model, directory),
  )
  remove_unversioned(run.model.parent)
  if text_signatures.is_text(task):
    # Needs what is heavy to import, and only texts have.
    from research.export import encoder_files, text_card

    if task.settings.export_encoder:
      encoder_files.write(run.path, task, model, config['flags'])
  rows = {row['round']: row for row in metrics_lib.read(run.metrics_csv)}
  card = _card(
    run.path.name,
    task,
    quantization.count_parameters(model),
    rows.get(round_num, {'round': round_num}),
    config,
  )
  if text_signatures.is_text(task):
    card |= text_card.entries(task, model, card['metrics'], config['flags'])
  card['parity'] = exported.verification
  if run.privacy_json.exists():
    card['privacy'] = json.loads(run.privacy_json.read_text())
    if card['privacy']['is_amplified']:
      card = _without_seed(card)
    if run.audit_json.exists():
      card['privacy']['audit'] = json.loads(run.audit_json.read_text())
  card['signatures'] = exported.signatures
  card['model'] = run.model.relative_to(run.path).as_posix()
  if request:
    form_exporter.export(run, task, model, request)
  if forms := form_exporter.read(run, model):
    card['forms'] = forms
  model_card.write(run.path, card)
  return exported.verification


def remove_unversioned(directory: pathlib.Path) -> None:
  """Removes the model of an older release, which had no version below it."""
  for name in _UNVERSIONED:
    (directory / name).unlink(missing_ok=True)
  for name in _UNVERSIONED_FOLDERS:
    shutil.rmtree(directory / name, ignore_errors=True)


def _without_seed(card: dict[str, Any]) -> dict[str, Any]:
  """Keeps back what tells who took part, on which the guarantee rests."""
  secret = 'kept back: it tells who took part in which round'
  return {**card, 'flags': {**card['flags'], 'seed': secret}}


def _card(
  name: str,
  task: task_lib.Task,
  parameters: int,
  metrics: Mapping[str, Any],
  config: Mapping[str, Any],
) -> dict[str, Any]:
  source = task.data.source
  return {
    'name': name,
    'task': task.name,
    'parameters': parameters,
    **_local_part(task, config['flags']),
    'classes': ', '.join(task.class_names) or 'none',
    'data': {
      'name': task.data.name,
      'partition': task.data.partition,
      'title': source.title,
      'licence': source.licence,
      'citation': source.citation,
      'url': source.url,
      'sha256': task.data.content_sha256,
    },
    'flags': config['flags'],
    'metrics': metrics,
    'versions': config['versions'],
    'git_revision': config['git_revision'],
  }


def _local_part(
  task: task_lib.Task, flags: Mapping[str, Any]
) -> dict[str, str]:
  """What the card says of a model whose local part is the clients' alone."""
  if not registry.ALGORITHMS[flags['algorithm']].has_local_layers:
    return {}
  names = partly_local.local_layer_names(
    task.layers(), flags['local_layers'] or ()
  )
  return {
    'local part': f'{", ".join(names)}: initial weights, which each client is '
    'to replace by those that it reconstructs from its own examples, as was '
    'done for the test metrics.'
  }
