"""Fetches data sets into the cache: python -m datasets.fetch mnist cifar10.

A name may carry a partition that needs more files: mnist:writer. Tables for
regression, as exam, and texts, as movie_reviews, have names of their own.
"""

import argparse
import sys

from datasets import federated_data, real_tables, text
from datasets import load as load_lib


def main(arguments: list[str] | None = None) -> int:
  """Loads each set once and prints a line about it; returns an exit status."""
  parser = argparse.ArgumentParser(
    prog='python -m datasets.fetch', description=__doc__
  )
  parser.add_argument('datasets', nargs='+', metavar='dataset[:partition]')
  parser.add_argument('--data_dir')
  parser.add_argument('--cache_dir')
  options = parser.parse_args(arguments)
  for wanted in options.datasets:
    name = wanted.partition(':')[0]
    try:
      if wanted in real_tables.TABLES:
        data = real_tables.load(wanted, options.cache_dir)
      elif name in text.TEXT_DATASETS and name != 'file':
        data = text.load(_config(text.TextConfig, wanted, options))
      else:
        data = load_lib.load(_config(load_lib.LoadConfig, wanted, options))
    except (federated_data.DataError, ValueError) as error:
      print(f'{wanted}: {error}', file=sys.stderr)
      return 1
    print(
      f'{wanted}: {data.train.total_examples} training examples of '
      f'{len(data.train.client_ids)} clients ({data.partition}), '
      f'{data.test.total_examples} test examples, sha256 '
      f'{data.content_sha256[:16]}'
    )
  return 0


def _config(cls: type, wanted: str, options: argparse.Namespace):
  """Returns the settings, of a class, of one name with its partition."""
  name, _, partition = wanted.partition(':')
  return cls(
    dataset=name,
    partition=partition or None,
    data_dir=options.data_dir,
    cache_dir=options.cache_dir,
  )


if __name__ == '__main__':
  sys.exit(main())
