"""BERT tasks: what they refuse, trim and weigh; what rounds send and read."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from datasets import federated_data
from models import bert, token_labels
from research.aggregators import bits
from research.algorithms import fed_avg, optimizers
from research.runtime import planner
from research.tasks import bert as tasks
from research.tasks import task as task_lib
from tests.research.runtime import equality, small_tasks
from tests.research.tasks import tiny_text

HIDDEN, INSIDE = tiny_text.FORM.hidden_size, tiny_text.FORM.intermediate_size
# Two matrices of rank 2 beside six layers, and the head.
LORA_WEIGHTS = 2 * (4 * 2 * HIDDEN + 2 * (HIDDEN + INSIDE))
TRAINED = LORA_WEIGHTS + 3 * HIDDEN + 3
BASE = tiny_text.checkpoint().parameters


def process_of(task):
  return fed_avg.build(
    task.model_fn,
    client_optimizer=optimizers.build('sgd', 0.1),
    server_optimizer=optimizers.build('momentum', 1.0),
    loop_implementation=tff.learning.LoopImplementation.DATASET_REDUCE,
  )


@pytest.fixture(scope='module')
def lora():
  task = tiny_text.build()
  return task, process_of(task)


def test_a_task_is_of_the_kind_of_its_labels():
  kinds = {}
  for name in tasks.TASKS:
    task = tiny_text.build(name)
    kinds[task.kind] = task
    assert task.example_shape == (8,) and task.has_frozen_weights
    assert task.initial_weights_sha256 == tiny_text.checkpoint().sha256
    # 8,192 tokens at once.
    assert task.evaluation_batch_size == 1024
    shapes = {n: s.shape.as_list() for n, s in task.input_spec.items()}
    y = [None] if task.kind == 'classification' else [None, 8]
    assert shapes == {'x': [None, 8], 'y': y}
  outputs = {k: t.build_keras_model().output_shape for k, t in kinds.items()}
  assert outputs == {
    'classification': (None, 3),
    'tagging': (None, None, 3),
    'masked_language_modelling': (None, None, 11),
  }


def test_pooling_is_a_setting():
  logits = [
    tiny_text.build(pooling=pooling).build_keras_model()(
      tiny_text.data('').train.client('client_0')['x']
    )
    for pooling in bert.POOLINGS
  ]
  assert np.abs(logits[0] - logits[1]).max() > 1e-3


def test_texts_longer_than_the_encoder_are_refused():
  data = tiny_text.data('sequence_classification')
  long = {'x': np.ones([2, 9], np.int32), 'y': np.zeros(2, np.int32)}
  split = federated_data.Split.from_client_arrays({'a': long})
  data = dataclasses.replace(data, train=split)
  message = '--max_length=9: the encoder has 8 positions'
  with pytest.raises(ValueError, match=message):
    tiny_text.build(of_data=data)


def test_a_single_class_is_refused_where_there_are_classes():
  data = dataclasses.replace(
    tiny_text.data('masked_language_modelling'), num_classes=0
  )
  assert tiny_text.build('masked_language_modelling', of_data=data)
  data = dataclasses.replace(tiny_text.data(''), num_classes=1)
  with pytest.raises(ValueError, match='--dataset=texts has a single class'):
    tiny_text.build(of_data=data)


@pytest.mark.parametrize(
  'bucket, used, length',
  [(0, 3, 8), (2, 3, 4), (2, 4, 4), (3, 7, 8), (5, 1, 5), (4, 0, 4)],
)
def test_batches_are_cut_to_a_multiple_that_holds_them(bucket, used, length):
  tokens = np.zeros([2, 8], np.int32)
  tokens[1, :used] = 7
  found = tasks.trim(tf.constant(tokens), bucket)
  np.testing.assert_array_equal(found, tokens[:, :length])


def test_tags_are_cut_with_their_tokens():
  task = tiny_text.build('token_classification', length_bucket=2)
  tokens = np.zeros([1, 8], np.int32)
  tokens[0, :3] = 2, 6, 3
  labels = np.arange(8, dtype=np.int32)[np.newaxis]
  batch = task.preprocess({'x': tf.constant(tokens), 'y': tf.constant(labels)})
  np.testing.assert_array_equal(batch['x'], tokens[:, :4])
  np.testing.assert_array_equal(batch['y'], labels[:, :4])


def test_masks_follow_from_the_batch_and_the_seed():
  found = {}
  for seed in (0, 1):
    task = tiny_text.build('masked_language_modelling', sizes=(300,), seed=seed)
    batch = task.data.train.client('client_0')
    batch = {key: tf.constant(value) for key, value in batch.items()}
    found[seed] = [task.preprocess(batch) for _ in range(2)]
    for one, other in zip(*(b.values() for b in found[seed]), strict=True):
      np.testing.assert_array_equal(one, other)
    labels = found[seed][0]['y'].numpy()
    chosen = labels >= 0
    np.testing.assert_array_equal(labels[chosen], batch['x'][chosen])
    # [PAD], [CLS] and [SEP] are never chosen; [MASK] is 4.
    assert not np.isin(labels[chosen], [0, 2, 3]).any()
    assert (found[seed][0]['x'].numpy()[chosen] == 4).mean() > 0.6
  assert (found[0][0]['y'] != found[1][0]['y']).numpy().any()


def test_class_weights_by_hand():
  clients = {
    'a': {'x': np.zeros([5, 1]), 'y': np.array([0, 0, 0, 0, 1])},
    'b': {'x': np.zeros([3, 1]), 'y': np.array([0, 1, 0])},
  }
  split = federated_data.Split.from_client_arrays(clients)
  # 8 examples of three classes: 6, 2 and none.
  expected = (8 / (3 * 6), 8 / (3 * 2), 8 / 3)
  assert tasks.balanced_class_weights(split, 3) == pytest.approx(expected)
  # So each class that is there has the same weight in all.
  assert 6 * expected[0] == pytest.approx(2 * expected[1])


def test_losses():
  weighted = tiny_text.build(class_weights=(1.0, 2.0, 3.0)).build_loss()
  assert isinstance(weighted, token_labels.WeightedCrossentropy)
  labels, logits = np.array([0, 1, 2]), np.zeros([3, 3], np.float32)
  # (1 + 2 + 3) / 3 times ln 3, against ln 3.
  assert float(weighted(labels, logits)) == pytest.approx(2 * np.log(3))
  plain = tiny_text.build().build_loss()
  assert float(plain(labels, logits)) == pytest.approx(np.log(3))
  for name in ('token_classification', 'masked_language_modelling'):
    loss = tiny_text.build(name).build_loss()
    assert isinstance(loss, token_labels.TokenCrossentropy)


def test_clients_compute_in_bfloat16_and_nothing_else_does():
  task = tiny_text.build()
  mixed = task_lib.in_mixed_precision(task, 'bfloat16')
  batch = task.data.train.client('client_0')['x']
  exact = task.build_keras_model()(batch)
  np.testing.assert_array_equal(mixed.build_keras_model()(batch), exact)
  difference = np.abs(mixed.build_client_keras_model()(batch) - exact).max()
  assert 1e-5 < difference < 0.1
  np.testing.assert_array_equal(task.build_client_keras_model()(batch), exact)
  with pytest.raises(ValueError, match='float16 would need its gradients'):
    task_lib.in_mixed_precision(task, 'float16')


def test_frozen_weights_are_neither_kept_nor_sent(lora):
  task, process = lora
  with equality.in_process_runtime('scan'):
    state = process.initialize()
  weights = state.global_model_weights
  assert list(weights.non_trainable) == []
  shapes = [tuple(value.shape) for value in weights.trainable]
  model = task.build_keras_model()
  assert shapes == [tuple(v.shape) for v in model.trainable_variables]
  assert sum(map(np.prod, shapes)) == TRAINED
  # In all the state, with the optimizer's: its momentum is as large.
  sizes = [np.size(leaf) for leaf in tf.nest.flatten(state)]
  assert 2 * TRAINED <= sum(sizes) < 2 * TRAINED + 10
  # The clients' learning rate goes with them.
  assert bits.download(process.next) == 32 * (TRAINED + 1)
  assert model.count_params() == BASE + TRAINED
  assert tf.nest.flatten(task.weights_of(model)) == model.trainable_variables


def test_full_fine_tuning_sends_all_but_the_unused_pooler():
  process = process_of(tiny_text.build(tuning=bert.FineTuning('full')))
  used = BASE - (HIDDEN * HIDDEN + HIDDEN) + 3 * HIDDEN + 3
  assert bits.download(process.next) == 32 * (used + 1)


def test_files_are_read_once(tmp_path):
  """After the first round of a process they can go."""
  tuning = bert.FineTuning('lora', lora_targets=('value',))
  task = tiny_text.build(tuning=tuning, directory=tmp_path)
  process = process_of(task)
  rounds = [small_tasks.batches(task, number, empty=False) for number in (1, 2)]
  with equality.in_process_runtime('scan'):
    state = process.next(process.initialize(), rounds[0]).state
    expected = equality.flat(process.next(state, rounds[1]).state)
  files = list(tmp_path.iterdir())
  assert 10 < len(files) < 30
  for file in files:
    file.unlink()
  # Traced anew, with what was read before.
  with equality.in_process_runtime('scan'):
    found = equality.flat(process.next(state, rounds[1]).state)
  assert equality.difference(found, expected) == 0


@pytest.mark.parametrize('limit, plan', [(BASE, 'vmap'), (BASE - 1, 'scan')])
def test_large_frozen_weights_are_trained_in_parallel_loops(
  lora, monkeypatch, limit, plan
):
  monkeypatch.setattr(planner, 'SMALL_MODEL', limit)
  _, process = lora
  with equality.in_process_runtime('scan', client_plan='auto') as runtime:
    (decision,) = equality.decisions(runtime, process.next)
  assert decision.plan == plan
  if plan == 'scan':
    assert decision.reason.startswith(f'{BASE} values per client')
