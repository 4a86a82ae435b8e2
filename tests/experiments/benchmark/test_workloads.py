"""The benchmark's workloads are the ones that were agreed on."""

import numpy as np
import pytest
import tensorflow as tf

from experiments.benchmark import bare, bare_models, workloads

# Clients, examples of each, and batch size.
_SIZES = {
  'A': (10, 100, 20),
  'B': (100, 20, 20),
  'C': (1000, 20, 20),
  'D': (10, 16, 8),
  'E': (10, 100, 20),
}
_MODELS = ['C', 'sweep:2x1k', 'A', 'D']


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
    ('sweep:1x10k', 10_000),
    ('sweep:1x1M', 1_000_000),
    ('sweep:1x10M', 3163**2),
  ],
)
def test_parameters(name, parameters):
  model = workloads.get(name).build_keras_model()
  assert model.count_params() == parameters


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
  for name in ('F', 'sweep:10x7', 'sweep:axb'):
    with pytest.raises(ValueError, match='no workload'):
      workloads.get(name)
