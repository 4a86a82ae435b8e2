"""How a binary starts; a user's mistake ends in one line, not a traceback."""

import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from datasets import federated_data
from research.privacy import audit_report
from research.training import run_directory

_USER_ERRORS = (
  flags.Error,
  federated_data.DataError,
  run_directory.ResumeError,
  run_directory.RunLockedError,
  FileNotFoundError,
  ImportError,
)
_EXIT_CODE = 2
_VIOLATION_EXIT_CODE = 3


def _guard(function: Callable) -> Callable:
  def guarded(argv):
    try:
      return function(argv)
    except _USER_ERRORS as error:
      if logging.vlog_is_on(1):
        raise
      print(f'error: {error}', file=sys.stderr)
      sys.exit(_EXIT_CODE)
    except audit_report.ViolationError as error:
      print(f'error: {error}', file=sys.stderr)
      sys.exit(_VIOLATION_EXIT_CODE)

  return guarded


def run(
  main: Callable[[Sequence[str]], None],
  flags_parser: Callable[[list[str]], list[str]] | None = None,
) -> None:
  """Runs a binary's `main`; use it in place of `absl.app.run`.

  Exit codes: 0 done, 1 a bug (with a traceback) or a flag that absl can't
  parse, 2 flags, data or a run directory that don't fit (one line), 3 an audit
  that contradicts the claimed privacy, 130 Ctrl-C, 143 SIGTERM. `--verbosity=1`
  shows the traceback of a mistake, too.

  Args:
    main: Takes the arguments that are no flags, after the program's name.
    flags_parser: Parses the command line; absl's own if None.
  """
  options = {'flags_parser': _guard(flags_parser)} if flags_parser else {}
  app.run(_guard(main), **options)
