"""The benchmark's models in PyTorch; weights from and to TensorFlow."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class Model(nn.Module):
  """A model with the `loss` and `metrics` that pfl-research asks for.

  Its parameters come from arrays in TensorFlow's layout and are given back in
  it: `load` and `dump`.
  """

  regression = False

  def loss(self, x, y):
    """The mean loss of a batch."""
    outputs = self(x)
    if self.regression:
      return functional.mse_loss(outputs[:, 0], y)
    return functional.cross_entropy(outputs, y)

  def metrics(self, x, y):
    """None: the benchmark does not evaluate."""
    return {}


class Cnn(Model):
  """McMahan's CNN; images are [batch, 1, 28, 28]."""

  def __init__(self):
    super().__init__()
    self.conv_1 = nn.Conv2d(1, 32, 5, padding=2)
    self.conv_2 = nn.Conv2d(32, 64, 5, padding=2)
    self.dense = nn.Linear(3136, 512)
    self.logits = nn.Linear(512, 62)

  def forward(self, x):
    hidden = functional.max_pool2d(functional.relu(self.conv_1(x)), 2)
    hidden = functional.max_pool2d(functional.relu(self.conv_2(hidden)), 2)
    hidden = functional.relu(self.dense(hidden.flatten(1)))
    return self.logits(hidden)

  def load(self, weights):
    kernel_1, bias_1, kernel_2, bias_2, dense, dense_bias, out, out_bias = (
      weights
    )
    # TensorFlow flattens rows, columns, channels; PyTorch channels first.
    dense = dense.reshape(7, 7, 64, 512).transpose(3, 2, 0, 1).reshape(512, -1)
    _assign(self.conv_1, kernel_1.transpose(3, 2, 0, 1), bias_1)
    _assign(self.conv_2, kernel_2.transpose(3, 2, 0, 1), bias_2)
    _assign(self.dense, dense, dense_bias)
    _assign(self.logits, out.T, out_bias)

  def dump(self):
    dense, dense_bias = _arrays(self.dense)
    dense = dense.reshape(512, 64, 7, 7).transpose(2, 3, 1, 0).reshape(-1, 512)
    out, out_bias = _arrays(self.logits)
    weights = []
    for layer in (self.conv_1, self.conv_2):
      kernel, bias = _arrays(layer)
      weights += [kernel.transpose(2, 3, 1, 0), bias]
    return [*weights, dense, dense_bias, out.T, out_bias]


class Linear(Model):
  """Linear regression."""

  regression = True

  def __init__(self, inputs):
    super().__init__()
    self.output = nn.Linear(inputs, 1)

  def forward(self, x):
    return self.output(x)

  def load(self, weights):
    _assign(self.output, weights[0].T, weights[1])

  def dump(self):
    kernel, bias = _arrays(self.output)
    return [kernel.T, bias]


class Wide(Model):
  """A square layer whose outputs are averaged."""

  regression = True

  def __init__(self, inputs):
    super().__init__()
    self.hidden = nn.Linear(inputs, inputs, bias=False)

  def forward(self, x):
    return self.hidden(x).mean(-1, keepdim=True)

  def load(self, weights):
    _assign(self.hidden, weights[0].T)

  def dump(self):
    return [_arrays(self.hidden)[0].T]


