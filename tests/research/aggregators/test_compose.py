"""Parts together: order, bits, seeds, clipping, refusals, and the tables."""

import collections
import math
import pathlib

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from research.aggregators import (
  bits,
  compatibility,
  compose,
  dp,
  refusals,
  rejection,
  secure,
  settings,
)
from research.algorithms import optimizers, registry
from research.privacy import noise
from research.runtime import in_process as in_process_lib
from tests import toy
from tests.research.aggregators import aggregation
from tests.research.runtime import equality

ROOT = pathlib.Path(__file__).parents[3]
UPDATES = [[3, 4, 0], [0, 0.1, 0], [0.3, 0, 0.4], [1, 1, 1], [0, 0, -1]]


@pytest.fixture(scope='module', autouse=True)
def in_process():
  with equality.in_process_runtime('scan') as runtime:
    yield runtime


def build(**chosen):
  return compose.build(settings.Settings(**chosen))


def test_weights_count_in_the_mean():
  factory = build()
  (output,) = aggregation.run(factory, [UPDATES[:2]], [1.0, 3.0])
  np.testing.assert_allclose(output.result, [0.75, 1.075, 0], rtol=1e-6)


def test_a_large_update_is_zeroed_before_it_would_be_clipped():
  factory = build(zeroing=True, clipping='fixed', clip_norm=2.0)
  huge = [1e6, 0, 0]
  (output,) = aggregation.run(factory, [[*UPDATES[1:3], huge]])
  find = aggregation.find
  assert find(output.measurements, 'zeroed_count') == 1
  assert find(output.measurements, 'clipped_count') == 0
  # A zeroed client keeps its weight.
  np.testing.assert_allclose(output.result, [0.1, 0.1 / 3, 0.4 / 3], rtol=1e-5)


def test_updates_are_clipped_before_they_are_encoded():
  factory = build(
    clipping='fixed',
    clip_norm=1.0,
    compression='top_k',
    top_k_fraction=0.3,
  )
  (output,) = aggregation.run(factory, [[[3, 4, 0]]])
  # Clipped first it is (0.6, 0.8, 0); the coordinate that is kept, clipped
  # last, would be 1.
  np.testing.assert_allclose(output.result, [0, 0.8, 0], atol=1e-6)
  outer = output.measurements['inner']
  assert list(outer) == ['clipping', 'clipping_norm', 'clipped_count']


def test_clipped_norms_never_exceed_the_bound():
  rng = np.random.default_rng(0)
  rounds = [
    [rng.normal(size=3) * 10.0 ** rng.integers(-3, 6)] for _ in range(40)
  ]
  for clip_norm in (0.5, 3.0):
    factory = build(clipping='fixed', clip_norm=clip_norm)
    for given, output in zip(
      rounds, aggregation.run(factory, rounds), strict=True
    ):
      norm = np.linalg.norm(given[0])
      found = np.linalg.norm(output.result.astype(np.float64))
      assert found <= clip_norm * (1 + 1e-6)
      np.testing.assert_allclose(found, min(norm, clip_norm), rtol=1e-5)


def test_the_adaptive_norm_moves_as_in_its_paper():
  factory = build(
    clipping='adaptive',
    clip_norm=2.0,
    clip_quantile=0.5,
    clip_learning_rate=0.3,
  )
  outputs = aggregation.run(factory, [UPDATES] * 3)
  norms = [aggregation.find(o.measurements, 'clipping_norm') for o in outputs]
  lengths, expected = np.linalg.norm(UPDATES, axis=1), [2.0]
  for _ in range(2):
    share = np.mean(lengths <= expected[-1])
    expected.append(expected[-1] * math.exp(-0.3 * (share - 0.5)))
  np.testing.assert_allclose(norms, expected, rtol=1e-5)
  assert aggregation.find(outputs[0].measurements, 'clipped_count') == 1


RANDOM = {
  'stochastic': {'compression_bits': 2, 'rotation': 'hadamard'},
  'qsgd': {'compression_bits': 2, 'rotation': 'fourier'},
  'eden': {},
}


