"""Processes that both runtimes must run to the same end."""

import dataclasses
import functools
import itertools

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from research.aggregators import compose, rejection
from research.aggregators import settings as aggregator_settings
from research.algorithms import optimizers, registry, stateful
from tests.research.runtime import equality, small_tasks

ROUNDS = 3
# Those of `small_tasks` and an empty one.
CLIENTS = len(small_tasks.SIZES) + 1
_REDUCE = tff.learning.LoopImplementation.DATASET_REDUCE
# An adaptive optimizer multiplies the rounding of a small update by the
# learning rate over epsilon: here by 5.
_RATE, _EPSILON = 0.05, 0.01


def _server_optimizer(
  name: str, rate: float = _RATE
) -> tff.learning.optimizers.Optimizer:
  adaptive = 'epsilon' in optimizers.OPTIMIZERS[name].hparams
  return optimizers.build(name, rate, {'epsilon': _EPSILON} if adaptive else {})


_SGD = optimizers.build('sgd', 0.1)
_ADAM = _server_optimizer('adam')
_algorithms = tff.learning.algorithms
_private = tff.aggregators.DifferentiallyPrivateFactory
_norm = 0.3
# Algorithms of the registry whose client work is TFF's.
FROM_TFF = ('fed_avg', 'fed_sgd')


def of_model(name: str, is_functional: bool, build) -> equality.Case:
  """A case whose process `build` makes of a model of `small_tasks`."""

  @functools.cache
  def task():
    return small_tasks.build(name)

  return equality.Case(
    build=lambda: build(small_tasks.model(task(), is_functional)),
    clients=lambda number: small_tasks.batches(task(), number),
  )


def of_algorithm(
  algorithm: str,
  server_optimizer: str = 'adam',
  weighting=tff.learning.ClientWeighting.NUM_EXAMPLES,
  rate: float = _RATE,
):
  """A function from a model to a process of the project's registry."""
  server = _server_optimizer(server_optimizer, rate)
  chosen = registry.ALGORITHMS[algorithm]
  settings = registry.Settings(
    _SGD,
    server,
    weighting,
    _REDUCE,
    chosen.hparams,
    num_clients=CLIENTS,
  )

  def build(model):
    layers = _layers(model) if chosen.has_local_layers else {}
    process = chosen.build(model, dataclasses.replace(settings, layers=layers))
    if isinstance(process, stateful.StatefulProcess):
      return equality.WithClients(process, CLIENTS)
    return process

  return build


def _learned(algorithm: str, models) -> tuple[str, ...]:
  """The models that an algorithm learns, if not all."""
  if 'clustering' in registry.ALGORITHMS[algorithm].kinds:
    return ('k_means',)
  if registry.ALGORITHMS[algorithm].is_least_squares:
    return ('linear',)
  return models


def _layers(model_fn) -> dict[str, tuple[int, ...]]:
  """Two parts of a model of `small_tasks`; the second is its last layer."""
  with tf.Graph().as_default():
    count = len(model_fn().trainable_variables)
  return {'first': tuple(range(count - 2)), 'last': (count - 2, count - 1)}


def project(
  algorithms,
  models=('mlp',),
  kinds=(True,),
  server_optimizers=tuple(optimizers.OPTIMIZERS),
  weightings=tuple(tff.learning.ClientWeighting),
) -> dict[str, equality.Case]:
  """Algorithms of the project, with the weightings and models that they have.

  Args:
    algorithms: Keys of `registry.ALGORITHMS`.
    models: Keys of `small_tasks.MODELS`, or linear; an algorithm that learns
      none of them gets its own.
    kinds: Whether the models are functional.
    server_optimizers: Keys of `optimizers.OPTIMIZERS`.
    weightings: Of the clients.
  """
  return {
    f'{algorithm}-{server}-{weighting.name.lower()}-{name}'
    f'-{"functional" if kind else "keras"}': of_model(
      name, kind, of_algorithm(algorithm, server, weighting)
    )
    for algorithm in algorithms
    for server, weighting, name, kind in itertools.product(
      server_optimizers, weightings, _learned(algorithm, models), kinds
    )
    if (
      weighting is tff.learning.ClientWeighting.NUM_EXAMPLES
      or 'client_weighting' not in registry.ALGORITHMS[algorithm].unused_flags
    )
    # Of a single layer none can be local.
    and not (
      name == 'linear' and registry.ALGORITHMS[algorithm].has_local_layers
    )
  }


