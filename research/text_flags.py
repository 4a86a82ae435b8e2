"""Flags of BERT tasks: which texts, which encoder, what of it is trained."""

import dataclasses
import os
from collections.abc import Iterator, Sequence

import tensorflow as tf
from absl import flags

from datasets import (
  federated_data,
  text,
  text_vocabulary,
  word_pieces,
)
from models import bert, bert_checkpoint, pretrained, weight_store
from research import flag_values, partition_flags
from research.runtime import planner
from research.tasks import bert as tasks
from research.training import atomic

FLAGS = flag_values.FLAGS
define = flag_values.define
enum = flag_values.enum
refuse_unused = flag_values.refuse_unused

_CHECKPOINT = 'checkpoint'
_MODELS = {
  **dict.fromkeys(pretrained.ENCODERS, 'pre-trained'),
  **dict.fromkeys(bert.SIZES, 'from random weights'),
  _CHECKPOINT: 'the one in --checkpoint_dir',
}
_BUCKET = 16
# In a run directory.
VOCABULARY = 'vocab.txt'


class DataFlags:
  """Which texts, and how they are divided over clients."""

  def __init__(self):
    enum('dataset', None, text.TEXT_DATASETS, "Texts; the task's by default.")
    partition_flags.define_flags(text.PARTITIONS, dirichlet_alpha=1.0)
    help_text = 'Folder with the archive of the dataset, fetched by hand.'
    define('string', 'data_dir', None, help_text, free=True)
    help_text = 'Folder of fetched data; ~/.cache/tff_research by default.'
    define('string', 'cache_dir', None, help_text, free=True)
    help_text = 'Own CSV, JSONL or CoNLL column file, for --dataset=file.'
    define('string', 'data_file', None, help_text)
    define('string', 'client_column', 'client_id', 'Its column of client ids.')
    define('string', 'text_column', 'text', 'Its column of texts.')
    define('string', 'label_column', 'label', 'Its column of labels.')
    help_text = 'Its column that says train, validation or test.'
    define('string', 'split_column', None, help_text)
    help_text = (
      'Share of each client that is test data, without a split column.'
    )
    define('float', 'test_fraction', 0.2, help_text)
    help_text = 'Tokens of a text at most, [CLS] and [SEP] among them.'
    define('integer', 'max_length', 64, help_text, lower_bound=3)
    help_text = (
      'Cut each batch to a multiple of so many tokens that holds its longest '
      'text; 0 does not cut. By default 16, and 0 where clients are vectorised.'
    )
    define('integer', 'length_bucket', None, help_text, lower_bound=0)

  def get(self, task: str, seed: int) -> text.TextConfig:
    """Returns the data's description.

    Args:
      task: A key of `tasks.TASKS`, whose dataset is used if no flag names one.
      seed: Decides the partition and what is held out.

    Raises:
      flags.IllegalFlagValueError: If a flag is set that nothing uses, or the
        dataset is for another task.
      ValueError: If the configuration makes no sense.
    """
    fields = [field.name for field in dataclasses.fields(text.TextConfig)]
    given = {n: FLAGS[n].value for n in fields if n in FLAGS and n != 'seed'}
    given['dataset'] = given['dataset'] or tasks.TASKS[task].dataset
    given['num_clients'] = FLAGS.partition_clients
    wanted = tasks.TASKS[task].data_kind
    if wanted == 'language':
      refuse_unused(['label_column'], f'by --task={task}')
      given['label_column'] = None
    config = text.TextConfig(**given, seed=seed)
    partition_flags.refuse_unused(text.resolve_partition(config))
    if config.dataset != 'file':
      refuse_unused(
        [n for n in fields if n.endswith('_column')] + ['test_fraction'],
        f'by --dataset={config.dataset}',
      )
    found = text.kind(config)
    if found != wanted:
      fitting = [n for n, kind in text.KINDS.items() if kind == wanted]
      raise flags.IllegalFlagValueError(
        f'--dataset={config.dataset} is for {found}, --task={task} for '
        f'{wanted}; that are {", ".join(fitting)}.'
      )
    return config


