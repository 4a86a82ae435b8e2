"""What goes with what, as tables that are made by trying every combination.

  python -m research.aggregators.compatibility

prints them for docs/aggregators.md.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence

from research.aggregators import refusals
from research.aggregators import settings as lib
from research.algorithms import registry
from research.runtime import registry as runtimes

# A typical cohort; each part with the settings that it can't do without.
_RUN = {'clients_per_round': 10}

PARTS: Mapping[str, dict] = {
  **{f'aggregator={name}': {'aggregator': name} for name in lib.AGGREGATORS},
  'zeroing': {'zeroing': True},
  'clipping=fixed': {'clipping': 'fixed', 'clip_norm': 1.0},
  'clipping=adaptive': {'clipping': 'adaptive', 'clip_norm': 1.0},
  **{f'compression={name}': {'compression': name} for name in lib.CODECS},
  'secure_sum': {'secure_sum': True},
  **{
    f'dp_mechanism={name}': {
      'dp_mechanism': name,
      'clipping': lib.DP_CLIPPINGS.get(name, 'fixed'),
      'clip_norm': 1.0,
      'min_separation': 10,
    }
    for name in lib.DP_MECHANISMS
  },
}
PARTS['aggregator=multi_krum']['selected_clients'] = 5


def with_algorithm(part: str, algorithm: str, runtime: str) -> str | None:
  """Why an algorithm does not go with a part in a runtime.

  A secure sum and a private mean are tried with what they need where the
  algorithm allows it: fixed clipping and uniform weights.

  Args:
    part: A key of `PARTS`.
    algorithm: A key of `registry.ALGORITHMS`.
    runtime: A key of `research.runtime.registry.RUNTIMES`.

  Returns:
    The reason, or None.
  """
  unused = registry.ALGORITHMS[algorithm].unused_flags
  if 'aggregator' in unused:
    if part == f'aggregator={lib.MEAN}':
      return None
    return 'its clients send more than a model update, or none.'
  chosen = dict(PARTS[part])
  is_private = 'dp_mechanism' in chosen
  if chosen.get('secure_sum'):
    chosen |= PARTS['clipping=fixed']
  return refusals.refusal(
    lib.Settings(
      **_RUN,
      **chosen,
      runtime=runtime,
      has_uniform_weights=is_private or 'client_weighting' not in unused,
    )
  )


def with_aggregator(part: str, aggregator: str) -> str | None:
  """Why a part does not go with an aggregator (in_process, uniform weights).

  Args:
    part: A key of `PARTS`, or such a key and a rotation: `a --rotation=b`.
    aggregator: A key of `AGGREGATORS`.

  Returns:
    The reason, or None.
  """
  name, _, turn = part.partition(' --rotation=')
  chosen = PARTS[f'aggregator={aggregator}'] | PARTS[name]
  if chosen.get('secure_sum'):
    chosen |= PARTS['clipping=fixed']
  if turn:
    chosen |= {'rotation': turn}
  return refusals.refusal(
    lib.Settings(**_RUN, **chosen, has_uniform_weights=True)
  )


def _table(
  rows: Sequence[str],
  columns: Sequence[str],
  refuse: Callable[[str, str], str | None],
) -> str:
  """A table of `yes` and numbers of the reasons below it."""
  reasons: list[str] = []

  def cell(row: str, column: str) -> str:
    reason = refuse(row, column)
    if reason is None:
      return 'yes'
    # Without the flags, which the cell names.
    reason = reason.partition(': ')[2] or reason
    if reason not in reasons:
      reasons.append(reason)
    return f'({reasons.index(reason) + 1})'

  lines = ['| ' + ' | '.join(['', *(f'`{c}`' for c in columns)]) + ' |']
  lines.append('| --- ' * (len(columns) + 1) + '|')
  for row in rows:
    cells = [cell(row, column) for column in columns]
    lines.append('| ' + ' | '.join([f'`{row}`', *cells]) + ' |')
  lines.append('')
  lines += [f'({n}) {reason}\n' for n, reason in enumerate(reasons, start=1)]
  return '\n'.join(lines)


def tables() -> str:
  """Both tables as Markdown."""
  runs = {
    f'--algorithm={algorithm} --runtime={runtime}': (algorithm, runtime)
    for algorithm, runtime in itertools.product(
      registry.ALGORITHMS, runtimes.RUNTIMES
    )
  }
  parts = [part for part in PARTS if not part.startswith('aggregator=')]
  parts += [f'compression={name} --rotation=hadamard' for name in lib.CODECS]
  return '\n'.join(
    [
      'Algorithms and runtimes:\n',
      _table(
        list(runs),
        list(PARTS),
        lambda row, part: with_algorithm(part, *runs[row]),
      ),
      'Aggregators, and what is done to updates before:\n',
      _table(parts, list(lib.AGGREGATORS), with_aggregator),
    ]
  )


if __name__ == '__main__':
  print(tables())
