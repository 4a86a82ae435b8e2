"""scikit-learn's digits by writer form: real handwriting, no network needed.

The 1,797 images are the test half of UCI's optical digits. Every writer
filled in the same form of 130 digits, so the sequence of labels repeats;
aligning the labels with that form gives the 14 places where a form begins.
UCI speaks of 13 writers in this half: two forms may be of one hand.
"""

import collections

import numpy as np
from sklearn import datasets as sklearn_datasets

from datasets import federated_data

FORM_STARTS = (
  *(0, 130, 256, 386, 516, 646, 776),
  *(906, 1029, 1157, 1287, 1415, 1545, 1667),
)
_TEST_FRACTION = 0.2
# The test examples are the same in every run.
_TEST_SEED = 20_170_217


def load() -> federated_data.FederatedData:
  """Returns the digits, 'x' uint8 [n, 8, 8, 1] (0 .. 255), 'y' int32 [n].

  Clients are 'form_00' to 'form_13'; a fixed fifth of each one's examples is
  the test split.
  """
  raw = sklearn_datasets.load_digits()
  # Stored as 0 .. 16.
  x = np.round(raw.images * (255 / 16)).astype(np.uint8)[..., None]
  arrays = {'x': x, 'y': raw.target.astype(np.int32)}
  rows = np.split(np.arange(len(x)), FORM_STARTS[1:])
  forms = {f'form_{k:02d}': form for k, form in enumerate(rows)}
  train, test = split_each(forms, _TEST_FRACTION, _TEST_SEED)
  return federated_data.FederatedData(
    name='digits',
    partition='natural',
    train=federated_data.Split.from_arrays(arrays, train),
    validation=None,
    test=federated_data.Split.from_arrays(arrays, test),
    num_classes=10,
    class_names=tuple('0123456789'),
    source=federated_data.Source(
      title='Optical recognition of handwritten digits (scikit-learn)',
      licence='CC BY 4.0',
      citation=(
        'E. Alpaydin, C. Kaynak. Optical recognition of handwritten digits. '
        'UCI Machine Learning Repository, 1998.'
      ),
      url='https://archive.ics.uci.edu/dataset/80',
    ),
    content_sha256=federated_data.content_hash(arrays),
  )


def split_each(
  clients: dict[str, np.ndarray], fraction: float, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """Divides every client's rows at random into two parts.

  Args:
    clients: Rows by client.
    fraction: Share of each client's rows for the second part, rounded.
    seed: Decides which.

  Returns:
    The first and the second part, rows in their order.
  """
  rng = np.random.default_rng(seed)
  first, second = collections.OrderedDict(), collections.OrderedDict()
  for client, rows in clients.items():
    order = rng.permutation(rows)
    cut = len(rows) - round(fraction * len(rows))
    first[client] = np.sort(order[:cut])
    second[client] = np.sort(order[cut:])
  return first, second
