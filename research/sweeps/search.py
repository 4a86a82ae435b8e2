"""Which cells a sweep runs: all of a grid, random ones, or by a model.

Random search: Bergstra and Bengio, "Random search for hyper-parameter
optimization", JMLR 13, 2012. Bayesian search: expected improvement under a
Gaussian process, as in Snoek et al., "Practical Bayesian optimization of
machine learning algorithms", NeurIPS 2012 (https://arxiv.org/abs/1206.2944).
The process is scikit-learn's.
"""

import math
import warnings
from collections.abc import Sequence

import numpy as np
from absl import flags
from sklearn import exceptions, gaussian_process
from sklearn.gaussian_process import kernels

from research.sweeps import space as space_lib

GRID, RANDOM, BAYESIAN = KINDS = ('grid', 'random', 'bayesian')

# Keeps the draws of different purposes apart.
_DRAW, _CANDIDATES, _NEIGHBOURS = range(3)
_NUM_CANDIDATES = 1000
_NUM_NEIGHBOURS = 500
# A range of integers may hold fewer cells than its size says.
_DRAWS_PER_TRIAL = 100


def random_start(space: space_lib.Space) -> int:
  """How many cells a Bayesian search draws at random before it has a model."""
  return 3 + len(space.dimensions)


def random_cells(
  space: space_lib.Space, trials: int, seed: int
) -> list[space_lib.Cell]:
  """Draws cells that all differ.

  Args:
    space: What to draw from.
    trials: How many. More trials draw the same cells first.
    seed: Decides the draws.

  Returns:
    The cells.

  Raises:
    flags.IllegalFlagValueError: If the space has too few cells.
  """
  cells = []
  for number in range(_DRAWS_PER_TRIAL * trials):
    cell = space.draw(np.random.default_rng([seed, _DRAW, number]))
    if cell not in cells:
      cells.append(cell)
    if len(cells) == trials:
      return cells
  raise _too_many(trials, f'about {len(cells)}')


def _too_many(trials: int, cells: int | str) -> flags.IllegalFlagValueError:
  return flags.IllegalFlagValueError(
    f'--trials={trials}: --grid has just {cells} cells; give fewer trials, '
    'ranges, or --search=grid.'
  )


def planned(
  space: space_lib.Space, kind: str, trials: int | None, seed: int
) -> list[space_lib.Cell]:
  """The cells that are known before any has run.

  Args:
    space: All cells.
    kind: One of `KINDS`.
    trials: How many to run; None for a grid.
    seed: Decides what is drawn.

  Returns:
    The cells; for a Bayesian search its random start.

  Raises:
    flags.IllegalFlagValueError: If `trials` does not fit the space.
  """
  if kind == GRID:
    return space.all_cells()
  if space.size is not None and space.size < trials:
    raise _too_many(trials, space.size)
  if kind == BAYESIAN:
    start = random_start(space)
    if trials <= start:
      raise flags.IllegalFlagValueError(
        f'--trials={trials}: the first {start} cells of a Bayesian search are '
        'random; give more trials, or --search=random.'
      )
    return random_cells(space, start, seed)
  return random_cells(space, trials, seed)


def propose(
  space: space_lib.Space,
  done: Sequence[tuple[space_lib.Cell, float]],
  pending: Sequence[space_lib.Cell],
  seed: int,
) -> space_lib.Cell | None:
  """Returns the cell from which a Gaussian process expects the most.

  A pending cell counts as if it had the value that the process predicts
  (the Kriging believer of Ginsbourger et al., "Kriging is well-suited to
  parallelize optimization", 2010, Section 4.2). The result is a function of the
  arguments.

  Args:
    space: All cells.
    done: Cells with their scores, the greater the better. One that is not
      finite counts as the worst.
    pending: Cells that are running.
    seed: Decides which candidates are compared.

  Returns:
    A cell that is neither done nor pending; None if no candidate is left.
  """
  cells, values = [cell for cell, _ in done], _tamed([v for _, v in done])
  x = space.features(cells)
  process = _process(len(x[0]))
  with warnings.catch_warnings():
    # A length scale at its bound only means that a flag hardly matters.
    warnings.simplefilter('ignore', exceptions.ConvergenceWarning)
    process.fit(x, values)
  if pending:
    believed = space.features(pending)
    y = np.concatenate([values, process.predict(believed)])
    x = np.concatenate([x, believed])
    process = gaussian_process.GaussianProcessRegressor(
      process.kernel_, optimizer=None, normalize_y=True
    ).fit(x, y)
  best = cells[int(np.argmax(values))]
  known = [*cells, *pending]
  number = len(known)
  rng = np.random.default_rng([seed, _CANDIDATES, number])
  candidates = [space.draw(rng) for _ in range(_NUM_CANDIDATES)]
  rng = np.random.default_rng([seed, _NEIGHBOURS, number])
  candidates += [space.near(best, rng) for _ in range(_NUM_NEIGHBOURS)]
  candidates = [cell for cell in candidates if cell not in known]
  if not candidates:
    return None
  mean, deviation = process.predict(space.features(candidates), return_std=True)
  gain = expected_improvement(mean, deviation, values.max())
  return candidates[int(np.argmax(gain))]


def expected_improvement(
  mean: np.ndarray, deviation: np.ndarray, best: float
) -> np.ndarray:
  """Expectation of max(0, f - best) for f normally distributed.

  Equation 2 of Snoek et al. 2012, for a maximum.

  Args:
    mean: Means of f, a float array.
    deviation: Their standard deviations, of the same shape.
    best: The value to exceed.

  Returns:
    The expectations, of the same shape.
  """
  deviation = np.maximum(deviation, 1e-12)
  z = (mean - best) / deviation
  density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
  below = np.array([(1 + math.erf(v / math.sqrt(2))) / 2 for v in z])
  return (mean - best) * below + deviation * density


def _process(features: int) -> gaussian_process.GaussianProcessRegressor:
  scales = kernels.Matern(np.ones(features), (0.05, 10.0), nu=2.5)
  amplitude = kernels.ConstantKernel(1.0, (0.05, 50.0))
  noise = kernels.WhiteKernel(1e-3, (1e-6, 1.0))
  return gaussian_process.GaussianProcessRegressor(
    amplitude * scales + noise,
    normalize_y=True,
    n_restarts_optimizer=1,
    random_state=0,
  )


def _tamed(scores: Sequence[float]) -> np.ndarray:
  """Replaces what is not finite by the worst, and cuts off what is far worse.

  A diverged run has a loss of any size, beside which all others look alike. No
  score stays more than three times as far below the best as the median is.
  """
  values = np.array(scores, dtype=float)
  finite = values[np.isfinite(values)]
  if not len(finite):
    return np.zeros(len(values))
  values[~np.isfinite(values)] = finite.min()
  best, median = values.max(), np.median(values)
  if best == median:
    return values
  return np.maximum(values, best - 3 * (best - median))
