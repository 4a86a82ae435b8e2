"""Each rule gives what a loop over the clients gives, with and without XLA."""

import functools
import importlib

import numpy as np
import pytest
import tensorflow as tf

from models import emnist
from research.runtime import pfor_rules

pfor = importlib.import_module('tensorflow.python.ops.parallel_for.pfor')

CLIENTS = 4
STEPS = tf.constant([0, 3, 1, 5])
EXPLICIT = [[0, 0], [1, 2], [0, 1], [0, 0]]

both = pytest.mark.parametrize('jit', [False, True], ids=['kernels', 'xla'])


@pytest.fixture(autouse=True)
def registered():
  before = dict(pfor._pfor_converter_registry)
  pfor_rules.register()
  yield
  pfor._pfor_converter_registry.clear()
  pfor._pfor_converter_registry.update(before)


def normal(*shape, dtype=np.float64):
  rng = np.random.default_rng(list(shape))
  return tf.constant(rng.normal(size=shape).astype(dtype))


def integers(limit, *shape):
  rng = np.random.default_rng([limit, *shape])
  return tf.constant(rng.integers(0, limit, shape).astype(np.int32))


def vectorised(function, jit):
  return tf.function(
    lambda stacked: tf.vectorized_map(
      function, stacked, fallback_to_while_loop=False
    ),
    jit_compile=jit,
    autograph=False,
  )


def compare(function, stacked, *, jit, tolerance=1e-12, reference_jit=False):
  """Asserts that the vectorised function gives what a loop gives."""
  one = tf.function(function, jit_compile=reference_jit, autograph=False)
  count = len(tf.nest.flatten(stacked)[0])
  each = [
    one(tf.nest.map_structure(lambda array: array[i], stacked))  # noqa: B023
    for i in range(count)
  ]
  expected = tf.nest.map_structure(lambda *rows: np.stack(rows), *each)
  actual = vectorised(function, jit)(stacked)
  tf.nest.assert_same_structure(actual, expected)
  for got, wanted in zip(
    tf.nest.flatten(actual), tf.nest.flatten(expected), strict=True
  ):
    scale = max(1.0, np.abs(wanted.astype(float)).max(initial=0))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * scale)


def with_gradient(function):
  """Returns the value of `function(steps, x)` and its gradient in x."""

  def both_of(stacked):
    steps, x = stacked
    with tf.GradientTape() as tape:
      tape.watch(x)
      y = function(steps, x)
    return y, tape.gradient(y, x)

  return both_of


def op_types(function, stacked, jit=False):
  """Types of all operations of the vectorised function."""
  graph = vectorised(function, jit).get_concrete_function(stacked).graph
  graph_def = graph.as_graph_def(add_shapes=False)
  nodes = [*graph_def.node]
  for inner in graph_def.library.function:
    nodes += inner.node_def
  return [node.op for node in nodes]


def test_importing_registers_nothing():
  pfor._pfor_converter_registry.pop('L2Loss')
  before = dict(pfor._pfor_converter_registry)
  importlib.reload(pfor_rules)
  assert pfor._pfor_converter_registry == before


def test_registering_twice_is_registering_once():
  names = set(pfor._pfor_converter_registry)
  pfor_rules.register()
  assert set(pfor._pfor_converter_registry) == names


def test_missing_names_what_has_no_rule():
  names = ['MatMul', 'Where', 'L2Loss', 'Const', 'Range', 'DynamicPartition']
  assert pfor_rules.missing(names * 2) == ['DynamicPartition', 'Where']
  pfor._pfor_converter_registry.pop('L2Loss')
  assert 'L2Loss' in pfor_rules.missing(names)


@both
@pytest.mark.parametrize('shape', [(), (3,), (2, 3, 4)])
def test_l2_loss(shape, jit):
  function = with_gradient(lambda _, x: tf.nn.l2_loss(x))
  compare(function, (STEPS, normal(CLIENTS, *shape)), jit=jit)


