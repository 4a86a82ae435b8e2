"""Encoders and heads against NumPy; seeds, dropout and number formats."""

import hashlib
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import tensorflow as tf

from datasets import download
from models import bert, bert_checkpoint, pretrained, weight_store
from tests.models import bert_reference, tiny_bert
from tests.models import test_bert_checkpoint as forms

# Taken before the fixture that gives each test a cache of its own.
CACHE = download.cache_directory()
IDS, MASK = tiny_bert.IDS, tiny_bert.MASK
HEADS = ('mean', 'first', 'tags', 'masked', 'sentence')


def build(builder, head, *args):
  """A model of one of `HEADS`, with three classes or tags."""
  if head in bert.POOLINGS:
    return builder.classifier(3, head, *args)
  if head == 'tags':
    return builder.tagger(3, *args)
  if head == 'masked':
    return builder.masked_language_model(*args)
  return builder.sentence_encoder(*args)


def reference(checkpoint, head, kernel=None, bias=None, ids=IDS, mask=MASK):
  """What NumPy computes for such a model."""
  arguments = checkpoint.config, checkpoint.tensors, ids, mask
  if head == 'masked':
    return bert_reference.masked_lm_logits(*arguments)
  if head == 'sentence':
    return bert_reference.sentence_embedding(*arguments)
  if head == 'first':
    hidden = bert_reference.pooled_output(*arguments)
  else:
    hidden = bert_reference.sequence_output(*arguments)
  if head == 'mean':
    weights = mask / mask.sum(axis=1, keepdims=True)
    hidden = np.einsum('bl,blh->bh', weights, hidden)
  return hidden @ kernel + bias


@pytest.mark.parametrize(
  'changes',
  [{}, {'activation': 'gelu_tanh'}, {'layer_norm_epsilon': 0.01}],
  ids=['gelu', 'gelu_tanh', 'epsilon'],
)
def test_every_head_equals_the_reference(tmp_path, changes):
  checkpoint = tiny_bert.checkpoint(seed=4, **changes)
  builder = tiny_bert.builder(tmp_path, checkpoint=checkpoint)
  for head in HEADS:
    model, weights = build(builder, head), ()
    if head in (*bert.POOLINGS, 'tags'):
      tiny_bert.shake(model.get_layer('logits').weights)
      weights = model.get_layer('logits').get_weights()
    expected = reference(checkpoint, head, *weights)
    found = model(IDS).numpy()
    assert (
      np.abs((found - expected)[MASK > 0 if found.ndim == 3 else ...]).max()
      < 1e-5
    ), head
    assert expected.std() > 0.1
  # What is changed matters: the plain encoder is elsewhere.
  if changes:
    plain = reference(tiny_bert.checkpoint(seed=4), 'masked')
    assert np.abs(plain - reference(checkpoint, 'masked')).max() > 1e-4


def test_the_real_encoder_equals_the_reference():
  directory = CACHE / 'encoder_minilm_l6'
  if not directory.exists():
    pytest.skip('not fetched: python -m models.pretrained minilm_l6')
  checkpoint = bert_checkpoint.read(directory)
  rows = [
    [checkpoint.vocabulary.index(w) for w in f'[CLS] {s} [SEP]'.split()]
    for s in ('a man is playing a guitar', 'the stocks fell')
  ]
  mask = np.array([[1] * len(row) + [0] * (8 - len(row)) for row in rows])
  ids = np.array([row + [0] * (8 - len(row)) for row in rows], np.int32)
  with tempfile.TemporaryDirectory() as store:
    builder = bert.Builder(checkpoint, store=weight_store.WeightStore(store))
    found = builder.sentence_encoder()(ids).numpy()
  expected = reference(checkpoint, 'sentence', ids=ids, mask=mask)
  assert np.abs(found - expected).max() < 1e-5
  assert checkpoint.sha256 == pretrained.ENCODERS['minilm_l6'].sha256


def digest(directory):
  """The hash of all weights of a model with LoRA, and of what it computes."""
  builder = tiny_bert.builder(
    directory, fine_tuning=bert.FineTuning('lora'), seed=5
  )
  model = builder.classifier(3, 'first')
  arrays = [*model.get_weights(), model(IDS, training=True).numpy()]
  return hashlib.sha256(b''.join(a.tobytes() for a in arrays)).hexdigest()


