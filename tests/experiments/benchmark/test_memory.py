import pytest

from tests.experiments import binary

_SHORT = ('--rounds=40', '--warm_up=10', '--every=10')


@pytest.mark.parametrize('runtime', ['stock', 'in_process'])
def test_memory_prints_growth(runtime):
  result = binary.run(
    'benchmark.memory',
    *_SHORT,
    f'--runtime={runtime}',
    '--limit_megabytes=1000',
  )
  assert result.returncode == 0, result.stderr
  assert 'python grew by' in result.stdout
  # Only stock has a worker, which is resident in memory.
  assert ('"worker": 0.0' in result.stdout) is (runtime == 'in_process')


def test_memory_fails_beyond_its_limit():
  result = binary.run('benchmark.memory', *_SHORT, '--limit_megabytes=-1000')
  assert result.returncode == 1
  assert 'more than -1000' in result.stderr
