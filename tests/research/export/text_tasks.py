"""Small text tasks, and models of them that are as if trained."""

import functools

import numpy as np

from datasets import text, text_vocabulary, word_pieces
from models import bert, bert_checkpoint
from research.tasks import bert as tasks

DATASETS = {
  'sequence_classification': 'synthetic_movie_reviews',
  'token_classification': 'synthetic_conll2003',
  'masked_language_modelling': 'synthetic_shakespeare',
}
FULL = bert.FineTuning()
# Words of the fixed sentences among them, so that not all is unknown.
_WORDS = (
  *('the', 'film', 'is', 'a', 'of', 'its', 'time', 'and', 'strasse', 'stra'),
  *('##ß', '##e', 'fine', 'ﬁne', 'mask', 'zurich', 'cafe', 'eu', 'rejects'),
  *(
    'german',
    'call',
    'to',
    'be',
    'or',
    'not',
    'that',
    'this',
    'does',
    '[',
    ']',
  ),
)


@functools.cache
def _data(name):
  config = text.TextConfig(
    DATASETS[name], label_column=None if name.startswith('masked') else 'label'
  )
  data = text.load(config)
  texts = [
    example if isinstance(example, str) else ' '.join(example)
    for example in data.train.pooled()['x'].tolist()[:200]
  ]
  learned = text_vocabulary.build_vocab(texts, 200)
  return data, tuple(dict.fromkeys([*learned, *_WORDS]))


def make(
  name='sequence_classification',
  tuning=FULL,
  max_length=24,
  pooling='mean',
  seed=3,
  checkpoint=None,
):
  """A task with an encoder of two layers of width 32."""
  data, vocabulary = _data(name)
  form = bert_checkpoint.Config(
    vocabulary_size=len(vocabulary),
    num_layers=2,
    num_heads=2,
    hidden_size=32,
    intermediate_size=64,
    max_positions=64,
  )
  checkpoint = checkpoint or bert.initialise(form, vocabulary, seed)
  pieces = word_pieces.WordPieces(checkpoint.vocabulary)
  spec = tasks.TASKS[name]
  data, lengths = word_pieces.tokenise(data, pieces, max_length, spec.data_kind)
  builder = bert.Builder(checkpoint, fine_tuning=tuning, seed=seed)
  settings = tasks.Settings(pooling=pooling)
  return tasks.build(name, data, builder, pieces, lengths, settings)


def trained(task, scale=0.1):
  """A model with no weight as it was at first; its logits differ clearly."""
  model, rng = task.build_keras_model(), np.random.default_rng(7)
  for variable in model.trainable_variables:
    change = rng.normal(size=variable.shape) * scale
    variable.assign_add(change.astype(np.float32))
  if task.kind != 'masked_language_modelling':
    # Each class is the most probable one of some text.
    bias = model.get_layer('logits').bias
    logits = model(token_ids(task, 16)).numpy().reshape(-1, bias.shape[0])
    bias.assign_sub(logits.mean(axis=0))
  return model


def token_ids(task, batch=4, seed=0):
  """Random ids without padding."""
  shape = [batch, task.max_length]
  return np.random.default_rng(seed).integers(
    1, task.pieces.size, shape, np.int32
  )
