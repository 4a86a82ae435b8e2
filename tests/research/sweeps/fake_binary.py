"""Stands in for a training binary: writes metrics.csv without any training.

With `--x` and `--seed`, accuracy is x after two rounds, plus a hundredth of the
seed. x=9 diverges, x=7 fails as long as there is a file `fail` in the folder of
the runs, x=5 sleeps there for ever as long as there is one called `sleep`.
"""

import pathlib
import sys
import time


def main() -> None:
  given = dict(word.lstrip('-').partition('=')[::2] for word in sys.argv[1:])
  root = pathlib.Path(given['root_output_dir'])
  run = root / given['experiment_name']
  run.mkdir(parents=True, exist_ok=True)
  with open(root / 'calls', 'a') as calls:
    calls.write(f'{run.name} {" ".join(sys.argv[1:])}\n')
  if given['x'] == '7' and (root / 'fail').exists():
    sys.exit('out of luck')
  print('training', flush=True)
  while given['x'] == '5' and (root / 'sleep').exists():
    time.sleep(0.01)
  value = float(given['x']) + float(given['seed']) / 100
  last = 'nan' if given['x'] == '9' else repr(value)
  (run / 'metrics.csv').write_text(
    f'round,test_accuracy,test_loss\n1,{value + 1!r},2.0\n2,{last},1.0\n'
  )


if __name__ == '__main__':
  main()
