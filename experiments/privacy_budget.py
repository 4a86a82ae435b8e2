"""Says what privacy would cost, before anything is trained.

Epsilon of runs with given noise, or the noise that a target epsilon asks for:

  python -m experiments.privacy_budget --population=3400 \\
    --clients_per_round=100 --total_rounds=500 --noise_multiplier=0.6,0.8,1.0
  python -m experiments.privacy_budget --population=3400,34000 \\
    --clients_per_round=100 --total_rounds=500 --target_epsilon=2,8

Each of the flags for population, clients, rounds, noise and target takes a
list; every combination is a run. Prints a table, and writes it and a plot into
--root_output_dir/--experiment_name. The noise is Gaussian and independent in
each round unless --dp_mechanism says otherwise. What distributed noise takes
depends on the model: ask the experiment's binary, by --dry_run.
"""

import itertools
import math
from collections.abc import Callable, Sequence

from absl import flags

from datasets import download
from research import cli, flag_values
from research.aggregators import settings
from research.privacy import budget, guarantee, mechanism
from research.training import run_directory

_POPULATION = flags.DEFINE_list('population', None, 'Clients in total.')
_CLIENTS = flags.DEFINE_list(
  'clients_per_round', None, 'Of a round; expected under Poisson sampling.'
)
_ROUNDS = flags.DEFINE_list('total_rounds', None, 'Rounds.')
_NOISE = flags.DEFINE_list(
  'noise_multiplier', None, 'Standard deviation of the noise / clipping norm.'
)
_TARGET = flags.DEFINE_list(
  'target_epsilon', None, 'Epsilon after all rounds, in place of the noise.'
)
_DELTA = flags.DEFINE_float(
  'delta', None, 'By default 1 / population^1.1, rounded down to a digit.'
)
_SAMPLING = flags.DEFINE_enum(
  'client_sampling',
  guarantee.POISSON,
  guarantee.SCHEMES,
  'How clients come into rounds.',
)
_SEPARATION = flags.DEFINE_integer(
  'min_separation',
  None,
  f"Rounds between a client's turns; of {guarantee.CYCLIC_POISSON}.",
  lower_bound=1,
)
_MECHANISM = flags.DEFINE_enum(
  'dp_mechanism',
  mechanism.GAUSSIAN,
  mechanism.MECHANISMS,
  'The noise; distributed noise is planned by --dry_run of a binary.',
)
_SHAPE = {
  name: flags.DEFINE_integer(name, None, f'Of {owner}.', lower_bound=1)
  for owner, names in settings.DP_MECHANISMS.items()
  for name in names
}
_AGAINST = flags.DEFINE_enum(
  'plot_against', 'total_rounds', list(budget.AXES), 'Horizontal axis.'
)
_ROOT = flags.DEFINE_string('root_output_dir', 'runs', 'Folder of all runs.')
_NAME = flags.DEFINE_string('experiment_name', 'privacy_budget', 'Its folder.')
_CACHE = flags.DEFINE_string(
  'cache_dir', None, 'Where computed noise multipliers are kept.'
)


def _numbers(flag: flags.FlagHolder, kind: Callable[[str], float]) -> list:
  """The flag's list; raises where it has anything but numbers above 0."""
  try:
    values = [kind(text) for text in flag.value or ()]
  except ValueError:
    values = []
  if not values or not all(0 < value < math.inf for value in values):
    given = '' if flag.value is None else '=' + ','.join(flag.value)
    what = 'whole numbers' if kind is int else 'numbers'
    raise flags.IllegalFlagValueError(
      f'--{flag.name}{given}: give {what} above 0, separated by commas.'
    )
  return sorted(set(values))


def _samplings() -> list[guarantee.Sampling]:
  cells = itertools.product(
    _numbers(_POPULATION, int), _numbers(_CLIENTS, int), _numbers(_ROUNDS, int)
  )
  return [
    guarantee.Sampling(_SAMPLING.value, *cell, _SEPARATION.value)
    for cell in cells
  ]


def main(argv: Sequence[str]) -> None:
  """Prints a table, and writes a CSV file and a plot."""
  flag_values.refuse_arguments(argv)
  if (_NOISE.value is None) == (_TARGET.value is None):
    raise flags.IllegalFlagValueError(
      'Give either --noise_multiplier, to learn epsilon, or --target_epsilon, '
      'to learn the noise multiplier.'
    )
  if _TARGET.value is None:
    asked = {'noise_multipliers': _numbers(_NOISE, float)}
  else:
    asked = {'target_epsilons': _numbers(_TARGET, float)}
    if _AGAINST.value == 'noise_multiplier':
      raise flags.IllegalFlagValueError(
        '--plot_against=noise_multiplier: with --target_epsilon the noise is '
        'the result; plot it against another setting.'
      )
  flag_values.refuse_unused(
    sorted(set(_SHAPE) - set(settings.DP_MECHANISMS[_MECHANISM.value])),
    f'by --dp_mechanism={_MECHANISM.value}',
  )
  try:
    folder = run_directory.RunDirectory(_ROOT.value, _NAME.value)
    cache = download.cache_directory(_CACHE.value)
    planned = budget.runs(
      _samplings(),
      _DELTA.value,
      cache_folder=cache,
      mechanism=_MECHANISM.value,
      **asked,
      **{name: flag.value for name, flag in _SHAPE.items()},
    )
  except ValueError as error:
    raise flags.IllegalFlagValueError(str(error)) from error
  rows = [run.row() for run in planned]
  print(budget.table(rows))
  with folder:
    path = budget.write(rows, folder.path / 'privacy_budget.csv')
    plot = folder.plots / 'privacy_budget.png'
    budget.plot(planned, _AGAINST.value, plot)
  print(f'\ntable       {path}\nplot        {plot}')


if __name__ == '__main__':
  flags.mark_flags_as_required(['population', 'clients_per_round'])
  flags.mark_flag_as_required('total_rounds')
  cli.run(main)
