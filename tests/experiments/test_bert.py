"""experiments/bert.py from the command line, on synthetic texts."""

import json

import numpy as np
import pytest

from datasets import download, text_synthetic, text_vocabulary
from models import bert, bert_checkpoint
from research.training import metrics
from tests.experiments import binary

TWINS = ('movie_reviews', 'conll2003', 'shakespeare')
# Everything else is as it is for users.
SMALL = (
  '--clients_per_round=3',
  '--total_rounds=2',
  '--rounds_per_evaluation=1',
  '--client_batch_size=16',
  '--max_length=16',
)
REVIEWS = (
  '--dataset=synthetic_movie_reviews',
  '--partition_clients=12',
  *SMALL,
)
SENTENCES = (
  '--task=token_classification',
  '--dataset=synthetic_conll2003',
  *SMALL,
)
RUNNING = (
  '--task=masked_language_modelling',
  '--dataset=synthetic_shakespeare',
  *SMALL,
)
LORA = ('--fine_tuning=lora', '--lora_rank=2')
PRIVATE = (
  '--dp_mechanism=gaussian',
  '--noise_multiplier=1.0',
  '--clipping=fixed',
  '--clip_norm=0.1',
  '--client_weighting=uniform',
  '--client_sampling=poisson',
)
POSITIONS = 16
HIDDEN, INSIDE = 16, 24


@pytest.fixture(scope='module')
def encoder(tmp_path_factory):
  """Flags of an encoder of one layer, whose vocabulary is the twins'."""
  texts = []
  for name in TWINS:
    split = text_synthetic.load(name).train
    for example in split.client(split.client_ids[0])['x'][:300]:
      texts.append(example if isinstance(example, str) else ' '.join(example))
  vocabulary = text_vocabulary.build_vocab(texts, 200)
  form = bert_checkpoint.Config(
    vocabulary_size=len(vocabulary),
    num_layers=1,
    num_heads=2,
    hidden_size=HIDDEN,
    intermediate_size=INSIDE,
    max_positions=POSITIONS,
  )
  directory = tmp_path_factory.mktemp('encoder') / 'tiny'
  bert_checkpoint.save(bert.initialise(form, vocabulary, 1), directory)
  return ('--model=checkpoint', f'--checkpoint_dir={directory}')


def write_own_texts(path, rows=60):
  """Texts whose label is their word, of ten people, as JSON lines."""
  rng = np.random.default_rng(0)
  lines = []
  for row in range(rows):
    mood = ('good', 'bad')[row % 2]
    words = [*rng.choice(['the', 'story', 'was', 'day'], 4), mood]
    entry = {'who': f'p{row % 10}', 'said': ' '.join(words), 'mood': mood}
    lines.append(json.dumps(entry))
  path.write_text('\n'.join(lines))


@pytest.fixture(scope='module')
def finished(encoder, tmp_path_factory):
  """Runs of all tasks in one process: what they printed, and where they are."""
  root = tmp_path_factory.mktemp('runs')
  own = root / 'own.jsonl'
  write_own_texts(own)
  resumed = (*RUNNING, '--experiment_name=resumed')
  runs = {
    'classes': (
      *(*REVIEWS, '--class_weighting=balanced', '--pooling=first'),
      *('--client_optimizer=adamw', '--client_learning_rate=0.01'),
      '--client_gradient_clip_norm=1',
    ),
    'tags': (
      *(*SENTENCES, *LORA, '--total_rounds=9'),
      # No round is better than the first.
      *('--client_learning_rate=0', '--early_stopping_evaluations=2'),
    ),
    'whole': RUNNING,
    'one round': (*resumed, '--total_rounds=1'),
    'resumed': resumed,
    'private': (
      *('--dataset=file', f'--data_file={own}', '--client_column=who'),
      *('--text_column=said', '--label_column=mood', '--test_fraction=0.3'),
      *(*SMALL, *LORA, *PRIVATE),
    ),
    'dry': (*REVIEWS, '--dry_run'),
  }
  lines = []
  for name, given in runs.items():
    if name != 'dry':
      given = (*given, '--noexport', '--client_plan=scan')
    if not any(flag.startswith('--experiment_name') for flag in given):
      given = (*given, f'--experiment_name={name}')
    lines.append(' '.join((*given, *encoder, f'--root_output_dir={root}')))
  cache = {download.CACHE_VARIABLE: str(root / 'cache')}
  found = binary.attempts('bert', lines, **cache)
  assert [error for error, _ in found] == [None] * len(runs)
  return root, {n: text for n, (_, text) in zip(runs, found, strict=True)}