@both
def test_branches_are_selected_by_client(jit):
  function = with_gradient(
    lambda steps, x: tf.cond(
      steps > 1, lambda: tf.exp(x * x), lambda: tf.sin(x) + 2
    )
  )
  compare(function, (STEPS, normal(CLIENTS, 2, 3)), jit=jit)


@both
def test_a_predicate_of_all_clients_runs_one_branch(jit):
  shared = tf.constant(1)
  function = with_gradient(
    lambda _, x: tf.cond(shared > 0, lambda: x * x, lambda: x + 1)
  )
  compare(function, (STEPS, normal(CLIENTS, 2)), jit=jit)


@both
def test_a_branch_not_taken_does_not_poison(jit):
  def function(stacked):
    steps, x = stacked
    return tf.cond(
      steps > 0,
      lambda: x / tf.cast(steps, x.dtype),
      lambda: (tf.zeros_like(x), x)[1],
    )

  compare(function, (STEPS, normal(CLIENTS, 2)), jit=jit)


def test_branches_of_unequal_shapes_are_refused():
  def function(stacked):
    steps, x = stacked
    return tf.cond(steps > 1, lambda: x[:1], lambda: x)

  with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
    vectorised(function, False)((STEPS, normal(CLIENTS, 3)))


@both
def test_each_client_leaves_its_loop_alone(jit):
  def function(stacked):
    steps, x = stacked
    return tf.while_loop(
      lambda i, *_: i < steps,
      lambda i, x, total: (
        i + 1,
        x * 1.5 + tf.cast(i, x.dtype),
        total + 1,
      ),
      (0, x, tf.constant(0.0)),
    )

  compare(function, (STEPS, normal(CLIENTS, 2, 3)), jit=jit)


@both
def test_a_shared_counter_slices_each_clients_batches(jit):
  def function(stacked):
    steps, batches = stacked
    weights = tf.zeros([3], batches.dtype)
    return tf.while_loop(
      lambda i, _: i < steps,
      lambda i, w: (i + 1, w - 0.1 * (w - tf.reduce_mean(batches[i], axis=0))),
      (0, weights),
    )

  # pfor can't slice by a counter that differs between clients.
  compare(function, (STEPS, normal(CLIENTS, 5, 2, 3)), jit=jit)


def test_data_in_the_state_of_a_loop_is_not_selected():
  def function(stacked):
    steps, data = stacked
    return tf.while_loop(
      lambda i, *_: i < steps,
      lambda i, data, total: (i + 1, data, total + data[i]),
      (0, data, data[0]),
    )

  stacked = (STEPS, normal(CLIENTS, 5, 3))
  compare(function, stacked, jit=False)
  # Of `i`, `total` and the loop's own counter.
  assert op_types(function, stacked).count('Select') == 3


@both
def test_nested_loops(jit):
  def function(stacked):
    steps, x = stacked

    def outer(i, x):
      _, x = tf.while_loop(
        lambda j, _: j < i + steps,
        lambda j, x: (j + 1, x * 0.9 + 1),
        (0, x),
      )
      return i + 1, x

    return tf.while_loop(
      lambda i, x: (i < steps) & (tf.reduce_sum(x) < 30), outer, (0, x)
    )

  compare(function, (STEPS, normal(CLIENTS, 2, 3)), jit=jit)


@both
def test_equal_initial_values_that_part_make_the_condition_part(jit):
  def function(stacked):
    _, x = stacked
    return tf.while_loop(
      lambda i, total, _: tf.reduce_sum(total) < 20.0,
      lambda i, total, last: (i + 1, total + last, tf.abs(x) + 0.1),
      (0, tf.zeros([3], x.dtype), tf.ones([3], x.dtype)),
    )

  compare(function, (STEPS, normal(CLIENTS, 3)), jit=jit)


