"""The audit of our own private means: sound ones pass, broken ones do not.

Of 16,000 canaries each has its turn in one of 64 rounds, and all rounds are
released. A canary's score is a sum over the rounds of its inner products with
their means: that of its own turn minus the average of the others, which has
next to no noise of its own and takes away whatever rounds have in common.
"""

import math

import dp_accounting
import numpy as np
import pytest
import scipy.linalg
import tensorflow_federated as tff

from research.aggregators import compose, dp, settings
from research.privacy import (
  accounting,
  audit,
  canaries,
  guarantee,
  mechanism,
  noise,
)
from research.runtime import in_process

ROUNDS, NOISE_MULTIPLIER, CLIP_NORM, DELTA = 64, 2.0, 0.5, 1e-5
SHAPES = ((40, 50), (2000,))
COHORT = 125
# Few: half the noise shows in the tails.
GUESSES = audit.Guesses(128, 128)
SAMPLING = guarantee.Sampling(
  'cyclic_poisson', COHORT * ROUNDS, COHORT, ROUNDS, ROUNDS
)
CANARIES = canaries.Canaries(
  number=2 * COHORT * ROUNDS,
  probability=SAMPLING.probability,
  shapes=SHAPES,
  norm=10 * CLIP_NORM,
  min_separation=ROUNDS,
  seed=3,
)
# The round of each canary, counted from 0.
TURN = CANARIES.group


@pytest.fixture(scope='module', autouse=True)
def _runtime():
  with in_process.InProcessRuntime():
    yield


@pytest.fixture(scope='module')
def directions():
  """float32 [canaries, dimensions]."""
  return np.array([CANARIES.direction(i) for i in range(CANARIES.number)])


def _split(vector):
  first = math.prod(SHAPES[0])
  return [vector[:first].reshape(SHAPES[0]), vector[first:]]


def released(directions, **chosen):
  """The mean of each round, [rounds, dimensions], by the real aggregator."""
  types = tff.to_type([(np.float32, shape) for shape in SHAPES])
  process = compose.build(
    settings.Settings(
      **{
        'dp_mechanism': 'gaussian',
        'noise_multiplier': NOISE_MULTIPLIER,
        'clipping': 'fixed',
        'clip_norm': CLIP_NORM,
        'clients_per_round': COHORT,
        'has_uniform_weights': True,
        'total_rounds': ROUNDS,
        'min_separation': ROUNDS,
        **chosen,
      }
    )
  ).create(types, tff.TensorType(np.float32))
  state, means = process.initialize(), []
  for round_num in range(1, ROUNDS + 1):
    state = dp.with_noise_key(state, noise.insecure_key(0, round_num))
    taking_part = CANARIES.taking_part(round_num)
    updates = [_split(CANARIES.norm * directions[i]) for i in taking_part]
    output = process.next(state, updates, [np.float32(1)] * len(updates))
    state = output.state
    means.append(np.concatenate([np.ravel(part) for part in output.result]))
  return np.array(means)


def claimed(strategy=None) -> float:
  """Epsilon of all rounds."""
  if strategy is None:
    event = dp_accounting.GaussianDpEvent(NOISE_MULTIPLIER)
    accountant = accounting.build(event, SAMPLING, DELTA)
  else:
    accountant = accounting.build_correlated(
      strategy, NOISE_MULTIPLIER, SAMPLING, DELTA
    )
  return accountant.guarantee(ROUNDS).epsilon


def lower_bound(directions, means) -> float:
  products = directions @ means.T
  own = np.take_along_axis(products, TURN[:, np.newaxis], axis=1)[:, 0]
  scores = own - (products.sum(axis=1) - own) / (ROUNDS - 1)
  return audit.epsilon_lower_bound(
    DELTA,
    CANARIES.number,
    GUESSES.total,
    GUESSES.correct(scores, CANARIES.is_included),
  )


@pytest.mark.parametrize(
  'chosen',
  [
    {},
    {'clipping': 'adaptive', 'clip_learning_rate': 1e-9},
    {'clipping': 'per_layer'},
    {'compression': 'uniform', 'compression_bits': 6},
  ],
  ids=str,
)
def test_sound_means_keep_what_they_claim(directions, chosen):
  bound = lower_bound(directions, released(directions, **chosen))
  # The audit is not blind either.
  assert 0.3 * claimed() < bound <= claimed()


def test_correlated_noise_keeps_what_it_claims(directions):
  """By the score that fits it: with C y = z, the rounds' C^T C means."""
  strategy = mechanism.strategy('blt', ROUNDS, ROUNDS)
  means = released(directions, dp_mechanism='blt')
  first = strategy.coefficients
  encoder = scipy.linalg.toeplitz(first, np.zeros(ROUNDS))
  matched = encoder.T @ encoder @ means
  bound = lower_bound(directions, matched)
  assert 0.3 * claimed(strategy) < bound <= claimed(strategy)


def test_the_estimate_of_a_gaussian_mean_is_its_epsilon(directions):
  means = released(directions)
  cosines = np.einsum('id,id->i', directions, means[TURN])
  cosines /= np.linalg.norm(means, axis=1)[TURN]
  found = audit.one_shot_epsilon(
    cosines[CANARIES.is_included], CANARIES.dimensions, DELTA
  )
  assert found == pytest.approx(claimed(), rel=0.1)


def _half_the_noise(add_noise):
  return lambda x, key, stream, stddev: add_noise(x, key, stream, stddev / 2)


def _noise_of_the_mean_added_to_the_sum(add_noise):
  return lambda x, key, stream, stddev: add_noise(
    x, key, stream, stddev / COHORT
  )


BROKEN = {
  'half the noise': (dp, 'add_noise', _half_the_noise),
  'no clipping': (dp, 'clip', lambda clip: lambda x, norm: (x, norm)),
  'the cohort divides the noise twice': (
    dp,
    'add_noise',
    _noise_of_the_mean_added_to_the_sum,
  ),
  'the same noise in each round': (
    noise,
    'insecure_key',
    lambda insecure_key: lambda seed, round_num: insecure_key(seed, 1),
  ),
}


@pytest.mark.parametrize('flaw', BROKEN)
def test_broken_means_are_exposed(directions, monkeypatch, flaw):
  module, name, broken = BROKEN[flaw]
  monkeypatch.setattr(module, name, broken(getattr(module, name)))
  bound = lower_bound(directions, released(directions))
  assert bound > claimed() == pytest.approx(1.993, abs=1e-3)
