"""What the tests of the benchmark share."""

import pytest

from datasets import download


@pytest.fixture(autouse=True, scope='session')
def own_cache(tmp_path_factory):
  """Keeps the encoders' weights out of the user's cache."""
  with pytest.MonkeyPatch.context() as patch:
    cache = tmp_path_factory.mktemp('cache')
    patch.setenv(download.CACHE_VARIABLE, str(cache))
    yield