class ModelFlags:
  """Which encoder and what is trained of it."""

  def __init__(self):
    help_text = ', '.join(f'{name} {what}' for name, what in _MODELS.items())
    enum(
      'model', None, _MODELS, f"Encoder; the task's by default: {help_text}."
    )
    help_text = (
      'For --model=checkpoint: a folder with config.json, model.safetensors '
      'and vocab.txt of a BERT, or bert_config.json and bert_model.ckpt.'
    )
    define('string', 'checkpoint_dir', None, help_text, free=True)
    help_text = 'vocab.txt for an encoder from random weights.'
    define('string', 'vocabulary_file', None, help_text, free=True)
    help_text = (
      'Word pieces that an encoder from random weights has; without '
      '--vocabulary_file they are found in all training texts.'
    )
    define('integer', 'vocabulary_size', 4000, help_text, lower_bound=10)
    what = ', '.join(f'{k}: {v}' for k, v in bert.FINE_TUNINGS.items())
    help_text = f'What of the encoder is trained ({what}). Heads always are.'
    enum('fine_tuning', 'full', bert.FINE_TUNINGS, help_text)
    defaults = bert.FineTuning()
    help_text = "Rank of LoRA's matrices."
    define('integer', 'lora_rank', defaults.lora_rank, help_text, lower_bound=1)
    help_text = "LoRA's changes are scaled by lora_alpha / lora_rank."
    define('float', 'lora_alpha', defaults.lora_alpha, help_text)
    help_text = f'Layers with LoRA, of {", ".join(bert.LORA_TARGETS)}.'
    define('list', 'lora_targets', list(defaults.lora_targets), help_text)
    help_text = "Width of an adapter's bottleneck."
    size = defaults.adapter_size
    define('integer', 'adapter_size', size, help_text, lower_bound=1)
    help_text = 'Transformer layers that are trained, for last_layers.'
    define('integer', 'last_layers', 1, help_text, lower_bound=1)
    help_text = 'A text as the mean of its tokens, or its first one.'
    enum('pooling', 'mean', bert.POOLINGS, help_text)
    help_text = "Rate of dropout; the checkpoint's by default, else 0.1."
    define('float', 'dropout', None, help_text, lower_bound=0, upper_bound=0.9)
    help_text = (
      'Weights of the classes in the loss: none, or balanced, each class as '
      'much as any other.'
    )
    enum('class_weighting', 'none', ['none', 'balanced'], help_text)
    help_text = (
      'Export the trained encoder, too: in the folder encoder of the run, for '
      '--model=checkpoint of another run.'
    )
    define('boolean', 'export_encoder', False, help_text, free=True)

  def fine_tuning(self) -> bert.FineTuning:
    """Returns what is trained of the encoder.

    Raises:
      flags.IllegalFlagValueError: If a flag is set that nothing uses.
    """
    how = FLAGS.fine_tuning
    others = [
      n for k, names in bert.SETTINGS.items() if k != how for n in names
    ]
    refuse_unused(others, f'by --fine_tuning={how}')
    unknown = sorted(set(FLAGS.lora_targets) - set(bert.LORA_TARGETS))
    if unknown or not FLAGS.lora_targets:
      raise flags.IllegalFlagValueError(
        f'--lora_targets={",".join(FLAGS.lora_targets)}: must be some of '
        f'{", ".join(bert.LORA_TARGETS)}.'
      )
    values = {
      field.name: FLAGS[field.name].value
      for field in dataclasses.fields(bert.FineTuning)
    }
    values['lora_targets'] = tuple(values['lora_targets'])
    return bert.FineTuning(**values)

  def build_task(
    self, name: str, data_flags: DataFlags, seed: int
  ) -> tasks.TextTask:
    """Loads texts and encoder, and builds the task.

    Args:
      name: A key of `tasks.TASKS`.
      data_flags: Say which texts.
      seed: Of partition, heads, dropout and masking.

    Raises:
      flags.IllegalFlagValueError: If flags do not fit together.
      ValueError: If flags, texts and encoder do not.
    """
    spec = tasks.TASKS[name]
    if spec.kind != 'classification':
      refuse_unused(['class_weighting', 'pooling'], f'by --task={name}')
    if FLAGS.export_encoder and not FLAGS.export and 'run_dir' not in FLAGS:
      raise flags.IllegalFlagValueError(
        '--export_encoder: nothing is exported with --noexport.'
      )
    tuning = self.fine_tuning()
    if FLAGS.export_encoder and tuning.fine_tuning == 'adapters':
      raise flags.IllegalFlagValueError(
        '--export_encoder: an encoder with adapters is no plain BERT, which a '
        'checkpoint holds; --fine_tuning=lora can be merged into one.'
      )
    data = text.load(data_flags.get(name, seed))
    checkpoint = self._checkpoint(FLAGS.model or spec.model, data, seed)
    pieces = word_pieces.WordPieces(
      checkpoint.vocabulary, lowercase=checkpoint.lowercase
    )
    data, lengths = word_pieces.tokenise(
      data, pieces, FLAGS.max_length, spec.data_kind
    )
    weights = ()
    if FLAGS.class_weighting == 'balanced':
      _refuse_if_private('--class_weighting=balanced counts labels')
      weights = tasks.balanced_class_weights(data.train, data.num_classes)
    vectorises = _vectorises(checkpoint.parameters)
    if FLAGS.length_bucket is None:
      # Saved with the run: masks and dropout depend on the batches' form.
      FLAGS['length_bucket'].value = 0 if vectorises else _BUCKET
    elif FLAGS.length_bucket and vectorises:
      raise flags.IllegalFlagValueError(
        f'--length_bucket={FLAGS.length_bucket}: vectorised clients need '
        'batches of one length: --length_bucket=0, or --client_plan=scan.'
      )
    builder = bert.Builder(
      checkpoint,
      fine_tuning=tuning,
      dropout=FLAGS.dropout,
      seed=seed,
      store=weight_store.WeightStore(
        FLAGS.cache_dir and os.path.join(FLAGS.cache_dir, 'weights')
      ),
    )
    settings = tasks.Settings(
      pooling=FLAGS.pooling,
      length_bucket=FLAGS.length_bucket,
      seed=seed,
      class_weights=weights,
      export_encoder=FLAGS.export_encoder,
    )
    return tasks.build(name, data, builder, pieces, lengths, settings)

  def _checkpoint(
    self, model: str, data: federated_data.FederatedData, seed: int
  ) -> bert_checkpoint.Checkpoint:
    if (model == _CHECKPOINT) != bool(FLAGS.checkpoint_dir):
      raise flags.IllegalFlagValueError(
        f'--checkpoint_dir goes with --model={_CHECKPOINT}, and only with it.'
      )
    if model in bert.SIZES:
      pieces = self._vocabulary(data)
      form = bert.config(model, len(pieces))
      return bert.initialise(form, pieces, seed)
    refuse_unused(['vocabulary_file', 'vocabulary_size'], f'by --model={model}')
    if model == _CHECKPOINT:
      return bert_checkpoint.read(FLAGS.checkpoint_dir)
    return pretrained.find(model, FLAGS.cache_dir)

  def _vocabulary(self, data: federated_data.FederatedData) -> Sequence[str]:
    kept = _kept_vocabulary()
    if kept and not FLAGS['vocabulary_file'].present:
      return word_pieces.WordPieces.from_vocab_file(kept).vocab
    if FLAGS.vocabulary_file:
      refuse_unused(['vocabulary_size'], 'with --vocabulary_file')
      return word_pieces.WordPieces.from_vocab_file(FLAGS.vocabulary_file).vocab
    _refuse_if_private('a vocabulary of the training texts shows their words')
    return text_vocabulary.build_vocab(
      _all_texts(data.train), FLAGS.vocabulary_size
    )


