"""Flower 1.41 with Ray and PyTorch: python flower_torch.py JOB.

Beutel et al. 2020, "Flower: A Friendly Federated Learning Research Framework",
arXiv:2007.14390. One Ray actor per core trains clients with one thread.
"""

import os
import pathlib
import sys

import protocol


def _strategy(job):
  import flower_client
  from flwr.serverapp import strategy

  fed_avg = strategy.FedAvg(
    fraction_train=1.0,
    fraction_evaluate=0.0,
    min_train_nodes=job['clients'],
    min_available_nodes=job['clients'],
    weighted_by_key=flower_client.WEIGHT,
  )
  if not job['private']:
    return fed_avg
  return strategy.DifferentialPrivacyServerSideFixedClipping(
    fed_avg, job['noise_multiplier'], job['clip'], job['clients']
  )


def main(job_path):
  """Serves rounds."""
  out = protocol.private_stdout()
  os.environ['FLWR_TELEMETRY_ENABLED'] = '0'
  os.environ['RAY_USAGE_STATS_ENABLED'] = '0'
  os.environ['PYTHONPATH'] = str(pathlib.Path(__file__).parent)
  import flower_client
  import ray
  from flwr import clientapp, serverapp, simulation
  from flwr.app import ArrayRecord

  job, model, _ = flower_client.load(job_path)
  server = protocol.Server(out, model.dump)
  steps = server.rounds()

  def after_round(unused_round, arrays):
    model.load_state_dict(arrays.to_torch_state_dict())
    if next(steps, 'stop') == 'stop':
      ray.shutdown()
      os._exit(0)

  server_app, client_app = serverapp.ServerApp(), clientapp.ClientApp()

  @server_app.main()
  def serve(grid, unused_context):
    _strategy(job).start(
      grid=grid,
      initial_arrays=ArrayRecord(model.state_dict()),
      num_rounds=10**9,
      evaluate_fn=after_round,
    )

  @client_app.train()
  def train(message, context):
    return flower_client.train(message, context, job_path)

  cores = len(os.sched_getaffinity(0))
  simulation.run_simulation(
    server_app,
    client_app,
    num_supernodes=job['clients'],
    backend_config={
      'client_resources': {'num_cpus': 1, 'num_gpus': 0.0},
      'init_args': {'num_cpus': cores},
    },
  )


if __name__ == '__main__':
  main(sys.argv[1])
