"""The project's own flag files of experiments.bert."""

import json
import subprocess
import sys

from research import paper_targets
from tests.experiments import binary

EXPERIMENTS = binary.ROOT / 'experiments'
PAPERS = EXPERIMENTS / 'papers'

# In a process of its own, which can't have another binary's flags.
_PARSE = """
import json, sys
from absl import flags
from absl.testing import flagsaver
from experiments import bert
from research.tasks import bert as tasks
for path in sys.argv[1:]:
  with flagsaver.flagsaver():
    rest = flags.FLAGS(['bert', f'--flagfile={path}'])
    assert rest == ['bert'], (path, rest)
    bert.GROUPS.algorithm.get(None)
    bert._MODEL.fine_tuning()
    bert._DATA.get(flags.FLAGS.task, 0)
    print(json.dumps([path, flags.FLAGS.model, flags.FLAGS.total_rounds]))
"""


def test_every_flag_file_parses_and_fits_together():
  files = [
    *(EXPERIMENTS / f'{name}.flags' for name in ('bert', 'conll2003')),
    EXPERIMENTS / 'masked_language_model.flags',
    *sorted((EXPERIMENTS / 'fine_tuning').glob('*.flags')),
    *sorted((EXPERIMENTS / 'quantization_bert').glob('*.flags')),
    *sorted((EXPERIMENTS / 'newsgroups_reduced').glob('*.flags')),
    *sorted((PAPERS / 'fednlp2022').glob('*.flags')),
  ]
  assert len(files) == 15
  result = subprocess.run(
    [sys.executable, '-c', _PARSE, *map(str, files)],
    cwd=binary.ROOT,
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr
  lines = [line for line in result.stdout.splitlines() if line.startswith('[')]
  parsed = {path: values for path, *values in map(json.loads, lines)}
  assert list(parsed) == [str(path) for path in files]
  assert parsed[str(EXPERIMENTS / 'bert.flags')] == ['minilm_l6', 80]


def test_targets_of_texts_name_their_binary():
  for path in sorted((PAPERS / 'fednlp2022').glob('*.flags')):
    name = str(path.relative_to(PAPERS).with_suffix(''))
    target = paper_targets.read_target(PAPERS, name)
    assert target.binary == 'bert'
    assert target.at_round == 22 and 0.51 < target.target < 0.54
