"""Why some combinations of aggregator, runtime and cohorts are refused."""

from research.aggregators import settings as lib
from research.privacy import distributed, local, matrix_factorization


def refusal(settings: lib.Settings) -> str | None:
  """Why a combination is unsound or impossible.

  Args:
    settings: The combination.

  Returns:
    The reason, as a sentence, or None if it is sound.
  """
  checks = (
    _refused_range,
    _refused_private,
    _refused_robust,
    _refused_codec,
    _refused_secure,
  )
  return next(filter(None, (check(settings) for check in checks)), None)


def _refused_range(settings: lib.Settings) -> str | None:
  if settings.clipping != lib.NONE and not (settings.clip_norm or 0) > 0:
    return (
      f'--clipping={settings.clipping} needs a positive --clip_norm, given '
      f'{settings.clip_norm}.'
    )
  for name, least, most in (
    ('trimmed_fraction', 0, 0.5),
    ('clip_quantile', 0, 1),
    ('clip_learning_rate', 0, float('inf')),
  ):
    value = getattr(settings, name)
    if not least < value < most:
      return f'--{name}={value} must be between {least} and {most}.'
  if not 0 < settings.top_k_fraction <= 1:
    value = settings.top_k_fraction
    return f'--top_k_fraction={value} must be above 0 and at most 1.'
  return None


def _refused_private(settings: lib.Settings) -> str | None:
  if settings.dp_mechanism == lib.NONE:
    if settings.clipping in ('per_layer', 'l1'):
      return (
        f'--clipping={settings.clipping} without --dp_mechanism: it is a part '
        'of a private mean; fixed and adaptive bound updates without privacy.'
      )
    return None
  name = f'--dp_mechanism={settings.dp_mechanism}'
  if settings.noise_multiplier < 0:
    return f'--noise_multiplier={settings.noise_multiplier} is below 0.'
  if settings.clipping == lib.NONE:
    return f'{name} needs --clipping, which bounds what one client can change.'
  if settings.aggregator != lib.MEAN:
    return (
      f'{name} with --aggregator={settings.aggregator}: how much one client '
      "can change the rule's result has no bound that noise could be made for."
    )
  if settings.zeroing:
    return (
      f'{name} with --zeroing: its threshold is a quantile of the clients '
      'without noise, which no accounting covers; clipping bounds far too '
      'large updates already.'
    )
  if settings.secure_sum:
    if settings.dp_mechanism in distributed.MECHANISMS:
      return f'{name} with --secure_sum: it has a secure sum of its own.'
    return (
      f'{name} with --secure_sum: noise is added by the server, who must see '
      'the sum.'
    )
  if not settings.has_uniform_weights:
    return (
      f'{name} needs --client_weighting=uniform: weights by examples have no '
      'bound, so that one client could change the mean by any amount.'
    )
  return _refused_mechanism(settings, name)


def _refused_mechanism(settings: lib.Settings, name: str) -> str | None:
  if settings.dp_mechanism in matrix_factorization.MECHANISMS:
    if settings.min_separation is None:
      return (
        f'{name} needs --client_sampling=cyclic_poisson with --min_separation: '
        'its guarantee rests on how often and how closely a client takes part.'
      )
    if settings.clipping == 'per_layer':
      return f'{name} with --clipping=per_layer: use fixed or adaptive.'
  wanted = lib.DP_CLIPPINGS.get(settings.dp_mechanism)
  if wanted is None and settings.clipping == 'l1':
    return (
      f'--clipping=l1 with {name}: Gaussian noise is made for an L2 norm; use '
      '--clipping=fixed.'
    )
  if wanted not in (None, settings.clipping):
    return (
      f'{name} needs --clipping={wanted}, given {settings.clipping}: the noise '
      'is made for one bound of that norm, the same in all rounds.'
    )
  if wanted is not None and settings.compression != lib.NONE:
    kind = 'has an encoding of its own, whose sums are exact'
    if settings.dp_mechanism in local.MECHANISMS:
      kind = 'sends noise, of which a codec would take a part away'
    return f'{name} with --compression={settings.compression}: it {kind}.'
  if settings.clipping == 'per_layer' and settings.compression != lib.NONE:
    return (
      f'--clipping=per_layer with --compression={settings.compression}: codecs '
      'see an update as one vector; use --clipping=fixed.'
    )
  return None


