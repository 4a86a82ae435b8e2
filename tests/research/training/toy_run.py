"""A resumable run of three numbers, for tests that kill it.

python -m tests.research.training.toy_run DIRECTORY ROUNDS
"""

import pathlib
import sys

import numpy as np

from research.training import checkpoint, metrics, run_directory

COLUMNS = ('round', 'loss', 'name')
KEEP = 2


def run(root: pathlib.Path, total_rounds: int) -> None:
  """Starts or resumes the run and goes on to `total_rounds`."""
  with run_directory.RunDirectory(root, 'toy') as directory:
    manager = checkpoint.CheckpointManager(directory.checkpoints, KEEP)
    restored = manager.load_latest()
    done = restored.round_num if restored else 0
    weights = (
      restored.leaves[0] if restored else np.array([1, 2, 3], np.float32)
    )
    table = metrics.MetricsCsv(directory.metrics_csv, COLUMNS)
    table.truncate_after(done)
    for round_num in range(done + 1, total_rounds + 1):
      weights = np.sin(weights * np.float32(1.7)) + np.float32(round_num)
      table.append(
        {'round': round_num, 'loss': weights.sum(), 'name': f'"{round_num}",'}
      )
      manager.save(round_num, [weights, round_num], {'loss': float(weights[0])})


def content(root: pathlib.Path) -> dict[str, bytes]:
  """Every file of the run, by its path."""
  return {
    str(path.relative_to(root)): path.read_bytes()
    for path in sorted(root.rglob('*'))
    if path.is_file()
  }


if __name__ == '__main__':
  run(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
