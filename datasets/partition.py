"""Seeded ways to divide labelled examples among clients.

Each function takes the labels [n] of the pooled examples and returns the
example indices of each client. Every example goes to exactly one client.
"""

import collections
import math
from collections.abc import Sequence

import numpy as np

ClientIndices = collections.OrderedDict[str, np.ndarray]


def iid(labels: np.ndarray, num_clients: int, *, seed: int) -> ClientIndices:
  """Shuffles and deals out: sizes differ by one at most."""
  _check_clients(labels, num_clients)
  order = _rng(seed).permutation(len(labels))
  return _named(np.array_split(order, num_clients))


def shards(
  labels: np.ndarray, num_clients: int, *, shards_per_client: int, seed: int
) -> ClientIndices:
  """Gives each client a few shards of the examples sorted by label.

  The pathological non-IID partition of McMahan et al. 2017
  (https://arxiv.org/abs/1602.05629, section 3): with two shards most clients
  have two labels.

  Args:
    labels: [n].
    num_clients: How many clients.
    shards_per_client: Shards for each; all shards are equal within one.
    seed: Decides which shards go together.

  Returns:
    Indices by client.
  """
  if shards_per_client < 1:
    raise ValueError(
      f'shards_per_client must be 1 or more, given {shards_per_client}.'
    )
  num_shards = num_clients * shards_per_client
  _check_clients(labels, num_shards, what='shards')
  pieces = np.array_split(np.argsort(labels, kind='stable'), num_shards)
  dealt = _rng(seed).permutation(num_shards).reshape(num_clients, -1)
  return _named([np.concatenate([pieces[s] for s in row]) for row in dealt])


def dirichlet(
  labels: np.ndarray, num_clients: int, *, alpha: float, seed: int
) -> ClientIndices:
  """Divides each label among the clients by a symmetric Dirichlet draw.

  As in Yurochkin et al. 2019 (https://arxiv.org/abs/1905.12022, section 4)
  and NIID-Bench. A small alpha gives few clients to a label; a client may end
  with no example.

  Args:
    labels: [n].
    num_clients: How many clients.
    alpha: Concentration, above 0.
    seed: Decides the draw.

  Returns:
    Indices by client.
  """
  _check_clients(labels, num_clients)
  _check_positive('alpha', alpha)
  rng = _rng(seed)
  parts = [[np.zeros(0, np.int64)] for _ in range(num_clients)]
  for label in np.unique(labels):
    rows = rng.permutation(np.flatnonzero(labels == label))
    sizes = apportion(len(rows), rng.dirichlet(np.full(num_clients, alpha)))
    for part, piece in zip(parts, _cut(rows, sizes), strict=True):
      part.append(piece)
  return _named([np.concatenate(part) for part in parts])


def power_law(
  labels: np.ndarray,
  num_clients: int,
  *,
  exponent: float,
  classes_per_client: int = 2,
  seed: int,
) -> ClientIndices:
  """Gives each client few labels and sizes that fall by a power law.

  After FedProx (Li et al. 2020, https://arxiv.org/abs/1812.06127, appendix
  C.1): client k has the labels k, k + 1, ... (modulo the number of labels),
  two by default. Each label is divided among its clients in proportion to
  rank**-exponent, ranks being dealt at random; nobody goes without. FedProx
  drops what is left over, here every example is given out.

  Args:
    labels: [n].
    num_clients: How many clients.
    exponent: 0 is equal sizes; larger is more skewed.
    classes_per_client: Labels for each client.
    seed: Decides the ranks and the examples.

  Returns:
    Indices by client.
  """
  _check_clients(labels, num_clients)
  if exponent < 0:
    raise ValueError(f'exponent must not be negative, given {exponent}.')
  values = np.unique(labels)
  _check_classes_per_client(classes_per_client, values)
  if num_clients + classes_per_client - 1 < len(values):
    raise ValueError(
      f'{num_clients} clients of {classes_per_client} neighbouring classes do '
      f'not reach all {len(values)} classes; give '
      f'{len(values) - classes_per_client + 1} clients or more.'
    )
  rng = _rng(seed)
  weights = (1.0 + rng.permutation(num_clients)) ** -exponent
  parts = [[] for _ in range(num_clients)]
  for position, label in enumerate(values):
    offsets = (position - np.arange(num_clients)) % len(values)
    holders = np.flatnonzero(offsets < classes_per_client)
    rows = rng.permutation(np.flatnonzero(labels == label))
    _check_holders(label, rows, len(holders))
    sizes = apportion(len(rows), weights[holders], minimum=1)
    for holder, piece in zip(holders, _cut(rows, sizes), strict=True):
      parts[holder].append(piece)
  return _named([np.concatenate(part) for part in parts])


