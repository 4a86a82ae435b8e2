"""Client and server optimizers by name, with the hyperparameters each one has.

A server optimizer makes FedAvg an instance of FedOpt (Reddi et al. 2021,
arXiv:2003.00295, Algorithm 1): the mean of the clients' model updates is its
pseudo-gradient. sgd is FedAvg, momentum FedAvgM, and the adaptive ones are
FedAdagrad, FedAdam and FedYogi of Algorithm 2.
"""

import collections
import dataclasses
from collections.abc import Callable, Mapping

import tensorflow as tf
import tensorflow_federated as tff


class Adagrad(tff.learning.optimizers.Optimizer):
  """Adagrad in the form of FedAdagrad (Reddi et al. 2021, Algorithm 2).

  v <- v + g^2;  x <- x - learning_rate * g / (sqrt(v) + epsilon)

  TFF's own has sqrt(v + epsilon), for which the paper's epsilons (its tau, up
  to 0.1) mean another algorithm.
  """

  def __init__(
    self, learning_rate: float, initial_accumulator: float, epsilon: float
  ):
    """Stores the hyperparameters.

    Args:
      learning_rate: The paper's eta.
      initial_accumulator: The value of v before the first step.
      epsilon: The paper's tau, the degree of adaptivity.
    """
    self._learning_rate = learning_rate
    self._initial_accumulator = initial_accumulator
    self._epsilon = epsilon

  def initialize(self, specs):
    accumulator = tf.nest.map_structure(
      lambda spec: tf.fill(
        spec.shape, tf.cast(self._initial_accumulator, spec.dtype)
      ),
      specs,
    )
    return collections.OrderedDict(
      learning_rate=self._learning_rate,
      epsilon=self._epsilon,
      accumulator=accumulator,
    )

  def next(self, state, weights, gradients):
    accumulator = tf.nest.map_structure(
      lambda v, g: v + tf.square(g), state['accumulator'], gradients
    )
    new_weights = tf.nest.map_structure(
      lambda x, g, v: (
        x
        - tf.cast(state['learning_rate'], x.dtype)
        * g
        / (tf.sqrt(v) + tf.cast(state['epsilon'], x.dtype))
      ),
      weights,
      gradients,
      accumulator,
    )
    new_state = collections.OrderedDict(state, accumulator=accumulator)
    return new_state, new_weights

  def get_hparams(self, state):
    return collections.OrderedDict(
      learning_rate=state['learning_rate'], epsilon=state['epsilon']
    )

  def set_hparams(self, state, hparams):
    return collections.OrderedDict(state, **hparams)


class GradientClipping(tff.learning.optimizers.Optimizer):
  """Scales a step's gradient down to a norm, before another optimizer's step.

  The norm is the Euclidean one over all weights (Pascanu et al. 2013,
  arXiv:1211.5063, Algorithm 1). It bounds steps, not what a client sends: for
  that there is the aggregator's `--clip_norm`.
  """

  def __init__(self, inner: tff.learning.optimizers.Optimizer, norm: float):
    """Wraps an optimizer.

    Args:
      inner: Makes the steps, and has the state.
      norm: The largest norm of a gradient.
    """
    self._inner = inner
    self._norm = norm

  def initialize(self, specs):
    return self._inner.initialize(specs)

  def next(self, state, weights, gradients):
    flat = [
      None if g is None else tf.convert_to_tensor(g)
      for g in tf.nest.flatten(gradients)
    ]
    clipped, _ = tf.clip_by_global_norm(flat, self._norm)
    gradients = tf.nest.pack_sequence_as(gradients, clipped)
    return self._inner.next(state, weights, gradients)

  def get_hparams(self, state):
    return self._inner.get_hparams(state)

  def set_hparams(self, state, hparams):
    return self._inner.set_hparams(state, hparams)


@dataclasses.dataclass(frozen=True)
class Spec:
  """An optimizer that flags can name.

  Attributes:
    build: Takes the learning rate and `hparams` by keyword.
    hparams: Hyperparameters besides the learning rate, with their defaults.
  """

  build: Callable[..., tff.learning.optimizers.Optimizer]
  hparams: Mapping[str, float]


# Defaults of the adaptive ones are those of Reddi et al. 2021, Appendix D.
_ADAPTIVE = {'beta_1': 0.9, 'beta_2': 0.99, 'epsilon': 1e-3}

OPTIMIZERS: Mapping[str, Spec] = {
  'sgd': Spec(tff.learning.optimizers.build_sgdm, {}),
  'momentum': Spec(tff.learning.optimizers.build_sgdm, {'momentum': 0.9}),
  'adagrad': Spec(Adagrad, {'initial_accumulator': 0.0, 'epsilon': 1e-3}),
  'adam': Spec(tff.learning.optimizers.build_adam, _ADAPTIVE),
  # Loshchilov and Hutter 2019 (arXiv:1711.05101); defaults of BERT.
  'adamw': Spec(
    tff.learning.optimizers.build_adamw,
    {'beta_1': 0.9, 'beta_2': 0.999, 'epsilon': 1e-6, 'weight_decay': 0.01},
  ),
  'yogi': Spec(
    lambda initial_accumulator, **hparams: tff.learning.optimizers.build_yogi(
      initial_preconditioner_value=initial_accumulator, **hparams
    ),
    {'initial_accumulator': 0.0, **_ADAPTIVE},
  ),
}

HPARAMS = tuple(
  dict.fromkeys(name for spec in OPTIMIZERS.values() for name in spec.hparams)
)


def build(
  name: str, learning_rate: float, hparams: Mapping[str, float] | None = None
) -> tff.learning.optimizers.Optimizer:
  """Builds an optimizer.

  Args:
    name: A key of `OPTIMIZERS`.
    learning_rate: The initial learning rate.
    hparams: Values that replace the defaults of `OPTIMIZERS[name].hparams`.

  Returns:
    A TFF optimizer whose learning rate is a hyperparameter of its state.

  Raises:
    ValueError: If `hparams` has a name that the optimizer does not use.
  """
  spec, hparams = OPTIMIZERS[name], hparams or {}
  unused = sorted(set(hparams) - set(spec.hparams))
  if unused:
    raise ValueError(
      f'The optimizer {name!r} has no {", ".join(unused)}; it has '
      f'{", ".join(spec.hparams) or "only a learning rate"}.'
    )
  return spec.build(learning_rate=learning_rate, **{**spec.hparams, **hparams})
