"""Federated equals centralised: one client with all texts, a step a round."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from models import bert
from research.algorithms import fed_avg, optimizers
from tests.research.runtime import equality, small_tasks
from tests.research.tasks import tiny_text

RATE, STEPS, BATCH = 0.2, 20, 6


@pytest.mark.parametrize(
  'name, tuning',
  [
    ('sequence_classification', bert.FineTuning('full')),
    ('sequence_classification', tiny_text.LORA),
    ('token_classification', tiny_text.LORA),
    ('masked_language_modelling', bert.FineTuning('full')),
  ],
  ids=['full', 'lora', 'tagging', 'masked'],
)
def test_weights_follow_keras(name, tuning):
  """With dropout and masks, which follow from the batch here and there."""
  task = tiny_text.build(name, tuning, sizes=(48,), dropout=0.1)
  (everything,) = small_tasks.batches(
    task, batch_size=BATCH, epochs=3, empty=False
  )
  rows = np.split(everything.order, np.cumsum(everything.lengths)[:-1])
  process = fed_avg.build(
    task.model_fn,
    client_optimizer=optimizers.build('sgd', RATE),
    server_optimizer=optimizers.build('sgd', 1.0),
    loop_implementation=tff.learning.LoopImplementation.DATASET_REDUCE,
  )
  model = task.build_keras_model()
  start = [v.numpy() for v in model.trainable_variables]
  frozen = [v.numpy() for v in model.non_trainable_variables]
  model.compile(tf.keras.optimizers.SGD(RATE), task.build_loss())
  with equality.in_process_runtime('scan'):
    state = process.initialize()
    for step in range(STEPS):
      client = dataclasses.replace(
        everything, order=rows[step], lengths=np.array([BATCH], np.int32)
      )
      state = process.next(state, [client]).state
      batch = task.preprocess(
        {k: tf.constant(v[rows[step]]) for k, v in everything.examples.items()}
      )
      model.train_on_batch(batch['x'], batch['y'])
      found = state.global_model_weights.trainable
      for mine, its in zip(found, model.trainable_variables, strict=True):
        np.testing.assert_allclose(mine, its, atol=1e-5, rtol=1e-5)
  moved = [
    np.abs(value - before).max()
    for value, before in zip(found, start, strict=True)
  ]
  assert np.mean(moved) > 0.02 and np.min(moved) >= 0
  for before, variable in zip(
    frozen, model.non_trainable_variables, strict=True
  ):
    np.testing.assert_array_equal(variable, before)
