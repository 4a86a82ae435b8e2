"""What several tests of this folder share."""

import pytest
from absl import logging


@pytest.fixture
def warnings(monkeypatch):
  """The texts of absl's warnings."""
  messages = []
  monkeypatch.setattr(
    logging, 'warning', lambda form, *values: messages.append(form % values)
  )
  return messages
