"""Every binary with privacy, quantization, XLA and export, and their pairs.

Two rounds each. What each does is tested elsewhere; here it is that they go
together, and leave what they should.
"""

import functools
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
# What the default tests run; all of BERT takes minutes, most of them of XLA.
QUICK = [
  ('emnist', ('dp', 'qat', 'audit')),
  ('emnist', ('qat', 'compression')),
  ('emnist', ('dp', 'qat', 'prune', 'cluster', 'export')),
  ('linear_regression', ('dp', 'qat', 'xla', 'export')),
]
CASES = [
  pytest.param(
    name,
    features,
    id=f'{name}-{"-".join(features)}',
    marks=[] if (name, features) in QUICK else [pytest.mark.slow],
  )
  for name in BINARIES
  for features in COMBINATIONS
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


@pytest.fixture(scope='module')
def run(request, encoder, tmp_path_factory):
  """A function from a binary and features to the run's directory."""
  root = tmp_path_factory.mktemp('runs')
  chosen = [
    (item.callspec.params['name'], item.callspec.params['features'])
    for item in request.session.items
    if item.module is request.module
  ]

  @functools.cache
  def errors(name):
    """What one process of the binary says to all that is asked of it."""
    fixed = [*ROUNDS, *BINARIES[name], f'--root_output_dir={root / name}']
    fixed += encoder if name == 'bert' else []
    asked = [
      features for binary_name, features in chosen if binary_name == name
    ]
    lines = [
      ' '.join(
        [
          *_trained(fixed, features),
          '--noexport',
          f'--experiment_name={"-".join(features)}',
          *(flag for feature in features for flag in FEATURES[feature]),
        ]
      )
      for features in asked
    ]
    return dict(zip(asked, binary.refusals(name, lines), strict=True))

  def directory(name, features):
    assert errors(name)[features] is None
    return root / name / '-'.join(features)

  return directory


def _trained(line, features):
  """The flags, with all of a model trained where its weights are pruned."""
  if not {'prune', 'cluster'} & set(features):
    return line
  return [f for f in line if not f.startswith(('--fine_tuning', '--lora'))] + (
    ['--fine_tuning=full'] if '--fine_tuning=lora' in line else []
  )


@pytest.mark.parametrize(('name', 'features'), CASES)
def test_two_rounds(run, name, features):
  directory = run(name, features)
  rows = metrics.read(directory / 'metrics.csv')
  assert [row['round'] for row in rows] == [1, 2]
  assert math.isfinite(rows[-1]['test_loss'])
  assert ('epsilon' in rows[-1]) == ('dp' in features)
  assert ('sparsity' in rows[-1]) == ('prune' in features)
  config = json.loads((directory / 'config.json').read_text())
  if 'xla' in features:
    assert all(made['xla'] for made in config['runtime']['decisions'])
  quantized = config['flags']['quantize'] == 'qat'
  assert quantized == ('qat' in features)
  assert (directory / 'model/1').exists() == ('export' in features)
  if {'qat', 'export'} <= set(features):
    assert _fake_quantizations(directory) >= 3


def _fake_quantizations(directory):
  """How many are in the graph of an exported model."""
  found = tf.saved_model.load(str(directory / 'model/1'))
  graph = found.signatures['serving_default'].graph.as_graph_def()
  ops = [node.op for f in graph.library.function for node in f.node_def]
  ops += [node.op for node in graph.node]
  return sum('FakeQuant' in op for op in ops)
