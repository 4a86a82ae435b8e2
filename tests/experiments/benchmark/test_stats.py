"""The benchmark's statistics against numbers computed by hand."""

import itertools

import numpy as np
import pytest

from experiments.benchmark import harness, stats, targets


def test_ratio_is_the_median_of_paired_ratios_not_of_the_medians():
  # Ratios 2, 1/2, 3: median 2; the ratio of the medians is 2 / 2 = 1.
  ratio = stats.paired_ratio([2, 2, 12], [1, 4, 4])
  assert ratio.median == 2
  assert ratio.pairs == 3


def test_interval_is_the_percentile_interval_of_all_resamples():
  ratios = [1.0, 2.0, 4.0, 8.0, 16.0]
  medians = [np.median(r) for r in itertools.product(ratios, repeat=5)]
  low, high = np.quantile(medians, [0.025, 0.975])
  # P(median of a resample = 1) = P(3 or more ones of 5) = 0.058 > 0.025.
  assert (low, high) == (1, 16)
  ratio = stats.paired_ratio(ratios, [1.0] * 5)
  assert (ratio.low, ratio.high) == (low, high)


def test_interval_leaves_out_what_is_rarer_than_its_tails():
  ratios = [1.0, *[2.0] * 13, 3.0]
  # At least 8 of 15 draws with probability 1/15 each: 1e-6 or so.
  ratio = stats.paired_ratio(ratios, [1.0] * 15)
  assert (ratio.low, ratio.median, ratio.high) == (2, 2, 2)


def test_unpaired_samples_are_refused():
  with pytest.raises(ValueError, match='2 and 1 do not pair'):
    stats.paired_ratio([1, 2], [1])
  with pytest.raises(ValueError, match='do not pair'):
    stats.paired_ratio([], [])


@pytest.mark.parametrize(
  'median, low, high, at_most, at_least, met',
  [
    (1.0, 0.9, 1.1, 1.2, None, True),
    # The interval reaches the bound and the median is within 10 % of it.
    (1.3, 1.2, 1.4, 1.2, None, True),
    # Within 10 %, but the interval does not reach it.
    (1.3, 1.21, 1.4, 1.2, None, False),
    # The interval reaches it, but the median is 11 % off.
    (1.333, 1.0, 1.9, 1.2, None, False),
    (500, 400, 600, None, 500, True),
    (451, 400, 500, None, 500, True),
    (451, 400, 499, None, 500, False),
    (449, 400, 600, None, 500, False),
  ],
)
def test_target_rule(median, low, high, at_most, at_least, met):
  ratio = stats.Ratio(median, low, high, 15)
  assert stats.meets(ratio, at_most, at_least) is met


def _result(seconds, cold_start=10.0, megabytes=1000.0):
  return harness.Result(
    cold_start_seconds=cold_start,
    peak_megabytes=megabytes,
    seconds=[[s] for s in seconds],
  )


def test_turns_are_the_medians_of_their_rounds():
  result = harness.Result(seconds=[[1, 9, 2], [3, 4]])
  assert result.turns == [2, 3.5]


def test_check_compares_with_the_fastest_arm_of_each_kind():
  results = {
    'stock_reduce': _result([4.0] * 15, cold_start=8.0),
    'stock_iterator': _result([2.0] * 15, cold_start=12.0),
    'in_process_auto': _result([1.0] * 15, cold_start=18.0),
    'bare_one_lane': _result([0.5] * 15),
    'bare_lanes': _result([0.8] * 15),
    'peer_pfl_2': harness.Result(error='not there'),
  }
  rows = targets.check('A', results)
  found = {(row['reference'], row['what']): row for row in rows}
  bare = found['bare_one_lane', 'time ratio, at most']
  assert bare['value']['median'] == 2
  assert bare['bound'] == 1.2
  assert not bare['met']
  stock = found['stock_reduce', 'speed-up, at least']
  assert stock['value']['median'] == 4
  assert stock['met']
  # The faster stock loop counts: 18 s are more than its 12 s and 5 more.
  start = found['stock_iterator', 'cold start, s']
  assert (start['value'], start['bound'], start['met']) == (18, 17, False)
  assert len(rows) == 3


def test_check_compares_memory_at_ten_million_parameters():
  results = {
    'stock_iterator': _result([20.0] * 15, megabytes=4000.0),
    'in_process_auto': _result([1.0] * 15, megabytes=4001.0),
  }
  rows = {r['what']: r for r in targets.check('sweep:10x10M', results)}
  assert rows['speed-up, at least']['met']
  assert not rows['peak memory, MB']['met']


def test_check_bounds_the_construction_of_a_process():
  for seconds, met in ((15, True), (15.1, False)):
    arm = _result([1.0] * 15)
    arm.construction_seconds = seconds
    (row,) = targets.check('G', {'in_process_auto': arm})
    assert row['what'] == 'process construction, s'
    assert (row['value'], row['bound'], row['met']) == (seconds, 15, met)
  assert not targets.check('A', {'in_process_auto': arm})


def test_ratios_are_to_the_fastest_bare_loop():
  results = {
    'stock_reduce': _result([6.0] * 3),
    'bare_vmap': _result([2.0] * 3),
    'bare_lanes': _result([3.0] * 3),
    'in_process_auto': harness.Result(error='failed'),
  }
  medians = {k: v.median for k, v in targets.ratios(results).items()}
  assert medians == {'stock_reduce': 3, 'bare_vmap': 1, 'bare_lanes': 1.5}


def test_wrong_names_the_arms_that_differ():
  def arm(difference, error=''):
    return {'relative_difference': difference, 'error': error}

  arms = {
    'sound': arm(1e-3),
    'off': arm(1.1e-3),
    'nan': arm(float('nan')),
    'failed': arm(1.0, 'it failed'),
  }
  results = {'workloads': {'A': {'arms': arms}}}
  assert targets.wrong(results) == ['A/off', 'A/nan']
