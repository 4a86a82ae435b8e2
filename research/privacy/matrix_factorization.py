"""Strategies for noise that is correlated over rounds (DP-FTRL).

The server of a round t sums clipped updates to g_t and releases g_t + y_t with
y = C^-1 z, z independent normal numbers and C the strategy, a lower-triangular
matrix over rounds. By post-processing this is as private as the release of
C g + z, also when each update depends on what was released before (Denisov et
al. 2022, arXiv:2202.08312), so that only the sensitivity of C counts. What a
model feels is the sum of the noise up to a round, with A the lower-triangular
matrix of ones the rows of B = A C^-1.

Noise is in units of its multiplier: of z times the clipping norm.
"""

import abc
import dataclasses
import math

import numpy as np

from research.privacy import binary_tree, toeplitz

TREE = 'tree_aggregation'
BANDED = 'banded_matrix_factorization'
BLT = 'blt'
MECHANISMS = (TREE, BANDED, BLT)

# Of the optimisation's variables, the logarithms of scales and of decay rates.
_LARGEST_SCALE, _SMALLEST_SCALE = 0.0, -20.0
_LARGEST_RATE = math.log(10.0)
_SMALLEST_RATE_OF_HORIZON = 1e-3


class Strategy(abc.ABC):
  """A lower-triangular matrix C over rounds.

  Attributes:
    name: The mechanism's, as in the flags.
    total_rounds: Rows and columns of C.
    bands: Diagonals of C that are not zero; None if it is not banded.
  """

  name: str
  total_rounds: int
  bands: int | None = None

  @abc.abstractmethod
  def sensitivity(self, min_separation: int, max_participations: int) -> float:
    """The largest L2 norm of the change in C g that one client can make.

    Per unit of the clipping norm, when the client's updates become zeros.

    Args:
      min_separation: Two rounds of a client are at least so many apart: 1 if
        each round may be followed by the next.
      max_participations: A client takes part in at most so many rounds; more
        than the separation leaves room for count as many as it does.
    """

  @abc.abstractmethod
  def noise_variances(self) -> np.ndarray:
    """The variance of the noise in each prefix sum, float64 [total_rounds]."""

  def max_error(self) -> float:
    """The largest standard deviation of the noise in a prefix sum."""
    return math.sqrt(self.noise_variances().max())

  def rmse(self) -> float:
    """The root of the mean variance of the noise in the prefix sums."""
    return math.sqrt(self.noise_variances().mean())