@pytest.mark.parametrize('name', RANDOM)
def test_random_codes_come_from_the_seed_and_change_with_the_round(name):
  def results(seed):
    factory = build(compression=name, seed=seed, **RANDOM[name])
    return [output.result for output in aggregation.run(factory, [UPDATES] * 2)]

  first, again, other = results(3), results(3), results(4)
  np.testing.assert_array_equal(first, again)
  assert not np.array_equal(first[0], first[1])
  assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize('name', settings.CODECS)
def test_a_rule_gets_the_decoded_updates(name):
  chosen = {'top_k_fraction': 1.0} if name == 'top_k' else {}
  if name not in ('top_k', 'eden'):
    chosen['compression_bits'] = 12
  factory = build(
    aggregator='median', compression=name, clients_per_round=5, **chosen
  )
  (output,) = aggregation.run(factory, [[[1, 2, 3]] * 4 + [[1e6, 0, 0]]])
  # EDEN with one bit is coarse, but exact along the update.
  along = output.result @ np.array([1, 2, 3]) / 14
  np.testing.assert_allclose(along, 1, atol=0.01)


@pytest.mark.parametrize(
  'chosen, expected',
  [
    ({}, 96),
    ({'clipping': 'adaptive', 'clip_norm': 1.0, 'zeroing': True}, 96),
    ({'aggregator': 'median'}, 96),
    ({'compression': 'qsgd', 'compression_bits': 4}, 48),
    ({'compression': 'uniform', 'rotation': 'fourier'}, 32 + 64 + 32),
    (
      {
        'secure_sum': True,
        'clipping': 'fixed',
        'clip_norm': 1.0,
        'has_uniform_weights': True,
        'secure_sum_bits': 8,
      },
      # 10 clients with levels from -127 to 127.
      3 * math.ceil(math.log2(10 * 2 * 127 + 1)),
    ),
  ],
)
def test_upload_bits_are_measured(chosen, expected):
  (output,) = aggregation.run(build(**chosen), [UPDATES])
  assert output.measurements[bits.UPLOAD] == expected


@pytest.mark.parametrize(
  'algorithm, chosen, expected',
  [
    # The weights, and the clients' learning rate, which FedSGD lacks.
    ('fed_sgd', {}, 96),
    ('fed_avg', {}, 96 + 32),
    ('fed_avg', {'clipping': 'fixed', 'clip_norm': 1.0}, 96 + 32 + 32),
    ('fed_avg', {'compression': 'qsgd'}, 96 + 32 + 32),
    # The fourth weight is local.
    ('fed_recon', {}, 96 + 32),
  ],
)
def test_download_bits_are_what_is_broadcast(algorithm, chosen, expected):
  process = learning_process(algorithm, build(**chosen))
  assert bits.download(process.next) == expected


def learning_process(algorithm, factory):
  chosen = registry.ALGORITHMS[algorithm]
  task = toy.task_of(chosen.kinds, chosen.has_local_layers)
  return chosen.build_for(
    task,
    registry.Settings(
      optimizers.build('sgd', 0.1),
      optimizers.build('sgd', 1.0),
      tff.learning.ClientWeighting.UNIFORM,
      tff.learning.LoopImplementation.DATASET_REDUCE,
      hparams=chosen.hparams,
      model_aggregator=factory,
    ),
  )


@pytest.mark.parametrize('algorithm', registry.ALGORITHMS)
def test_algorithms_use_the_aggregator_or_refuse_its_flags(algorithm):
  created = []

  class Spy(rejection.CountRejectedFactory):
    def create(self, *types):
      created.append(types)
      return super().create(*types)

  learning_process(algorithm, Spy(tff.aggregators.MeanFactory()))
  unused = registry.ALGORITHMS[algorithm].unused_flags
  assert bool(created) == ('aggregator' not in unused)


