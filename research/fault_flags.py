"""The flags of faults; see `research.training.faults`."""

from absl import flags

from research import flag_values
from research.algorithms import attacks, registry
from research.tasks import task as task_lib
from research.training import faults

FLAGS = flag_values.FLAGS

_RATES = {
  'client_dropout_rate': "Probability that a round's client never answers.",
  'straggler_rate': 'Probability that it does a part of its steps only.',
  'poisoned_fraction': 'Probability of a client to be poisoned for all rounds.',
}
# What an algorithm must have a form for; flipped labels are data.
_OF_UPDATES = (faults.SIGN_FLIP, faults.SCALE, faults.NOT_FINITE)


class FaultFlags:
  """Clients that fail, lag or lie."""

  def __init__(self):
    default = faults.Faults()
    for name, text in _RATES.items():
      flag_values.define(
        'float',
        name,
        getattr(default, name),
        text,
        lower_bound=0.0,
        upper_bound=1.0,
      )
    flag_values.enum(
      'poison', default.poison, faults.POISONS, 'What poisoned clients do.'
    )
    text = 'Factor of the updates of --poison=scale.'
    flag_values.define('float', 'poison_scale', default.poison_scale, text)

  def attack(self) -> attacks.Attack | None:
    """How clients change what they send, if they do.

    Raises:
      flags.IllegalFlagValueError: If it can't, or flags don't fit together.
    """
    poison, fraction = FLAGS.poison, FLAGS.poisoned_fraction
    if (poison == faults.NONE) != (fraction == 0):
      raise flags.IllegalFlagValueError(
        f'--poison={poison} with --poisoned_fraction={fraction:g}: give both, '
        'or neither.'
      )
    if poison != faults.SCALE:
      flag_values.refuse_unused(['poison_scale'], f'by --poison={poison}')
    if poison not in _OF_UPDATES:
      return None
    check_algorithm(f'--poison={poison}')
    return attacks.SCALE

  def get(self, task: task_lib.Task) -> faults.Faults:
    """Returns the faults.

    Raises:
      flags.IllegalFlagValueError: If the task has no labels to flip.
    """
    if FLAGS.poison == faults.LABEL_FLIP and task.kind != 'classification':
      raise flags.IllegalFlagValueError(
        f'--poison=label_flip wants classes; this task is a {task.kind}.'
      )
    names = [*_RATES, 'poison', 'poison_scale', 'seed']
    return faults.Faults(**{name: FLAGS[name].value for name in names})


def check_algorithm(what: str) -> None:
  """Raises if the algorithm's clients can't change what they send.

  Args:
    what: The flag that makes them do so.

  Raises:
    flags.IllegalFlagValueError: If so.
  """
  if not registry.ALGORITHMS[FLAGS.algorithm].can_be_attacked:
    able = [n for n, a in registry.ALGORITHMS.items() if a.can_be_attacked]
    raise flags.IllegalFlagValueError(
      f'{what} changes model updates, for which '
      f'--algorithm={FLAGS.algorithm} has no form; {", ".join(able)} have.'
    )
