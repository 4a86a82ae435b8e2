"""BERT tasks of a few random texts and an encoder of a few hundred weights."""

import dataclasses
import functools
import tempfile

import numpy as np

from datasets import federated_data, word_pieces
from models import bert, bert_checkpoint, weight_store
from research.tasks import bert as tasks
from tests import toy
from tests.models import test_bert_checkpoint as forms

LENGTH = 8
FORM = bert_checkpoint.Config(
  vocabulary_size=len(forms.VOCABULARY),
  num_layers=1,
  num_heads=2,
  hidden_size=8,
  intermediate_size=12,
  max_positions=LENGTH,
)
LORA = bert.FineTuning('lora', lora_rank=2, lora_targets=bert.LORA_TARGETS)
CLASSES = 3
_LENGTHS = word_pieces.Lengths(LENGTH, LENGTH, 6.0, 106, 0, 0, 'tokens')


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
  """A folder for weights, as long as this process lives."""
  return tempfile.TemporaryDirectory()


def data(name: str, sizes=(5, 3, 4), seed: int = 0):
  """Texts of 2 to 6 tokens beside [CLS] and [SEP], with labels by token."""
  rng = np.random.default_rng(seed)
  clients = {}
  for number, size in enumerate(sizes):
    x = np.zeros([size, LENGTH], np.int32)
    for row in x:
      count = rng.integers(2, LENGTH - 1)
      row[: count + 2] = [2, *rng.integers(5, len(forms.VOCABULARY), count), 3]
    y = x[:, 1] % CLASSES
    if name == 'token_classification':
      y = np.where(x >= 5, x % CLASSES, -1)
    elif name == 'masked_language_modelling':
      y = np.zeros(size)
    clients[f'client_{number}'] = {'x': x, 'y': y.astype(np.int32)}
  split = federated_data.Split.from_client_arrays(clients)
  return dataclasses.replace(
    toy.regression_data(toy.random_clients((1,))),
    name='texts',
    train=split,
    test=split,
    num_classes=CLASSES,
    class_names=('O', 'B-PER', 'I-PER'),
  )


def checkpoint(seed: int = 1) -> bert_checkpoint.Checkpoint:
  """The encoder, with weights that are not as small as untrained ones."""
  rng = np.random.default_rng(seed)
  tensors = {
    name: (('LayerNorm.weight' in name) + 0.3 * rng.normal(size=shape)).astype(
      np.float32
    )
    for name, shape in bert_checkpoint.expected_shapes(FORM).items()
  }
  return bert_checkpoint.Checkpoint(
    FORM, tensors, forms.VOCABULARY, True, True, 'tiny'
  )


def build(
  name: str = 'sequence_classification',
  tuning: bert.FineTuning = LORA,
  *,
  dropout: float = 0.0,
  directory=None,
  of_data=None,
  sizes=(5, 3, 4),
  **settings,
) -> tasks.TextTask:
  """A task of three classes or tags.

  Args:
    name: A key of `tasks.TASKS`.
    tuning: What is trained of the encoder.
    dropout: Its rate.
    directory: Gets the weights.
    of_data: The texts; by default those of `data`.
    sizes: Of the clients, by default.
    **settings: Of `tasks.Settings`.
  """
  store = weight_store.WeightStore(directory or _folder().name)
  builder = bert.Builder(
    checkpoint(), fine_tuning=tuning, dropout=dropout, seed=2, store=store
  )
  pieces = word_pieces.WordPieces(forms.VOCABULARY)
  return tasks.build(
    name,
    of_data or data(name, sizes),
    builder,
    pieces,
    _LENGTHS,
    tasks.Settings(**settings),
  )
