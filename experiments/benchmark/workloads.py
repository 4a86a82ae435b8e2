"""What the benchmark trains: models, synthetic data, and their TFF processes.

Workloads A to G and the cohort sweep; float32, one local epoch, client SGD with
learning rate 0.1, server SGD with learning rate 1, mean weighted by examples:

  A  EMNIST CNN (1,690,046 parameters)    10 clients x 100, batches of 20
  B  the same CNN                        100 clients x 20, batches of 20
  C  linear regression, 100 inputs      1000 clients x 20, batches of 20
  D  two-layer BERT classifier            10 clients x 16, batches of 8
  E  A with central DP: clipped, Gaussian noise, unweighted
  F  LoRA of a six-layer BERT encoder     10 clients x 16, batches of 16
  G  full fine-tuning of that encoder     10 clients x 16, batches of 16
  sweep:CLIENTSxPARAMETERS  one step of one client on a batch of 5

Every client has the same number of examples: padding would blur what a step
costs. The tests of the runtimes have the ragged clients.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from datasets import federated_data
from experiments.benchmark import encoders
from models import emnist, layers, quantization
from research.algorithms import fed_avg, optimizers, statistics
from research.tasks import task as task_lib

CLIENT_LEARNING_RATE = 0.1
SERVER_LEARNING_RATE = 1.0
CLIP = 1.0
# Small, so that results can be compared; a draw costs the same at any scale.
NOISE_MULTIPLIER = 1e-7
SWEEP_CLIENTS = (1, 10, 100, 1000, 10000)
SWEEP_PARAMETERS = ('10k', '1M', '10M')
_SWEEP_INPUTS = {'1k': 32, '10k': 100, '1M': 1000, '10M': 3163}
# What workload E's arms but this one have.
WITHOUT_PRIVACY = 'in_process_no_dp'
WITH_QUANTIZATION = 'in_process_qat'
# Arms that train something else than the workload's others.
CHANGED = (WITHOUT_PRIVACY, WITH_QUANTIZATION)
_SEED = 3
_VOCABULARY = 30522
_SEQUENCE = 128
_HIDDEN = 128


@dataclasses.dataclass(frozen=True)
class Workload:
  """One round of work.

  Attributes:
    name: What `--workloads` calls it.
    model: `cnn`, `linear`, `bert`, `wide`, or how an encoder is fine-tuned:
      `lora` or `full`.
    clients: Clients per round.
    examples: Examples per client, a multiple of `batch_size`.
    batch_size: Examples per local step.
    private: Whether updates are clipped, averaged evenly, and noised.
    inputs: Inputs of the linear and wide models.
    encoder: What is fine-tuned, a key of `encoders.FORMS`.
    quantized: Whether clients train with int8 weights and activations.
  """

  name: str
  model: str
  clients: int
  examples: int
  batch_size: int
  private: bool = False
  inputs: int = 100
  encoder: str = ''
  quantized: bool = False

  @property
  def steps(self) -> int:
    """Local steps of one client."""
    return self.examples // self.batch_size

  def arrays(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns x [clients, examples, ...] and y [clients, examples].

    x is float32 (int32 tokens for BERT), y int32 labels (float32 targets for
    `linear` and `wide`); drawn from a fixed seed.
    """
    rng = np.random.default_rng(_SEED)
    shape = (self.clients, self.examples)
    if self.model == 'cnn':
      # Ten noisy patterns. In pure noise the examples' gradients cancel, and a
      # single ReLU that rounding decides is a hundredth of the round's update.
      y = rng.integers(0, 10, shape, np.int32)
      patterns = rng.random((10, 28, 28, 1), np.float32)
      noise = rng.random((*shape, 28, 28, 1), np.float32)
      return 0.8 * patterns[y] + 0.2 * noise, y
    if self.encoder:
      return encoders.draw(self.encoder, shape, rng)
    if self.model == 'bert':
      x = rng.integers(0, _VOCABULARY, (*shape, _SEQUENCE), np.int32)
      return x, rng.integers(0, 2, shape, np.int32)
    x = rng.standard_normal((*shape, self.inputs), np.float32)
    optimum = rng.standard_normal(self.inputs, np.float32)
    return x, (x @ optimum).astype(np.float32)

  def build_keras_model(self) -> tf.keras.Model:
    """Builds a fresh model with seeded initial weights."""
    if self.encoder:
      settings = quantization.Settings() if self.quantized else None
      return encoders.build(self.encoder, self.model, settings)
    return _MODELS[self.model](self)

  def build_loss(self) -> tf.keras.losses.Loss:
    """Builds the loss, a mean over a batch."""
    if self.model in ('linear', 'wide'):
      return tf.keras.losses.MeanSquaredError()
    return tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)

  def task(self) -> task_lib.Task:
    """Builds the task that a runtime takes."""
    if self.encoder:
      # Here, since random weights can't be drawn where TFF builds a graph.
      encoders.builder(self.encoder, self.model)
    x, y = self.arrays()
    split = federated_data.Split.from_client_arrays(
      {f'{i:05}': {'x': x[i], 'y': y[i]} for i in range(self.clients)}
    )
    data = federated_data.FederatedData(
      name='synthetic_benchmark',
      partition='natural',
      train=split,
      validation=None,
      test=split,
      num_classes=0,
      class_names=(),
      source=federated_data.Source('synthetic', 'none', 'none', 'none'),
      content_sha256='0' * 64,
    )
    task = task_lib.Task(
      name=self.name,
      data=data,
      kind='classification' if y.dtype == np.int32 else 'reconstruction',
      class_names=(),
      build_keras_model=self.build_keras_model,
      build_loss=self.build_loss,
      build_metrics=list,
      preprocess_features=lambda features: features,
      preprocess=lambda batch: collections.OrderedDict(
        x=batch['x'], y=batch['y'][:, tf.newaxis]
      ),
      example_shape=x.shape[2:],
      has_frozen_weights=bool(self.encoder),
      quantization=quantization.Settings() if self.quantized else None,
    )
    if self.quantized and not self.encoder:
      return task.quantized(quantization.Settings())
    return task

  def batches(self) -> list[np.ndarray]:
    """Example indices of each local step, in the stored order."""
    return federated_data.client_batches(
      self.examples, batch_size=self.batch_size, seed=None
    )

  def process(
    self,
    task: task_lib.Task,
    loop_implementation: tff.learning.LoopImplementation,
    aggregator: tff.aggregators.WeightedAggregationFactory | None = None,
  ) -> tff.learning.templates.LearningProcess:
    """Builds federated averaging, with central DP if `private`.

    Args:
      task: What `task` built.
      loop_implementation: How a client iterates over its batches.
      aggregator: Of a private workload; None is TFF's own.
    """
    client_optimizer = optimizers.build('sgd', CLIENT_LEARNING_RATE, {})
    server_optimizer = optimizers.build('sgd', SERVER_LEARNING_RATE, {})
    if not self.private:
      return fed_avg.build(
        task.model_fn,
        client_optimizer=client_optimizer,
        server_optimizer=server_optimizer,
        loop_implementation=loop_implementation,
        statistics_settings=statistics.Settings() if self.quantized else None,
      )
    if aggregator is None:
      aggregator = tff.aggregators.as_weighted_aggregator(
        tff.aggregators.DifferentiallyPrivateFactory.gaussian_fixed(
          NOISE_MULTIPLIER, self.clients, CLIP
        )
      )
    return fed_avg.build(
      task.model_fn,
      client_optimizer=client_optimizer,
      server_optimizer=server_optimizer,
      client_weighting=tff.learning.ClientWeighting.UNIFORM,
      loop_implementation=loop_implementation,
      model_aggregator=aggregator,
    )


