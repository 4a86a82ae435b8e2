"""Checkpoints in each form, written by hand, are read; wrong ones are named."""

import dataclasses
import json
import re
import struct

import numpy as np
import pytest
import tensorflow as tf

from models import bert_checkpoint
from tests.models import bert_reference

CONFIG = bert_checkpoint.Config(
  vocabulary_size=11,
  num_layers=2,
  num_heads=2,
  hidden_size=8,
  intermediate_size=12,
  max_positions=16,
)
VOCABULARY = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *'abcdef')
SETTINGS = {
  'model_type': 'bert',
  'architectures': ['BertModel'],
  'vocab_size': 11,
  'num_hidden_layers': 2,
  'num_attention_heads': 2,
  'hidden_size': 8,
  'intermediate_size': 12,
  'max_position_embeddings': 16,
  'type_vocab_size': 2,
  'hidden_act': 'gelu',
  'hidden_dropout_prob': 0.1,
  'layer_norm_eps': 1e-12,
}
QUERY = 'encoder.layer.1.attention.self.query.weight'
IDS = np.array([[2, 5, 6, 3, 0, 0], [2, 7, 8, 9, 10, 3]])
MASK = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])


def random_tensors(head=True, seed=0):
  rng = np.random.default_rng(seed)
  shapes = bert_checkpoint.expected_shapes(CONFIG, masked_lm_head=head)
  return {
    name: rng.standard_normal(shape).astype(np.float32)
    for name, shape in shapes.items()
  }


def write_safetensors(path, tensors):
  """The format by its specification: length, JSON header, bytes."""
  header, content = {'__metadata__': {'format': 'pt'}}, b''
  names = {'float32': 'F32', 'float16': 'F16', 'uint16': 'BF16', 'int64': 'I64'}
  for name, tensor in tensors.items():
    start, content = len(content), content + tensor.tobytes()
    header[name] = {
      'dtype': names[tensor.dtype.name],
      'shape': list(tensor.shape),
      'data_offsets': [start, len(content)],
    }
  header = json.dumps(header).encode()
  header += b' ' * (-len(header) % 8)
  path.write_bytes(struct.pack('<Q', len(header)) + header + content)


def write_texts(directory, settings=None, vocabulary=VOCABULARY, **tokenizer):
  (directory / 'config.json').write_text(json.dumps(settings or SETTINGS))
  text = ''.join(f'{token}\n' for token in vocabulary)
  (directory / 'vocab.txt').write_text(text, encoding='utf-8')
  if tokenizer:
    path = directory / 'tokenizer_config.json'
    path.write_text(json.dumps(tokenizer))


def write(directory, tensors=None, **texts):
  directory.mkdir(exist_ok=True)
  write_texts(directory, **texts)
  tensors = random_tensors() if tensors is None else tensors
  write_safetensors(directory / 'model.safetensors', tensors)
  return directory


def google_name(name):
  """A canonical name in Google's spelling, word by word."""
  name = re.sub(r'layer\.(\d+)', r'layer_\1', name).replace('.', '/')
  name = name.replace('_embeddings/weight', '_embeddings')
  name = name.replace('LayerNorm/weight', 'LayerNorm/gamma')
  name = name.replace('LayerNorm/bias', 'LayerNorm/beta')
  name = re.sub(r'/weight$', '/kernel', name)
  name = name.replace('cls/predictions/bias', 'cls/predictions/output_bias')
  return name if name.startswith('cls/') else f'bert/{name}'


def write_google(directory, tensors=None, name='bert_model.ckpt'):
  directory.mkdir(exist_ok=True)
  write_texts(directory)
  (directory / 'config.json').rename(directory / 'bert_config.json')
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    for key, value in (tensors or random_tensors()).items():
      key = google_name(key)
      value = value.T if key.endswith('/kernel') else value
      tf.compat.v1.get_variable(key, initializer=value)
      tf.compat.v1.get_variable(key + '/adam_m', initializer=value * 0)
    tf.compat.v1.get_variable('global_step', initializer=np.int64(3))
    tf.compat.v1.get_variable(
      'cls/seq_relationship/output_bias', initializer=np.zeros(2, 'f')
    )
    session.run(tf.compat.v1.global_variables_initializer())
    tf.compat.v1.train.Saver().save(
      session, str(directory / name), write_state=False
    )
  return directory


def same(got, tensors):
  assert list(got.tensors) == list(
    bert_checkpoint.expected_shapes(CONFIG, masked_lm_head=True)
  )
  for name, tensor in got.tensors.items():
    assert tensor.dtype == np.float32
    np.testing.assert_array_equal(tensor, tensors[name], name)


def test_expected_shapes_of_bert_base():
  config = bert_checkpoint.Config(30_522, 12, 12, 768, 3_072)
  shapes = bert_checkpoint.expected_shapes(config)
  # The number that Hugging Face gives for BertModel of bert-base-uncased.
  assert sum(map(np.prod, shapes.values())) == 109_482_240
  head = bert_checkpoint.expected_shapes(config, masked_lm_head=True)
  assert len(head) - len(shapes) == 5


