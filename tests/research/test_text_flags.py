import types

import pytest

from research import text_flags
from research.runtime import planner


@pytest.mark.parametrize(
  ('given', 'parameters', 'expected'),
  [
    ({}, planner.SMALL_MODEL, True),
    ({}, planner.SMALL_MODEL + 1, False),
    ({'xla': 'on'}, 10**9, True),
    ({'client_plan': 'vmap'}, 10**9, True),
    ({'client_plan': 'scan'}, 1, False),
    ({'runtime': 'stock'}, 1, False),
    ({'device': 'gpu'}, 10**9, True),
  ],
)
def test_batches_are_cut_where_the_planner_does_not_vectorise(
  monkeypatch, given, parameters, expected
):
  defaults = {
    'runtime': 'in_process',
    'device': 'cpu',
    'client_plan': 'auto',
    'xla': 'auto',
  }
  flags = types.SimpleNamespace(**{**defaults, **given})
  monkeypatch.setattr(text_flags, 'FLAGS', flags)
  assert text_flags._vectorises(parameters) is expected
