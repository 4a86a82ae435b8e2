"""The flags of aggregation; see `research.aggregators.compose`."""

import dataclasses

import tensorflow_federated as tff
from absl import flags

from research import flag_values
from research.aggregators import compose, rotation
from research.aggregators import settings as lib
from research.algorithms import registry
from research.privacy import distributed
from research.training import sampling

FLAGS = flag_values.FLAGS

_USUAL_BITS = ', '.join(
  f'{name} {codec.usual_bits}'
  for name, codec in lib.CODECS.items()
  if codec.usual_bits
)
_CHOICES = {
  'aggregator': (
    lib.AGGREGATORS,
    "How updates are combined; the mean's weights are --client_weighting.",
  ),
  'clipping': (
    lib.CLIPPINGS,
    "Bound on the updates' L2 norms (l1: L1); fixed is also norm bounding.",
  ),
  'compression': (
    [lib.NONE, *lib.CODECS],
    'How updates are encoded; eden with 1 bit is DRIVE.',
  ),
  'rotation': (
    [lib.NONE, *rotation.ROTATIONS],
    'Random rotation of an update before it is encoded.',
  ),
}
_OTHERS = {
  'trimmed_fraction': (
    'float',
    'Share of clients that trimmed_mean leaves out at either end.',
  ),
  'weiszfeld_iterations': ('integer', 'Steps of geometric_median.'),
  'byzantine_clients': (
    'integer',
    'Clients per round that krum and multi_krum must withstand.',
  ),
  'selected_clients': ('integer', 'Clients that multi_krum averages.'),
  'zeroing': ('boolean', 'Zero updates far larger than any before.'),
  'clip_norm': ('float', 'L2 norm of an update; the first one, if adaptive.'),
  'clip_quantile': ('float', 'Share of clients left unclipped (adaptive).'),
  'clip_learning_rate': ('float', "Of the norm's logarithm (adaptive)."),
  'compression_bits': ('integer', f'Per coordinate; defaults: {_USUAL_BITS}.'),
  'top_k_fraction': ('float', 'Share of coordinates that top_k sends.'),
  'secure_sum': ('boolean', 'Simulate secure sums; nothing is hidden.'),
  'secure_sum_bits': (
    'integer',
    "Bits of a client's coordinate in a secure sum, or of distributed noise.",
  ),
}
_NAMES = (*_CHOICES, *_OTHERS)
# Stands for the noise multiplier while it is not known: small enough for all.
_ANY_MULTIPLIER = 1e-3


class AggregatorFlags:
  """How the server combines the clients' updates, and what it is sent."""

  def __init__(self):
    default = lib.Settings()
    for name, (choices, text) in _CHOICES.items():
      flag_values.enum(name, getattr(default, name), choices, text)
    for name, (kind, text) in _OTHERS.items():
      bound = {'lower_bound': 1} if kind == 'integer' else {}
      flag_values.define(kind, name, getattr(default, name), text, **bound)

  def get(
    self, algorithm: str, noise_multiplier: float | None = None
  ) -> tff.aggregators.WeightedAggregationFactory:
    """Builds the aggregator.

    Args:
      algorithm: A key of `registry.ALGORITHMS`.
      noise_multiplier: Of --dp_mechanism; None is that of the flag, or any if
        it is yet to be found.

    Returns:
      What `registry.Settings` takes.

    Raises:
      flags.IllegalFlagValueError: If a flag is set that nothing uses, or the
        combination is unsound.
    """
    unused = registry.ALGORITHMS[algorithm].unused_flags
    if 'aggregator' in unused:
      names = [*_NAMES, 'dp_mechanism']
      flag_values.refuse_unused(names, f'by --algorithm={algorithm}')
    _refuse_unused()
    if FLAGS.dp_mechanism == lib.NONE:
      noise_multiplier = 0.0
    elif noise_multiplier is None:
      given = FLAGS.noise_multiplier
      noise_multiplier = _ANY_MULTIPLIER if given is None else given
    settings = self._settings(noise_multiplier, unused)
    try:
      return compose.build(settings)
    except ValueError as error:
      raise flags.IllegalFlagValueError(str(error)) from error

  def of_statistics(self) -> tff.aggregators.WeightedAggregationFactory:
    """Builds the same rule for `algorithms.statistics`, without encoding."""
    unused = registry.ALGORITHMS[FLAGS.algorithm].unused_flags
    plain = {'compression': lib.NONE, 'clipping': lib.NONE, 'zeroing': False}
    plain |= {'rotation': lib.NONE, 'compression_bits': None}
    settings = self._settings(0.0, unused)
    return compose.build(dataclasses.replace(settings, **plain))

  def _settings(
    self, noise_multiplier: float, unused: frozenset[str]
  ) -> lib.Settings:
    return lib.Settings(
      **{name: FLAGS[name].value for name in _NAMES},
      clients_per_round=FLAGS.clients_per_round,
      has_fixed_cohorts=FLAGS.client_sampling == sampling.FIXED_SIZE,
      has_uniform_weights=_has_uniform_weights(unused),
      runtime=FLAGS.runtime,
      seed=FLAGS.seed,
      dp_mechanism=FLAGS.dp_mechanism,
      noise_multiplier=noise_multiplier,
      clipped_count_stddev=FLAGS.clipped_count_stddev,
      dp_bands=FLAGS.dp_bands,
      blt_buffers=FLAGS.blt_buffers,
      tree_restart_rounds=FLAGS.tree_restart_rounds,
      total_rounds=FLAGS.total_rounds,
      min_separation=FLAGS.min_separation,
    )


def _has_uniform_weights(unused: frozenset[str]) -> bool:
  if 'client_weighting' in unused:
    # A private mean takes no notice of the weights that the algorithm has.
    return FLAGS.dp_mechanism != lib.NONE
  return FLAGS.client_weighting == 'uniform'


def _refuse_unused() -> None:
  """Raises if a flag is set of something that was not chosen."""
  chosen = lib.AGGREGATORS[FLAGS.aggregator]
  others = {n for a in lib.AGGREGATORS.values() for n in a.fields}
  unused = sorted(others - set(chosen.fields))
  if not chosen.uses_weights:
    unused.append('client_weighting')
  flag_values.refuse_unused(unused, f'by --aggregator={FLAGS.aggregator}')
  others = {n for names in lib.CLIPPINGS.values() for n in names}
  unused = sorted(others - set(lib.CLIPPINGS[FLAGS.clipping]))
  flag_values.refuse_unused(unused, f'by --clipping={FLAGS.clipping}')
  codec = lib.CODECS.get(FLAGS.compression)
  unused = []
  if codec is None or codec.usual_bits is None:
    unused.append('compression_bits')
  if FLAGS.compression != 'top_k':
    unused.append('top_k_fraction')
  flag_values.refuse_unused(unused, f'by --compression={FLAGS.compression}')
  if not FLAGS.secure_sum and (
    FLAGS.dp_mechanism not in distributed.MECHANISMS
  ):
    flag_values.refuse_unused(['secure_sum_bits'], 'without --secure_sum')
