"""What the figures hold, read from the figure objects before they are saved."""

import collections

import numpy as np
import pytest
from PIL import Image

from datasets import federated_data
from research.training import plots


@pytest.fixture
def figures(monkeypatch):
  made = []
  save = plots.save
  monkeypatch.setattr(
    plots, 'save', lambda fig, path: (made.append(fig), save(fig, path))[1]
  )
  return made


def _split(labels, loads=None):
  labels = collections.OrderedDict(labels)

  def load(client_id):
    if loads is not None:
      loads.append(client_id)
    y = np.array(labels[client_id], np.int32)
    return {'x': np.zeros((len(y), 1), np.uint8), 'y': y}

  return federated_data.Split({c: len(y) for c, y in labels.items()}, load)


_ROWS = [
  {
    'round': r,
    'train_loss': 2.0 / r,
    'test_loss': 3.0 / r if r % 2 == 0 else None,
    'train_accuracy': 1 - 0.5 / r,
    'validation_accuracy': float('nan') if r == 1 else 0.5,
    'clients': 10,
  }
  for r in range(1, 6)
]


def test_curves_hold_the_rows_without_blanks(tmp_path, figures):
  paths = plots.learning_curves(_ROWS, tmp_path / 'plots')

  assert [path.name for path in paths] == ['loss.png', 'accuracy.png']
  for path in paths:
    assert min(Image.open(path).size) > 500
  loss, accuracy = (fig.axes[0] for fig in figures)
  train, test = loss.get_lines()
  np.testing.assert_array_equal(train.get_xdata(), [1, 2, 3, 4, 5])
  np.testing.assert_array_equal(test.get_xydata(), [[2, 1.5], [4, 0.75]])
  assert test.get_label() == 'test: last 0.75, best 0.75 (round 4)'
  train, validation = accuracy.get_lines()
  np.testing.assert_array_equal(validation.get_xdata(), [2, 3, 4, 5])
  assert train.get_label() == 'train: last 90.00%, best 90.00% (round 5)'
  assert accuracy.get_ylabel() == 'accuracy (%)'
  assert loss.get_xlabel() == 'round'


def test_metric_without_values_has_no_plot(tmp_path):
  rows = [{'round': 1, 'loss': 1.0, 'test_accuracy': None}]
  paths = plots.learning_curves(rows, tmp_path)
  assert [path.name for path in paths] == ['loss.png']
  assert plots.learning_curves([], tmp_path) == []


def test_diverged_loss_is_drawn(tmp_path, figures):
  rows = [{'round': r, 'loss': 10.0**r} for r in range(-5, 300, 40)]
  rows.append({'round': 300, 'loss': float('inf')})
  plots.learning_curves(rows, tmp_path)
  assert figures[0].axes[0].get_yscale() == 'log'


def test_centroids_are_drawn_in_rows_of_ten(tmp_path, figures):
  images = np.random.default_rng(0).random([12, 4, 5, 1])
  path = plots.centroids(images, tmp_path / 'centroids.png')

  axes = figures[0].axes
  shown = [a for a in axes if a.images]
  assert len(shown) == 12 and len(axes) == 20
  np.testing.assert_allclose(
    shown[11].images[0].get_array(), images[11, ..., 0]
  )
  assert shown[11].get_title() == '11'
  assert min(Image.open(path).size) > 200


def test_centroids_in_colour(tmp_path, figures):
  images = np.random.default_rng(0).normal(size=[2, 4, 4, 3])
  plots.centroids(images, tmp_path / 'centroids.png')
  drawn = figures[0].axes[1].images[0].get_array()
  np.testing.assert_allclose(drawn, np.clip(images[1], 0, 1))


def test_heat_map_holds_the_shares(tmp_path, figures):
  split = _split({'a': [0, 0, 0, 2], 'b': [], 'c': [1]})
  path = plots.label_histogram(split, 3, tmp_path / 'labels.png')

  heat, bars = figures[0].axes[:2]
  np.testing.assert_array_equal(
    heat.images[0].get_array(), [[75, 0, 25], [0, 0, 0], [0, 100, 0]]
  )
  assert [bar.get_width() for bar in bars.patches] == [4, 0, 1]
  assert figures[0].get_suptitle() == 'Labels of all 3 clients'
  assert min(Image.open(path).size) > 300


def test_many_clients_are_sampled_and_only_those_are_loaded(tmp_path, figures):
  loads = []
  split = _split({f'{i:04d}': [i % 62] for i in range(3400)}, loads)
  plots.label_histogram(split, 62, tmp_path / 'labels.png')

  assert len(loads) == len(set(loads)) == 30
  assert (loads[0], loads[-1]) == ('0000', '3399')
  assert np.ptp(np.diff([int(i) for i in loads])) <= 1
  assert figures[0].get_suptitle() == (
    'Labels of 30 evenly spaced of 3,400 clients'
  )


@pytest.mark.parametrize(
  'sizes', [[600] * 100, [0, 3, 50, 120, 130], range(1, 3401), [0]]
)
def test_every_client_is_in_one_bar(tmp_path, figures, sizes):
  loads = []
  split = _split({f'{i}': [0] * n for i, n in enumerate(sizes)}, loads)
  plots.examples_per_client(split, tmp_path / 'sizes.png')

  axes = figures[0].axes[0]
  bars = axes.patches
  assert sum(bar.get_height() for bar in bars) == len(sizes)
  assert len(bars) <= 40
  assert len({round(bar.get_width(), 6) for bar in bars}) == 1
  assert bars[0].get_width() == pytest.approx(round(bars[0].get_width()))
  mean = axes.get_lines()[0].get_xdata()[0]
  assert mean == pytest.approx(np.mean(list(sizes)))
  assert loads == []


def test_equal_rows_give_equal_files(tmp_path):
  for name in ('a', 'b'):
    plots.learning_curves(_ROWS, tmp_path / name)
  assert (tmp_path / 'a/loss.png').read_bytes() == (
    tmp_path / 'b/loss.png'
  ).read_bytes()