def local(models=('mlp',)) -> dict[str, equality.Case]:
  """The algorithms whose local training is the project's own."""
  return project(
    [name for name in registry.ALGORITHMS if name not in FROM_TFF],
    models,
    kinds=(False,),
    server_optimizers=('momentum',),
    weightings=(tff.learning.ClientWeighting.NUM_EXAMPLES,),
  )


def tff_algorithms(name='mlp', kind=True) -> dict[str, equality.Case]:
  """Algorithms of TFF that take a model."""
  builders = {
    'unweighted_fed_avg': lambda model: _algorithms.build_unweighted_fed_avg(
      model, client_optimizer_fn=_SGD, server_optimizer_fn=_ADAM
    ),
    'scheduled_fed_avg': lambda model: (
      _algorithms.build_weighted_fed_avg_with_optimizer_schedule(
        model,
        client_learning_rate_fn=lambda n: 0.1 / (1.0 + tf.cast(n, tf.float32)),
        client_optimizer_fn=tff.learning.optimizers.build_sgdm,
        server_optimizer_fn=_ADAM,
      )
    ),
    'fed_prox': lambda model: _algorithms.build_weighted_fed_prox(
      model, 0.5, client_optimizer_fn=_SGD, server_optimizer_fn=_ADAM
    ),
    'mime_lite': lambda model: _algorithms.build_weighted_mime_lite(
      model, base_optimizer=_ADAM
    ),
    'scheduled_mime_lite': lambda model: (
      _algorithms.build_mime_lite_with_optimizer_schedule(
        model,
        learning_rate_fn=lambda n: 0.1 / (1.0 + tf.cast(n, tf.float32)),
        base_optimizer=optimizers.build('momentum', 0.1),
      )
    ),
    'fed_sgd': _algorithms.build_fed_sgd,
    'fed_eval': _algorithms.build_fed_eval,
  }
  cases = {key: of_model(name, kind, build) for key, build in builders.items()}
  if kind:
    # Given a functional model, TFF iterates here whatever it is told.
    for key in ('fed_prox', 'fed_eval'):
      cases[key] = dataclasses.replace(cases[key], plans=('loop',))
  return cases


def _kmeans() -> equality.Case:
  def clients(number):
    rng = np.random.default_rng(number)
    return [
      tf.data.Dataset.from_tensor_slices(
        rng.normal(size=(size, 3)).astype(np.float32)
      )
      for size in (7, 4, 0, 9)
    ]

  return equality.Case(
    lambda: _algorithms.build_fed_kmeans(2, (3,), random_seed=(1, 2)), clients
  )


def _reconstruction(is_evaluation: bool) -> equality.Case:
  task = small_tasks.build('linear')

  def model_fn():
    inputs = tf.keras.Input((3,))
    shared, own = (
      tf.keras.layers.Dense(
        units, kernel_initializer=tf.keras.initializers.GlorotUniform(1)
      )
      for units in (2, 1)
    )
    return tff.learning.models.ReconstructionModel.from_keras_model_and_layers(
      keras_model=tf.keras.Model(inputs, own(shared(inputs))),
      global_layers=[shared],
      local_layers=[own],
      input_spec=task.input_spec,
    )

  build = (
    _algorithms.build_fed_recon_eval
    if is_evaluation
    else functools.partial(
      _algorithms.build_fed_recon, client_optimizer_fn=_SGD
    )
  )
  return equality.Case(
    lambda: build(
      model_fn,
      loss_fn=tf.keras.losses.MeanSquaredError,
      metrics_fn=lambda: [tf.keras.metrics.MeanSquaredError()],
      reconstruction_optimizer_fn=_SGD,
    ),
    lambda number: small_tasks.batches(task, number),
    # They split a dataset with operations of tf.data.
    plans=('loop',),
  )