def participations(
  total_rounds: int, min_separation: int, max_participations: int
) -> int:
  """How often a client can take part at most.

  Raises:
    ValueError: If an argument is below 1.
  """
  for name, value in (
    ('total_rounds', total_rounds),
    ('min_separation', min_separation),
    ('max_participations', max_participations),
  ):
    if value < 1:
      raise ValueError(f'{name} is {value}; it must be at least 1.')
  return min(max_participations, -(-total_rounds // min_separation))


@dataclasses.dataclass(frozen=True, eq=False)
class Toeplitz(Strategy):
  """A strategy with constant diagonals.

  Attributes:
    name: The mechanism's.
    coefficients: The first column of C, float64 [total_rounds].
  """

  name: str
  coefficients: np.ndarray

  @property
  def total_rounds(self) -> int:
    return len(self.coefficients)

  def sensitivity(self, min_separation: int, max_participations: int) -> float:
    """See `Strategy`.

    With coefficients that are nowhere negative and never rise, no participation
    is worse than the earliest and densest: Kalinin and Lampert 2024,
    "Banded Square Root Matrix Factorization for Differentially Private Model
    Training", arXiv:2405.13763, Theorem 2.

    Raises:
      ValueError: If the coefficients are not so.
    """
    c = self.coefficients
    if c.min() < 0 or np.diff(c).max(initial=0) > 0:
      raise ValueError(
        'The sensitivity is known only for coefficients that are nowhere '
        f'negative and never rise; the least is {c.min()}, the largest rise '
        f'{np.diff(c).max(initial=0)}.'
      )
    count = participations(len(c), min_separation, max_participations)
    return float(
      np.linalg.norm(toeplitz.sum_of_columns(c, min_separation, count))
    )

  def noise_variances(self) -> np.ndarray:
    first_column_of_b = toeplitz.solve(
      self.coefficients, np.ones(self.total_rounds)
    )
    return np.cumsum(first_column_of_b**2)


@dataclasses.dataclass(frozen=True, eq=False)
class Banded(Toeplitz):
  """A Toeplitz strategy whose first `bands` coefficients alone are not zero.

  Its first columns have norm 1. The last ones, which the end of the training
  cuts off, have less, so that 1 holds as a bound for all.

  Attributes:
    bands: The number of coefficients.
  """

  bands: int


@dataclasses.dataclass(frozen=True, eq=False)
class BufferedLinearToeplitz(Toeplitz):
  """c_0 = 1 and c_t = sum over i of scale_i * decay_i^(t - 1).

  Dvijotham et al. 2024, "Efficient and Near-Optimal Noise Generation for
  Streaming Differential Privacy", arXiv:2404.16706. The columns are not of
  norm 1.

  Attributes:
    scales: float64 [buffers], above 0.
    decays: float64 [buffers], between 0 and 1.
  """

  scales: np.ndarray
  decays: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class BinaryTree(Strategy):
  """Binary tree aggregation, started anew every `restart_period` rounds.

  Kairouz et al. 2021, "Practical and Private (Deep) Learning without Sampling
  or Shuffling", arXiv:2103.00039. Each node is estimated from the whole tree
  below it (Honaker 2015, "Efficient Use of Differentially Private Binary
  Trees"), which is better than the node alone and as private: the privacy is
  that of all nodes, each with noise of its own.

  Attributes:
    name: The mechanism's.
    total_rounds: Leaves of all trees.
    restart_period: Leaves of a tree; the last one may have less.
  """

  name: str
  total_rounds: int
  restart_period: int

  def sensitivity(self, min_separation: int, max_participations: int) -> float:
    """See `Strategy`; of the nodes' sums, by exact dynamic programming."""
    return math.sqrt(
      binary_tree.sensitivity_squared(
        self.total_rounds,
        self.restart_period,
        min_separation,
        participations(self.total_rounds, min_separation, max_participations),
      )
    )

  def noise_variances(self) -> np.ndarray:
    return binary_tree.noise_variances(self.total_rounds, self.restart_period)


def tree(total_rounds: int, restart_period: int | None = None) -> BinaryTree:
  """Binary tree aggregation.

  Args:
    total_rounds: The rounds of the training.
    restart_period: Rounds after which a new tree starts, the epochs of the
      paper; None is one tree.

  Raises:
    ValueError: If one of them is below 1.
  """
  participations(total_rounds, 1, 1)
  if restart_period is None:
    restart_period = total_rounds
  if restart_period < 1:
    raise ValueError(
      f'restart_period is {restart_period}; it must be at least 1.'
    )
  return BinaryTree(TREE, total_rounds, min(restart_period, total_rounds))


def banded(total_rounds: int, bands: int, error: str = 'rmse') -> Banded:
  """The banded strategy of the least error for columns of norm 1.

  Choquette-Choo et al. 2023, "(Amplified) Banded Matrix Factorization",
  arXiv:2306.08153, with the Toeplitz parametrisation of McKenna 2024, "Scaling
  up the Banded Matrix Factorization Mechanism for Differentially Private ML",
  arXiv:2405.15913. One band is independent noise.

  Args:
    total_rounds: The rounds of the training.
    bands: At most `total_rounds`; at most the separation of a client's rounds
      for the noise to be worth it.
    error: rmse or max, what is minimised.

  Raises:
    ValueError: If an argument is out of range.
  """
  participations(total_rounds, 1, 1)
  if not 1 <= bands <= total_rounds:
    raise ValueError(
      f'bands is {bands}; it must be from 1 to the {total_rounds} rounds.'
    )
  weights = toeplitz.error_weights(total_rounds, error)

  def loss(tail):
    c = np.concatenate([[1.0], tail])
    value, gradient = toeplitz.log_loss(c, weights, total_rounds, 1)
    return value, gradient[1:]

  tail = toeplitz.square_root_coefficients(total_rounds)[1:bands]
  if bands > 1:
    tail = toeplitz.minimize(loss, tail, [(0.0, 1.0)] * (bands - 1))
  c = np.zeros(total_rounds)
  c[0], c[1:bands] = 1.0, tail
  c /= np.linalg.norm(c)
  return Banded(BANDED, c, bands)


def blt(
  total_rounds: int,
  min_separation: int,
  max_participations: int,
  buffers: int = 4,
  error: str = 'max',
) -> BufferedLinearToeplitz:
  """The Buffered Linear Toeplitz strategy of the least error times sensitivity.

  McMahan, Xu and Xu 2024, "A Hassle-free Algorithm for Strong Differential
  Privacy in Federated Learning Systems", arXiv:2408.08868.

  Args:
    total_rounds: The rounds of the training.
    min_separation: As in `Strategy.sensitivity`, for which it is optimised.
    max_participations: As there.
    buffers: Of the size of a model; with 3 or 4 hardly worse than with all.
    error: max or rmse, what is minimised.

  Raises:
    ValueError: If an argument is out of range.
  """
  count = participations(total_rounds, min_separation, max_participations)
  if buffers < 1:
    raise ValueError(f'buffers is {buffers}; it must be at least 1.')
  weights = toeplitz.error_weights(total_rounds, error)
  age = np.arange(total_rounds - 1)

  def loss(variables):
    scales, rates = np.exp(variables).reshape(2, buffers)
    powers = np.exp(-np.outer(rates, age))
    c = np.concatenate([[1.0], scales @ powers])
    value, gradient = toeplitz.log_loss(c, weights, min_separation, count)
    by_scale = powers @ gradient[1:]
    by_rate = -scales * ((powers * age) @ gradient[1:])
    return value, np.concatenate([by_scale * scales, by_rate * rates])

  smallest_rate = math.log(_SMALLEST_RATE_OF_HORIZON / total_rounds)
  bounds = [(_SMALLEST_SCALE, _LARGEST_SCALE)] * buffers
  bounds += [(smallest_rate, _LARGEST_RATE)] * buffers
  variables = toeplitz.minimize(
    loss, toeplitz.first_blt(total_rounds, buffers), bounds
  )
  scales, rates = np.exp(variables).reshape(2, buffers)
  c = np.concatenate([[1.0], scales @ np.exp(-np.outer(rates, age))])
  return BufferedLinearToeplitz(BLT, c, scales, np.exp(-rates))


def build(
  mechanism: str,
  total_rounds: int,
  min_separation: int,
  *,
  bands: int | None = None,
  buffers: int = 4,
  restart_period: int | None = None,
) -> Strategy:
  """The strategy of a mechanism, for clients that come as often as they may.

  Args:
    mechanism: One of `MECHANISMS`.
    total_rounds: The rounds of the training.
    min_separation: As in `Strategy.sensitivity`; from `total_rounds` on it is
      single participation.
    bands: Of banded_matrix_factorization; None is as many as
      `min_separation`, beyond which a client's rounds would add up.
    buffers: Of blt.
    restart_period: Of tree_aggregation; see `tree`.

  Raises:
    ValueError: If an argument is out of range.
  """
  count = participations(total_rounds, min_separation, total_rounds)
  if mechanism == TREE:
    return tree(total_rounds, restart_period)
  if mechanism == BLT:
    return blt(total_rounds, min_separation, count, buffers)
  if mechanism != BANDED:
    raise ValueError(
      f'mechanism is {mechanism!r}; it must be one of {MECHANISMS}.'
    )
  if bands is not None and bands > min_separation:
    raise ValueError(
      f'bands is {bands}; with min_separation {min_separation} it must be at '
      'most that.'
    )
  return banded(total_rounds, bands or min(min_separation, total_rounds))
