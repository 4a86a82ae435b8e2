"""A checkpoint that is not BERT's, or not whole, is refused by name."""

import json

import numpy as np
import pytest

from models import bert_checkpoint, bert_checkpoint_files
from tests.models import test_bert_checkpoint as forms

WORDS = 'embeddings.word_embeddings.weight'


def refused(directory, text):
  with pytest.raises(bert_checkpoint.CheckpointError) as caught:
    bert_checkpoint.read(directory)
  assert text in str(caught.value), caught.value
  assert directory.name in str(caught.value)


@pytest.mark.parametrize(
  'change, text',
  [
    ({'model_type': 'distilbert'}, 'is of the architecture distilbert'),
    (
      {'architectures': ['RobertaModel']},
      'is of the architecture RobertaModel',
    ),
    (
      {'position_embedding_type': 'relative_key'},
      'has position_embedding_type relative_key',
    ),
    ({'is_decoder': True}, 'is a decoder'),
    ({'add_cross_attention': True}, 'is a decoder'),
    ({'pruned_heads': {'0': [1]}}, 'has pruned_heads'),
    ({'hidden_act': 'relu'}, 'has the activation relu'),
    ({'num_attention_heads': 3}, 'hidden_size 8 is no multiple of num_heads 3'),
    ({'hidden_size': 'wide'}, "hidden_size is 'wide', not a positive number"),
    ({'num_hidden_layers': 0}, 'num_layers is 0'),
    ({'vocab_size': 12}, f'{WORDS} has the shape [11, 8]'),
    ({'num_hidden_layers': 3}, 'lacks the tensor encoder.layer.2.attention.'),
    ({'num_hidden_layers': 1}, 'has the tensor encoder.layer.1.'),
  ],
)
def test_configuration(tmp_path, change, text):
  settings = {**forms.SETTINGS, **change}
  refused(forms.write(tmp_path / 'own', settings=settings), text)


def test_incomplete_configuration(tmp_path):
  settings = dict(forms.SETTINGS)
  del settings['hidden_size'], settings['type_vocab_size']
  directory = forms.write(tmp_path / 'own', settings=settings)
  refused(directory, 'config.json lacks hidden_size, type_vocab_size')
  (directory / 'config.json').write_text('{"hidden')
  refused(directory, 'config.json can not be read')
  (directory / 'config.json').write_text('[]')
  refused(directory, 'holds no JSON object')
  (directory / 'config.json').unlink()
  refused(directory, 'config.json can not be read')


@pytest.mark.parametrize(
  'given, found', [('gelu', 'gelu'), ('gelu_new', 'gelu_tanh')]
)
def test_activations(tmp_path, given, found):
  settings = {**forms.SETTINGS, 'hidden_act': given}
  got = bert_checkpoint.read(forms.write(tmp_path / 'own', settings=settings))
  assert got.config.activation == found


def _without(name):
  return lambda tensors: tensors.pop(name)


def _set(name, value):
  return lambda tensors: tensors.update({name: np.asarray(value, np.float32)})


@pytest.mark.parametrize(
  'change, text',
  [
    (_without(WORDS), f'lacks the tensor {WORDS}'),
    (_without(forms.QUERY), f'lacks the tensor {forms.QUERY} [8, 8]'),
    (
      _without('pooler.dense.bias'),
      'lacks the tensor pooler.dense.bias [8]',
    ),
    (
      _without('cls.predictions.transform.dense.weight'),
      'lacks the tensor cls.predictions.transform.dense.weight [8, 8]',
    ),
    (
      _set('encoder.layer.0.intermediate.dense.weight', np.ones((8, 12))),
      'the tensor encoder.layer.0.intermediate.dense.weight has the shape '
      '[8, 12], where its configuration asks for [12, 8]',
    ),
    (
      _set(forms.QUERY, np.full((8, 8), np.inf)),
      f'{forms.QUERY} holds values that are not finite',
    ),
    (
      _set('encoder.layer.0.attention.self.distance_embedding.weight', [1.0]),
      'has the tensor encoder.layer.0.attention.self.distance_embedding.weight',
    ),
    (
      _set('cls.predictions.decoder.weight', np.ones((11, 8))),
      'cls.predictions.decoder.weight is not the token embedding',
    ),
    (_set(f'query.{WORDS}', [1.0]), f'holds 2 encoders, not one: {WORDS}'),
  ],
)
def test_tensors(tmp_path, change, text):
  tensors = forms.random_tensors()
  change(tensors)
  refused(forms.write(tmp_path / 'own', tensors), text)


