"""How the other frameworks are started, each in an environment of its own."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import numpy as np

from experiments.benchmark import bare, harness, workloads

_PEERS_DIRECTORY = pathlib.Path(__file__).parent / 'peers'


@dataclasses.dataclass(frozen=True)
class Peer:
  """A framework.

  Attributes:
    environment: Its environment is .venv-peer-ENVIRONMENT, its lock
      requirements/peer_ENVIRONMENT.txt.
    script: In `peers/`.
    arguments: After the job's path.
    torch: The version of PyTorch that pip adds; None is none. PyTorch's file
      for CPUs has another hash than the one with CUDA, so no lock has it.
    models: The models that it can run.
    private: Whether it has central DP.
  """

  environment: str
  script: str
  arguments: tuple[str, ...] = ()
  torch: str | None = None
  models: tuple[str, ...] = ('cnn', 'linear', 'wide', 'bert')
  private: bool = True


_TORCH = '2.13.0'
PEERS = {
  'peer_pfl_2': Peer('pfl', 'pfl_torch.py', ('2',), _TORCH),
  'peer_pfl_1': Peer('pfl', 'pfl_torch.py', ('1',), _TORCH),
  'peer_fedjax': Peer('fedjax', 'fedjax_jax.py', private=False),
  'peer_flower': Peer('flower', 'flower_torch.py', torch=_TORCH),
}


def _set_up(peer: Peer) -> pathlib.Path:
  """Makes the peer's environment, or finds it ready; returns its Python.

  Raises:
    subprocess.CalledProcessError: If something can't be installed.
  """
  name = f'.venv-peer-{peer.environment}'
  python = harness.ROOT / name / 'bin' / 'python'
  _run(['requirements/set_up.sh', name, f'peer_{peer.environment}'])
  probe = [python, '-c', 'import torch']
  if peer.torch and subprocess.run(probe, capture_output=True).returncode:
    pip = [python, '-m', 'pip', 'install', '--quiet']
    _run([*pip, '--disable-pip-version-check', f'torch=={peer.torch}'])
  return python


def _run(command) -> None:
  subprocess.run(
    command, cwd=harness.ROOT, check=True, capture_output=True, text=True
  )


def write_job(workload: workloads.Workload, path: pathlib.Path) -> None:
  """Writes what a peer has to do; `protocol.load_job` reads it."""
  job = dataclasses.asdict(workload) | {
    'client_learning_rate': workloads.CLIENT_LEARNING_RATE,
    'server_learning_rate': workloads.SERVER_LEARNING_RATE,
    'clip': workloads.CLIP,
    'noise_multiplier': workloads.NOISE_MULTIPLIER,
  }
  x, y = workload.arrays()
  weights = {
    f'weight_{i}': weight.numpy()
    for i, weight in enumerate(bare.initial_weights(workload))
  }
  np.savez(path, job=json.dumps(job), x=x, y=y, **weights)


def launches(
  workload: workloads.Workload, directory: pathlib.Path
) -> list[harness.Launch]:
  """Says how to start the peers that can run a workload.

  Args:
    workload: What is trained.
    directory: Gets the file with the data and the initial weights.

  Returns:
    One launch per peer; a peer that can't be installed is left out, with a line
    on standard error.
  """
  job, found = directory / 'job.npz', []
  write_job(workload, job)
  for name, peer in PEERS.items():
    if workload.model not in peer.models or workload.private > peer.private:
      continue
    try:
      python = _set_up(peer)
    except (subprocess.CalledProcessError, OSError) as error:
      lines = (getattr(error, 'stderr', '') or str(error)).strip().splitlines()
      print(f'{name} left out: {lines[-1]}', file=sys.stderr)
      continue
    script = _PEERS_DIRECTORY / peer.script
    command = (str(python), str(script), str(job), *peer.arguments)
    found.append(harness.Launch(name, command))
  return found