def test_a_directory_of_hugging_face(tmp_path):
  tensors = random_tensors()
  got = bert_checkpoint.read(write(tmp_path / 'own', tensors))
  same(got, tensors)
  assert got.config == CONFIG and got.vocabulary == VOCABULARY
  assert got.lowercase and got.strip_accents and got.name == 'own'
  assert got.has_pooler and got.has_masked_lm_head
  assert got.parameters == sum(tensor.size for tensor in tensors.values())


def test_prefixes_old_names_and_copies_make_no_difference(tmp_path):
  tensors = random_tensors()
  old = {
    name if name.startswith('cls.') else f'bert.{name}': tensor
    for name, tensor in tensors.items()
  }
  old = {
    name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace(
      'LayerNorm.bias', 'LayerNorm.beta'
    ): tensor
    for name, tensor in old.items()
  }
  old['bert.embeddings.position_ids'] = np.arange(16)[None]
  old['cls.predictions.decoder.weight'] = tensors[
    'embeddings.word_embeddings.weight'
  ]
  old['cls.predictions.decoder.bias'] = old.pop('cls.predictions.bias')
  old['cls.seq_relationship.weight'] = np.ones((2, 8), np.float32)
  old['classifier.weight'] = np.ones((3, 8), np.float32)
  got = bert_checkpoint.read(write(tmp_path / 'old', old))
  same(got, tensors)
  plain = bert_checkpoint.read(write(tmp_path / 'plain', tensors))
  assert got.sha256 == plain.sha256


def test_sha256_depends_on_every_part(tmp_path):
  got = bert_checkpoint.read(write(tmp_path / 'a'))
  changed = {**got.tensors, QUERY: got.tensors[QUERY].copy()}
  changed[QUERY][0, 0] += 1e-6
  others = [
    dataclasses.replace(got, tensors=changed),
    dataclasses.replace(got, lowercase=False),
    dataclasses.replace(got, vocabulary=VOCABULARY[::-1]),
    dataclasses.replace(
      got, config=dataclasses.replace(CONFIG, activation='gelu_tanh')
    ),
  ]
  assert len({got.sha256, *(other.sha256 for other in others)}) == 5
  assert dataclasses.replace(got, name='other').sha256 == got.sha256


def test_half_precision_is_widened(tmp_path):
  tensors = random_tensors()
  half = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
  got = bert_checkpoint.read(write(tmp_path / 'half', half))
  same(got, {name: value.astype(np.float32) for name, value in half.items()})
  # bfloat16 is TensorFlow's own, cut from float32 by rounding.
  rounded = {n: tf.cast(t, tf.bfloat16) for n, t in tensors.items()}
  stored = {n: t.numpy().view(np.uint16) for n, t in rounded.items()}
  got = bert_checkpoint.read(write(tmp_path / 'bfloat', stored))
  same(got, {n: tf.cast(t, tf.float32).numpy() for n, t in rounded.items()})


def write_shards(directory):
  tensors = random_tensors()
  names = sorted(tensors)
  directory.mkdir()
  write_texts(directory)
  weights = {}
  for part in range(2):
    file = f'model-{part}.safetensors'
    own = {name: tensors[name] for name in names[part::2]}
    write_safetensors(directory / file, own)
    weights.update(dict.fromkeys(own, file))
  index = directory / 'model.safetensors.index.json'
  index.write_text(json.dumps({'weight_map': weights}))
  return directory, tensors, index


def test_shards(tmp_path):
  directory, tensors, index = write_shards(tmp_path / 'shards')
  same(bert_checkpoint.read(directory), tensors)
  weights = json.loads(index.read_text())['weight_map']
  weights['pooler.dense.more'] = 'model-1.safetensors'
  index.write_text(json.dumps({'weight_map': weights}))
  error = r'model-1.safetensors lacks pooler\.dense\.more'
  with pytest.raises(bert_checkpoint.CheckpointError, match=error):
    bert_checkpoint.read(directory)
  weights['pooler.dense.more'] = '../model.safetensors'
  index.write_text(json.dumps({'weight_map': weights}))
  with pytest.raises(bert_checkpoint.CheckpointError, match='lies elsewhere'):
    bert_checkpoint.read(directory)
  (directory / 'model-0.safetensors').unlink()
  del weights['pooler.dense.more']
  index.write_text(json.dumps({'weight_map': weights}))
  error = 'model-0.safetensors does not exist'
  with pytest.raises(bert_checkpoint.CheckpointError, match=error):
    bert_checkpoint.read(directory)


def test_a_tensorflow_checkpoint(tmp_path):
  tensors = random_tensors()
  got = bert_checkpoint.read(write_google(tmp_path / 'uncased_L-2', tensors))
  same(got, tensors)
  assert got.config == CONFIG and got.lowercase
  form = bert_checkpoint.read(write(tmp_path / 'form', tensors))
  assert got.sha256 == form.sha256
  cased = bert_checkpoint.read(write_google(tmp_path / 'cased_L-2', tensors))
  assert not cased.lowercase and not cased.strip_accents


