"""The commands and the configuration of docs/serving.md."""

import json
import pathlib
import re
import subprocess
import sys

import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from research.export import saved_model
from tests.experiments import server
from tests.research.export import conftest as export_conftest
from tests.research.export import text_tasks
from tests.research.serving import conftest as serving_conftest

TEXT = (pathlib.Path(__file__).parents[2] / 'docs/serving.md').read_text()
COMMANDS = re.findall(r'```sh\n(.*?)```', TEXT, re.DOTALL)
NAMES = ('first', 'texts', 'table')


@pytest.fixture
def run_dir(request, tmp_path):
  """A run like that of a name in the text."""
  name = request.param
  if name == 'texts':
    task = text_tasks.make()
    model = text_tasks.trained(task)
    saved_model.export(task, model, tmp_path / name / 'model' / '1')
  else:
    task = export_conftest.make_task()
    if name == 'table':
      task = serving_conftest.regression_task()
    serving_conftest.export(task, tmp_path / name / 'model' / '1')
  return tmp_path / name


@pytest.mark.parametrize('run_dir', NAMES, indirect=True)
def test_the_commands_are_answered(run_dir):
  lines = [
    line
    for line in ''.join(COMMANDS).splitlines()
    if f'/v1/models/{run_dir.name}' in line
  ]
  assert lines
  with server.running(run_dir) as running:
    for line in lines:
      command = re.sub(r'http://127\.0\.0\.1:\d+', running.url, line)
      command = command.replace('python ', f'{sys.executable} ')
      command = command.replace('curl ', 'curl --silent --fail-with-body ')
      result = subprocess.run(
        command, shell=True, capture_output=True, text=True, timeout=60
      )
      assert result.returncode == 0, (line, result.stdout, result.stderr)
      answer = json.loads(result.stdout)
      kinds = ('model_version_status', 'metadata', 'predictions')
      assert {*kinds, 'outputs', 'results'} & set(answer)


def test_every_command_is_of_one_of_the_runs():
  lines = ''.join(COMMANDS).splitlines()
  names = [re.search(r'/v1/models/(\w+)', line)[1] for line in lines]
  assert set(names) == set(NAMES)


def test_the_configuration_is_one_of_the_model_server():
  (block,) = re.findall(r'```proto\n(.*?)```', TEXT, re.DOTALL)
  config = text_format.Parse(block, model_server_config_pb2.ModelServerConfig())
  models = config.model_config_list.config
  assert [each.name for each in models] == ['first', 'texts']
  assert {each.model_platform for each in models} == {'tensorflow'}
  assert 'Not run by us' in TEXT
