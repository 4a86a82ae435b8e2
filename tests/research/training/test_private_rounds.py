"""What is told of a private round, and whether it is the one accounted for."""

import collections
import dataclasses
import json

import dp_accounting
import numpy as np
import pytest
import tensorflow_federated as tff

from research.aggregators import dp, dp_distributed
from research.privacy import (
  accounting,
  distributed,
  distributed_accounting,
  guarantee,
  journal,
  mechanism,
  noise,
)
from research.runtime import in_process
from research.training import private_rounds

State = collections.namedtuple('State', ['aggregator'])
VECTOR, WEIGHT = tff.to_type((np.float32, [3])), tff.TensorType(np.float32)


@pytest.fixture(scope='module', autouse=True)
def _runtime():
  with in_process.InProcessRuntime():
    yield


def rounds(directory, noise_multiplier=2.0, **settings):
  sampling = guarantee.Sampling('poisson', 1000, 50, 10)
  return private_rounds.PrivateRounds(
    private_rounds.Settings(
      'gaussian', noise_multiplier, noise_multiplier / 50, **settings
    ),
    accounting.build(
      dp_accounting.GaussianDpEvent(noise_multiplier), sampling, 1e-5
    ),
    journal.Journal(directory / 'journal.txt'),
    directory / 'privacy.json',
  )


def release(query, wrapped, round_num=1):
  """A round of one client; the states before and after it."""
  process = dp.factory(query).create(VECTOR, WEIGHT)
  before = wrapped.begin(State(process.initialize()), round_num)
  output = process.next(
    before.aggregator, [np.zeros(3, np.float32)], [np.float32(1)]
  )
  return before, State(output.state)


@pytest.mark.parametrize(
  'query',
  [
    dp.FixedClipQuery(0.7, 2.0, 50.0),
    dp.AdaptiveClipQuery(0.7, 2.0, 50.0),
    dp.PerLayerClipQuery(0.7, 2.0, 50.0),
  ],
  ids=lambda query: type(query).__name__,
)
def test_a_round_is_accounted_by_what_it_released(query, tmp_path):
  wrapped = rounds(tmp_path)
  row = wrapped.end(*release(query, wrapped))
  assert tuple(row) == private_rounds.COLUMNS
  assert row['noise_multiplier'] == 2.0
  assert row['noise_to_cohort_ratio'] == 0.04
  assert row['insecure_seeded_noise'] == 0
  assert row['clip_norm'] == np.float32(0.7)
  assert row['epsilon'] == wrapped.guarantee().epsilon > 0


def test_another_mechanism_than_the_accounted_one_is_an_error(tmp_path):
  wrapped = rounds(tmp_path, noise_multiplier=2.0)
  states = release(dp.FixedClipQuery(1.0, 1.9, 50.0), wrapped)
  with pytest.raises(private_rounds.MechanismError, match='of 1.89'):
    wrapped.end(*states)


def _distributed_rounds(directory, **changes):
  mechanism = distributed.SKELLAM
  encoding = distributed.Encoding(0.7, 2.0, 50, 3, 12)
  encoding = dataclasses.replace(encoding, **changes)
  accountant = distributed_accounting.build(
    mechanism, encoding, guarantee.Sampling('poisson', 1000, 50, 10), 1e-5
  )
  return private_rounds.PrivateRounds(
    private_rounds.Settings(
      mechanism, accountant.noise_multiplier, 0.04, event=accountant.event
    ),
    accountant,
    journal.Journal(directory / 'journal.txt'),
    directory / 'privacy.json',
  )


def _distributed_query():
  return dp_distributed.DistributedQuery(
    distributed.SKELLAM, distributed.Encoding(0.7, 2.0, 50, 3, 12), 0
  )


def test_a_round_is_accounted_by_the_event_of_its_mechanism(tmp_path):
  wrapped = _distributed_rounds(tmp_path)
  row = wrapped.end(*release(_distributed_query(), wrapped))
  assert row['noise_multiplier'] == 2.0
  assert row['clip_norm'] == np.float32(0.7)
  assert row['epsilon'] == wrapped.guarantee().epsilon > 0
  statement = wrapped.report()['statement']
  assert 'This is a simulation' in statement
  assert 'tables of cumulative probabilities' in statement
  assert 'Mironov' not in statement


@pytest.mark.parametrize(
  'changes', [{'bits': 13}, {'size': 5}, {'clients_per_round': 51}], ids=str
)
def test_another_grid_than_the_accounted_one_is_an_error(changes, tmp_path):
  wrapped = _distributed_rounds(tmp_path, **changes)
  with pytest.raises(private_rounds.MechanismError, match='SkellamDpEvent'):
    wrapped.end(*release(_distributed_query(), wrapped))


def test_gaussian_noise_is_not_taken_for_another_mechanism(tmp_path):
  wrapped = _distributed_rounds(tmp_path)
  states = release(dp.FixedClipQuery(0.7, 2.0, 50.0), wrapped)
  with pytest.raises(private_rounds.MechanismError, match='GaussianDpEvent'):
    wrapped.end(*states)


def test_the_journal_is_written_before_the_round(tmp_path):
  wrapped = rounds(tmp_path)
  release(dp.FixedClipQuery(1.0, 2.0, 50.0), wrapped, round_num=7)
  assert (tmp_path / 'journal.txt').read_text() == '7\n'


