"""Fine-tuning for a client reaches embeddings, whose gradients are sparse."""

import numpy as np

from research.training import evaluation, personalization
from tests.research.export import text_tasks


def test_embeddings_of_what_was_read_are_trained():
  task = text_tasks.make()
  evaluator = evaluation.Evaluator(task)
  backbone = evaluator.model.get_layer('encoder').backbone
  table = backbone.token_embedding.embeddings
  before = table.numpy()
  settings = personalization.Settings(
    epochs=1, learning_rate=0.1, batch_size=4, seed=0
  )
  client = task.data.train.client_ids[0]
  personalization.FineTuner(task, evaluator, settings)(client)
  moved = np.flatnonzero(np.abs(table.numpy() - before).sum(axis=1))
  read = np.unique(task.data.train.client(client)['x'])
  assert set(moved) == set(read) - {0} or set(moved) == set(read)