@both
def test_a_client_that_left_does_not_come_back(jit):
  def function(stacked):
    steps, x = stacked
    # True again from the step after a client's last one.
    return tf.while_loop(
      lambda i, _: (i != steps) & (i < 7),
      lambda i, x: (i + 1, x * 1.5),
      (0, x),
    )

  compare(function, (STEPS, normal(CLIENTS, 3)), jit=jit)


@both
def test_a_client_that_left_does_not_poison(jit):
  def function(stacked):
    steps, x = stacked
    # One step more than a client's own divides by zero.
    return tf.while_loop(
      lambda i, _: i < steps,
      lambda i, x: (i + 1, x / tf.cast(steps - i, x.dtype)),
      (0, x),
    )

  compare(function, (STEPS, normal(CLIENTS, 3)), jit=jit)


def test_a_shape_that_grows_is_refused_where_clients_stop_alone():
  def function(stacked):
    steps, x = stacked
    return tf.while_loop(
      lambda i, _: i < steps,
      lambda i, x: (i + 1, tf.concat([x, x], axis=0)),
      (0, x),
      shape_invariants=(tf.TensorShape([]), tf.TensorShape([None])),
    )

  with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
    vectorised(function, False)((STEPS, normal(CLIENTS, 1)))


@both
def test_a_loop_of_equal_length_selects_nothing(jit):
  def function(stacked):
    _, x = stacked
    return tf.while_loop(
      lambda i, _: i < 4, lambda i, y: (i + 1, y + x[i % 2]), (0, x[0] * 0)
    )

  stacked = (STEPS, normal(CLIENTS, 2, 3))
  compare(function, stacked, jit=jit)
  assert 'Select' not in op_types(function, stacked)


def test_a_loop_of_equal_length_has_a_gradient():
  function = with_gradient(
    lambda _, x: tf.while_loop(
      lambda i, _: i < 3,
      lambda i, x: (i + 1, tf.sin(x * 1.5)),
      (0, x),
    )[1]
  )
  compare(function, (STEPS, normal(CLIENTS, 2)), jit=False)


def test_lists_in_a_loop_that_clients_leave_alone_go_to_tensorflow(monkeypatch):
  def refuse(pfor_input):
    raise NotImplementedError('the rule of TensorFlow')

  monkeypatch.setattr(pfor, '_convert_while', refuse)
  function = with_gradient(
    lambda steps, x: tf.while_loop(
      lambda i, _: i < steps, lambda i, x: (i + 1, tf.sin(x)), (0, x)
    )[1]
  )
  with pytest.raises(NotImplementedError, match='the rule of TensorFlow'):
    vectorised(function, False)((STEPS, normal(CLIENTS, 2)))


def convolve(stacked, *, convolution, shared):
  """A convolution and its two gradients."""
  images = stacked.get('images', shared.get('images'))
  filters = stacked.get('filters', shared.get('filters'))
  with tf.GradientTape() as tape:
    tape.watch([images, filters])
    outputs = convolution(images, filters)
    # The gradient of the output is the client's own, as with its own labels.
    loss = tf.reduce_sum(tf.sin(outputs) * stacked['scale'])
  return outputs, *tape.gradient(loss, [images, filters])


def convolution_case(convolution, filter_shape, own, image_shape=(2, 7, 6, 4)):
  """The function and its arguments; `own` differs between clients."""
  operands = {
    'images': normal(CLIENTS, *image_shape),
    'filters': normal(CLIENTS, *filter_shape),
  }
  stacked = {name: operands[name] for name in own}
  stacked['scale'] = normal(CLIENTS, 1)
  shared = {name: operand[0] for name, operand in operands.items()}
  function = functools.partial(convolve, convolution=convolution, shared=shared)
  return function, stacked


every_operand = pytest.mark.parametrize(
  'own',
  [('images', 'filters'), ('filters',), ('images',), ()],
  ids=['both', 'filters', 'images', 'none'],
)


