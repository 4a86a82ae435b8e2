"""Models of texts: text in, labels out, and nothing of LoRA in the graph."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_text  # noqa: F401  (registers the operations)

from models import bert, lora
from research.export import parity, saved_model, text_parity, text_signatures
from tests.research.export import test_parity, text_tasks

this_process, no_openvino = test_parity.this_process, test_parity.no_openvino
needs_openvino = test_parity.needs_openvino
ALL = bert.FineTuning('lora', lora_rank=3, lora_targets=bert.LORA_TARGETS)
TUNINGS = {
  'full': bert.FineTuning(),
  'lora': ALL,
  'bias': bert.FineTuning('bias'),
  'adapters': bert.FineTuning('adapters'),
  'last_layers': bert.FineTuning('last_layers'),
}


def load(directory):
  return tf.saved_model.load(os.fspath(directory)).signatures


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
  """By task: the task, its model, what was exported."""
  found = {}
  for name in text_tasks.DATASETS:
    task = text_tasks.make(name, ALL)
    model = text_tasks.trained(task)
    directory = tmp_path_factory.mktemp(name) / 'model'
    found[name] = task, model, saved_model.export(task, model, directory)
  return found


def test_classification(exported):
  task, model, made = exported['sequence_classification']
  texts = ['the film is a time', 'A [MASK] of STRAßE!', '', 'film ' * 60]
  outputs = load(made.directory)['serving_default'](text=tf.constant(texts))
  ids = task.pieces.encode(texts, 24).ids
  logits = model(ids, training=False).numpy()
  exponentials = np.exp(logits)
  probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
  np.testing.assert_allclose(outputs['logits'], logits, atol=1e-5)
  np.testing.assert_allclose(outputs['probabilities'], probabilities, atol=1e-5)
  np.testing.assert_allclose(
    outputs['probability'], probabilities.max(axis=1), atol=1e-5
  )
  classes = logits.argmax(axis=1)
  assert len(set(classes)) > 1
  np.testing.assert_array_equal(outputs['class'], classes)
  names = [task.class_names[k].encode() for k in classes]
  assert outputs['label'].numpy().tolist() == names
  numeric = {
    'class': {'dtype': 'int64', 'shape': [None]},
    'logits': {'dtype': 'float32', 'shape': [None, 2]},
    'probabilities': {'dtype': 'float32', 'shape': [None, 2]},
  }
  text = {'text': {'dtype': 'string', 'shape': [None]}}
  assert made.signatures == {
    'serving_default': {
      'inputs': text,
      'outputs': {
        **numeric,
        'label': {'dtype': 'string', 'shape': [None]},
        'probability': {'dtype': 'float32', 'shape': [None]},
      },
    },
    'serve_token_ids': {
      'inputs': {'token_ids': {'dtype': 'int32', 'shape': [None, None]}},
      'outputs': numeric,
    },
    'embed': {
      'inputs': text,
      'outputs': {'embedding': {'dtype': 'float32', 'shape': [None, 32]}},
    },
    'tokenise': {
      'inputs': text,
      'outputs': {'token_ids': {'dtype': 'int32', 'shape': [None, None]}},
    },
    'classify': {
      'inputs': {'inputs': {'dtype': 'string', 'shape': [None]}},
      'outputs': {
        'classes': {'dtype': 'string', 'shape': [None, 2]},
        'scores': {'dtype': 'float32', 'shape': [None, 2]},
      },
    },
  }


def test_tagging(exported):
  task, model, made = exported['token_classification']
  sentences = [['the', 'a.b', 'EU'], ['film'], [], ['zurich'] * 40]
  texts = tf.constant([' '.join(words) for words in sentences])
  outputs = load(made.directory)['serving_default'](text=texts)
  positions = [list(range(len(words))) for words in sentences]
  encoded = task.pieces.encode_words(sentences, positions, 24)
  logits = model(encoded.ids, training=False).numpy()
  longest = max(map(len, sentences))
  for row, words in enumerate(sentences):
    padding = [b''] * (longest - len(words))
    wanted, seen = [], np.flatnonzero(encoded.tags[row] >= 0)
    for position in seen:
      wanted.append(task.class_names[logits[row, position].argmax()].encode())
    cut = [b''] * (len(words) - len(seen))
    assert outputs['tags'][row].numpy().tolist() == wanted + cut + padding
    found = outputs['words'][row].numpy().tolist()
    assert found == [w.encode() for w in words] + padding
    probability = outputs['probability'][row].numpy()
    assert (probability[: len(seen)] > 1 / len(task.class_names)).all()
    assert not probability[len(seen) :].any()
  assert len(np.flatnonzero(encoded.tags[3] >= 0)) == 22


def test_masked_tokens(exported):
  task, model, made = exported['masked_language_modelling']
  outputs = load(made.directory)['serving_default'](
    text=tf.constant(['to be or not to [MASK]', 'that'])
  )
  pieces = task.pieces
  words = [b'to', b'be', b'or', b'not', b'to', b'[MASK]']
  shown = outputs['pieces'].numpy().tolist()
  assert shown[0] == [b'[CLS]', *words, b'[SEP]']
  assert shown[1][:3] == [b'[CLS]', b'that', b'[SEP]']
  ids = [[pieces.vocab.index(piece.decode()) for piece in row] for row in shown]
  logits = model(np.array(ids), training=False).numpy()
  names = [[pieces.vocab[k].encode() for k in r] for r in logits.argmax(-1)]
  assert outputs['tokens'].numpy().tolist() == names
  assert outputs['probability'].shape == (2, 8)


def test_embeddings_have_norm_one(exported):
  task, model, made = exported['sequence_classification']
  texts = ['the film', 'film ' * 50, '']
  embedding = load(made.directory)['embed'](text=tf.constant(texts))
  vectors = embedding['embedding'].numpy()
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
  ids = task.pieces.encode(texts, 24).ids
  hidden = model.get_layer('encoder')(ids, training=False).numpy()
  for vector, row, tokens in zip(vectors, ids, hidden, strict=True):
    mean = tokens[row != 0].mean(axis=0)
    np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)


@pytest.mark.parametrize('name', text_tasks.DATASETS)
def test_token_ids_need_no_tensorflow_text(exported, tmp_path, name):
  task, model, made = exported[name]
  ids = text_tasks.token_ids(task)
  np.save(tmp_path / 'ids.npy', ids)
  program = """
