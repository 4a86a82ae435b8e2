"""Flags as values: defined once, refused when unused, saved and restored."""

import importlib
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import flags

FLAGS = flags.FLAGS

# Flags that name data, and those that say how it is divided.
_DATA_FLAGS = ('dataset', 'data_file')
_DIVISION_FLAGS = (
  'partition',
  'partition_clients',
  'shards_per_client',
  'dirichlet_alpha',
  'power_law_exponent',
  'classes_per_client',
  'quantity_skew_alpha',
  'validation_examples',
  'validation_by',
)
# Flags that say how data is generated.
_GENERATION_PREFIX = 'synthetic_'

# All flags of the groups in order, and those that cannot change a result.
_names: list[str] = []
_free: set[str] = set()


def define(kind: str, name: str, *args, free: bool = False, **kwargs):
  """Defines a flag that config.json saves.

  Args:
    kind: As in absl's DEFINE functions: string, integer, float, boolean, ...
    name: Of the flag.
    *args: Default and help text.
    free: Whether a run may go on with another value.
    **kwargs: Further arguments of the DEFINE function.

  Returns:
    The flag's holder.
  """
  _names.append(name)
  if free:
    _free.add(name)
  return getattr(flags, f'DEFINE_{kind}')(name, *args, **kwargs)


def enum(
  name: str,
  default: str | None,
  choices: Iterable[str],
  text: str,
  free: bool = False,
):
  """Defines a flag with a fixed set of values; see `define`."""
  return define('enum', name, default, list(choices), text, free=free)


def names() -> tuple[str, ...]:
  """All flags defined by `define`."""
  return tuple(_names)


def free_names() -> frozenset[str]:
  """Flags that may differ between a run and its continuation."""
  return frozenset(_free)


def refuse_unused(unused: Iterable[str], reason: str) -> None:
  """Raises if any of the flags is given or has not its default.

  A typo in an experiment must never pass for a setting.

  Args:
    unused: Flags that nothing uses.
    reason: Why, as the end of the sentence "--name is not used ...".

  Raises:
    flags.IllegalFlagValueError: Naming the flags that were set.
  """
  wrong = [
    f'--{name}'
    for name in unused
    if name in FLAGS
    and (FLAGS[name].present or FLAGS[name].value != FLAGS[name].default)
  ]
  if wrong:
    verb = 'is' if len(wrong) == 1 else 'are'
    raise flags.IllegalFlagValueError(
      f'{", ".join(wrong)} {verb} not used {reason}: leave out what has no '
      'effect.'
    )


def refuse_arguments(argv: Sequence[str]) -> None:
  """Raises if the command line has anything besides flags."""
  if len(argv) > 1:
    raise flags.IllegalFlagValueError(
      f'Only flags are expected, given {" ".join(argv[1:])!r}.'
    )


def values() -> dict[str, Any]:
  """Every flag, for config.json."""
  skipped = ('from_config', 'dry_run')
  return {name: FLAGS[name].value for name in _names if name not in skipped}


def read_saved(path: str | pathlib.Path) -> dict[str, Any]:
  """Reads a config.json.

  Args:
    path: The file.

  Returns:
    Its content, with `flags` among it.

  Raises:
    flags.IllegalFlagValueError: If the file is not a config.json of a run.
  """
  try:
    config = json.loads(pathlib.Path(path).read_text())
    if isinstance(config['flags'], dict):
      return config
    reason = 'it has no flags'
  except (OSError, ValueError, KeyError, TypeError) as error:
    reason = repr(error)
  raise flags.IllegalFlagValueError(
    f'{path} is not the config.json of a run: {reason}.'
  )


def _other_data_asked_for() -> bool:
  return any(name in FLAGS and FLAGS[name].present for name in _DATA_FLAGS)


def check_same_data(config: Mapping[str, Any], content_sha256: str) -> None:
  """Raises if a run's data has changed although no flag asks for other data.

  Args:
    config: The run's config.json.
    content_sha256: Hash of the data as it is now.

  Raises:
    flags.IllegalFlagValueError: If the hash differs.
  """
  expected = config['data_sha256']
  if content_sha256 != expected and not _other_data_asked_for():
    raise flags.IllegalFlagValueError(
      f'The data is not what the run was trained on: its SHA-256 is '
      f'{content_sha256}, that of the run {expected}. Restore the file, or '
      'name other data by --dataset.'
    )


def apply_saved(
  path: str | pathlib.Path, other_data_resets: bool = False
) -> None:
  """Sets every flag that the command line did not give from a config.json.

  Args:
    path: The file.
    other_data_resets: Whether flags on how the data is generated or divided
      keep their defaults when the command line names other data.

  Raises:
    flags.IllegalFlagValueError: If the file is not a config.json of a run, or
      names a flag that this binary lacks.
  """
  saved = read_saved(path)['flags']
  unknown = sorted(set(saved) - set(FLAGS))
  if unknown:
    raise flags.IllegalFlagValueError(
      f'{path} has flags that this binary lacks: {", ".join(unknown)}.'
    )
  reset = other_data_resets and _other_data_asked_for()
  for name, value in saved.items():
    of_data = name in _DIVISION_FLAGS or name.startswith(_GENERATION_PREFIX)
    if not FLAGS[name].present and not (reset and of_data):
      FLAGS[name].value = value


def apply_from_config() -> None:
  """Does what `--from_config` asks for."""
  if FLAGS.from_config:
    apply_saved(FLAGS.from_config)


def parse_with_run(argv: list[str]) -> list[str]:
  """A `flags_parser` for commands on a finished run (`--run_dir`).

  Imports the binary that made the run, so that its flags exist, parses the
  command line, and takes all other flags from the run's config.json.

  Args:
    argv: The command line.

  Returns:
    The arguments that are no flags.
  """
  run_dir = None
  for position, argument in enumerate(argv):
    name, _, value = argument.lstrip('-').partition('=')
    if argument.startswith('-') and name == 'run_dir':
      run_dir = value or ''.join(argv[position + 1 : position + 2])
  if not run_dir:
    return FLAGS(argv)
  config = pathlib.Path(run_dir).expanduser() / 'config.json'
  if not config.is_file():
    raise flags.IllegalFlagValueError(
      f'--run_dir={run_dir}: there is no run, since there is no {config.name}.'
    )
  importlib.import_module(read_saved(config)['binary'])
  rest = FLAGS(argv)
  apply_saved(config, other_data_resets=True)
  return rest
