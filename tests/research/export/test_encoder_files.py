"""A run's encoder in files: whole, replaced in one step, licence beside it."""

import json

import numpy as np
import pytest

from models import bert, bert_checkpoint, pretrained
from research.export import encoder_files, saved_model, text_card
from tests.research.export import text_tasks

FLAGS = {'checkpoint_dir': None}


def names(directory):
  return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize('name', text_tasks.DATASETS)
def test_another_task_starts_from_it(tmp_path, name):
  tuning = bert.FineTuning('lora', lora_targets=bert.LORA_TARGETS)
  task = text_tasks.make(name, tuning)
  model = text_tasks.trained(task)
  made = encoder_files.write(tmp_path, task, model, FLAGS)
  assert made == tmp_path / 'encoder' and names(tmp_path) == ['encoder']
  ids = text_tasks.token_ids(task)
  other = text_tasks.make(name, checkpoint=bert_checkpoint.read(made))
  if name == 'masked_language_modelling':
    models = model, other.build_keras_model()
  else:
    models = [
      m.get_layer('encoder') for m in (model, other.build_keras_model())
    ]
  wanted, found = (m(ids, training=False).numpy() for m in models)
  np.testing.assert_allclose(found, wanted, atol=5e-6)


def test_an_earlier_encoder_is_replaced_and_survives_a_failure(
  tmp_path, monkeypatch
):
  task = text_tasks.make()
  model = task.build_keras_model()
  made = encoder_files.write(tmp_path, task, model, FLAGS)
  first = bert_checkpoint.read(made).sha256
  encoder_files.write(tmp_path, task, text_tasks.trained(task), FLAGS)
  second = bert_checkpoint.read(made).sha256
  assert first != second

  def fail(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patched:
    patched.setattr(saved_model, 'put_in_place', fail)
    with pytest.raises(KeyboardInterrupt):
      encoder_files.write(tmp_path, task, model, FLAGS)
  assert bert_checkpoint.read(made).sha256 == second
  assert names(tmp_path) == ['encoder']


def test_the_licence_goes_from_run_to_run(tmp_path, monkeypatch):
  task = text_tasks.make()
  known = pretrained.ENCODERS['minilm_l6']
  given = task.builder.checkpoint
  monkeypatch.setitem(
    pretrained.ENCODERS,
    given.name,
    pretrained.dataclasses.replace(known, sha256=given.sha256),
  )
  first, second = tmp_path / 'first', tmp_path / 'second'
  made = encoder_files.write(first, task, task.build_keras_model(), FLAGS)
  other = text_tasks.make(checkpoint=bert_checkpoint.read(made))
  flags = {'checkpoint_dir': str(made)}
  made = encoder_files.write(second, other, text_tasks.trained(other), flags)
  source = json.loads((made / 'source.json').read_text())
  assert source['licence'] == 'Apache-2.0'
  assert source['notes'] == known.notes
  assert source['title'] == (
    f'{known.title}, trained further in the run first, trained further in the '
    'run second'
  )


def test_a_folder_with_the_name_of_an_encoder_is_not_that_encoder(tmp_path):
  form = bert_checkpoint.Config(5, 1, 1, 4, 4, 8)
  pieces = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')
  checkpoint = pretrained.dataclasses.replace(
    bert.initialise(form, pieces, 0), name='minilm_l6'
  )
  task = text_tasks.make(checkpoint=checkpoint, max_length=8)
  source = text_card.source(task, {'checkpoint_dir': str(tmp_path)})
  assert source['licence'] == 'that of the checkpoint, unknown here'