@both
@every_operand
@pytest.mark.parametrize(
  'strides, padding', [(1, 'SAME'), ([2, 1], 'VALID'), (2, EXPLICIT)]
)
def test_convolution(own, strides, padding, jit):
  function, stacked = convolution_case(
    functools.partial(tf.nn.conv2d, strides=strides, padding=padding),
    (3, 2, 4, 6),
    own,
  )
  compare(function, stacked, jit=jit)


# TensorFlow's CPU kernels have none of these, or not their gradients.
@every_operand
@pytest.mark.parametrize(
  'options, channels',
  [
    ({'dilations': 2}, 4),
    ({}, 2),
    ({'data_format': 'NCHW'}, 4),
  ],
  ids=['dilated', 'grouped', 'channels_first'],
)
def test_convolution_that_only_xla_has(own, options, channels):
  first = 'data_format' in options
  function, stacked = convolution_case(
    functools.partial(tf.nn.conv2d, strides=1, padding='SAME', **options),
    (3, 2, channels, 6),
    own,
    image_shape=(2, 4, 7, 6) if first else (2, 7, 6, 4),
  )
  compare(function, stacked, jit=True, reference_jit=True)


@both
@every_operand
@pytest.mark.parametrize(
  'strides, padding', [(1, 'SAME'), (2, 'VALID'), (2, EXPLICIT)]
)
def test_depthwise_convolution(own, strides, padding, jit):
  def convolution(images, filters):
    return tf.nn.depthwise_conv2d(
      images, filters, [1, strides, strides, 1], padding
    )

  function, stacked = convolution_case(convolution, (3, 2, 4, 2), own)
  compare(function, stacked, jit=jit)


@pytest.mark.parametrize(
  'grouped, jit, loops',
  [
    (None, False, True),
    (None, True, False),
    (True, False, False),
    (False, True, True),
  ],
)
def test_convolutions_are_grouped_where_they_can_be(grouped, jit, loops):
  pfor_rules.register(grouped_convolution=grouped)
  function, stacked = convolution_case(
    functools.partial(tf.nn.conv2d, strides=1, padding='SAME'),
    (3, 2, 4, 6),
    ('images', 'filters'),
  )
  types = op_types(function, stacked, jit)
  assert ('While' in types or 'StatelessWhile' in types) == loops


def test_a_loop_around_convolutions_gives_equal_results_in_xla():
  pfor_rules.register(grouped_convolution=False)
  function, stacked = convolution_case(
    functools.partial(tf.nn.conv2d, strides=1, padding='SAME'),
    (3, 2, 4, 6),
    ('images', 'filters'),
  )
  compare(function, stacked, jit=True)


@both
def test_convolutions_inside_a_loop_that_clients_leave_alone(jit):
  def function(stacked):
    steps, images, filters = stacked

    def step(i, filters):
      with tf.GradientTape() as tape:
        tape.watch(filters)
        outputs = tf.nn.conv2d(images, filters, 1, 'SAME')
        loss = tf.nn.l2_loss(tf.sin(outputs))
      return i + 1, filters - 0.01 * tape.gradient(loss, filters)

    return tf.while_loop(lambda i, _: i < steps, step, (0, filters))

  stacked = (STEPS, normal(CLIENTS, 2, 5, 5, 2), normal(CLIENTS, 3, 3, 2, 2))
  compare(function, stacked, jit=jit)


ROWS = integers(8, CLIENTS, 5)
TABLE = normal(CLIENTS, 8, 3)
ELEMENTWISE = {
  'ones_like': lambda rows, table: tf.ones_like(table),
  'top_k': lambda rows, table: tf.math.top_k(table, 2),
  'in_top_k': lambda rows, table: tf.math.in_top_k(
    rows % 3, tf.cast(table[:5], tf.float32), 2
  ),
  'scatter_nd': lambda rows, table: tf.scatter_nd(
    rows[:, None], table[:5], [8, 3]
  ),
  'scatter_nd_int64': lambda rows, table: tf.scatter_nd(
    tf.cast(rows, tf.int64)[:, None], table[:5], [8, 3]
  ),
  'scatter_shared': lambda rows, table: tf.scatter_nd(
    [[1], [1], [4]], table[:3], [8, 3]
  ),
  'scatter_add': lambda rows, table: tf.tensor_scatter_nd_add(
    table, rows[:, None], table[:5]
  ),
  'scatter_sub': lambda rows, table: tf.tensor_scatter_nd_sub(
    tf.ones([8, 3], table.dtype), rows[:, None], table[:5]
  ),
}


