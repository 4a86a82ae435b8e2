"""Validation data is held out of training, exactly and by the seed."""

import numpy as np
import pytest

from datasets import federated_data, validation


def _split():
  counts = [5, 1, 0, 30, 14]
  starts = np.cumsum([0, *counts])
  return federated_data.Split.from_client_arrays(
    {
      f'c{k}': {
        'x': np.zeros((n, 2), np.float32),
        'y': np.arange(starts[k], starts[k] + n, dtype=np.int32),
      }
      for k, n in enumerate(counts)
    }
  )


@pytest.mark.parametrize('num_examples', [1, 20, 49])
def test_examples_are_divided_exactly(num_examples):
  split = _split()
  train, held = validation.hold_out_examples(split, num_examples, seed=1)
  assert held.total_examples == num_examples
  assert train.total_examples == 50 - num_examples
  assert train.client_ids == split.client_ids
  for client in split.client_ids:
    parts = [train.client(client)['y'].tolist()]
    if client in held.client_ids:
      parts.append(held.client(client)['y'].tolist())
      assert parts[1]
    assert sorted(sum(parts, [])) == split.client(client)['y'].tolist()


def test_examples_are_random_and_seeded():
  def held(seed):
    part = validation.hold_out_examples(_split(), 20, seed)[1]
    return part.pooled()['y'].tolist()

  assert held(1) == held(1) != held(2)
  # Neither the head nor the tail of the data.
  assert held(1) not in (list(range(20)), list(range(30, 50)))
  counts = np.bincount(sum((held(s) for s in range(300)), []), minlength=50)
  # Each example is drawn with chance 0.4: standard deviation 8.5 of 120.
  assert np.abs(counts - 120).max() < 4.5 * 8.5


@pytest.mark.parametrize('num_examples', [1, 6, 15])
def test_whole_clients_are_held_out(num_examples):
  split = _split()
  train, held = validation.hold_out_clients(split, num_examples, seed=3)
  assert set(train.client_ids) | set(held.client_ids) == set(split.client_ids)
  assert not set(train.client_ids) & set(held.client_ids)
  assert held.total_examples >= num_examples
  assert train.total_examples + held.total_examples == 50


def test_clients_are_random_and_no_more_than_needed():
  chosen = set()
  for seed in range(40):
    held = validation.hold_out_clients(_split(), 1, seed)[1]
    with_examples = [c for c in held.client_ids if held.num_examples[c]]
    assert len(with_examples) == 1
    chosen.update(with_examples)
  assert chosen == {'c0', 'c1', 'c3', 'c4'}


def test_too_much_is_an_error():
  for number in (0, 50):
    with pytest.raises(ValueError, match=f'1 to 49, given {number}'):
      validation.hold_out_examples(_split(), number, seed=0)
  with pytest.raises(ValueError, match='take all 5 clients'):
    for seed in range(20):
      validation.hold_out_clients(_split(), 49, seed)