@pytest.mark.parametrize(
  'algorithm, expected',
  [
    ('fed_avg', 96),
    # The update and the sum of its steps; the update and a gradient.
    ('fed_nova', 96 + 32),
    ('fed_prox', 96),
    ('fed_recon', 96),
    ('mime', 2 * 96),
    ('mime_lite', 2 * 96),
  ],
)
def test_upload_bits_of_algorithms(algorithm, expected):
  process = learning_process(algorithm, build())
  clients = toy.random_clients()
  data = [
    tf.data.Dataset.from_tensor_slices(
      collections.OrderedDict(x=x, y=y[:, np.newaxis])
    ).batch(4)
    for x, y in clients.values()
  ]
  output = process.next(process.initialize(), data)
  assert output.metrics['aggregator'][bits.UPLOAD] == expected


def test_room_for_updates_is_no_part_of_the_model():
  with in_process_lib.InProcessRuntime(device='cpu') as runtime:
    mean, median = (
      equality.decisions(runtime, learning_process('fed_avg', factory).next)
      for factory in (build(), build(aggregator='median'))
    )
  assert mean[0].reason == median[0].reason
  assert 'values per client' in mean[0].reason


def test_the_secure_mean_is_within_half_a_step():
  factory = build(
    secure_sum=True,
    clipping='fixed',
    clip_norm=2.0,
    secure_sum_bits=6,
    clients_per_round=5,
    has_uniform_weights=True,
  )
  weights = [1.0, 1.0, 1.0, 0.0, 1.0]
  (output,) = aggregation.run(factory, [UPDATES], weights)
  kept = np.array([UPDATES[i] for i in (0, 1, 2, 4)])
  norms = np.linalg.norm(kept, axis=1, keepdims=True)
  clipped = kept * np.minimum(1, 2.0 / norms)
  step = 2.0 / 31
  expected = np.round(clipped / 2.0 * 31).sum(axis=0) * step / 4
  np.testing.assert_allclose(output.result, expected, atol=1e-6)
  off = np.abs(output.result - clipped.mean(axis=0)).max()
  assert 1e-3 < off <= step / 2 * (1 + 1e-6)
  outside = aggregation.find(output.measurements, 'out_of_bound_clients')
  assert outside == 0


@pytest.mark.parametrize('clients', [1, 5])
def test_a_full_cohort_at_the_bound_does_not_wrap(clients):
  factory = secure.mean(1.0, 4, clients)
  for value in (1.0, -1.0):
    updates = [[value, -value, 0]] * clients
    (output,) = aggregation.run(factory, [updates])
    np.testing.assert_allclose(output.result, [value, -value, 0], atol=1e-6)
  (output,) = aggregation.run(factory, [[[1.2, 0, 0]] * clients])
  np.testing.assert_allclose(output.result, [1, 0, 0], atol=1e-6)
  outside = aggregation.find(output.measurements, 'out_of_bound_clients')
  assert outside == clients


def test_a_secure_sum_has_bounds():
  with pytest.raises(ValueError, match='positive bound, given 0'):
    secure.FixedPointSumFactory(0.0, 8, 5)
  with pytest.raises(ValueError, match='from 2 bits each to 62 in all'):
    secure.FixedPointSumFactory(1.0, 60, 5)
  with pytest.raises(ValueError, match='from 2 bits each to 62 in all'):
    secure.FixedPointSumFactory(1.0, 1, 5)


SECURE = {
  'secure_sum': True,
  'clipping': 'fixed',
  'clip_norm': 1.0,
  'has_uniform_weights': True,
}