import sys, numpy as np, tensorflow as tf
ids = tf.constant(np.load('ids.npy'))
signatures = tf.saved_model.load(sys.argv[1]).signatures
for name in ('serve_token_ids', 'serving_default'):
  np.save(name, signatures[name](token_ids=ids)['logits'].numpy())
assert 'tensorflow_text' not in sys.modules
"""
  below = made.directory / text_signatures.WITHOUT_TEXT
  subprocess.run(
    [sys.executable, '-c', program, os.fspath(below)],
    check=True,
    cwd=tmp_path,
    env={**os.environ, 'PYTHONPATH': ''},
  )
  expected = model(ids, training=False)
  for signature in ('serve_token_ids', 'serving_default'):
    found = np.load(tmp_path / f'{signature}.npy')
    np.testing.assert_allclose(found, expected, atol=1e-5)
  # Both share one file of weights.
  file = 'variables/variables.data-00000-of-00001'
  assert os.path.samefile(below / file, made.directory / file)


@pytest.mark.parametrize('tuning', ['lora', 'bias'])
def test_merging_is_exact_and_leaves_a_plain_bert(tmp_path, tuning):
  task = text_tasks.make(tuning=TUNINGS[tuning])
  # Weights as fine-tuning moves them: 1e-6 is about logits of size one.
  model = text_tasks.trained(task, 0.02)
  before = [v.numpy() for v in model.variables]
  ids = text_tasks.token_ids(task)
  logits = model(ids, training=False).numpy()
  start = task.build_keras_model()(ids, training=False).numpy()
  assert np.abs(logits - start).max() > 1e-2
  merged = task.merge(model)
  np.testing.assert_allclose(merged(ids, training=False), logits, atol=1e-6)
  made = saved_model.export(task, model, tmp_path / 'model')
  loaded = tf.saved_model.load(os.fspath(made.directory))
  found = loaded.signatures['serve_token_ids'](token_ids=tf.constant(ids))
  np.testing.assert_allclose(found['logits'], logits, atol=1e-6)
  # The trained model stays as it was.
  assert not any(part._is_merged for part in lora.parts(model))
  for variable, value in zip(model.variables, before, strict=True):
    np.testing.assert_array_equal(variable, value)
  plain = text_tasks.make()
  signatures, weights = text_signatures.trace(plain, plain.build_keras_model())
  shapes = sorted(tuple(v.shape) for v in weights)
  assert sorted(tuple(v.shape) for v in loaded.weights) == shapes
  operations = [
    sorted(node.op for node in _nodes(fn))
    for fn in (
      loaded.signatures['serve_token_ids'],
      signatures['serve_token_ids'],
    )
  ]
  for kind in ('MatMul', 'Einsum', 'AddV2', 'BiasAdd'):
    counts = [names.count(kind) for names in operations]
    assert counts[0] == counts[1], kind


def _nodes(function):
  definition = function.graph.as_graph_def()
  yield from definition.node
  for inner in definition.library.function:
    yield from inner.node_def


@pytest.mark.parametrize('name', text_tasks.DATASETS)
@pytest.mark.parametrize('tuning', TUNINGS)
def test_parity(this_process, no_openvino, tmp_path, name, tuning):
  task = text_tasks.make(name, TUNINGS[tuning])
  model = text_tasks.trained(task)
  saved_model.export(
    task,
    model,
    tmp_path / 'model',
    verify=lambda directory: parity.check(task, model, directory),
  )


def test_parity_in_a_fresh_process_and_openvino(exported, monkeypatch):
  """Every output is compared, in both batch sizes.

  But for those of signatures that are made of others.
  """
  task, model, made = exported['sequence_classification']
  report = parity.check(task, model, made.directory)
  outputs = report['tensorflow']['outputs']
  assert report['batches'] == [1, 8]
  assert set(outputs) == {
    f'{signature}/{batch}/{output}'
    for signature in text_signatures.input_names(task)
    for output in made.signatures[signature]['outputs']
    for batch in (1, 8)
  }
  assert 0 < report['tensorflow']['max_difference'] <= 1e-5
  if 'not_run' not in report['openvino']:
    assert set(report['openvino']['outputs']) == {
      f'serve_token_ids/{batch}/{output}'
      for batch in (1, 8)
      for output in ('class', 'logits', 'probabilities')
    }


@needs_openvino
@pytest.mark.parametrize(
  'name', ['token_classification', 'masked_language_modelling']
)
def test_openvino_agrees(exported, this_process, name):
  task, model, made = exported[name]
  result = parity.check(task, model, made.directory)['openvino']
  assert result['max_difference'] <= result['tolerance'] == 1e-4


def test_another_tokeniser_is_found(
  exported, this_process, no_openvino, monkeypatch
):
  task, model, made = exported['sequence_classification']
  encode = text_parity.encode
  monkeypatch.setattr(
    text_parity,
    'encode',
    lambda task, texts, reads_masks: encode(
      task, [t.replace('ß', 'ss') for t in texts], reads_masks
    ),
  )
  with pytest.raises(parity.ParityError, match='beyond 1e-05'):
    parity.check(task, model, made.directory)


def test_other_names_of_classes_are_found(
  exported, this_process, no_openvino, monkeypatch
):
  task, model, made = exported['sequence_classification']
  object.__setattr__(task, 'class_names', task.class_names[::-1])
  try:
    with pytest.raises(parity.ParityError, match='label.*beyond 1e-05'):
      parity.check(task, model, made.directory, batches=[8])
  finally:
    object.__setattr__(task, 'class_names', task.class_names[::-1])


def test_other_words_are_found(
  exported, this_process, no_openvino, monkeypatch
):
  task, model, made = exported['token_classification']
  encode = text_parity._encode_words

  def wrong(task, texts):
    ids, words, first = encode(task, texts)
    return ids, tf.strings.upper(words), first

  monkeypatch.setattr(text_parity, '_encode_words', wrong)
  with pytest.raises(parity.ParityError, match='words in .* off by inf'):
    parity.check(task, model, made.directory, batches=[1])


def test_a_tie_may_be_broken_in_two_ways():
  scores = np.array([[1.0, 1.0 - 1e-7, 0.0], [3.0, 2.0, 0.0]])
  choice = text_parity.Choice(('a', 'b', 'c'), scores)
  wanted = np.array([b'a', b'a'])
  assert text_parity.tie(choice, wanted, wanted) == (0, 3)
  worst, scale = text_parity.tie(choice, wanted, np.array([b'b', b'a']))
  assert worst == pytest.approx(1e-7) and scale == 3
  assert text_parity.tie(choice, wanted, np.array([b'a', b'b'])) == (1, 3)
  assert text_parity.tie(choice, wanted, np.array([b'd', b'a']))[0] == np.inf
  assert text_parity.tie(choice, np.array([b'', b'a']), wanted)[0] == np.inf


def test_texts_are_cut_at_the_positions_of_the_encoder():
  assert text_tasks.make(max_length=100).max_length == 64
  assert text_tasks.make(max_length=24).max_length == 24


def test_a_model_that_does_not_fit_is_refused(exported, tmp_path):
  task, *_ = exported['sequence_classification']
  other = text_tasks.make('token_classification')
  object.__setattr__(other, 'class_names', other.class_names[:-1])
  with pytest.raises(saved_model.ExportError, match='logits of shape'):
    saved_model.export(other, other.build_keras_model(), tmp_path / 'model')