def others() -> dict[str, equality.Case]:
  """Algorithms of TFF with models or data of their own."""
  return {
    'kmeans': _kmeans(),
    'fed_recon': _reconstruction(False),
    'fed_recon_eval': _reconstruction(True),
  }


def _specs() -> tuple[tf.TensorSpec, ...]:
  return tuple(
    tf.TensorSpec(weight.shape, weight.dtype)
    for weight in small_tasks.MODELS['mlp']().trainable_weights
  )


def _robust(name: str):
  return lambda: compose.build(aggregator_settings.Settings(aggregator=name))


# What TFF's own runtime runs. Every factory that makes no jump of its input.
WEIGHTED = {
  'mean': tff.aggregators.MeanFactory,
  'rejection': rejection.mean,
  'robust': tff.learning.robust_aggregator,
  'median': _robust('median'),
  'trimmed_mean': _robust('trimmed_mean'),
  'geometric_median': _robust('geometric_median'),
  'zeroing': lambda: tff.learning.robust_aggregator(clipping=False),
  'clipping': lambda: tff.aggregators.clipping_factory(
    _norm, tff.aggregators.MeanFactory()
  ),
  'concatenated': lambda: tff.aggregators.concat_factory(
    tff.aggregators.MeanFactory()
  ),
  'measured': lambda: tff.learning.robust_aggregator(
    debug_measurements_fn=tff.learning.add_debug_measurements
  ),
}
UNWEIGHTED = {
  'unweighted_mean': tff.aggregators.UnweightedMeanFactory,
  'sum': tff.aggregators.SumFactory,
  'gaussian_fixed': lambda: _private.gaussian_fixed(0.0, 6, _norm),
  'gaussian_adaptive': lambda: _private.gaussian_adaptive(
    0.0, 6, clipped_count_stddev=0.0
  ),
  'tree_aggregation': lambda: _private.tree_aggregation(
    0.0, 6, _norm, _specs(), noise_seed=1
  ),
  'tree_adaptive': lambda: _private.tree_adaptive(
    0.0, 6, _specs(), clipped_count_stddev=0.0, noise_seed=1
  ),
  'dp_aggregator': lambda: tff.learning.dp_aggregator(0.0, 6),
  'hadamard': lambda: tff.aggregators.UnweightedMeanFactory(
    tff.aggregators.HadamardTransformFactory()
  ),
  'fourier': lambda: tff.aggregators.UnweightedMeanFactory(
    tff.aggregators.DiscreteFourierTransformFactory()
  ),
}


def aggregators(name='mlp', kind=True) -> dict[str, equality.Case]:
  """Federated averaging with each aggregator."""
  cases = {
    key: of_model(name, kind, functools.partial(_weighted, build))
    for key, build in WEIGHTED.items()
  }
  cases |= {
    key: of_model(name, kind, functools.partial(_unweighted, build))
    for key, build in UNWEIGHTED.items()
  }
  if not kind:
    # TensorFlow Privacy wants tuples, and a Keras model's weights are lists.
    del cases['tree_aggregation'], cases['tree_adaptive']
  # XLA refuses the rotation's loop: its transpositions are no constants there.
  cases['hadamard'] = dataclasses.replace(
    cases['hadamard'], plans=('loop', 'scan', 'vmap')
  )
  return cases


def _weighted(build, model):
  return _algorithms.build_weighted_fed_avg(
    model, client_optimizer_fn=_SGD, model_aggregator=build()
  )


def _unweighted(build, model):
  return _algorithms.build_unweighted_fed_avg(
    model, client_optimizer_fn=_SGD, model_aggregator=build()
  )
