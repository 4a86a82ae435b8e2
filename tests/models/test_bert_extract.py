"""An encoder that is taken out of a model is the one inside of it."""

import numpy as np
import pytest
import tensorflow as tf

from models import bert, bert_checkpoint, bert_extract, lora, weight_store

VOCABULARY = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'a', 'b', '##c')
# Neither square nor equal sizes: a transposition would show.
FORM = bert_checkpoint.Config(
  vocabulary_size=len(VOCABULARY),
  num_layers=2,
  num_heads=3,
  hidden_size=12,
  intermediate_size=20,
  max_positions=16,
)
IDS = np.array([[2, 5, 6, 7, 5, 3], [2, 6, 3, 0, 0, 0]], np.int32)
FULL = bert.FineTuning()
TUNINGS = [
  bert.FineTuning('full'),
  bert.FineTuning('lora', lora_targets=bert.LORA_TARGETS),
  bert.FineTuning('bias'),
  bert.FineTuning('last_layers'),
  bert.FineTuning('head'),
]


def builder(tmp_path, checkpoint=None, tuning=FULL):
  checkpoint = checkpoint or bert.initialise(FORM, VOCABULARY, 5)
  store = weight_store.WeightStore(tmp_path / 'weights')
  return bert.Builder(checkpoint, fine_tuning=tuning, seed=1, store=store)


def change(model):
  """Moves all that is trained away from where it was."""
  rng = np.random.default_rng(0)
  for variable in model.trainable_variables:
    moved = variable + 0.3 * rng.normal(size=variable.shape)
    variable.assign(tf.cast(moved, tf.float32))


def hidden(model):
  return model.get_layer('encoder')(IDS, training=False).numpy()


@pytest.mark.parametrize('tuning', TUNINGS, ids=lambda t: t.fine_tuning)
@pytest.mark.parametrize('pooling', bert.POOLINGS)
def test_round_trip(tmp_path, tuning, pooling):
  start = builder(tmp_path, tuning=tuning)
  model = start.classifier(2, pooling)
  change(model)
  wanted = hidden(model)
  pooled = model.get_layer('encoder').backbone.pooled_dense(wanted[:, 0])
  found = bert_extract.checkpoint(
    lora.merge(model),
    start.checkpoint,
    name='x',
    has_pooler=pooling == 'first',
  )
  bert_checkpoint.save(found, tmp_path / 'saved')
  again = bert_checkpoint.read(tmp_path / 'saved')
  assert again.sha256 == found.sha256
  assert again.vocabulary == VOCABULARY and again.config == FORM
  other = builder(tmp_path, again).classifier(2, pooling)
  np.testing.assert_allclose(hidden(other), wanted, atol=2e-6)
  np.testing.assert_allclose(
    other.get_layer('encoder').backbone.pooled_dense(wanted[:, 0]),
    pooled,
    atol=1e-6,
  )


def test_the_head_for_masked_tokens_goes_along(tmp_path):
  start = builder(tmp_path)
  model = start.masked_language_model()
  change(model)
  wanted = model(IDS, training=False).numpy()
  found = bert_extract.checkpoint(model, start.checkpoint, name='x')
  assert found.has_masked_lm_head
  bert_checkpoint.save(found, tmp_path / 'saved')
  again = bert_checkpoint.read(tmp_path / 'saved')
  other = builder(tmp_path, again).masked_language_model()
  np.testing.assert_allclose(other(IDS, training=False), wanted, atol=2e-6)


def test_a_pooler_that_was_never_there_is_not_made_up(tmp_path):
  full = bert.initialise(FORM, VOCABULARY, 5)
  tensors = {k: v for k, v in full.tensors.items() if 'pooler' not in k}
  bare = bert_checkpoint.assemble(FORM, tensors, VOCABULARY, name='bare')
  start = builder(tmp_path, bare)
  for pooling, has_pooler in (('mean', False), ('first', True)):
    found = bert_extract.checkpoint(
      start.classifier(2, pooling), bare, name='x', has_pooler=has_pooler
    )
    assert found.has_pooler == has_pooler


def test_adapters_are_refused(tmp_path):
  start = builder(tmp_path, tuning=bert.FineTuning('adapters'))
  with pytest.raises(bert_checkpoint.CheckpointError, match='adapters are'):
    bert_extract.checkpoint(start.classifier(2), start.checkpoint, name='x')