@both
@pytest.mark.parametrize('name', ELEMENTWISE)
def test_other_operations(name, jit):
  compare(lambda own: ELEMENTWISE[name](*own), (ROWS, TABLE), jit=jit)


@pytest.mark.parametrize(
  'draw',
  [
    tf.random.stateless_uniform,
    tf.random.stateless_normal,
    tf.random.stateless_truncated_normal,
    functools.partial(
      tf.random.stateless_uniform, minval=0, maxval=9, dtype=tf.int32
    ),
    functools.partial(
      tf.random.stateless_uniform, minval=None, maxval=None, dtype=tf.int32
    ),
  ],
)
def test_random_numbers_follow_from_each_clients_seed(draw):
  compare(
    lambda own: draw([6], tf.stack([own[0], 7])), (STEPS, STEPS), jit=False
  )


def build_step(name, side, channels, batch_size=4):
  """A training step of a Keras model as a function of weights and batch.

  Traced in a graph of its own, with placeholders in place of the variables, and
  imported wherever it is called.
  """
  model = functools.partial(
    emnist.build, name, input_shape=(side, side, channels), num_classes=5
  )
  weights = [variable.numpy() for variable in model(seed=1).variables]
  with tf.Graph().as_default() as graph:
    placeholder = tf.compat.v1.placeholder
    variables = [placeholder(tf.float32, value.shape) for value in weights]
    x = placeholder(tf.float32, [batch_size, side, side, channels])
    y = placeholder(tf.int32, [batch_size])
    pending = iter(variables)
    with tf.variable_creator_scope(lambda _, **kwargs: next(pending)):
      keras_model = model(seed=1)
      with tf.GradientTape() as tape:
        tape.watch(variables)
        logits = keras_model(x, training=True)
        if name == 'autoencoder':
          loss = tf.reduce_mean(tf.keras.losses.mean_squared_error(x, logits))
        else:
          loss = tf.reduce_mean(
            tf.keras.losses.sparse_categorical_crossentropy(
              y, logits, from_logits=True
            )
          )
    clipped, norm = tf.clip_by_global_norm(tape.gradient(loss, variables), 1.0)
    updated = [v - 0.1 * g for v, g in zip(variables, clipped, strict=True)]
    correct = tf.keras.metrics.sparse_categorical_accuracy(
      y, tf.reshape(logits, [batch_size, -1])
    )
    fetches = [loss, norm, correct, *updated]
  graph_def = graph.as_graph_def()
  feeds = [*variables, x, y]
  values = [
    np.stack([value + 0.02 * normal(*value.shape) * i for i in range(3)])
    for value in weights
  ]
  batches = normal(3, *x.shape, dtype=np.float32)
  stacked = [*values, batches, integers(5, 3, batch_size)]
  stacked = [tf.cast(v, f.dtype) for v, f in zip(stacked, feeds, strict=True)]

  def step(arguments):
    return tf.graph_util.import_graph_def(
      graph_def,
      input_map={f.name: v for f, v in zip(feeds, arguments, strict=True)},
      return_elements=[fetch.name for fetch in fetches],
    )

  return step, stacked, {node.op for node in graph_def.node}


SIDES = {'lenet5': 12, 'resnet_gn': 4}
SLOW = ('resnet_gn', 'resnet18_gn')


@pytest.mark.parametrize(
  'name, jit',
  [
    pytest.param(name, jit, marks=[pytest.mark.slow] if name in SLOW else [])
    for name in emnist.MODELS
    for jit in (False, True)
  ],
)
def test_a_training_step_of_every_model(name, jit):
  channels = 3 if name.startswith('resnet') else 1
  step, stacked, types = build_step(name, SIDES.get(name, 8), channels)
  assert pfor_rules.missing(types) == []
  compare(step, stacked, jit=jit, tolerance=3e-6)


