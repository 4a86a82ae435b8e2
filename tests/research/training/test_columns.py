"""Which columns metrics.csv has."""

import dataclasses

import pytest

from research.training import columns
from tests import toy

TASK = toy.linear_task(toy.random_clients())


@pytest.mark.parametrize(
  'kind, further, everywhere',
  [
    ('classification', ['accuracy'], True),
    ('tagging', ['accuracy', 'f1'], False),
    ('masked_language_modelling', ['accuracy', 'perplexity'], False),
    ('clustering', ['purity'], False),
    ('regression', [], True),
  ],
)
def test_what_needs_all_examples_is_not_of_training(kind, further, everywhere):
  data = dataclasses.replace(TASK.data, validation=TASK.data.test)
  task = dataclasses.replace(TASK, kind=kind, data=data)
  assert list(columns.metric_names(task)) == ['loss', *further]
  found = columns.columns(task, has_own_models=True)
  for split in ('train', 'personal', 'validation', 'test'):
    own = [name for name in found if name.startswith(f'{split}_')]
    names = ['loss', *further]
    if not everywhere and split in ('train', 'personal'):
      names.remove(further[-1])
    assert own == [f'{split}_{name}' for name in names]
  task = dataclasses.replace(TASK, kind=kind)
  found = columns.columns(task)
  assert not [n for n in found if n.startswith(('validation', 'personal'))]