@pytest.mark.parametrize(
  'chosen, reason',
  [
    ({'clipping': 'fixed'}, 'needs a positive --clip_norm, given None'),
    ({'trimmed_fraction': 0.5}, 'trimmed_fraction=0.5 must be between 0 and'),
    ({'clip_quantile': 1.0}, 'clip_quantile=1.0 must be between 0 and 1'),
    ({'top_k_fraction': 0.0}, 'must be above 0 and at most 1'),
    ({'aggregator': 'median', 'zeroing': True}, 'a vote for no change'),
    (
      {'aggregator': 'krum', 'has_fixed_cohorts': False},
      'krum with --client_sampling=poisson',
    ),
    (
      {'aggregator': 'krum', 'byzantine_clients': 4},
      r'at least 2 f \+ 3 = 11, given 10',
    ),
    ({'aggregator': 'multi_krum'}, 'between 1 and .* = 9, given None'),
    (
      {'aggregator': 'multi_krum', 'selected_clients': 10},
      'between 1 and .* = 9, given 10',
    ),
    ({'rotation': 'hadamard'}, 'changes nothing by itself'),
    ({'rotation': 'fourier', 'compression': 'top_k'}, 'spreads an update'),
    ({'rotation': 'hadamard', 'compression': 'eden'}, 'rotation of its own'),
    ({'compression': 'eden', 'compression_bits': 5}, 'from 1 to 4, given 5'),
    ({'compression': 'qsgd', 'compression_bits': 1}, 'from 2 to 16, given 1'),
    (SECURE | {'runtime': 'stock'}, "TFF's worker has no secure sums"),
    (SECURE | {'aggregator': 'median'}, 'shows the server none'),
    (SECURE | {'compression': 'qsgd'}, 'sum of the codes means nothing'),
    (SECURE | {'zeroing': True}, 'needs --clipping=fixed and no --zeroing'),
    (SECURE | {'clipping': 'adaptive'}, 'needs --clipping=fixed'),
    (SECURE | {'has_uniform_weights': False}, '--client_weighting=uniform'),
    (SECURE | {'has_fixed_cohorts': False}, 'would wrap the sum'),
  ],
)
def test_what_is_unsound_is_refused_with_its_reason(chosen, reason):
  with pytest.raises(ValueError, match=reason):
    build(**chosen)


def test_what_the_refusals_are_about_is_sound_without_them():
  for chosen in (SECURE, {'aggregator': 'krum', 'byzantine_clients': 3}):
    assert refusals.refusal(settings.Settings(**chosen)) is None


def test_the_documented_tables_are_the_generated_ones():
  text = (ROOT / 'docs' / 'aggregators.md').read_text()
  assert compatibility.tables().strip() in text, (
    'put what `python -m research.aggregators.compatibility` prints into '
    'docs/aggregators.md'
  )


def _cells():
  for part in compatibility.PARTS:
    for algorithm in registry.ALGORITHMS:
      if not compatibility.with_algorithm(part, algorithm, 'in_process'):
        fast = algorithm == 'fed_avg'
        marks = [] if fast else [pytest.mark.slow]
        yield pytest.param(part, algorithm, marks=marks)


@pytest.mark.parametrize('part, algorithm', _cells())
def test_cells_that_say_yes_train(part, algorithm):
  """One round of each on toy data moves the weights and counts the bits."""
  chosen = dict(compatibility.PARTS[part])
  if 'secure_sum' in chosen:
    chosen |= SECURE
  is_private = 'dp_mechanism' in chosen
  if is_private:
    chosen |= {'has_uniform_weights': True, 'noise_multiplier': 0.5}
  process = learning_process(algorithm, build(**chosen))
  chosen_algorithm = registry.ALGORITHMS[algorithm]
  task = toy.task_of(chosen_algorithm.kinds, chosen_algorithm.has_local_layers)
  state = process.initialize()
  if is_private:
    state = dp.with_noise_key(state, noise.insecure_key(0, 1))
  output = process.next(state, _clients(task))
  before, after = (
    np.asarray(process.get_model_weights(s).trainable[0])
    for s in (state, output.state)
  )
  assert np.isfinite(after).all()
  assert not np.array_equal(before, after)
  if 'aggregator' not in registry.ALGORITHMS[algorithm].unused_flags:
    assert output.metrics['aggregator'][bits.UPLOAD] > 0


def _clients(task):
  split = task.data.train
  found = []
  for client in split.client_ids:
    arrays = split.client(client)
    data = tf.data.Dataset.from_tensor_slices(arrays)
    found.append(data.batch(4).map(task.preprocess))
  return found