def normalise(layer, x, *weights):
  """Calls a fresh layer of Keras with tensors in place of its variables."""
  pending = iter(weights)
  with tf.variable_creator_scope(lambda _, **kwargs: next(pending)):
    layer.build(x.shape)
  return layer.call(x)


@both
@pytest.mark.parametrize(
  'build_layer',
  [
    tf.keras.layers.LayerNormalization,
    functools.partial(tf.keras.layers.GroupNormalization, 2),
  ],
)
def test_normalisation(build_layer, jit):
  def function(stacked):
    with tf.GradientTape() as tape:
      tape.watch(stacked)
      loss = tf.nn.l2_loss(tf.sin(normalise(build_layer(), *stacked)))
    return loss, tape.gradient(loss, stacked)

  stacked = [
    normal(CLIENTS, *shape, dtype=np.float32) for shape in [(3, 5, 4), (4,)]
  ]
  compare(function, (*stacked, stacked[1] + 1), jit=jit, tolerance=3e-6)


def transformer_step(stacked):
  """One step of SGD on a transformer block with an embedding."""
  weights, tokens, mask, labels = stacked
  visible = tf.cast(mask, tf.float32)

  def norm_of(x):
    layer = tf.keras.layers.LayerNormalization()
    return normalise(layer, x, weights['gain'], weights['bias'])

  with tf.GradientTape() as tape:
    tape.watch(weights)
    x = tf.gather(weights['tokens'], tokens) + weights['positions']
    x = norm_of(x)
    q, k, v = tf.unstack(tf.einsum('btd,dchk->cbthk', x, weights['qkv']))
    scores = tf.einsum('bthk,bshk->bhts', q, k) / 2
    scores += tf.where(mask, 0.0, -1e9)[:, None, None, :]
    heads = tf.einsum('bhts,bshk->bthk', tf.nn.softmax(scores), v)
    x += tf.einsum('bthk,hkd->btd', heads, weights['out'])
    hidden = tf.nn.gelu(tf.tensordot(x, weights['up'], 1))
    x += tf.matmul(hidden, weights['down'])
    x = tf.cumsum(norm_of(x), axis=1)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
      labels, tf.matmul(x, weights['head'])
    )
    loss = tf.reduce_sum(visible * losses) / tf.reduce_sum(visible)
  gradients = tape.gradient(loss, weights)
  assert isinstance(gradients['tokens'], tf.IndexedSlices)
  dense = {name: tf.convert_to_tensor(g) for name, g in gradients.items()}
  clipped, norm = tf.clip_by_global_norm(tf.nest.flatten(dense), 0.5)
  finite = tf.math.is_finite(norm)
  updates = tf.cond(
    finite, lambda: clipped, lambda: [tf.zeros_like(g) for g in clipped]
  )
  return (
    loss,
    norm,
    [
      w - 0.1 * u
      for w, u in zip(tf.nest.flatten(weights), updates, strict=True)
    ],
  )


@both
def test_a_training_step_of_a_transformer(jit):
  shapes = {
    'tokens': (11, 8),
    'positions': (5, 8),
    'gain': (8,),
    'bias': (8,),
    'qkv': (8, 3, 2, 4),
    'out': (2, 4, 8),
    'up': (8, 16),
    'down': (16, 8),
    'head': (8, 11),
  }
  weights = {
    name: normal(CLIENTS, *shape, dtype=np.float32) * 0.3
    for name, shape in shapes.items()
  }
  tokens, labels = integers(11, CLIENTS, 2, 5), integers(11, CLIENTS, 2, 5)
  stacked = (weights, tokens, tokens > 2, labels)
  compare(transformer_step, stacked, jit=jit, tolerance=3e-6)
