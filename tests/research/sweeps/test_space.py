import numpy as np
import pytest
from absl import flags

from research.sweeps import space as space_lib


def dimension(entry, flag_type='float'):
  return space_lib.typed(space_lib.parse([entry])[0], flag_type)


def space(*entries):
  return space_lib.Space(tuple(dimension(e) for e in entries))


@pytest.mark.parametrize(
  'entry, flag_type, expected',
  [
    ('lr=0.01,0.1,1', 'float', ('0.01', '0.1', '1')),
    ('lr=1e-2, .1,1.0', 'float', ('0.01', '0.1', '1')),
    ('n=1,10', 'int', ('1', '10')),
    ('opt=sgd,adam', 'string enum', ('sgd', 'adam')),
    # Ratios of 10, of the cube root of 1000, and of the square root of 10.
    ('lr=log:0.001:1:4', 'float', ('0.001', '0.01', '0.1', '1')),
    ('n=log:1:1000:4', 'int', ('1', '10', '100', '1000')),
    ('lr=log:0.1:1:3', 'float', ('0.1', '0.316228', '1')),
    ('lr=linear:0:0.9:4', 'float', ('0', '0.3', '0.6', '0.9')),
    # 1, 1.5, 2, 2.5, 3 as whole numbers, each once.
    ('n=linear:1:3:5', 'int', ('1', '2', '3')),
    ('lr=log:0.1:1', 'float', None),
  ],
)
def test_values_of_a_flag(entry, flag_type, expected):
  assert dimension(entry, flag_type).texts == expected


@pytest.mark.parametrize(
  'entry, message',
  [
    ('lr', 'not a flag name with its values'),
    ('--lr=1,2', 'not a flag name with its values'),
    ('=1,2', 'not a flag name with its values'),
    ('lr=', 'a value is empty'),
    ('lr=1,,2', 'a value is empty'),
    ('lr=1,1', 'a value comes twice'),
    ('lr=1,1.0', 'a value comes twice'),
    ('lr=log:1', 'from a number to a greater one|two numbers'),
    ('lr=log:a:1:3', 'two numbers and how many'),
    ('lr=log:0.1:1:x', 'two numbers and how many'),
    ('lr=log:0.1:1:3:4', 'from a number to a greater one'),
    ('lr=log:1:0.1:3', 'from a number to a greater one'),
    ('lr=log:0.1:inf:3', 'from a number to a greater one'),
    ('lr=log:0:1:3', 'a logarithmic range is above 0'),
    ('lr=linear:0:1:1', 'at least 2 values'),
  ],
)
def test_a_malformed_grid_says_what_would_be_right(entry, message):
  with pytest.raises(flags.IllegalFlagValueError, match=message) as error:
    dimension(entry)
  assert f'--grid={entry}' in str(error.value)
  assert 'NAME=log:0.001:1:4' in str(error.value)


def test_a_range_of_words_and_a_flag_given_twice_are_refused():
  with pytest.raises(flags.IllegalFlagValueError, match='takes no numbers'):
    dimension('opt=log:1:2:2', 'string enum')
  with pytest.raises(flags.IllegalFlagValueError, match='already swept'):
    space_lib.parse(['a=1,2', 'a=3'])
  with pytest.raises(flags.IllegalFlagValueError, match='--grid is missing'):
    space_lib.parse([])


def test_a_grid_is_the_product_with_the_last_flag_fastest():
  assert space('a=1,2', 'b=log:0.1:1:2').all_cells() == [
    {'a': '1', 'b': '0.1'},
    {'a': '1', 'b': '1'},
    {'a': '2', 'b': '0.1'},
    {'a': '2', 'b': '1'},
  ]
  with pytest.raises(flags.IllegalFlagValueError, match='number of values'):
    space('a=1,2', 'b=log:0.1:1').all_cells()
  assert space('a=1,2', 'b=0,1,2').size == 6
  assert space('a=1,2', 'b=log:0.1:1').size is None


def test_positions_and_values_are_inverse():
  log = dimension('lr=log:0.001:10')
  # Half-way from 1e-3 to 1e1 by ratio is 1e-1.
  assert log.value(0.5) == '0.1'
  assert log.position('0.1') == pytest.approx(0.5)
  assert (log.value(0.0), log.value(1.0)) == ('0.001', '10')
  linear = dimension('m=linear:-1:3')
  assert linear.value(0.25) == '0'
  assert linear.position('2') == pytest.approx(0.75)
  ranks = dimension('n=100,1,10', 'int')
  assert [ranks.position(t) for t in ('1', '10', '100')] == [0, 0.5, 1]


def test_draws_are_uniform_on_the_scale_and_inside_the_range():
  log = dimension('lr=log:0.001:10')
  rng = np.random.default_rng(0)
  draws = [float(log.draw(rng)) for _ in range(4000)]
  assert min(draws) >= 0.001 and max(draws) <= 10
  # A quarter in each decade; 5 standard deviations are 0.034 (false alarms:
  # 1e-6 for each decade).
  shares = np.histogram(np.log10(draws), [-3, -2, -1, 0, 1])[0] / 4000
  np.testing.assert_allclose(shares, 0.25, atol=0.034)


def test_words_are_as_far_apart_as_the_ends_of_a_range():
  both = space_lib.Space(
    (dimension('opt=sgd,adam,yogi', 'string enum'), dimension('m=linear:0:1'))
  )
  x = both.features(
    [
      {'opt': 'sgd', 'm': '0'},
      {'opt': 'yogi', 'm': '0'},
      {'opt': 'sgd', 'm': '1'},
    ]
  )
  assert np.linalg.norm(x[0] - x[1]) == pytest.approx(1)
  assert np.linalg.norm(x[0] - x[2]) == pytest.approx(1)


def test_neighbours_are_near_and_inside():
  near = space('lr=log:0.001:10')
  rng = np.random.default_rng(0)
  cells = [near.near({'lr': '10'}, rng) for _ in range(500)]
  positions = near.features(cells)[:, 0]
  assert positions.max() == 1.0
  # A normal distribution of deviation 0.1 cut off at its middle is, on average,
  # 0.1 / sqrt(2 pi) below; five standard errors are 0.013.
  assert np.mean(1 - positions) == pytest.approx(0.0399, abs=0.013)
