"""FedJAX 0.0.17: python fedjax_jax.py JOB.

Ro et al. 2021, "FedJAX: Federated learning simulation with JAX",
arXiv:2108.02117, with its own federated averaging. It has no central DP.
"""

import sys

import protocol


def _forward(name):
  """Returns the model: weights in TensorFlow's layout and order, and x."""
  import jax
  import jax.numpy as jnp
  from jax import lax

  def dense(x, kernel, bias):
    return x @ kernel + bias

  def cnn(weights, x):
    for kernel, bias in (weights[:2], weights[2:4]):
      x = lax.conv_general_dilated(
        x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
      )
      x = jax.nn.relu(x + bias)
      window = (1, 2, 2, 1)
      x = lax.reduce_window(x, -jnp.inf, lax.max, window, window, 'VALID')
    x = jax.nn.relu(dense(x.reshape(len(x), -1), *weights[4:6]))
    return dense(x, *weights[6:])

  def norm(x, gamma, beta):
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    return centred * lax.rsqrt(variance + 1e-12) * gamma + beta

  def attention(x, query, bq, key, bk, value, bv, output, bo):
    def project(kernel, bias):
      return jnp.einsum('bld,dhk->bhlk', x, kernel) + bias[:, None]

    scores = jnp.einsum('bhqk,bhmk->bhqm', project(query, bq), project(key, bk))
    shares = jax.nn.softmax(scores * query.shape[-1] ** -0.5)
    mixed = jnp.einsum('bhqm,bhmk->bhqk', shares, project(value, bv))
    return jnp.einsum('bhqk,hkd->bqd', mixed, output) + bo

  def bert(weights, x):
    weights = iter(weights)

    def take(count):
      return [next(weights) for _ in range(count)]

    table, positions = take(2)
    x = norm(table[x] + positions, *take(2))
    for _ in range(2):
      x = norm(x + attention(x, *take(8)), *take(2))
      inner = jax.nn.gelu(dense(x, *take(2)), approximate=True)
      x = norm(x + dense(inner, *take(2)), *take(2))
    return dense(jnp.tanh(dense(x[:, 0], *take(2))), *take(2))

  return {
    'cnn': cnn,
    'bert': bert,
    'linear': lambda weights, x: dense(x, *weights),
    'wide': lambda weights, x: (x @ weights[0]).mean(-1, keepdims=True),
  }[name]


def main(job_path):
  """Serves rounds."""
  out = protocol.private_stdout()
  import fedjax
  import jax
  import jax.numpy as jnp
  from fedjax.algorithms import fed_avg

  job, x, y, weights = protocol.load_job(job_path)
  forward = _forward(job['model'])

  def loss(params, batch):
    outputs = forward(params, batch['x'])
    if job['model'] in ('linear', 'wide'):
      return ((outputs[:, 0] - batch['y']) ** 2).mean()
    logs = jax.nn.log_softmax(outputs)
    return -jnp.take_along_axis(logs, batch['y'][:, None], 1).mean()

  algorithm = fed_avg.federated_averaging(
    lambda params, batch, unused_rng: jax.grad(loss)(params, batch),
    fedjax.optimizers.sgd(job['client_learning_rate']),
    fedjax.optimizers.sgd(job['server_learning_rate']),
    # In the stored order, so that results can be compared.
    fedjax.ShuffleRepeatBatchHParams(
      batch_size=job['batch_size'], num_epochs=1, skip_shuffle=True
    ),
  )
  state = algorithm.init([jnp.asarray(weight) for weight in weights])
  keys = jax.random.split(jax.random.PRNGKey(0), job['clients'])
  cohort = [
    (str(i), fedjax.ClientDataset({'x': x[i], 'y': y[i]}), keys[i])
    for i in range(job['clients'])
  ]
  server = protocol.Server(out, lambda: state.params)
  for _ in server.rounds():
    state, _ = algorithm.apply(state, cohort)
    jax.block_until_ready(state.params)


if __name__ == '__main__':
  main(sys.argv[1])
