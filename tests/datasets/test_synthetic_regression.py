"""Generated tables: their law, and that alpha and beta do what they say."""

import numpy as np
import pytest

from datasets import synthetic_regression as synthetic

CONFIG = synthetic.Config(
  clients=4, features=3, examples=4_000, noise=0.5, alpha=1.0, seed=3
)


def solve(split, client):
  x, y = split.client(client).values()
  z = np.c_[x, np.ones(len(x))].astype(np.float64)
  weights, *_ = np.linalg.lstsq(z, y.astype(np.float64), rcond=None)
  return weights, np.std(y - z @ weights)


def test_each_clients_best_weights_are_its_true_ones():
  data = synthetic.load(CONFIG)
  truth = synthetic.true_weights(CONFIG)
  for k, client in enumerate(data.train.client_ids):
    weights, noise = solve(data.train, client)
    # Five standard errors 0.5 / sqrt(2,000): false alarm below 1e-5 in all.
    np.testing.assert_allclose(weights, truth[k], atol=0.056)
    assert 0.45 < noise < 0.55


def test_alpha_spreads_weights_and_zero_makes_them_equal():
  def spread(alpha):
    many = synthetic.Config(clients=200, features=20, alpha=alpha)
    weights = synthetic.true_weights(many)
    return (weights - weights.mean(axis=0)).std()

  assert spread(0) < 1e-12
  # 4,200 normal draws: five standard errors are 0.055 of the deviation.
  assert abs(spread(2.0) / 2 - 1) < 0.06


def test_beta_shifts_features():
  def centres(beta):
    data = synthetic.load(
      synthetic.Config(clients=40, features=20, beta=beta, examples=400)
    )
    means = [
      data.train.client(c)['x'].mean(axis=0) for c in data.train.client_ids
    ]
    return np.std(means)

  assert centres(0) < 0.08
  # 800 normal draws: five standard errors are 0.125 of the deviation.
  assert abs(centres(2.0) / 2 - 1) < 0.13


def test_sparse_truth_has_zero_weights_at_every_client():
  config = synthetic.Config(features=6, nonzero_features=2, alpha=1.0)
  weights = synthetic.true_weights(config)
  assert weights[:, :2].all() and not weights[:, 2:6].any()
  assert weights[:, -1].all()


def test_counts_have_the_mean_and_variance_of_poisson():
  config = synthetic.Config(clients=1, features=2, examples=20_000)
  data = synthetic.load(config, counts=True)
  x, y = data.train.pooled().values()
  weights = synthetic.true_weights(config)[0]
  mean = np.exp((x @ weights[:-1] + weights[-1]) / 3)
  assert (y >= 0).all() and (y == np.round(y)).all()
  # (y - mean) / sqrt(mean) has mean 0 and variance 1: five standard errors.
  z = (y - mean) / np.sqrt(mean)
  assert abs(z.mean()) < 5 / np.sqrt(len(y))
  assert abs(z.var() - 1) < 0.1


def test_the_same_seed_gives_the_same_data():
  one, same, other = (
    synthetic.load(synthetic.Config(seed=s)).content_sha256 for s in (0, 0, 1)
  )
  assert one == same != other


def test_fedprox_has_the_form_of_the_paper():
  data = synthetic.load_fedprox(1.0, 1.0, seed=5)
  sizes = [
    data.train.num_examples[c] + data.test.num_examples[c]
    for c in data.train.client_ids
  ]
  assert len(sizes) == 30 and min(sizes) >= 50
  assert data.train.element_spec['x'].shape == (60,)
  assert data.num_classes == 10
  client = max(data.train.client_ids, key=data.train.num_examples.get)
  x = data.train.client(client)['x']
  expected = np.arange(1, 61) ** -0.6
  # Five standard errors of a deviation are 5 / sqrt(2n) of it.
  np.testing.assert_allclose(
    x.std(axis=0), expected, rtol=5 / np.sqrt(2 * len(x))
  )


def test_fedprox_clients_are_more_unlike_with_beta_and_not_with_alpha():
  """A client's most common class has a larger share of its examples."""

  def share(beta):
    data = synthetic.load_fedprox(0.0, beta, clients=100)
    return np.mean(
      [
        np.bincount(data.train.client(c)['y']).max() / n
        for c, n in data.train.num_examples.items()
      ]
    )

  assert 0.2 < share(0.0) < share(3.0)
  one, other = (synthetic.load_fedprox(alpha, 1.0) for alpha in (0.0, 1.0))
  np.testing.assert_array_equal(
    one.train.pooled()['y'], other.train.pooled()['y']
  )


@pytest.mark.parametrize(
  'wrong',
  [{'clients': 0}, {'alpha': -1}, {'nonzero_features': 6}, {'noise': -0.1}],
)
def test_impossible_forms_are_refused(wrong):
  with pytest.raises(ValueError, match='must be'):
    synthetic.Config(**wrong)