def test_which_tensorflow_checkpoint(tmp_path):
  directory = write_google(tmp_path / 'steps', name='model.ckpt-1')
  other = random_tensors(seed=1)
  (directory / 'bert_config.json').unlink()
  write_google(directory, other, name='model.ckpt-2')
  error = r'several .*model\.ckpt-1, model\.ckpt-2; keep one'
  with pytest.raises(bert_checkpoint.CheckpointError, match=error):
    bert_checkpoint.read(directory)
  state = 'model_checkpoint_path: "model.ckpt-2"\n'
  (directory / 'checkpoint').write_text(state)
  same(bert_checkpoint.read(directory), other)


def test_tensorflow_checkpoints_that_can_not_be_read(tmp_path):
  directory = write_google(tmp_path / 'cut')
  data = next(directory.glob('*.data-*'))
  data.write_bytes(data.read_bytes()[:-300])
  with pytest.raises(bert_checkpoint.CheckpointError, match='damaged'):
    bert_checkpoint.read(directory)
  tensors = random_tensors()
  del tensors[QUERY]
  error = re.escape(f'lacks the tensor {QUERY} [8, 8]')
  with pytest.raises(bert_checkpoint.CheckpointError, match=error):
    bert_checkpoint.read(write_google(tmp_path / 'less', tensors))
  objects = tmp_path / 'objects'
  objects.mkdir()
  write_texts(objects)
  tf.train.Checkpoint(a=tf.Variable(1.0)).write(str(objects / 'model.ckpt'))
  with pytest.raises(bert_checkpoint.CheckpointError, match='object-based'):
    bert_checkpoint.read(objects)


def test_round_trip(tmp_path):
  first = bert_checkpoint.read(
    write(tmp_path / 'first', do_lower_case=False, strip_accents=True)
  )
  assert not first.lowercase and first.strip_accents
  bert_checkpoint.save(first, tmp_path / 'deep' / 'second')
  second = bert_checkpoint.read(tmp_path / 'deep' / 'second')
  assert second.sha256 == first.sha256 and second.config == first.config
  assert [p.name for p in (tmp_path / 'deep').iterdir()] == ['second']
  with pytest.raises(bert_checkpoint.CheckpointError, match='exists already'):
    bert_checkpoint.save(first, tmp_path / 'first')
  # What transformers' BertForMaskedLM and BertModel look for.
  encoder = {n: t for n, t in first.tensors.items() if not n.startswith('cls.')}
  plain = dataclasses.replace(
    first,
    tensors=encoder,
    config=dataclasses.replace(CONFIG, activation='gelu_tanh'),
  )
  bert_checkpoint.save(plain, tmp_path / 'plain')
  for name, prefix, kind, activation in (
    ('deep/second', 'bert.', 'BertForMaskedLM', 'gelu'),
    ('plain', '', 'BertModel', 'gelu_new'),
  ):
    content = (tmp_path / name / 'model.safetensors').read_bytes()
    size = struct.unpack('<Q', content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    assert prefix + QUERY in header
    assert header['__metadata__'] == {'format': 'pt'}
    settings = json.loads((tmp_path / name / 'config.json').read_text())
    assert settings['architectures'] == [kind]
    assert settings['hidden_act'] == activation
  assert bert_checkpoint.read(tmp_path / 'plain').sha256 == plain.sha256


@pytest.mark.parametrize('step', ['files.write_safetensors', 'os.rename'])
def test_an_interrupted_save_leaves_nothing(tmp_path, monkeypatch, step):
  checkpoint = bert_checkpoint.read(write(tmp_path / 'first'))

  def fail(*_):
    raise OSError('no space left')

  monkeypatch.setattr(f'models.bert_checkpoint.{step}', fail)
  with pytest.raises(OSError, match='no space left'):
    bert_checkpoint.save(checkpoint, tmp_path / 'second')
  assert [path.name for path in tmp_path.iterdir()] == ['first']


def test_the_reference_ignores_padding(tmp_path):
  got = bert_checkpoint.read(write(tmp_path / 'a'))
  whole = bert_reference.sequence_output(CONFIG, got.tensors, IDS, MASK)
  short = bert_reference.sequence_output(CONFIG, got.tensors, IDS[:1, :4])
  np.testing.assert_allclose(whole[:1, :4], short, atol=1e-12)
  other = np.where(MASK > 0, IDS, 9)
  changed = bert_reference.pooled_output(CONFIG, got.tensors, other, MASK)
  np.testing.assert_allclose(
    changed,
    bert_reference.pooled_output(CONFIG, got.tensors, IDS, MASK),
    atol=1e-12,
  )
  logits = bert_reference.masked_lm_logits(CONFIG, got.tensors, IDS, MASK)
  assert logits.shape == (2, 6, 11) and np.isfinite(logits).all()
