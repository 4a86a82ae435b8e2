"""An encoder of two small layers with random weights, for tests."""

import dataclasses

import numpy as np

from models import bert, bert_checkpoint, weight_store
from tests.models import test_bert_checkpoint as forms

CONFIG = forms.CONFIG
IDS = forms.IDS.astype(np.int32)
MASK = forms.MASK


def checkpoint(
  *, seed: int = 0, head: bool = True, **changes
) -> bert_checkpoint.Checkpoint:
  """An encoder with normal weights, which no training would give.

  Args:
    seed: Of the weights.
    head: Whether it has the head for masked tokens.
    **changes: Of `CONFIG`, but not of its sizes.
  """
  return bert_checkpoint.Checkpoint(
    config=dataclasses.replace(CONFIG, **changes),
    tensors=forms.random_tensors(head, seed),
    vocabulary=forms.VOCABULARY,
    lowercase=True,
    strip_accents=True,
    name='tiny',
  )


def builder(directory, **kwargs) -> bert.Builder:
  """A builder of that encoder.

  Args:
    directory: Gets its weights.
    **kwargs: Of `bert.Builder`, and `checkpoint`.
  """
  store = weight_store.WeightStore(directory)
  kwargs.setdefault('checkpoint', checkpoint())
  return bert.Builder(**{'store': store, **kwargs})


def shake(variables, seed: int = 3) -> None:
  """Adds normal numbers to variables, so that none stays zero."""
  rng = np.random.default_rng(seed)
  for variable in variables:
    variable.assign_add(rng.normal(size=variable.shape).astype(np.float32))
