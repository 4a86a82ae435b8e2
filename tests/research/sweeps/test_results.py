import math

import pytest
from absl import flags

from research.sweeps import plot, results
from research.sweeps import space as space_lib

COLUMNS = ('round', 'train_loss', 'test_loss', 'test_accuracy')
ACCURACY = results.Criterion('test_accuracy', 'max', 'last')
LOSS = results.Criterion('test_loss', 'min', 'last')
NAN = math.nan


def rows(name, *values):
  return [{'round': i, name: value} for i, value in enumerate(values, 1)]


def result(value, seeds=None, failed=(), **cell):
  scores = value if seeds else {0: value}
  return results.Result({k: str(v) for k, v in cell.items()}, scores, failed)


@pytest.mark.parametrize(
  'metric, goal, columns, expected',
  [
    (None, None, COLUMNS, ('test_accuracy', 'max')),
    (
      None,
      None,
      (*COLUMNS, 'validation_accuracy'),
      ('validation_accuracy', 'max'),
    ),
    (None, None, ('round', 'test_loss'), ('test_loss', 'min')),
    ('train_loss', None, COLUMNS, ('train_loss', 'min')),
    ('train_loss', 'max', COLUMNS, ('train_loss', 'max')),
  ],
)
def test_defaults_of_the_criterion(metric, goal, columns, expected):
  found = results.Criterion(metric, goal, 'last').resolve(columns)
  assert (found.metric, found.goal) == expected


@pytest.mark.parametrize('metric', ['accuracy', 'round', None])
def test_a_metric_that_is_not_there_lists_what_is(metric):
  columns = ('round', 'epsilon') if metric is None else COLUMNS
  with pytest.raises(flags.IllegalFlagValueError, match=columns[1]):
    results.Criterion(metric, None, 'last').resolve(columns)


@pytest.mark.parametrize(
  'values, last, best_max, best_min',
  [
    ((0.5, 0.9, 0.7), 0.7, 0.9, 0.5),
    ((0.5, None, 0.7), 0.7, 0.7, 0.5),
    ((0.5, 0.9, NAN), NAN, 0.9, 0.5),
    ((math.inf, 0.9, None), NAN, 0.9, 0.9),
    ((NAN, None), NAN, NAN, NAN),
    ((2,), 2.0, 2.0, 2.0),
  ],
)
def test_scores_of_rows(values, last, best_max, best_min):
  given = rows('m', *values)
  found = [
    results.Criterion('m', goal, score).of(given)
    for goal, score in (('max', 'last'), ('max', 'best'), ('min', 'best'))
  ]
  assert found == pytest.approx([last, best_max, best_min], nan_ok=True)


def test_text_is_no_score():
  with pytest.raises(flags.IllegalFlagValueError, match="'adam' is not"):
    results.Criterion('m', 'max', 'last').of(rows('m', 'adam'))


@pytest.mark.parametrize(
  'found, best_max, best_min',
  [
    ([0.1, 0.3, 0.2], 1, 0),
    # Of equal ones the first; what diverged is never the best.
    ([0.3, NAN, 0.3], 0, 0),
    ([NAN, 0.1], 1, 1),
    ([NAN, None], None, None),
  ],
)
def test_the_best_cell(found, best_max, best_min):
  cells = [result(value, x=i) for i, value in enumerate(found)]
  assert results.best_index(cells, ACCURACY) == best_max
  assert results.best_index(cells, LOSS) == best_min


def test_a_cell_needs_all_of_its_seeds():
  good = result({0: 1.0, 1: 2.0, 2: 6.0}, True)
  # Deviations -2, -1, 3 from the mean 3: sqrt(14 / 2).
  assert (good.mean, good.deviation) == (3.0, pytest.approx(7**0.5))
  assert good.status == 'finished'
  diverged = result({0: 1.0, 1: NAN}, True)
  assert (diverged.status, diverged.deviation) == ('diverged', None)
  assert result({0: 1.0, 1: None}, True).status == 'unfinished'
  assert result({0: 1.0, 1: None}, True, failed=(1,)).status == 'failed'
  assert results.best_index([diverged], ACCURACY) is None