def test_a_budget_counts_what_a_kill_made_to_be_drawn_again(tmp_path):
  epsilons = [
    rounds(tmp_path)._accountant.guarantee(n).epsilon for n in range(11)
  ]
  limit = (epsilons[6] + epsilons[7]) / 2
  assert rounds(tmp_path, max_epsilon=limit).last_round(0, 10) == 6
  assert rounds(tmp_path, max_epsilon=limit).last_round(0, 4) == 4
  assert rounds(tmp_path).last_round(0, 10) == 10
  (tmp_path / 'journal.txt').write_text('1\n2\n3\n')
  # Round 3 was killed: drawn again it is charged twice, as less noise once.
  assert rounds(tmp_path, max_epsilon=limit).last_round(2, 10) < 6
  assert rounds(tmp_path, max_epsilon=limit).last_round(3, 10) == 6
  seeded = rounds(tmp_path, max_epsilon=limit, seed=0)
  assert seeded.last_round(2, 10) == 6


def _correlated_rounds(directory, **settings):
  sampling = guarantee.Sampling('cyclic_poisson', 1000, 50, 10, 1)
  strategy = mechanism.strategy('blt', 10, 1)
  return private_rounds.PrivateRounds(
    private_rounds.Settings('blt', 2.0, 0.04, **settings),
    accounting.build_correlated(strategy, 2.0, sampling, 1e-5),
    journal.Journal(directory / 'journal.txt'),
    directory / 'privacy.json',
  )


@pytest.mark.parametrize('build', [rounds, _correlated_rounds])
@pytest.mark.parametrize('done', [0, 2, 4, 6])
def test_a_run_that_goes_on_keeps_its_budget(build, done, tmp_path):
  """Round by round, as it will be charged, after a kill in the sixth round."""
  path = tmp_path / 'journal.txt'
  killed = ''.join(f'{r}\n' for r in (1, 2, 3, 4, 5, 6))
  charged = {}
  for last in range(done, 11):
    drawn = ''.join(f'{r}\n' for r in range(done + 1, last + 1))
    path.write_text(killed + drawn)
    charged[last] = build(tmp_path).guarantee().epsilon
  for limit in sorted({*charged.values(), charged[10] / 2}):
    path.write_text(killed)
    found = build(tmp_path, max_epsilon=limit).last_round(done, 10)
    within = [last for last, epsilon in charged.items() if epsilon <= limit]
    assert found == max([done, *within])


def test_what_is_released_is_reported_before_and_after_a_kill(tmp_path):
  def reported():
    return json.loads((tmp_path / 'privacy.json').read_text())

  query = dp.FixedClipQuery(1.0, 2.0, 50.0)
  release(query, rounds(tmp_path), round_num=1)
  assert reported()['releases'] == 1
  assert reported()['relation'] == 'add_or_remove_one_client'
  assert reported()['epsilon'] == reported()['epsilon_pld']
  # A kill between the journal and the report.
  (tmp_path / 'journal.txt').write_text('1\n2\n')
  rounds(tmp_path).resume(1)
  assert reported()['releases'] == reported()['rounds'] == 2
  with pytest.raises(journal.JournalError, match='lacks round 3'):
    rounds(tmp_path).resume(3)


def test_a_forecast_is_of_all_rounds(tmp_path):
  text = rounds(tmp_path).forecast()
  after = rounds(tmp_path)._accountant.guarantee(10)
  for value in (after.epsilon, after.epsilon_rdp):
    assert guarantee.round_up(value) in text
  server = _distributed_rounds(tmp_path)._accountant.guarantee(10)
  number = guarantee.round_up(server.epsilon_server)
  assert f'{number} against' in _distributed_rounds(tmp_path).forecast()
  for part in ('delta 1e-05', 'after 10 rounds', 'poisson', 'multiplier 2'):
    assert part in text


def test_seeded_keys_are_of_the_seed_and_secure_ones_are_not(tmp_path):
  def key(**settings):
    process = dp.factory(dp.FixedClipQuery(1.0, 2.0, 5.0)).create(
      VECTOR, WEIGHT
    )
    state = State(process.initialize())
    state = rounds(tmp_path, **settings).begin(state, 3)
    return state.aggregator.query_state.noise_key

  np.testing.assert_array_equal(key(seed=8), noise.insecure_key(8, 3))
  assert not np.array_equal(key(), key())


def test_only_public_columns_are_told(tmp_path):
  row = {
    'round': 1,
    'train_loss': 0.1,
    'personal_loss': 0.1,
    'validation_accuracy': 0.1,
    'test_accuracy': 0.2,
    'clients': 3,
    'examples': 30,
    'empty_clients': 1,
    'rejected_clients': 1,
    'dropped_clients': 1,
    'epsilon': 1.0,
  }
  public = {'round', 'test_accuracy', 'epsilon'}
  assert set(rounds(tmp_path).public(row)) == public
  fixed = rounds(tmp_path, scheme='fixed_size')
  assert set(fixed.public(row)) == {*public, 'clients'}
  told = rounds(tmp_path, allow_unaccounted_release=True)
  assert told.public(row) == row
