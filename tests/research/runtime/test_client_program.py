"""The program of an algorithm whose clients bring more than examples."""

import numpy as np
import pytest

from research.runtime import client_program
from tests.research.runtime import processes, small_tasks


@pytest.mark.parametrize('algorithm, states', [('fed_avg', 0), ('scaffold', 4)])
def test_clients_states_are_arguments_and_results(algorithm, states):
  task = small_tasks.build('mlp')
  process = processes.of_algorithm(algorithm)(task.model_fn)
  process = getattr(process, 'process', process)
  program = client_program.build(task, process, num_clients=2, batches=[8, 3])
  names = program.argument_names
  assert len(names) == len(program.example_arguments)
  own = dict(zip(names, program.example_arguments, strict=True))
  shapes = [
    own[name].shape for name in names if name.startswith('client_state')
  ]
  weights = [v.shape for v in task.build_keras_model().trainable_variables]
  assert shapes == ([(2, *shape) for shape in weights] if states else [])
  results = program.function(*program.example_arguments)
  assert len(results) == len(program.result_names)
  kept = [name for name in program.result_names if name.startswith('client_')]
  assert len(kept) == states
  assert all(np.isfinite(value).all() for value in results[-states:] or [0.0])
