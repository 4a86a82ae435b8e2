"""A model that chooses which variables a server sends beside trained ones."""

from collections.abc import Sequence

import tensorflow as tf
import tensorflow_federated as tff


class FrozenModel(tff.learning.models.VariableModel):
  """Another model with other variables that are not trained.

  The initial values of those that it leaves out must be constants, as those of
  `models.weight_store`: then every client makes them by itself, and neither
  messages nor checkpoints have them.
  """

  def __init__(
    self,
    model: tff.learning.models.VariableModel,
    statistics: Sequence[tf.Variable] = (),
  ):
    """Wraps a model.

    Args:
      model: The other model.
      statistics: Variables that are not trained and yet sent.
    """
    self._model = model
    self._statistics = list(statistics)

  @property
  def trainable_variables(self):
    return self._model.trainable_variables

  @property
  def non_trainable_variables(self):
    return self._statistics

  @property
  def local_variables(self):
    return self._model.local_variables

  @property
  def input_spec(self):
    return self._model.input_spec

  def predict_on_batch(self, batch_input, training=True):
    return self._model.predict_on_batch(batch_input, training)

  def forward_pass(self, batch_input, training=True):
    return self._model.forward_pass(batch_input, training)

  def report_local_unfinalized_metrics(self):
    return self._model.report_local_unfinalized_metrics()

  def metric_finalizers(self):
    return self._model.metric_finalizers()

  def reset_metrics(self):
    return self._model.reset_metrics()