def _cnn(unused_workload: Workload) -> tf.keras.Model:
  return emnist.build(
    'mcmahan_cnn', input_shape=(28, 28, 1), num_classes=62, seed=0
  )


def _linear(workload: Workload) -> tf.keras.Model:
  inputs = tf.keras.Input((workload.inputs,), name='features')
  outputs = _dense('output', 1)(inputs)
  return tf.keras.Model(inputs, outputs, name='linear_regression')


def _wide(workload: Workload) -> tf.keras.Model:
  """A square layer whose outputs are averaged: parameters, hardly any work."""
  inputs = tf.keras.Input((workload.inputs,), name='features')
  hidden = _dense('hidden', workload.inputs, use_bias=False)(inputs)
  outputs = tf.keras.layers.Lambda(
    lambda x: tf.reduce_mean(x, axis=-1, keepdims=True), name='output'
  )(hidden)
  return tf.keras.Model(inputs, outputs, name='wide')


class _AddPositions(tf.keras.layers.Layer):
  """Adds learned position embeddings."""

  def build(self, input_shape):
    self.table = self.add_weight(
      'table', input_shape[1:], initializer=_normal('positions')
    )

  def call(self, inputs):
    return inputs + self.table


def _bert(unused_workload: Workload) -> tf.keras.Model:
  """BERT of Devlin et al. 2019 (arXiv:1810.04805), tiny, without dropout.

  Two layers of width 128 with two heads; no token types and no padding.
  """
  tokens = tf.keras.Input((_SEQUENCE,), dtype=tf.int32, name='tokens')
  hidden = tf.keras.layers.Embedding(
    _VOCABULARY,
    _HIDDEN,
    embeddings_initializer=_normal('tokens'),
    name='embedding',
  )(tokens)
  hidden = _norm('norm')(_AddPositions(name='positions')(hidden))
  for layer in range(2):
    attended = tf.keras.layers.MultiHeadAttention(
      num_heads=2,
      key_dim=_HIDDEN // 2,
      kernel_initializer=_normal(f'attention_{layer}'),
      name=f'attention_{layer}',
    )(hidden, hidden)
    hidden = _norm(f'attention_norm_{layer}')(hidden + attended)
    inner = _dense(f'inner_{layer}', 4 * _HIDDEN, activation=_gelu)(hidden)
    outer = _dense(f'outer_{layer}', _HIDDEN)(inner)
    hidden = _norm(f'norm_{layer}')(hidden + outer)
  pooled = _dense('pooler', _HIDDEN, activation='tanh')(hidden[:, 0])
  return tf.keras.Model(tokens, _dense('logits', 2)(pooled), name='bert_tiny')