def keep_vocabulary(
  directory: str | os.PathLike, pieces: word_pieces.WordPieces
) -> None:
  """Puts a vocabulary into a run: with other data it would be another one.

  Args:
    directory: The run directory.
    pieces: Those of the run's task.
  """
  text = ''.join(f'{piece}\n' for piece in pieces.vocab)
  atomic.write_text(os.path.join(directory, VOCABULARY), text)


def _kept_vocabulary() -> str | None:
  """The vocabulary of the run in --run_dir, if a command has that flag."""
  if 'run_dir' not in FLAGS or not FLAGS.run_dir:
    return None
  path = os.path.join(os.path.expanduser(FLAGS.run_dir), VOCABULARY)
  return path if os.path.exists(path) else None


def _vectorises(parameters: int) -> bool:
  """Whether clients will be trained in one program of fixed shapes.

  Args:
    parameters: Of the encoder.
  """
  if FLAGS.runtime == 'stock':
    return False
  on_cpu = FLAGS.device == 'cpu' or (
    FLAGS.device == 'auto' and not tf.config.list_physical_devices('GPU')
  )
  if FLAGS.client_plan != 'auto':
    return FLAGS.client_plan == 'vmap'
  is_small = parameters <= planner.SMALL_MODEL
  return FLAGS.xla == 'on' or not on_cpu or is_small


def _refuse_if_private(what: str) -> None:
  if FLAGS.dp_mechanism != 'none' and not FLAGS.allow_unaccounted_release:
    raise flags.IllegalFlagValueError(
      f'--dp_mechanism={FLAGS.dp_mechanism}: {what}, without noise. Give '
      '--allow_unaccounted_release to do it all the same, of which the model '
      'card then tells, or leave it (--vocabulary_file names public words).'
    )


def _all_texts(split: federated_data.Split) -> Iterator[str]:
  """The texts of all clients; those of tagged words are the words."""
  for client_id in split.client_ids:
    for example in split.client(client_id)['x']:
      yield example if isinstance(example, str) else ' '.join(example)
