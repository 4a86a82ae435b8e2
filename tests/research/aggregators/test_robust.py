"""Robust rules against NumPy references, and against a poisoned client."""

import numpy as np
import pytest
import tensorflow as tf

from research.aggregators import compose, robust, settings
from tests.research.aggregators import aggregation
from tests.research.runtime import equality

UPDATES = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
SIZES = np.array([3, 1, 4, 1, 5, 9, 2], np.float32)


def numpy_median(values, weights):
  return np.median(values, axis=0)


def numpy_trimmed_mean(values, weights):
  kept = [sorted(column)[2:-2] for column in values.T]
  return np.array([np.mean(column) for column in kept])


def numpy_geometric_median(values, weights, iterations=3):
  centre = np.median(values, axis=0)
  for _ in range(iterations):
    factors = [
      w / max(np.sqrt(((v - centre) ** 2).sum()), 1e-6)
      for v, w in zip(values, weights, strict=True)
    ]
    centre = sum(f * v for f, v in zip(factors, values, strict=True))
    centre = centre / sum(factors)
  return centre


def numpy_krum(values, weights, selected=1):
  scores = []
  for i, one in enumerate(values):
    distances = sorted(
      sum((a - b) ** 2 for a, b in zip(one, other, strict=True))
      for j, other in enumerate(values)
      if j != i
    )
    scores.append(sum(distances[: len(values) - 2 - 2]))
  best = np.argsort(scores)[:selected]
  return values[best].mean(axis=0)


RULES = {
  'median': (robust.median(), numpy_median),
  # 0.2 of 7 is 1.4 clients: 2 at either end.
  'trimmed_mean': (robust.trimmed_mean(0.2), numpy_trimmed_mean),
  'geometric_median': (robust.geometric_median(3), numpy_geometric_median),
  'krum': (robust.krum(2), numpy_krum),
  'multi_krum': (
    robust.krum(2, 3),
    lambda values, weights: numpy_krum(values, weights, 3),
  ),
}


@pytest.mark.parametrize('name', RULES)
def test_a_rule_is_its_reference(name):
  rule, reference = RULES[name]
  found = rule(tf.constant(UPDATES), tf.constant(SIZES)).numpy()
  expected = reference(UPDATES.astype(np.float64), SIZES.astype(np.float64))
  np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6)


def test_the_median_of_four_is_between_the_middle_two():
  values = tf.constant([[4.0], [1.0], [3.0], [100.0]])
  assert robust.median()(values, tf.ones([4])).numpy() == [3.5]


@pytest.mark.parametrize(
  'fraction, clients, expected',
  # The values are the squares of 0, 1, ...; by hand.
  # 0.28 * 25 is above 7 in floating point.
  [
    (0.1, 30, np.square(np.arange(3, 27)).mean()),
    (0.28, 25, np.square(np.arange(7, 18)).mean()),
    (0.4, 2, 0.5),
    (0.4, 3, 1),
  ],
)
def test_whole_clients_are_trimmed_and_one_stays(fraction, clients, expected):
  values = tf.constant(np.square(np.arange(clients))[:, None], tf.float32)
  found = robust.trimmed_mean(fraction)(values, tf.ones([clients]))
  np.testing.assert_allclose(found.numpy(), [expected], rtol=1e-6)


def test_weiszfeld_goes_to_the_geometric_median():
  weights = np.ones(7, np.float32)

  def pull(centre):
    away = UPDATES - centre
    units = away / np.linalg.norm(away, axis=1, keepdims=True)
    return np.linalg.norm(units.sum(axis=0))

  found = robust.geometric_median(200)(UPDATES, weights).numpy()
  # There the unit vectors to the clients cancel.
  assert pull(found) < 1e-3
  assert pull(numpy_median(UPDATES, weights)) > 1e-2


def test_krum_with_few_clients_still_chooses_one():
  values = tf.constant(UPDATES[:1])
  found = robust.krum(2)(values, tf.ones([1])).numpy()
  np.testing.assert_array_equal(found, UPDATES[0])


@pytest.fixture(scope='module')
def in_process():
  with equality.in_process_runtime('scan') as runtime:
    yield runtime


def _settings(name, **more):
  chosen = {'selected_clients': 3} if name == 'multi_krum' else {}
  return settings.Settings(
    aggregator=name, clients_per_round=5, **chosen, **more
  )


HONEST = np.array([[1, 2, 3], [1.1, 2, 3], [1, 2.1, 3], [0.9, 1.9, 2.9]])


@pytest.mark.parametrize('name', settings.AGGREGATORS)
@pytest.mark.parametrize('size', [1e3, 1e6, 1e30])
@pytest.mark.usefixtures('in_process')
def test_one_poisoned_client_of_five(name, size):
  poison = [[size, -size, size]]
  factory = compose.build(_settings(name))
  # The honest clients are within 0.2 of each other, the bound of the move.
  (output,) = aggregation.run(factory, [[*HONEST[:2], *poison, *HONEST[2:]]])
  moved = np.abs(output.result - HONEST.mean(axis=0)).max()
  if name == 'mean':
    assert moved > 0.1 * size
  else:
    assert moved < 0.2


@pytest.mark.parametrize('name', settings.AGGREGATORS)
@pytest.mark.usefixtures('in_process')
def test_a_rejected_client_has_no_say(name):
  factory = compose.build(_settings(name))
  weights = [1.0, 1.0, 0.0, 1.0, 1.0]
  updates = [*HONEST[:2], [0, 0, 0], *HONEST[2:]]
  (found,) = aggregation.run(factory, [updates], weights)
  (expected,) = aggregation.run(factory, [HONEST])
  np.testing.assert_array_equal(found.result, expected.result)
  assert found.measurements['rejected_clients'] == 1
  assert expected.measurements['rejected_clients'] == 0


@pytest.mark.usefixtures('in_process')
def test_no_client_with_a_weight_is_not_a_number():
  factory = compose.build(_settings('median'))
  (output,) = aggregation.run(factory, [HONEST], [0.0] * 4)
  assert np.isnan(output.result).all()


@pytest.mark.usefixtures('in_process')
def test_more_clients_than_room_are_an_error():
  factory = compose.build(_settings('median'))
  with pytest.raises(tf.errors.InvalidArgumentError):
    aggregation.run(factory, [UPDATES])
