"""Learning processes whose clients have a state from round to round."""

import dataclasses
from typing import Any, NamedTuple

import tensorflow_federated as tff

from research.algorithms import attacks


class Output(NamedTuple):
  """What one round of a `StatefulProcess` gives.

  Attributes:
    state: The server's new state.
    metrics: At the server, as of a `tff.learning.templates.LearningProcess`.
    client_states: The clients' new states, in the order of the cohort.
  """

  state: Any
  metrics: Any
  client_states: Any


@dataclasses.dataclass(frozen=True)
class StatefulProcess:
  """A learning process whose clients have a state, which the caller keeps.

  TFF's `LearningProcess` hands clients nothing but data.

  Attributes:
    initialize: Makes the server's state, a `LearningAlgorithmState` of TFF.
    next: From (state, clients' data, clients' states) to an `Output`.
    initial_client_state: Makes the state of a client that was never asked.
    get_model_weights: Of a state, as in TFF.
    get_hparams: Of a state, as in TFF.
    set_hparams: From a state and hyperparameters to a state, as in TFF.
    has_own_models: Whether the clients' states are the trainable weights of
      models of their own, whose metrics in training are `personal`.
  """

  initialize: tff.Computation
  next: tff.Computation
  initial_client_state: tff.Computation
  get_model_weights: tff.Computation
  get_hparams: tff.Computation
  set_hparams: tff.Computation
  has_own_models: bool = False


AnyProcess = (
  tff.learning.templates.LearningProcess
  | StatefulProcess
  | attacks.AttackedProcess
)