def leaves(run, round_num):
  """The arrays of a checkpoint, in order."""
  path = run / f'checkpoints/round_{round_num:06d}/state.npz'
  state = np.load(path)
  return [state[name] for name in sorted(state.files) if 'leaf' in name]


def test_classification_reports_each_class(finished):
  root, printed = finished
  rows = metrics.read(root / 'classes/metrics.csv')
  assert [row['round'] for row in rows] == [1, 2]
  assert all(0 <= row['test_accuracy'] <= 1 for row in rows)
  assert rows[1]['train_loss'] != rows[0]['train_loss']
  report = json.loads((root / 'classes/report.json').read_text())
  assert {'negative', 'positive', 'accuracy'} <= report.keys()
  assert report['accuracy'] == pytest.approx(rows[-1]['test_accuracy'])
  for plot in ('confusion_matrix', 'accuracy', 'labels_per_client'):
    assert (root / f'classes/plots/{plot}.png').is_file()
  assert 'synthetic_movie_reviews: 12 clients (iid)' in printed['classes']
  assert 'tokens per example: mean' in printed['classes']
  config = json.loads((root / 'classes/config.json').read_text())
  assert len(config['initial_weights_sha256']) == 64
  # What it was decided to be is kept, for a resume elsewhere.
  assert config['flags']['length_bucket'] is not None


def test_tagging_stops_early_and_counts_spans(finished):
  root, printed = finished
  rows = metrics.read(root / 'tags/metrics.csv')
  assert [row['round'] for row in rows] == [1, 2, 3]
  assert len({row['validation_loss'] for row in rows}) == 1
  assert {'validation_f1', 'test_f1', 'test_accuracy'} <= rows[0].keys()
  assert not {'train_f1', 'test_perplexity'} & rows[0].keys()
  report = json.loads((root / 'tags/report.json').read_text())
  assert report.keys() == {'LOC', 'MISC', 'ORG', 'PER', 'all spans'}
  assert report['all spans']['f1'] == pytest.approx(rows[-1]['test_f1'])
  assert '9 tags' in printed['tags']
  assert 'all spans' in printed['tags'].splitlines()[-1]
  # LoRA beside query and value, of rank 2, and the head; nothing frozen.
  expected = 2 * 2 * (HIDDEN + HIDDEN) + HIDDEN * 9 + 9
  sizes = [leaf.size for leaf in leaves(root / 'tags', 3)]
  assert expected <= sum(sizes) < expected + 10


def test_language_modelling_resumes_with_the_same_bits(finished):
  root, printed = finished
  rows = metrics.read(root / 'whole/metrics.csv')
  for row in rows:
    loss = row['test_loss']
    assert row['test_perplexity'] == pytest.approx(np.exp(loss))
  assert rows[1]['test_loss'] < rows[0]['test_loss']
  assert 'after round 1 of 2' in printed['resumed']
  files = [root / n / 'metrics.csv' for n in ('whole', 'resumed')]
  assert files[0].read_bytes() == files[1].read_bytes()
  states = [leaves(root / n, 2) for n in ('whole', 'resumed')]
  assert len(states[0]) > 20
  for one, other in zip(*states, strict=True):
    assert one.tobytes() == other.tobytes()
  assert not (root / 'whole/report.json').exists()