def test_two_builds_and_another_process_have_the_same_bits(tmp_path):
  first = digest(tmp_path)
  assert digest(tmp_path / 'other') == first
  code = (
    'from tests.models import test_bert; import sys; '
    'print(test_bert.digest(sys.argv[1]))'
  )
  result = subprocess.run(
    [sys.executable, '-c', code, str(tmp_path / 'third')],
    capture_output=True,
    text=True,
    check=True,
  )
  assert result.stdout.split()[-1] == first


@pytest.mark.parametrize('kind', bert.FINE_TUNINGS)
def test_the_seed_decides_what_the_checkpoint_does_not(tmp_path, kind):
  models = [
    tiny_bert.builder(
      tmp_path, fine_tuning=bert.FineTuning(kind), seed=seed
    ).classifier(3)
    for seed in (1, 2)
  ]
  different = [
    variable.name
    for variable, a, b in zip(
      models[0].weights, *(m.get_weights() for m in models), strict=True
    )
    if not np.array_equal(a, b)
  ]
  drawn = {'lora': 'lora_a:0', 'adapters': 'kernel:0'}.get(kind)
  count = {'lora': 2 * 2, 'adapters': 2 * 2}.get(kind, 0)
  assert different == [drawn] * count + ['logits/kernel:0']


@pytest.mark.parametrize('head', HEADS)
def test_padding_changes_no_output(tmp_path, head):
  builder = tiny_bert.builder(tmp_path, dropout=0.0)
  model = build(builder, head)
  short = model(IDS).numpy()
  long = model(np.pad(IDS, [(0, 0), (0, 7)])).numpy()
  if short.ndim == 3:
    long = long[:, : IDS.shape[1]]
  np.testing.assert_allclose(long, short, atol=1e-5)
  # A text of nothing but padding has numbers too.
  assert np.isfinite(model(np.zeros([2, 5], np.int32))).all()


def test_dropout_follows_from_the_batch(tmp_path):
  model = tiny_bert.builder(tmp_path, dropout=0.3).classifier(3)
  plain = tiny_bert.builder(tmp_path, dropout=0.0).classifier(3)
  np.testing.assert_array_equal(model(IDS), plain(IDS))
  np.testing.assert_array_equal(plain(IDS, training=True), plain(IDS))
  first = model(IDS, training=True).numpy()
  np.testing.assert_array_equal(model(IDS, training=True), first)
  traced = tf.function(lambda ids: model(ids, training=True))
  np.testing.assert_allclose(traced(tf.constant(IDS)), first, atol=1e-5)
  other = IDS.copy()
  other[1, 3] += 1
  # The first text is the same, in another batch.
  changed = model(other, training=True).numpy()
  assert np.abs(changed[0] - first[0]).max() > 1e-2
  assert np.abs(model(other).numpy()[0] - model(IDS).numpy()[0]).max() < 1e-6


def test_every_dropout_of_the_paper_is_there(tmp_path):
  """Behind embeddings, attention's weights, and both parts of each layer."""
  model = tiny_bert.builder(tmp_path, dropout=0.5).sentence_encoder()
  dropouts = model.get_layer('encoder')._dropouts
  assert len(dropouts) == 1 + 3 * tiny_bert.CONFIG.num_layers
  assert len({d._dropout.seed for d in dropouts}) == len(dropouts)
  plain = model(IDS).numpy()
  for chosen in dropouts:
    for dropout in dropouts:
      dropout.rate = 0.5 if dropout is chosen else 0.0
    found = model(IDS, training=True).numpy()
    assert np.abs(found - plain).max() > 1e-3, chosen.name


def test_the_head_has_dropout(tmp_path):
  for head in (*bert.POOLINGS, 'tags'):
    model = build(tiny_bert.builder(tmp_path, dropout=0.5), head)
    for dropout in model.get_layer('encoder')._dropouts:
      dropout.rate = 0.0
    difference = model(IDS, training=True) - model(IDS)
    assert np.abs(difference).max() > 1e-3, head


@pytest.mark.parametrize(
  'size, encoder, pre_training',
  [
    ('tiny', 4.4, 4.4),
    ('mini', 11.2, 11.3),
    ('small', 28.8, 29.1),
    ('medium', 41.4, 41.7),
    ('base', 109.5, 110.1),
  ],
)
def test_sizes_are_those_of_turc_et_al(size, encoder, pre_training):
  form = bert.config(size, 30_522)
  assert form.hidden_size // form.num_heads == 64
  shapes = bert_checkpoint.expected_shapes(form)
  count = sum(map(np.prod, shapes.values()))
  assert round(count / 1e6, 1) == encoder
  # Their table counts both heads of pre-training, the next sentence's too.
  shapes = bert_checkpoint.expected_shapes(form, masked_lm_head=True)
  count = sum(map(np.prod, shapes.values())) + 2 * form.hidden_size + 2
  assert round(count / 1e6, 1) == pre_training