@pytest.mark.parametrize(
  'damage', [lambda b: b[:-1], lambda b: b[:5], lambda b: b + b'!']
)
def test_damaged_weights(tmp_path, damage):
  directory = forms.write(tmp_path / 'own')
  path = directory / 'model.safetensors'
  path.write_bytes(damage(path.read_bytes()))
  refused(directory, 'model.safetensors is damaged or was cut off')


@pytest.mark.parametrize(
  'vocabulary, text',
  [
    (forms.VOCABULARY[:-1], 'has 10 tokens, where its configuration asks for'),
    ((*forms.VOCABULARY[:-1], 'a'), "its vocabulary has 'a' twice"),
    (
      ('[PAD]', 'x', 'y', *forms.VOCABULARY[3:]),
      'its vocabulary lacks [UNK], [CLS]',
    ),
  ],
)
def test_vocabulary(tmp_path, vocabulary, text):
  refused(forms.write(tmp_path / 'own', vocabulary=vocabulary), text)


def test_vocabulary_of_a_tokenizer(tmp_path):
  directory = forms.write(tmp_path / 'own')
  (directory / 'vocab.txt').unlink()
  refused(directory, 'neither vocab.txt nor tokenizer.json')
  ids = {token: i for i, token in enumerate(forms.VOCABULARY)}
  content = {
    'model': {'type': 'WordPiece', 'vocab': {**ids}},
    'added_tokens': [{'content': '[MASK]', 'id': ids['[MASK]']}],
    'normalizer': {'lowercase': False, 'strip_accents': None},
  }
  del content['model']['vocab']['[MASK]']
  file = directory / 'tokenizer.json'
  file.write_text(json.dumps(content))
  got = bert_checkpoint.read(directory)
  assert got.vocabulary == forms.VOCABULARY
  assert not got.lowercase and not got.strip_accents
  content['normalizer']['handle_chinese_chars'] = False
  file.write_text(json.dumps(content))
  refused(directory, 'leaves Chinese characters together')
  content['normalizer'] = None
  content['model']['vocab']['f'] = 20
  file.write_text(json.dumps(content))
  refused(directory, 'the ids of its 11 tokens are not 0, 1, 2')
  content['model'] = {'type': 'BPE'}
  file.write_text(json.dumps(content))
  refused(directory, 'a tokenizer of type BPE, not of WordPiece')


def test_a_token_may_be_a_line_separator():
  content = '[PAD]\n\u2028\n\x85\nend'.encode()
  parsed = bert_checkpoint_files.parse_vocabulary(content, 'it')
  assert parsed == ('[PAD]', '\u2028', '\x85', 'end')
  windows = bert_checkpoint_files.parse_vocabulary(b'a\r\nb\r\n', 'it')
  assert windows == ('a', 'b')
  with pytest.raises(bert_checkpoint.CheckpointError, match='it is not UTF-8'):
    bert_checkpoint_files.parse_vocabulary(b'\xff\n', 'it')


def test_places_without_a_checkpoint(tmp_path):
  refused(tmp_path / 'nowhere', 'does not exist')
  (tmp_path / 'file').write_text('')
  refused(tmp_path / 'file', 'is a file, not a directory')
  empty = tmp_path / 'empty'
  empty.mkdir()
  refused(empty, 'Looked for: model.safetensors')
  refused(empty, 'Found: nothing')
  (empty / 'tf_model.h5').write_text('')
  refused(empty, 'Found: tf_model.h5')
  (empty / 'pytorch_model.bin').write_text('')
  refused(empty, "in torch's form (pytorch_model.bin)")
  refused(empty, 'safe_serialization=True')