def test_own_texts_privately(finished):
  root, printed = finished
  rows = metrics.read(root / 'private/metrics.csv')
  spent = [row['epsilon'] for row in rows]
  assert len(rows) == 2 and 0 < spent[0] < spent[1]
  # No column tells of training examples.
  told = {name for name, value in rows[0].items() if value is not None}
  assert not told & {'train_loss', 'train_accuracy', 'examples', 'clients'}
  assert '10 clients (natural)' in printed['private']
  report = json.loads((root / 'private/report.json').read_text())
  assert {'good', 'bad'} <= report.keys()
  assert not (root / 'private/plots/labels_per_client.png').exists()


def test_a_dry_run_leaves_nothing(finished):
  root, printed = finished
  for word in ('parameters', 'local steps', 's per round', 'tokens per'):
    assert word in printed['dry']
  assert not (root / 'dry').exists()


MISTAKES = (
  (('--lora_rank=3',), '--lora_rank is not used by --fine_tuning=full'),
  (
    (*LORA, '--adapter_size=3'),
    '--adapter_size is not used by --fine_tuning=lora',
  ),
  (
    (*LORA, '--lora_targets=query,nonsense'),
    '--lora_targets=query,nonsense: must be some of query, key',
  ),
  ((*LORA, '--lora_targets='), 'must be some of query, key, value'),
  (
    ('--fine_tuning=last_layers', '--last_layers=2'),
    '--last_layers=2: the encoder has 1 transformer layers',
  ),
  (
    ('--task=token_classification', '--pooling=first'),
    '--pooling is not used by --task=token_classification',
  ),
  (
    ('--task=token_classification', '--class_weighting=none'),
    '--class_weighting is not used by --task=token_classification',
  ),
  (
    ('--task=token_classification',),
    '--dataset=synthetic_movie_reviews is for classification, '
    '--task=token_classification for tagging',
  ),
  (
    ('--task=masked_language_modelling', '--label_column=y'),
    '--label_column is not used by --task=masked_language_modelling',
  ),
  (('--text_column=y',), '--text_column is not used by --dataset='),
  (
    ('--length_bucket=8', '--client_plan=vmap'),
    '--length_bucket=8: vectorised clients need batches of one length',
  ),
  (
    ('--early_stopping_evaluations=2',),
    'looks at the validation loss: give --validation_examples',
  ),
  (
    (*PRIVATE, '--validation_examples=9', '--early_stopping_evaluations=2'),
    'validation examples are taken from clients without noise',
  ),
  (
    (*PRIVATE, '--class_weighting=balanced'),
    '--class_weighting=balanced counts labels, without noise',
  ),
  (('--max_length=24',), '--max_length=24: the encoder has 16 positions'),
  (('--vocabulary_size=50',), '--vocabulary_size is not used by --model='),
  (('--vocabulary_file=x',), '--vocabulary_file is not used by --model='),
  (
    ('--mixed_precision=float16',),
    '--mixed_precision=float16: BERT trains in bfloat16 or float32',
  ),
  (('--model=tiny',), '--checkpoint_dir goes with --model=checkpoint'),
  (('--model=minilm_l6',), '--checkpoint_dir goes with --model=checkpoint'),
  (('--checkpoint_dir=',), '--checkpoint_dir goes with --model=checkpoint'),
  (
    ('--model=tiny', '--checkpoint_dir=', *PRIVATE),
    'a vocabulary of the training texts shows their words',
  ),
  (('stray',), 'Only flags are expected'),
)


def test_mistakes_name_the_flag(encoder, tmp_path):
  root = f'--root_output_dir={tmp_path}/runs'
  lines = [
    ' '.join((*REVIEWS, *encoder, '--noexport', root, *given))
    for given, _ in MISTAKES
  ]
  cache = {download.CACHE_VARIABLE: str(tmp_path / 'cache')}
  found = binary.refusals('bert', lines, **cache)
  for (given, message), error in zip(MISTAKES, found, strict=True):
    assert message in (error or 'nothing'), given
  assert not (tmp_path / 'runs/bert/metrics.csv').exists()
