"""TFF's image-classification tutorial: its first three rounds, to the digit.

Needs the federated EMNIST database, which no package carries: give the folder
that has emnist_all.sqlite (or .lzma) in TFF_RESEARCH_EMNIST_DIR.
"""

import collections
import os

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from datasets import load
from models import emnist as models

VARIABLE = 'TFF_RESEARCH_EMNIST_DIR'

# Accuracy and loss printed in the notebook of TFF 0.87's documentation.
GOLDEN = (
  (0.12345679, 3.1193733),
  (0.14012346, 2.9851403),
  (0.1590535, 2.8617127),
)


def tutorial_dataset(arrays):
  dataset = tf.data.Dataset.from_tensor_slices(dict(arrays))
  dataset = dataset.repeat(5).shuffle(100, seed=1).batch(20)
  return dataset.map(
    lambda batch: collections.OrderedDict(
      x=tf.reshape(batch['x'], [-1, 784]), y=tf.reshape(batch['y'], [-1, 1])
    )
  )


@pytest.mark.skipif(VARIABLE not in os.environ, reason='EMNIST file not given')
def test_first_three_rounds(stock_runtime):
  data = load.load(
    load.LoadConfig('emnist_digits', data_dir=os.environ[VARIABLE])
  )
  clients = [
    tutorial_dataset(data.train.client(client))
    for client in sorted(data.train.client_ids)[:10]
  ]

  def model_fn():
    return tff.learning.models.from_keras_model(
      models.build(
        'logistic_regression', input_shape=[784], num_classes=10, seed=0
      ),
      input_spec=clients[0].element_spec,
      loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
      metrics=[tf.keras.metrics.SparseCategoricalAccuracy('accuracy')],
    )

  process = tff.learning.algorithms.build_weighted_fed_avg(
    model_fn,
    client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.02),
    server_optimizer_fn=tff.learning.optimizers.build_sgdm(1.0),
  )
  state = process.initialize()
  for accuracy, loss in GOLDEN:
    output = process.next(state, clients)
    state = output.state
    train = output.metrics['client_work']['train']
    np.testing.assert_allclose(train['accuracy'], accuracy, atol=1e-7)
    np.testing.assert_allclose(train['loss'], loss, atol=1e-5)
