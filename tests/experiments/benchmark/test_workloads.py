"""The benchmark's workloads are the ones that were agreed on."""

import numpy as np
import pytest
import tensorflow as tf

from experiments.benchmark import arms, bare, bare_models, workloads

_SLOW = pytest.mark.slow

# Clients, examples of each, and batch size.
_SIZES = {
  'A': (10, 100, 20),
  'B': (100, 20, 20),
  'C': (1000, 20, 20),
  'D': (10, 16, 8),
  'E': (10, 100, 20),
  'F': (10, 16, 16),
  'G': (10, 16, 16),
}
_MODELS = ['C', 'sweep:2x1k', 'A', 'D', 'tiny_lora', 'tiny_full']
# Embeddings; six layers of attention, feed-forward and norms; the pooler, which
# nobody uses; the head.
_MINILM = (
  (30_522 + 512 + 2 + 2) * 384
  + 6 * (4 * (384 * 384 + 384) + 384 * 1536 * 2 + 1536 + 384 + 4 * 384)
  + (384 * 384 + 384)
  + (384 * 2 + 2)
)


@pytest.mark.parametrize('name', _SIZES)
def test_sizes(name):
  workload = workloads.get(name)
  sizes = (workload.clients, workload.examples, workload.batch_size)
  assert sizes == _SIZES[name]
  assert workload.private is (name == 'E')
  x, y = workload.arrays()
  assert x.shape[:2] == y.shape == sizes[:2]


@pytest.mark.parametrize(
  'name, parameters',
  [
    # 5x5x1x32+32, 5x5x32x64+64, 3136x512+512, 512x62+62.
    ('A', 832 + 51_264 + 1_606_144 + 31_806),
    ('C', 101),
    # Embeddings; two layers of attention, feed-forward and norms; the head.
    (
      'D',
      (30_522 + 128 + 2) * 128
      + 2 * (4 * (128 * 128 + 128) + 128 * 512 * 2 + 512 + 128 + 4 * 128)
      + (128 * 128 + 128)
      + (128 * 2 + 2),
    ),
    # Two matrices of rank 4 at query and value of each layer.
    ('F', _MINILM + 6 * 2 * 2 * 384 * 4),
    ('G', _MINILM),
    ('sweep:1x10k', 10_000),
    ('sweep:1x1M', 1_000_000),
    ('sweep:1x10M', 3163**2),
  ],
)
def test_parameters(name, parameters):
  model = workloads.get(name).build_keras_model()
  assert model.count_params() == parameters


@pytest.mark.parametrize(
  'name, trained',
  [('F', 6 * 2 * 2 * 384 * 4 + 770), ('G', _MINILM - 384 * 384 - 384)],
)
def test_encoders_are_full_texts_without_what_is_frozen(name, trained):
  workload = workloads.get(name)
  x, _ = workload.arrays()
  assert x.shape == (10, 16, 64)
  assert x.min() > 0
  task = workload.task()
  with tf.Graph().as_default():
    model = task.model_fn()
  sizes = [v.shape.num_elements() for v in model.trainable_variables]
  assert sum(sizes) == trained
  assert not model.non_trainable_variables


@pytest.mark.parametrize(
  'arm', ['in_process_auto', pytest.param('stock_reduce', marks=_SLOW)]
)
@pytest.mark.parametrize('name', ['tiny_lora', 'tiny_full'])
def test_rounds_of_encoders_agree(name, arm):
  workload = workloads.get(name)
  start = bare.initial_weights(workload)
  expected, (x, y) = start, workload.arrays()
  with arms.open_arm(arm, workload) as opened:
    assert opened.construction_seconds > 0
    for _ in range(2):
      opened.step()
    found = opened.weights()
  moved = np.linalg.norm(_flat(found) - _flat(start))
  assert moved > 1e-3
  for variant in bare.variants_of(workload):
    round_fn, expected = bare.build(workload, variant), start
    for _ in range(2):
      expected = round_fn(expected, x, y)
    difference = np.linalg.norm(_flat(found) - _flat(expected))
    assert difference < 1e-5 * moved, variant


def _flat(weights):
  return np.concatenate([np.ravel(w) for w in weights]).astype(float)


def test_stock_trains_a_large_encoder_only_when_asked():
  assert not [n for n in arms.names(workloads.get('G'), False) if 'stock' in n]
  for name, all_plans in (('F', False), ('G', True)):
    found = arms.names(workloads.get(name), all_plans)
    assert found[:2] == ['stock_reduce', 'stock_iterator']