class _Layer(nn.Module):
  """A layer of BERT with the normalisation after the sum."""

  def __init__(self, width, heads):
    super().__init__()
    self.heads = heads
    self.project = nn.Linear(width, 3 * width)
    self.output = nn.Linear(width, width)
    self.attention_norm = nn.LayerNorm(width, 1e-12)
    self.inner = nn.Linear(width, 4 * width)
    self.outer = nn.Linear(4 * width, width)
    self.norm = nn.LayerNorm(width, 1e-12)

  def forward(self, x):
    batch, length, width = x.shape
    shape = (batch, length, 3, self.heads, width // self.heads)
    query, key, value = self.project(x).view(shape).permute(2, 0, 3, 1, 4)
    mixed = functional.scaled_dot_product_attention(query, key, value)
    mixed = mixed.transpose(1, 2).reshape(batch, length, width)
    x = self.attention_norm(x + self.output(mixed))
    inner = functional.gelu(self.inner(x), approximate='tanh')
    return self.norm(x + self.outer(inner))


class Bert(Model):
  """BERT with two layers of width 128; tokens are [batch, 128]."""

  def __init__(self, vocabulary=30522, length=128, width=128):
    super().__init__()
    self.embedding = nn.Embedding(vocabulary, width)
    self.positions = nn.Parameter(torch.zeros(length, width))
    self.norm = nn.LayerNorm(width, 1e-12)
    self.layers = nn.ModuleList(_Layer(width, 2) for _ in range(2))
    self.pooler = nn.Linear(width, width)
    self.logits = nn.Linear(width, 2)

  def forward(self, x):
    hidden = self.norm(self.embedding(x) + self.positions)
    for layer in self.layers:
      hidden = layer(hidden)
    return self.logits(torch.tanh(self.pooler(hidden[:, 0])))

  def load(self, weights):
    weights = list(weights)

    def take(count):
      taken, weights[:count] = weights[:count], []
      return taken

    table, positions = take(2)
    _assign(self.embedding, table)
    self.positions.data.copy_(torch.from_numpy(positions))
    _assign(self.norm, *take(2))
    for layer in self.layers:
      width = table.shape[1]
      pairs = [
        (k.reshape(width, width).T, b.ravel()) for k, b in _pairs(take(6))
      ]
      kernels, biases = zip(*pairs, strict=True)
      _assign(layer.project, np.concatenate(kernels), np.concatenate(biases))
      kernel, bias = take(2)
      _assign(layer.output, kernel.reshape(width, width).T, bias)
      _assign(layer.attention_norm, *take(2))
      for dense in (layer.inner, layer.outer):
        kernel, bias = take(2)
        _assign(dense, kernel.T, bias)
      _assign(layer.norm, *take(2))
    for dense in (self.pooler, self.logits):
      kernel, bias = take(2)
      _assign(dense, kernel.T, bias)

  def dump(self):
    weights = [*_arrays(self.embedding), self.positions.detach().numpy()]
    weights += _arrays(self.norm)
    for layer in self.layers:
      width, heads = layer.output.out_features, layer.heads
      kernel, bias = _arrays(layer.project)
      for k, b in zip(np.split(kernel, 3), np.split(bias, 3), strict=True):
        weights += [k.T.reshape(width, heads, -1), b.reshape(heads, -1)]
      kernel, bias = _arrays(layer.output)
      weights += [kernel.T.reshape(heads, -1, width), bias]
      weights += _arrays(layer.attention_norm)
      weights += [*_transposed(layer.inner), *_transposed(layer.outer)]
      weights += _arrays(layer.norm)
    return [*weights, *_transposed(self.pooler), *_transposed(self.logits)]


def _pairs(values):
  return zip(values[::2], values[1::2], strict=True)


def _transposed(layer):
  kernel, bias = _arrays(layer)
  return [kernel.T, bias]


def _assign(layer, weight, bias=None):
  layer.weight.data.copy_(torch.from_numpy(np.ascontiguousarray(weight)))
  if bias is not None:
    layer.bias.data.copy_(torch.from_numpy(np.ascontiguousarray(bias)))


def _arrays(layer):
  return [parameter.detach().numpy() for parameter in layer.parameters()]


def build(job, weights):
  """Builds a job's model with the given weights."""
  model = {
    'cnn': Cnn,
    'linear': lambda: Linear(job['inputs']),
    'wide': lambda: Wide(job['inputs']),
    'bert': Bert,
  }[job['model']]()
  model.load(weights)
  return model


def tensors(job, x, y):
  """Returns each client's x and y as tensors that its model takes."""
  if job['model'] == 'cnn':
    x = x.transpose(0, 1, 4, 2, 3)
  dtype = torch.long if y.dtype == np.int32 else torch.float32
  inputs = torch.from_numpy(np.ascontiguousarray(x))
  if job['model'] == 'bert':
    inputs = inputs.long()
  return list(zip(inputs, torch.from_numpy(y).to(dtype), strict=True))