def classes(
  labels: np.ndarray,
  num_clients: int,
  *,
  classes_per_client: int = 2,
  seed: int,
) -> ClientIndices:
  """Gives each client the same number of labels and divides these equally.

  The quantity-based label imbalance of NIID-Bench (Li et al. 2021,
  https://arxiv.org/abs/2102.02079, section 4.1), there #C=k. As in its code,
  label i goes to client i, both modulo their numbers, until all have one; a
  client's other labels are drawn at random. Each label's examples are divided
  at random, with sizes that differ by one at most, among its clients.

  Args:
    labels: [n].
    num_clients: How many clients.
    classes_per_client: Labels for each client.
    seed: Decides the labels and the examples.

  Returns:
    Indices by client.
  """
  _check_clients(labels, num_clients)
  values = np.unique(labels)
  _check_classes_per_client(classes_per_client, values)
  if num_clients * classes_per_client < len(values):
    raise ValueError(
      f'{num_clients} clients of {classes_per_client} classes do not reach all '
      f'{len(values)} classes; give '
      f'{math.ceil(len(values) / classes_per_client)} clients or more.'
    )
  rng = _rng(seed)
  has = np.zeros([num_clients, len(values)], bool)
  turns = np.arange(max(has.shape))
  has[turns % num_clients, turns % len(values)] = True
  for row in has:
    missing = classes_per_client - row.sum()
    row[rng.choice(np.flatnonzero(~row), missing, replace=False)] = True
  parts = [[] for _ in range(num_clients)]
  for label, holders in zip(values, has.T, strict=True):
    rows = rng.permutation(np.flatnonzero(labels == label))
    _check_holders(label, rows, holders.sum())
    pieces = np.array_split(rows, holders.sum())
    for holder, piece in zip(np.flatnonzero(holders), pieces, strict=True):
      parts[holder].append(piece)
  return _named([np.concatenate(part) for part in parts])


def quantity_skew(
  labels: np.ndarray, num_clients: int, *, alpha: float, seed: int
) -> ClientIndices:
  """Divides at random, with sizes by a symmetric Dirichlet draw.

  The quantity skew of NIID-Bench (Li et al. 2021,
  https://arxiv.org/abs/2102.02079, section 4.3); each client keeps one
  example at least.

  Args:
    labels: [n].
    num_clients: How many clients.
    alpha: Concentration, above 0; a small one is more skewed.
    seed: Decides the draw.

  Returns:
    Indices by client.
  """
  _check_positive('alpha', alpha)
  _check_clients(labels, num_clients)
  rng = _rng(seed)
  weights = rng.dirichlet(np.full(num_clients, alpha))
  sizes = apportion(len(labels), weights, minimum=1)
  return _named(_cut(rng.permutation(len(labels)), sizes))


def apportion(total: int, weights: np.ndarray, minimum: int = 0) -> np.ndarray:
  """Divides `total` into integers in proportion to `weights`.

  By largest remainder: after everyone's minimum, no part differs from its
  exact share of the rest by one or more.

  Args:
    total: What to divide, `minimum * len(weights)` or more.
    weights: [k], not negative.
    minimum: What each part has at least.

  Returns:
    [k] int64 that sum to `total`.
  """
  rest = total - minimum * len(weights)
  mass = weights.sum()
  exact = rest * (weights / mass if mass > 0 else 1.0 / len(weights))
  exact = np.broadcast_to(exact, weights.shape)
  sizes = np.floor(exact).astype(np.int64)
  order = np.argsort(sizes - exact, kind='stable')
  sizes[order[: rest - sizes.sum()]] += 1
  return sizes + minimum


def client_name(position: int, num_clients: int) -> str:
  """Returns the id of an artificial client, such as 'client_0007'."""
  return f'client_{position:0{max(4, len(str(num_clients - 1)))}d}'


def _rng(seed: int) -> np.random.Generator:
  return np.random.default_rng([seed, 0x9A27])


def _cut(rows: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
  return np.split(rows, np.cumsum(sizes)[:-1])


def _named(pieces: Sequence[np.ndarray]) -> ClientIndices:
  return collections.OrderedDict(
    (client_name(k, len(pieces)), np.asarray(piece, np.int64))
    for k, piece in enumerate(pieces)
  )


def _check_clients(
  labels: np.ndarray, parts: int, what: str = 'clients'
) -> None:
  if not 1 <= parts <= len(labels):
    raise ValueError(
      f'{len(labels)} examples cannot be divided into {parts} {what}; '
      f'give 1 to {len(labels)}.'
    )


def _check_classes_per_client(number: int, values: np.ndarray) -> None:
  if not 1 <= number <= len(values):
    raise ValueError(
      f'classes_per_client must be 1 to {len(values)}, given {number}.'
    )


def _check_holders(label: int, rows: np.ndarray, holders: int) -> None:
  if holders > len(rows):
    raise ValueError(
      f'label {label} has {len(rows)} examples for {holders} clients; lower '
      'num_clients.'
    )


def _check_positive(name: str, value: float) -> None:
  if not value > 0:
    raise ValueError(f'{name} must be above 0, given {value}.')