def _refused_robust(settings: lib.Settings) -> str | None:
  if settings.aggregator == lib.MEAN:
    return None
  name = f'--aggregator={settings.aggregator}'
  if settings.zeroing:
    return (
      f'--zeroing with {name}: a zeroed update would be a vote for no change; '
      'the rule withstands large updates by itself.'
    )
  if not settings.has_fixed_cohorts:
    return (
      f'{name} with --client_sampling=poisson: it keeps all updates of a round '
      'and needs to know how many there can be; use fixed_size.'
    )
  if 'byzantine_clients' not in lib.AGGREGATORS[settings.aggregator].fields:
    return None
  needed = 2 * settings.byzantine_clients + 3
  if settings.clients_per_round < needed:
    return (
      f'{name} --byzantine_clients={settings.byzantine_clients} needs '
      f'--clients_per_round of at least 2 f + 3 = {needed}, given '
      f'{settings.clients_per_round}.'
    )
  most = settings.clients_per_round - settings.byzantine_clients
  chosen = settings.selected_clients
  if settings.aggregator == 'multi_krum' and not (
    chosen and 1 <= chosen <= most
  ):
    return (
      f'{name} needs --selected_clients between 1 and clients_per_round - '
      f'byzantine_clients = {most}, given {chosen}.'
    )
  return None


def _refused_codec(settings: lib.Settings) -> str | None:
  if settings.compression == lib.NONE:
    if settings.rotation != lib.NONE:
      return (
        f'--rotation={settings.rotation} without --compression: a rotation is '
        'undone at the server and changes nothing by itself.'
      )
    return None
  codec = lib.CODECS[settings.compression]
  if settings.rotation != lib.NONE and codec.why_not_rotated:
    return (
      f'--rotation={settings.rotation} with --compression='
      f'{settings.compression}: {codec.why_not_rotated}.'
    )
  given = settings.compression_bits
  if given is not None and not codec.least_bits <= given <= codec.most_bits:
    return (
      f'--compression={settings.compression} takes --compression_bits from '
      f'{codec.least_bits} to {codec.most_bits}, given {given}.'
    )
  return None


def _refused_secure(settings: lib.Settings) -> str | None:
  if not settings.secure_sum:
    return None
  if settings.runtime == lib.STOCK:
    return (
      "--secure_sum with --runtime=stock: TFF's worker has no secure sums; use "
      '--runtime=in_process.'
    )
  if settings.aggregator != lib.MEAN:
    return (
      f'--secure_sum with --aggregator={settings.aggregator}: it needs every '
      "client's update, and a secure sum shows the server none."
    )
  if settings.compression != lib.NONE:
    return (
      f'--secure_sum with --compression={settings.compression}: each client '
      'has its own scale or coordinates, so that the sum of the codes means '
      'nothing; --secure_sum_bits quantises on one grid for all.'
    )
  if settings.zeroing or settings.clipping != 'fixed':
    return (
      '--secure_sum needs --clipping=fixed and no --zeroing: the grid needs a '
      'bound that holds for all clients, and estimates of norms are plain sums.'
    )
  if not settings.has_uniform_weights:
    return (
      '--secure_sum needs --client_weighting=uniform: weights of many examples '
      'have no bound that the grid could be made for.'
    )
  if not settings.has_fixed_cohorts:
    return (
      '--secure_sum with --client_sampling=poisson: a larger cohort than '
      'expected would wrap the sum; use fixed_size.'
    )
  return None