def test_a_model_has_the_weights_of_its_checkpoint(tmp_path):
  checkpoint = tiny_bert.checkpoint(head=False)
  model = tiny_bert.builder(tmp_path, checkpoint=checkpoint).classifier(3)
  assert model.count_params() == checkpoint.parameters + 8 * 3 + 3
  found = sorted(np.sum(w, dtype=np.float64) for w in model.get_weights()[:-2])
  expected = [np.sum(t, dtype=np.float64) for t in checkpoint.tensors.values()]
  np.testing.assert_allclose(found, sorted(expected), atol=1e-4)


def test_untrained_weights_are_drawn_as_in_the_paper():
  form = bert.config('tiny', 500)
  assert form.dropout == 0.1
  made = bert.initialise(form, ['[PAD]'] * 500, seed=1)
  assert made.tensors.keys() == bert_checkpoint.expected_shapes(form).keys()
  for name, tensor in made.tensors.items():
    if name.endswith('bias'):
      assert not tensor.any()
    elif 'LayerNorm' in name:
      assert (tensor == 1).all()
    elif tensor.size > 10_000:
      # 0.02, of which the cut at two deviations leaves 0.8796.
      assert np.abs(tensor).max() <= 0.04
      assert tensor.std() == pytest.approx(0.02 * 0.8796, rel=0.03)
  query = 'encoder.layer.{}.attention.self.query.weight'.format
  assert not np.array_equal(made.tensors[query(0)], made.tensors[query(1)])
  again = bert.initialise(form, ['[PAD]'] * 500, seed=1)
  assert again.sha256 == made.sha256
  assert bert.initialise(form, ['[PAD]'] * 500, 2).sha256 != made.sha256


@pytest.mark.parametrize('kind', ['full', 'lora', 'adapters', 'bias'])
def test_in_16_bit_weights_and_logits_stay_float32(tmp_path, kind):
  builder = tiny_bert.builder(
    tmp_path, fine_tuning=bert.FineTuning(kind), dropout=0.1
  )
  for head in HEADS[:-1] if kind == 'full' else ('tags',):
    exact, mixed = build(builder, head), build(builder, head, 'bfloat16')
    assert {v.dtype for v in mixed.weights} == {tf.float32}
    assert [v.shape for v in mixed.weights] == [v.shape for v in exact.weights]
    logits, expected = mixed(IDS), exact(IDS)
    assert logits.dtype == tf.float32
    difference = np.abs(logits - expected).max()
    assert 1e-5 < difference < 0.1 * np.abs(expected).max(), head
    assert mixed(IDS, training=True).dtype == tf.float32


def test_embeddings_are_tied(tmp_path):
  builder = tiny_bert.builder(
    tmp_path, checkpoint=tiny_bert.checkpoint(head=False)
  )
  model = builder.masked_language_model()
  encoder = forms.bert_checkpoint.expected_shapes(tiny_bert.CONFIG)
  count = sum(map(np.prod, encoder.values()))
  assert model.count_params() == count + 8 * 8 + 8 + 2 * 8 + 11
  before = model(IDS).numpy()
  embeddings = model.get_layer('encoder').backbone.token_embedding.embeddings
  values = embeddings.numpy().copy()
  # No text has token 1, but every position guesses among all tokens.
  values[1, 0] += 1
  embeddings.assign(values)
  changed = np.abs(model(IDS).numpy() - before).max(axis=(0, 1)) > 1e-4
  assert changed.tolist() == [token == 1 for token in range(11)]


def test_a_pooler_that_the_checkpoint_lacks_is_drawn(tmp_path):
  tensors = {
    name: tensor
    for name, tensor in forms.random_tensors(head=False).items()
    if not name.startswith('pooler')
  }
  checkpoint = forms.dataclasses.replace(
    tiny_bert.checkpoint(), tensors=tensors
  )
  builder = tiny_bert.builder(tmp_path, checkpoint=checkpoint)
  for pooling in bert.POOLINGS:
    model = builder.classifier(3, pooling)
    pooler = model.get_layer('encoder').backbone.pooled_dense
    kernel, bias = pooler.get_weights()
    assert 0 < np.abs(kernel).max() <= 0.04 and not bias.any()
    # Where it is not used it is not trained.
    assert pooler.trainable == (pooling == 'first')
