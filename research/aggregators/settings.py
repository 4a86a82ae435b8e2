"""What an aggregator can be made of, by the names of the flags."""

import dataclasses
from collections.abc import Callable, Mapping

from research.aggregators import compression, robust
from research.privacy import (
  distributed,
  local,
  matrix_factorization,
  mechanism,
)

NONE = 'none'
MEAN = 'mean'
STOCK = 'stock'

GAUSSIAN = mechanism.GAUSSIAN
# The flags that each mechanism has for itself.
DP_MECHANISMS: Mapping[str, tuple[str, ...]] = {
  GAUSSIAN: (),
  matrix_factorization.TREE: ('tree_restart_rounds',),
  matrix_factorization.BANDED: ('dp_bands',),
  matrix_factorization.BLT: ('blt_buffers',),
  **dict.fromkeys((*distributed.MECHANISMS, *local.MECHANISMS), ()),
}
# Norms that mechanisms other than the central Gaussians can bound.
DP_CLIPPINGS: Mapping[str, str] = {
  distributed.DISCRETE_GAUSSIAN: 'fixed',
  distributed.SKELLAM: 'fixed',
  local.GAUSSIAN: 'fixed',
  local.LAPLACE: 'l1',
  local.PRIV_UNIT: 'fixed',
}


@dataclasses.dataclass(frozen=True)
class Settings:
  """What flags say about aggregation, and what it must know of the run.

  Attributes:
    aggregator: One of `AGGREGATORS`.
    trimmed_fraction: Share of the clients that a trimmed mean leaves out at
      either end.
    weiszfeld_iterations: Of the geometric median.
    byzantine_clients: How many clients per round Krum must withstand.
    selected_clients: How many Multi-Krum averages.
    zeroing: Whether far too large updates are zeroed.
    clipping: One of `CLIPPINGS`.
    clip_norm: L2 norm of an update, or L1 norm; the first round's where it
      adapts.
    clip_quantile: Share of clients that adaptive clipping leaves unclipped.
    clip_learning_rate: Of the logarithm of the adaptive norm, per round.
    compression: One of `CODECS`, or none.
    compression_bits: Bits per coordinate; None is the codec's usual number.
    top_k_fraction: Share of the coordinates that top_k keeps.
    rotation: One of `rotation.ROTATIONS`, or none.
    secure_sum: Whether sums are simulated secure sums.
    secure_sum_bits: Bits of one client's coordinate in a secure sum; under
      distributed noise they are the sum's as well.
    clients_per_round: Size of the cohort, or its expectation.
    has_fixed_cohorts: Whether no cohort is larger.
    has_uniform_weights: Whether all clients weigh 1.
    runtime: A key of `research.runtime.registry.RUNTIMES`.
    seed: What random codes come from.
    dp_mechanism: One of `DP_MECHANISMS`, or none.
    noise_multiplier: Of the mechanism, in a round.
    clipped_count_stddev: See `dp.AdaptiveClipQuery`.
    dp_bands: Of banded_matrix_factorization; see `matrix_factorization.build`.
    blt_buffers: Of blt.
    tree_restart_rounds: Of tree_aggregation.
    total_rounds: Of the training.
    min_separation: Rounds between two times of a client; None is no such bound.
  """

  aggregator: str = MEAN
  trimmed_fraction: float = 0.1
  weiszfeld_iterations: int = 3
  byzantine_clients: int = 1
  selected_clients: int | None = None
  zeroing: bool = False
  clipping: str = NONE
  clip_norm: float | None = None
  clip_quantile: float = 0.8
  clip_learning_rate: float = 0.2
  compression: str = NONE
  compression_bits: int | None = None
  top_k_fraction: float = 0.01
  rotation: str = NONE
  secure_sum: bool = False
  secure_sum_bits: int = 16
  clients_per_round: int = 10
  has_fixed_cohorts: bool = True
  has_uniform_weights: bool = False
  runtime: str = 'in_process'
  seed: int = 0
  dp_mechanism: str = NONE
  noise_multiplier: float = 0.0
  clipped_count_stddev: float | None = None
  dp_bands: int | None = None
  blt_buffers: int | None = None
  tree_restart_rounds: int | None = None
  total_rounds: int = 100
  min_separation: int | None = None


@dataclasses.dataclass(frozen=True)
class Aggregator:
  """A way to combine updates.

  Attributes:
    rule: Builds the robust rule; None is the mean.
    fields: The settings that it reads.
    uses_weights: Whether the clients' weights count.
  """

  rule: Callable[[Settings], robust.Rule] | None
  fields: tuple[str, ...] = ()
  uses_weights: bool = False


AGGREGATORS: Mapping[str, Aggregator] = {
  MEAN: Aggregator(None, uses_weights=True),
  'median': Aggregator(lambda settings: robust.median()),
  'trimmed_mean': Aggregator(
    lambda settings: robust.trimmed_mean(settings.trimmed_fraction),
    ('trimmed_fraction',),
  ),
  'geometric_median': Aggregator(
    lambda settings: robust.geometric_median(settings.weiszfeld_iterations),
    ('weiszfeld_iterations',),
    uses_weights=True,
  ),
  'krum': Aggregator(
    lambda settings: robust.krum(settings.byzantine_clients),
    ('byzantine_clients',),
  ),
  'multi_krum': Aggregator(
    lambda settings: robust.krum(
      settings.byzantine_clients, settings.selected_clients
    ),
    ('byzantine_clients', 'selected_clients'),
  ),
}

CLIPPINGS: Mapping[str, tuple[str, ...]] = {
  NONE: (),
  'fixed': ('clip_norm',),
  'adaptive': ('clip_norm', 'clip_quantile', 'clip_learning_rate'),
  'per_layer': ('clip_norm',),
  'l1': ('clip_norm',),
}


@dataclasses.dataclass(frozen=True)
class Codec:
  """A compression.

  Attributes:
    build: From bits per coordinate and the settings to the codec.
    usual_bits: Bits per coordinate if no flag says; None if it has none.
    least_bits: The fewest that make sense.
    most_bits: The most.
    why_not_rotated: Why a rotation before it is unsound, if it is.
  """

  build: Callable[[int | None, Settings], compression.Codec]
  usual_bits: int | None
  least_bits: int = 1
  most_bits: int = 16
  why_not_rotated: str | None = None


CODECS: Mapping[str, Codec] = {
  'uniform': Codec(
    lambda b, settings: compression.Uniform(b, is_stochastic=False), 8
  ),
  'stochastic': Codec(
    lambda b, settings: compression.Uniform(b, is_stochastic=True), 8
  ),
  'qsgd': Codec(lambda b, settings: compression.Qsgd(b), 8, least_bits=2),
  'top_k': Codec(
    lambda b, settings: compression.TopK(settings.top_k_fraction),
    None,
    why_not_rotated='a rotation spreads an update over all coordinates, so '
    'that its largest ones say little',
  ),
  'eden': Codec(
    lambda b, settings: compression.Eden(b),
    1,
    most_bits=4,
    why_not_rotated='EDEN has a rotation of its own',
  ),
}