def test_the_ranking_begins_with_the_best_and_ends_with_what_has_none():
  cells = [result(v, x=x) for v, x in ((NAN, 7), (0.25, 8), (0.125, 9))]
  for criterion, order in ((ACCURACY, '897'), (LOSS, '987')):
    frame = results.table(cells, criterion)
    lines = results.ranking(frame, criterion).splitlines()
    assert [line.split()[1] for line in lines[1:]] == list(order)
    assert [line.split()[-1] == 'best' for line in lines] == [
      name in ('header', 'best') for name in ('header', 'best', '', '')
    ]


def test_a_flag_file_has_shared_and_swept_flags_and_says_what_it_is():
  best = result({0: 0.5, 1: 0.7}, True, rate=0.1)
  text = results.flag_file('experiments.emnist', best, ACCURACY, ['--a=1'])
  comments, given = text.splitlines()[:2], text.splitlines()[2:]
  assert given == ['--a=1', '--rate=0.1']
  assert all(line.startswith('#') for line in comments)
  assert 'test_accuracy (last) 0.6 +- 0.1414' in comments[1]


def space(*entries, flag_type='float'):
  return space_lib.Space(
    tuple(space_lib.typed(d, flag_type) for d in space_lib.parse(entries))
  )


def test_a_heat_map_has_the_best_of_the_other_flags():
  cells = [
    result(value, a=a, b=b, c=c)
    for value, a, b, c in (
      (0.1, 1, 1, 1),
      (0.4, 1, 1, 2),
      (NAN, 1, 2, 1),
      (0.2, 1, 2, 2),
      (NAN, 2, 1, 1),
    )
  ]
  shown = plot.best_of_rest(('a', 'b'), cells, ACCURACY)
  assert shown[('1', '1')] is cells[1]
  assert shown[('1', '2')] is cells[3]
  assert shown[('2', '1')] is cells[4]


@pytest.fixture
def axes(monkeypatch):
  """The axes of the pictures that are drawn."""
  made = []
  new = plot.figure.Figure

  def keep(*args, **kwargs):
    made.append(new(*args, **kwargs))
    return made[-1]

  monkeypatch.setattr(plot.figure, 'Figure', keep)
  return lambda: made[-1].axes[0]


def test_the_heat_map_is_in_order_and_the_best_is_bold(axes, tmp_path):
  grid = space('a=10,1', 'b=1,2')
  values = (0.25, 0.75, NAN, 0.5)
  cells = [
    results.Result(cell, {0: value})
    for cell, value in zip(grid.all_cells(), values, strict=True)
  ]
  plot.draw(grid, cells, ACCURACY, tmp_path / 'sweep.png')
  texts = {t.get_text(): t for t in axes().texts}
  assert [t.get_text() for t in axes().get_yticklabels()] == ['1', '10']
  assert texts['0.75'].get_position() == (1, 1)
  assert texts['diverged'].get_position() == (0, 0)
  bold = [name for name, t in texts.items() if t.get_weight() == 'bold']
  assert bold == ['0.75']


@pytest.mark.parametrize(
  'entries, flag_type, xscale',
  [
    (('a=1,2',), 'float', 'linear'),
    (('a=u,v',), 'string', 'linear'),
    (('a=log:0.1:1:2',), 'float', 'log'),
    (('a=1,2', 'b=log:1:2'), 'float', 'log'),
    (('a=u,v', 'b=u,v', 'c=u,v'), 'string', 'linear'),
  ],
)
@pytest.mark.parametrize('value', [2.0, NAN, None, 1e38])
def test_every_kind_of_sweep_has_a_picture(
  entries, flag_type, xscale, value, axes, tmp_path
):
  plain = space(*entries, flag_type=flag_type)
  cells = [
    results.Result({d.name: d.examples[i] for d in plain.dimensions}, {0: v})
    for i, v in enumerate((1.0, value))
  ]
  for criterion in (ACCURACY, LOSS):
    plot.draw(plain, cells, criterion, tmp_path / 'sweep.png')
    assert axes().get_xscale() == xscale
  assert (tmp_path / 'sweep.png').stat().st_size > 5000