_MODELS: dict[str, Callable[[Workload], tf.keras.Model]] = {
  'cnn': _cnn,
  'linear': _linear,
  'wide': _wide,
  'bert': _bert,
}


def _normal(name: str) -> tf.keras.initializers.Initializer:
  return tf.keras.initializers.TruncatedNormal(
    0.0, 0.02, layers.derive_seed(0, name)
  )


def _dense(name: str, units: int, **kwargs) -> tf.keras.layers.Dense:
  initializer = tf.keras.initializers.GlorotUniform(layers.derive_seed(0, name))
  return tf.keras.layers.Dense(
    units, kernel_initializer=initializer, name=name, **kwargs
  )


def _norm(name: str) -> tf.keras.layers.LayerNormalization:
  # BERT's epsilon; with a larger one Keras takes batch normalisation's kernel.
  return tf.keras.layers.LayerNormalization(epsilon=1e-12, name=name)


_gelu = functools.partial(tf.nn.gelu, approximate=True)

WORKLOADS = {
  workload.name: workload
  for workload in (
    Workload('A', 'cnn', 10, 100, 20),
    Workload('B', 'cnn', 100, 20, 20),
    Workload('C', 'linear', 1000, 20, 20),
    Workload('D', 'bert', 10, 16, 8),
    Workload('E', 'cnn', 10, 100, 20, private=True),
    Workload('F', 'lora', 10, 16, 16, encoder='minilm'),
    Workload('G', 'full', 10, 16, 16, encoder='minilm'),
    Workload('tiny_lora', 'lora', 3, 4, 2, encoder='tiny'),
    Workload('tiny_full', 'full', 3, 4, 2, encoder='tiny'),
    Workload('tiny', 'linear', 6, 8, 4, inputs=3),
    Workload('tiny_private', 'linear', 6, 8, 4, private=True, inputs=3),
  )
}


def get(name: str) -> Workload:
  """Returns the workload of a name such as `A` or `sweep:100x10k`.

  Raises:
    ValueError: If there is none of that name.
  """
  if name in WORKLOADS:
    return WORKLOADS[name]
  kind, _, size = name.partition(':')
  clients, _, parameters = size.partition('x')
  if kind == 'sweep' and clients.isdigit() and parameters in _SWEEP_INPUTS:
    inputs = _SWEEP_INPUTS[parameters]
    return Workload(name, 'wide', int(clients), 5, 5, inputs=inputs)
  raise ValueError(f'no workload {name!r}: {", ".join(WORKLOADS)}, sweep:NxP')


def sweep(max_values: float = 1e8) -> list[str]:
  """Names of the cohort sweep whose clients' weights together fit in memory.

  Args:
    max_values: Clients times parameters that a stock runtime may hold at once.
  """
  return [
    f'sweep:{clients}x{parameters}'
    for parameters in SWEEP_PARAMETERS
    for clients in SWEEP_CLIENTS
    if clients * _SWEEP_INPUTS[parameters] ** 2 <= max_values * 1.001
  ]
