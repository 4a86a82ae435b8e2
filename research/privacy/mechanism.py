"""Accountants of every mechanism whose noise is not shared between clients."""

import functools
import pathlib

from research.privacy import (
  accounting,
  calibration,
  guarantee,
  local,
  matrix_factorization,
)

GAUSSIAN = 'gaussian'
MECHANISMS = (GAUSSIAN, *matrix_factorization.MECHANISMS, *local.MECHANISMS)


@functools.cache
def strategy(
  mechanism: str,
  total_rounds: int,
  min_separation: int | None,
  dp_bands: int | None = None,
  blt_buffers: int | None = None,
  tree_restart_rounds: int | None = None,
) -> matrix_factorization.Strategy | None:
  """How a mechanism's noise is correlated; None if it is not.

  Optimising it can take seconds: aggregator and accountant share the result.

  Args:
    mechanism: A name.
    total_rounds: See `matrix_factorization.build`, as for what follows.
    min_separation: There.
    dp_bands: `bands` there.
    blt_buffers: `buffers` there; None is its default.
    tree_restart_rounds: `restart_period` there.

  Raises:
    ValueError: If an argument is out of range.
  """
  if mechanism not in matrix_factorization.MECHANISMS:
    return None
  if min_separation is None:
    raise guarantee.AccountingError(
      f'{mechanism} needs {guarantee.CYCLIC_POISSON} sampling and a minimum '
      'separation: its guarantee rests on how often and how closely a client '
      'takes part.'
    )
  buffers = {} if blt_buffers is None else {'buffers': blt_buffers}
  return matrix_factorization.build(
    mechanism,
    total_rounds,
    min_separation,
    bands=dp_bands,
    restart_period=tree_restart_rounds,
    **buffers,
  )


def accountant(
  mechanism: str,
  noise_multiplier: float,
  sampling: guarantee.Sampling,
  delta: float,
  correlation: matrix_factorization.Strategy | None = None,
) -> accounting.Accountant:
  """An accountant of a mechanism.

  Args:
    mechanism: One of `MECHANISMS`.
    noise_multiplier: Standard deviation of the noise / clipping norm.
    sampling: How clients come into rounds.
    delta: Of the guarantee.
    correlation: The mechanism's `strategy`.

  Raises:
    guarantee.AccountingError: If the mechanism has no such guarantee.
  """
  if mechanism in local.MECHANISMS:
    return local.build(mechanism, noise_multiplier, sampling, delta)
  return accounting.build_gaussian(
    noise_multiplier, sampling, delta, correlation
  )


def noise_multiplier(
  target_epsilon: float,
  mechanism: str,
  sampling: guarantee.Sampling,
  delta: float,
  correlation: matrix_factorization.Strategy | None = None,
  cache_folder: str | pathlib.Path | None = None,
) -> float:
  """The least noise that keeps all rounds of a run within a budget.

  Args:
    target_epsilon: Of the guarantee after all rounds.
    mechanism: One of `MECHANISMS`.
    sampling: How clients come into rounds.
    delta: Of the guarantee.
    correlation: The mechanism's `strategy`.
    cache_folder: Where what takes seconds to compute is kept.

  Raises:
    guarantee.AccountingError: If no sensible noise gives the target.
  """
  if mechanism in local.MECHANISMS:
    return local.noise_multiplier(target_epsilon, mechanism, sampling, delta)
  return calibration.noise_multiplier(
    target_epsilon, delta, sampling, correlation, cache_folder=cache_folder
  )
