"""Every binary with privacy, quantization, XLA and export, and their pairs.

Two rounds each. What each does is tested elsewhere; here it is that they go
together, and leave what they should.
"""

import json
import math

import pytest
import tensorflow as tf

from datasets import text_synthetic, text_vocabulary
from models import bert, bert_checkpoint
from research.training import metrics
from tests.experiments import binary

ROUNDS = (
  '--clients_per_round=3',
  '--total_rounds=2',
  '--rounds_per_evaluation=2',
)
BINARIES = {
  'emnist': ('--dataset=synthetic_digits', '--model=mcmahan_2nn'),
  'linear_regression': ('--dataset=diabetes', '--nostandardise'),
  'bert': ('--dataset=synthetic_movie_reviews', '--partition_clients=12')
  + ('--max_length=16', '--fine_tuning=lora', '--lora_rank=2', '--dropout=0'),
}
FEATURES = {
  'dp': ('--dp_mechanism=gaussian', '--noise_multiplier=1.0')
  + ('--clipping=fixed', '--clip_norm=0.1', '--client_weighting=uniform')
  + ('--client_sampling=poisson', '--clients_per_round=6'),
  'qat': ('--quantize=qat', '--weight_bits=8'),
  'xla': ('--xla=on',),
  'export': ('--export',),
  'prune': ('--prune=magnitude', '--final_sparsity=0.5')
  + ('--pruning_end_round=2',),
  'cluster': ('--weight_clusters=8',),
  'compression': ('--compression=eden', '--compression_bits=4'),
  'audit': ('--audit_canaries=4', '--delta=1e-3'),
}
COMBINATIONS = [
  *((name,) for name in FEATURES if name not in ('audit', 'compression')),
  ('dp', 'qat'),
  ('dp', 'qat', 'audit'),
  ('qat', 'compression'),
  ('dp', 'xla'),
  ('qat', 'xla'),
  ('qat', 'export'),
  ('dp', 'qat', 'xla', 'export'),
  ('dp', 'qat', 'prune', 'cluster', 'export'),
]


@pytest.fixture(scope='module')
def encoder(tmp_path_factory):
  """Flags of an encoder of one layer."""
  split = text_synthetic.load('movie_reviews').train
  texts = [x for c in split.client_ids[:2] for x in split.client(c)['x']]
  vocabulary = text_vocabulary.build_vocab(texts, 200)
  form = bert_checkpoint.Config(
    vocabulary_size=len(vocabulary),
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    intermediate_size=24,
    max_positions=16,
  )
  folder = bert_checkpoint.save(
    bert.initialise(form, vocabulary, seed=0),
    tmp_path_factory.mktemp('encoder') / 'tiny',
  )
  return ['--model=checkpoint', f'--checkpoint_dir={folder}']


@pytest.fixture(
  scope='module',
  params=[
    'emnist',
    'linear_regression',
    # Minutes, most of them of XLA.
    pytest.param('bert', marks=pytest.mark.slow),
  ],
)
def runs(request, tmp_path_factory):
  """What the binary refused, by combination, and the folder of all runs."""
  root = tmp_path_factory.mktemp(request.param)
  fixed = [*ROUNDS, *BINARIES[request.param], f'--root_output_dir={root}']
  if request.param == 'bert':
    fixed += request.getfixturevalue('encoder')
  lines = []
  for features in COMBINATIONS:
    line = [
      *_trained(fixed, features),
      '--noexport',
      f'--experiment_name={"-".join(features)}',
    ]
    for feature in features:
      line += FEATURES[feature]
    lines.append(' '.join(line))
  errors = binary.refusals(request.param, lines)
  return root, dict(zip(COMBINATIONS, errors, strict=True))


def _trained(line, features):
  """The flags, with all of a model trained where its weights are pruned."""
  if not {'prune', 'cluster'} & set(features):
    return line
  return [f for f in line if not f.startswith(('--fine_tuning', '--lora'))] + (
    ['--fine_tuning=full'] if '--fine_tuning=lora' in line else []
  )


@pytest.mark.parametrize('features', COMBINATIONS, ids='-'.join)
def test_two_rounds(runs, features):
  root, errors = runs
  assert errors[features] is None
  run = root / '-'.join(features)
  rows = metrics.read(run / 'metrics.csv')
  assert [row['round'] for row in rows] == [1, 2]
  assert math.isfinite(rows[-1]['test_loss'])
  assert ('epsilon' in rows[-1]) == ('dp' in features)
  assert ('sparsity' in rows[-1]) == ('prune' in features)
  config = json.loads((run / 'config.json').read_text())
  if 'xla' in features:
    assert all(made['xla'] for made in config['runtime']['decisions'])
  quantized = config['flags']['quantize'] == 'qat'
  assert quantized == ('qat' in features)
  assert (run / 'model/1').exists() == ('export' in features)


def test_an_exported_quantized_model_has_its_ranges(runs):
  """Fake quantization is in the graph, with the ranges that were learned."""
  root, _ = runs
  found = tf.saved_model.load(str(root / 'qat-export/model/1'))
  signature = found.signatures['serving_default']
  graph = signature.graph.as_graph_def()
  ops = [node.op for f in graph.library.function for node in f.node_def]
  ops += [node.op for node in graph.node]
  assert sum('FakeQuant' in op for op in ops) >= 3