@pytest.mark.parametrize('name', _MODELS)
def test_bare_model_is_the_keras_model(name):
  workload = workloads.get(name)
  model = workload.build_keras_model()
  x, y = (array[0, :3] for array in workload.arrays())
  # Away from the initial zeros and ones, so that every weight counts.
  rng = np.random.default_rng(0)
  for variable in model.trainable_variables:
    variable.assign_add(rng.normal(0, 0.05, variable.shape))
  with tf.GradientTape() as tape:
    expected = workload.build_loss()(y[:, np.newaxis], model(x))
  expected_gradients = tape.gradient(expected, model.trainable_variables)
  weights = [v.value() for v in model.trainable_variables]
  with tf.GradientTape() as tape:
    tape.watch(weights)
    outputs = bare_models.forward(workload)(weights, x)
    loss = bare_models.loss(workload)(y, outputs)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  for gradient, wanted in zip(
    tape.gradient(loss, weights), expected_gradients, strict=True
  ):
    np.testing.assert_allclose(
      tf.convert_to_tensor(gradient),
      tf.convert_to_tensor(wanted),
      rtol=1e-3,
      atol=1e-5,
    )


@pytest.mark.parametrize('variant', list(bare.VARIANTS))
@pytest.mark.parametrize('private', [False, True])
def test_bare_loop_is_federated_averaging(variant, private):
  """Against gradient descent on the mean squared error in NumPy."""
  name = 'tiny_private' if private else 'tiny'
  workload = workloads.get(name)
  x, y = workload.arrays()
  kernel, bias = (w.numpy() for w in bare.initial_weights(workload))
  start = np.append(kernel, bias).astype(float)
  updates = []
  for client_x, client_y in zip(x, y, strict=True):
    local = start.copy()
    for batch in np.split(np.arange(8), 2):
      inputs = np.column_stack([client_x[batch], np.ones(4)])
      residuals = inputs @ local - client_y[batch]
      local -= 0.1 * 2 / 4 * inputs.T @ residuals
    update = local - start
    if private:
      update *= min(1.0, workloads.CLIP / np.linalg.norm(update))
    updates.append(update)
  round_fn = bare.build(workload, variant)
  weights = round_fn(bare.initial_weights(workload), x, y)
  found = np.concatenate([w.numpy().ravel() for w in weights])
  np.testing.assert_allclose(found, start + np.mean(updates, 0), atol=1e-6)


def test_noise_of_the_private_bare_loop(monkeypatch):
  workload = workloads.Workload('wide', 'wide', 4, 5, 5, True, inputs=100)
  x, y = workload.arrays()
  weights = bare.initial_weights(workload)

  def run(multiplier):
    monkeypatch.setattr(workloads, 'NOISE_MULTIPLIER', multiplier)
    return bare.build(workload, 'lanes')(weights, x, y)[0].numpy()

  noise = run(8.0) - run(0.0)
  # 8 times the clip of 1, over 4 clients; 10,000 draws vary by 0.7 %.
  np.testing.assert_allclose(noise.std(), 2, rtol=0.05)
  np.testing.assert_allclose(noise.mean(), 0, atol=0.1)


def test_vectorised_chunks_add_up(monkeypatch):
  workload = workloads.get('tiny')
  weights = bare.initial_weights(workload)
  x, y = workload.arrays()
  whole = bare.build(workload, 'vmap')(weights, x, y)
  # Two clients at a time: four float32 weights each.
  monkeypatch.setattr(bare, '_CHUNK_BYTES', 2 * 4 * 4)
  chunked = bare.build(workload, 'vmap')(weights, x, y)
  for one, other in zip(whole, chunked, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_sweep_stays_within_memory():
  names = workloads.sweep(max_values=1e8)
  assert names[:5] == [f'sweep:{n}x10k' for n in (1, 10, 100, 1000, 10000)]
  assert names[5:] == [
    *('sweep:1x1M', 'sweep:10x1M', 'sweep:100x1M'),
    *('sweep:1x10M', 'sweep:10x10M'),
  ]


def test_an_unknown_workload_is_refused():
  for name in ('Z', 'sweep:10x7', 'sweep:axb'):
    with pytest.raises(ValueError, match='no workload'):
      workloads.get(name)
