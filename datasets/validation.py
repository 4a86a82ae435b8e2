"""Holds validation data out of training data, by a seed."""

import numpy as np

from datasets import federated_data

_STREAM = 0x7A1


def hold_out_clients(
  split: federated_data.Split, num_examples: int, seed: int
) -> tuple[federated_data.Split, federated_data.Split]:
  """Holds out whole clients.

  Args:
    split: All training clients.
    num_examples: Clients are taken, in random order, until they have so many
      examples or more.
    seed: Decides which.

  Returns:
    The remaining training clients and the validation clients.
  """
  _check(split, num_examples)
  order = np.random.default_rng([seed, _STREAM]).permutation(
    len(split.client_ids)
  )
  counts = np.asarray(list(split.num_examples.values()))
  taken = np.searchsorted(np.cumsum(counts[order]), num_examples) + 1
  if taken == len(order):
    raise ValueError(
      f'{num_examples} validation examples take all {taken} clients; ask for '
      'fewer.'
    )
  held = set(order[:taken].tolist())
  ids = split.client_ids
  return (
    split.subset([c for k, c in enumerate(ids) if k not in held]),
    split.subset([c for k, c in enumerate(ids) if k in held]),
  )


def hold_out_examples(
  split: federated_data.Split, num_examples: int, seed: int
) -> tuple[federated_data.Split, federated_data.Split]:
  """Holds out examples, drawn at random from all clients' together.

  Every client keeps its place in training, if with no example left. The
  validation clients are those that gave some.

  Args:
    split: All training clients.
    num_examples: How many.
    seed: Decides which.

  Returns:
    The remaining training examples and the validation examples, by client.
  """
  _check(split, num_examples)
  drawn = np.random.default_rng([seed, _STREAM]).choice(
    split.total_examples, num_examples, replace=False
  )
  is_held = np.zeros(split.total_examples, bool)
  is_held[drawn] = True
  ends = np.cumsum(list(split.num_examples.values()))
  masks = dict(zip(split.client_ids, np.split(is_held, ends[:-1]), strict=True))

  def part(of_validation: bool) -> federated_data.Split:
    counts = {c: int((m == of_validation).sum()) for c, m in masks.items()}
    if of_validation:
      counts = {c: n for c, n in counts.items() if n}

    def load(client: str) -> dict[str, np.ndarray]:
      chosen = masks[client] == of_validation
      return {k: v[chosen] for k, v in split.client(client).items()}

    return federated_data.Split(counts, load)

  return part(False), part(True)


def _check(split: federated_data.Split, num_examples: int) -> None:
  if not 0 < num_examples < split.total_examples:
    raise ValueError(
      f'validation_examples must be 1 to {split.total_examples - 1}, given '
      f'{num_examples}.'
    )
