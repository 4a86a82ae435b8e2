"""The flags of aggregation; see `research.aggregators.compose`."""

import tensorflow_federated as tff
from absl import flags

from research import flag_values
from research.aggregators import compose, rotation
from research.aggregators import settings as lib
from research.algorithms import registry
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
    "Bound on the updates' L2 norms; fixed is also called norm bounding.",
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
    "Bits of a client's coordinate in a secure sum.",
  ),
}
_NAMES = (*_CHOICES, *_OTHERS)


class AggregatorFlags:
  """How the server combines the clients' updates, and what it is sent."""

  def __init__(self):
    default = lib.Settings()
    for name, (choices, text) in _CHOICES.items():
      flag_values.enum(name, getattr(default, name), choices, text)
    for name, (kind, text) in _OTHERS.items():
      bound = {'lower_bound': 1} if kind == 'integer' else {}
      flag_values.define(kind, name, getattr(default, name), text, **bound)

  def get(self, algorithm: str) -> tff.aggregators.WeightedAggregationFactory:
    """Builds the aggregator.

    Args:
      algorithm: A key of `registry.ALGORITHMS`.

    Returns:
      What `registry.Settings` takes.

    Raises:
      flags.IllegalFlagValueError: If a flag is set that nothing uses, or the
        combination is unsound.
    """
    unused = registry.ALGORITHMS[algorithm].unused_flags
    if 'aggregator' in unused:
      flag_values.refuse_unused(_NAMES, f'by --algorithm={algorithm}')
    _refuse_unused()
    settings = lib.Settings(
      **{name: FLAGS[name].value for name in _NAMES},
      clients_per_round=FLAGS.clients_per_round,
      has_fixed_cohorts=FLAGS.client_sampling == sampling.FIXED_SIZE,
      has_uniform_weights=FLAGS.client_weighting == 'uniform'
      and 'client_weighting' not in unused,
      runtime=FLAGS.runtime,
      seed=FLAGS.seed,
    )
    try:
      return compose.build(settings)
    except ValueError as error:
      raise flags.IllegalFlagValueError(str(error)) from error


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
  if not FLAGS.secure_sum:
    flag_values.refuse_unused(['secure_sum_bits'], 'without --secure_sum')
