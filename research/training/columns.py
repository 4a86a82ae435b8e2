"""The columns of metrics.csv."""

from research.aggregators import bits, rejection
from research.algorithms import weight_constraints
from research.tasks import task as task_lib
from research.training import faults as faults_lib
from research.training import private_rounds

# What clients' own models come to while they are trained.
PERSONAL = 'personal'
# Of all examples together: clients that train don't tell what these need.
_OF_EVALUATION = ('purity', 'f1', 'perplexity')


def metric_names(task: task_lib.Task) -> tuple[str, ...]:
  """The metrics of a task, as `evaluation.Evaluator` names them."""
  further = {
    'classification': ('accuracy',),
    'clustering': ('purity',),
    'tagging': ('accuracy', 'f1'),
    'masked_language_modelling': ('accuracy', 'perplexity'),
  }
  return ('loss', *further.get(task.kind, ()))


def _is_measured(split: str, name: str) -> bool:
  return name not in _OF_EVALUATION or split in ('validation', 'test')


def columns(
  task: task_lib.Task,
  has_faults: bool = False,
  has_own_models: bool = False,
  is_private: bool = False,
  is_pruned: bool = False,
) -> tuple[str, ...]:
  """The columns of metrics.csv.

  Args:
    task: What is learned.
    has_faults: Whether clients fail, lag or lie.
    has_own_models: Whether clients have models of their own.
    is_private: Whether there is differential privacy.
    is_pruned: Whether weights are pruned.
  """
  splits = ['train', *([PERSONAL] if has_own_models else [])]
  splits += ['validation', 'test']
  if task.data.validation is None:
    splits.remove('validation')
  return (
    'round',
    *(
      f'{split}_{name}'
      for split in splits
      for name in metric_names(task)
      if _is_measured(split, name)
    ),
    'clients',
    'examples',
    'empty_clients',
    rejection.REJECTED,
    *(faults_lib.COLUMNS if has_faults else ()),
    bits.UPLOAD,
    bits.DOWNLOAD,
    'client_learning_rate',
    'server_learning_rate',
    *([weight_constraints.SPARSITY] if is_pruned else []),
    *(private_rounds.COLUMNS if is_private else ()),
  )
