"""Package metadata.

The supported way in is `make env`: the locks first, then this package without
its dependencies. `python -m research.doctor` says why a resolver that reads
these dependencies on its own finds no solution.
"""

import pathlib

import setuptools

_ROOT = pathlib.Path(__file__).parent


def _requirements(name):
  """Returns the requirements that requirements/`name`.in states."""
  lines = (_ROOT / 'requirements' / f'{name}.in').read_text().splitlines()
  return [line for line in lines if line and not line.startswith('#')]


setuptools.setup(
  name='tff-research',
  version='0.1.0',
  description='Experiments with TensorFlow Federated, end to end.',
  license='Apache-2.0',
  python_requires='>=3.10,<3.12',
  packages=setuptools.find_packages(
    include=[
      f'{name}{suffix}'
      for name in ('research', 'models', 'datasets', 'experiments')
      for suffix in ('', '.*')
    ]
  ),
  package_data={
    'experiments': ['*.flags', 'papers/**/*.flags'],
    'research.serving': ['page/*'],
  },
  install_requires=_requirements('base'),
  extras_require={
    name: _requirements(name) for name in ('bert', 'dev', 'gpu', 'onnx', 'ray')
  },
)
