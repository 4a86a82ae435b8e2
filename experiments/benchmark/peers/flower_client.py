"""What Flower's actors run; a module, so that they can import it."""

import functools

import protocol
import torch
import torch_models
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

WEIGHT = 'num-examples'


@functools.cache
def load(job_path):
  """Returns the job, its model and its clients; each actor reads them once."""
  torch.set_num_threads(1)
  job, x, y, weights = protocol.load_job(job_path)
  model = torch_models.build(job, weights)
  return job, model, torch_models.tensors(job, x, y)


def train(message, context, job_path):
  """A client's training, in an actor."""
  job, model, clients = load(job_path)
  x, y = clients[int(context.node_config['partition-id'])]
  model.load_state_dict(message.content['arrays'].to_torch_state_dict())
  optimizer = torch.optim.SGD(
    model.parameters(), lr=job['client_learning_rate']
  )
  size = job['batch_size']
  for inputs, targets in zip(x.split(size), y.split(size), strict=True):
    optimizer.zero_grad()
    model.loss(inputs, targets).backward()
    optimizer.step()
  reply = RecordDict(
    {
      'arrays': ArrayRecord(model.state_dict()),
      'metrics': MetricRecord({WEIGHT: len(x)}),
    }
  )
  return Message(content=reply, reply_to=message)
