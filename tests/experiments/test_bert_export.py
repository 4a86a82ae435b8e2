"""A run of experiments.bert: what it exports, and commands on it."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from tests.experiments import binary

FLAGS = (
  '--dataset=synthetic_movie_reviews',
  '--model=tiny',
  '--vocabulary_size=300',
  '--fine_tuning=lora',
  '--total_rounds=1',
  '--clients_per_round=2',
)


def run(module, *flags):
  result = binary.run(module, *flags)
  assert result.returncode == 0, result.stderr[-3000:]
  return result.stdout


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A finished run's directory, and what was printed."""
  root = tmp_path_factory.mktemp('runs')
  output = f'--root_output_dir={root}'
  printed = run(
    'bert', *FLAGS, output, '--experiment_name=a', '--export_encoder'
  )
  return root / 'a', printed


def blocks(directory, language):
  """The code of the model card."""
  card = (directory / 'model_card.md').read_text()
  return re.findall(rf'```{language}\n(.*?)```', card, re.DOTALL)


def in_shell(command, directory):
  """Runs as a user would: with no path to this project."""
  folder = pathlib.Path(sys.executable).parent
  result = subprocess.run(
    command,
    shell=True,
    cwd=directory,
    env={
      **os.environ,
      'PYTHONPATH': '',
      'PATH': f'{folder}{os.pathsep}{os.environ["PATH"]}',
    },
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr[-3000:]
  return result.stdout


def test_the_model_is_checked(finished):
  _, printed = finished
  assert re.search(
    r'parity with the trained model: TensorFlow 2\.\S+ within', printed
  )


def test_the_commands_of_the_model_card_run(finished):
  """Python lines, one line in a shell, and saved_model_cli."""
  directory, _ = finished
  (lines,) = blocks(directory, 'python')
  outputs = [
    subprocess.run(
      [sys.executable, '-c', lines],
      cwd=directory,
      env={**os.environ, 'PYTHONPATH': ''},
      capture_output=True,
      text=True,
      check=True,
    ).stdout,
    *(in_shell(command, directory) for command in blocks(directory, 'sh')),
  ]
  assert len(outputs) == 3
  for output in outputs:
    assert re.search(r"b'(negative|positive)'", output)


def test_the_model_card_tells_of_the_encoder(finished):
  directory, _ = finished
  card = (directory / 'model_card.md').read_text()
  for line in (
    '| encoder | random initial weights, not pre-trained |',
    '| fine-tuning | lora: low-rank changes of dense layers, --lora_rank=4, '
    '--lora_alpha=8.0, --lora_targets=query,value |',
    # 2 layers, 2 targets, 4 * (128 + 128) each; the head has 128 * 2 + 2.
    '| parameters trained | 4,354 of ',
    '| bytes per client and round | 17,416 up, 17,420 down |',
    '| lengths | tokens per example: mean ',
    '| longest text | 64 tokens',
    '| tokeniser | The tokeniser in the graph gives the ids of training for ß',
  ):
    assert line in card


def test_export_again(finished):
  directory, _ = finished
  before = (directory / 'model_card.json').read_bytes()
  printed = run('export', f'--run_dir={directory}')
  assert 'parity with the trained model' in printed
  assert (directory / 'model_card.json').read_bytes() == before


def test_another_data_set_is_read_with_the_vocabulary_of_the_run(finished):
  """A vocabulary of the other texts would have other ids, and be refused."""
  directory, printed = finished
  evaluated = run('evaluate', f'--run_dir={directory}')
  loss = re.search(r'test_loss +(\S+)', printed)[1]
  assert re.search(rf'\nloss +{loss} ', evaluated)
  other = run(
    'evaluate', f'--run_dir={directory}', '--dataset=synthetic_tweets'
  )
  assert 'synthetic_tweets (test)' in other


def test_other_initial_weights_are_refused(finished):
  directory, _ = finished
  result = binary.run('evaluate', f'--run_dir={directory}', '--seed=9')
  assert result.returncode
  assert 'The encoder is not the one that the run started from' in result.stderr


def test_a_run_is_repeated_from_its_config(finished):
  directory, _ = finished
  config = f'--from_config={directory / "config.json"}'
  run('bert', config, '--experiment_name=b', '--noexport', '--noexport_encoder')
  again = directory.parent / 'b' / 'metrics.csv'
  assert again.read_bytes() == (directory / 'metrics.csv').read_bytes()


def test_another_run_starts_from_the_encoder(finished):
  directory, _ = finished
  run(
    'bert',
    '--dataset=synthetic_tweets',
    '--model=checkpoint',
    f'--checkpoint_dir={directory / "encoder"}',
    '--fine_tuning=head',
    '--total_rounds=1',
    '--clients_per_round=2',
    '--dry_run',
  )


@pytest.mark.parametrize(
  'flag, message',
  [
    ('--fine_tuning=adapters', 'no plain BERT'),
    ('--noexport', '--export_encoder: nothing is exported with --noexport'),
  ],
)
def test_what_can_not_be_exported_is_refused(flag, message):
  result = binary.run('bert', *FLAGS[:3], '--export_encoder', '--dry_run', flag)
  assert result.returncode and message in result.stderr
