"""What the tests of encoders share."""

import pytest

from datasets import download


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
  """Keeps every test away from the user's cache."""
  cache = tmp_path_factory.mktemp('cache')
  monkeypatch.setenv(download.CACHE_VARIABLE, str(cache))
  return cache
