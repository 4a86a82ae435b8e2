"""pfl-research 0.6 with PyTorch: python pfl_torch.py JOB PROCESSES [RANK].

Granqvist et al. 2024, "pfl-research: simulation framework for accelerating
research in Private Federated Learning", arXiv:2404.06430. Several processes
share a round through torch.distributed, one thread each, as its authors run it.
"""

import os
import socket
import subprocess
import sys

import protocol


def _start_followers(job_path, processes):
  """Starts the other ranks; returns them, having set this process up as 0."""
  if processes == 1:
    return []
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  addresses = [f'localhost:{port}'] * processes
  os.environ['PFL_WORKER_ADDRESSES'] = ','.join(addresses)
  followers = []
  for rank in range(1, processes):
    followers.append(
      subprocess.Popen(
        [sys.executable, __file__, job_path, str(processes), str(rank)],
        env={**os.environ, 'PFL_WORKER_RANK': str(rank)},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
      )
    )
  os.environ['PFL_WORKER_RANK'] = '0'
  return followers


def _postprocessors(job):
  from pfl.aggregate import weighting
  from pfl.privacy import gaussian_mechanism, privacy_mechanism

  if not job['private']:
    return [weighting.WeightByDatapoints()]
  mechanism = gaussian_mechanism.GaussianMechanism(
    job['clip'], job['noise_multiplier']
  )
  return [privacy_mechanism.CentrallyAppliedPrivacyMechanism(mechanism)]


def _dataset(clients):
  from pfl.data import federated_dataset, pytorch, sampling

  # As many users as a cohort has: each takes part in every round.
  users = {
    str(i): pytorch.PyTorchTensorDataset(client, user_id=str(i))
    for i, client in enumerate(clients)
  }
  sampler = sampling.get_user_sampler('minimize_reuse', list(users))
  return federated_dataset.FederatedDataset(users.get, sampler)


def _run(job, backend, model, steps):
  """Trains, a round whenever `steps` yields."""
  from pfl.algorithm import base, federated_averaging
  from pfl.callback.base import TrainingProcessCallback
  from pfl.hyperparam import NNTrainHyperParams
  from pfl.metrics import Metrics

  class Step(TrainingProcessCallback):
    def after_central_iteration(
      self, aggregate_metrics, model, *, central_iteration
    ):
      return next(steps, 'stop') == 'stop', Metrics()

  algorithm = federated_averaging.FederatedAveraging()
  # Iteration 0 would evaluate before and after training.
  algorithm._current_central_iteration = 1
  next(steps)
  algorithm.run(
    base.NNAlgorithmParams(
      central_num_iterations=10**9,
      evaluation_frequency=10**9,
      train_cohort_size=job['clients'],
      val_cohort_size=0,
    ),
    backend,
    model,
    NNTrainHyperParams(
      local_batch_size=job['batch_size'],
      local_num_epochs=1,
      local_learning_rate=job['client_learning_rate'],
    ),
    callbacks=[Step()],
    send_metrics_to_platform=False,
  )


def main(job_path, processes, rank=0):
  """Serves rounds."""
  out = protocol.private_stdout()
  followers = [] if rank else _start_followers(job_path, processes)
  # Imported late: pfl reads the addresses when it is imported.
  import numpy as np
  import torch
  import torch_models
  from pfl.aggregate import simulate
  from pfl.model import pytorch

  torch.set_num_threads(1 if processes > 1 else len(os.sched_getaffinity(0)))
  np.random.seed(1)
  job, x, y, weights = protocol.load_job(job_path)
  module = torch_models.build(job, weights)
  model = pytorch.PyTorchModel(
    module,
    local_optimizer_create=torch.optim.SGD,
    central_optimizer=torch.optim.SGD(
      module.parameters(), lr=job['server_learning_rate']
    ),
  )
  data = _dataset(torch_models.tensors(job, x, y))
  backend = simulate.SimulatedBackend(
    data, data, postprocessors=_postprocessors(job)
  )
  server = protocol.Server(out, module.dump, followers)
  _run(job, backend, model, server.rounds())


if __name__ == '__main__':
  main(sys.argv[1], *map(int, sys.argv[2:]))
