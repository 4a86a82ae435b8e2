from tests.experiments import binary


def test_memory_prints_growth_and_fails_beyond_its_limit():
  short = ('--rounds=40', '--warm_up=10', '--every=10')
  result = binary.run('benchmark.memory', *short, '--limit_megabytes=1000')
  assert result.returncode == 0, result.stderr
  assert 'worker grew by' in result.stdout
  result = binary.run('benchmark.memory', *short, '--limit_megabytes=-1000')
  assert result.returncode == 1
  assert 'more than -1000' in result.stderr
