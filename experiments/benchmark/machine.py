"""What a benchmark ran on."""

import os
import pathlib
import platform
import time
from importlib import metadata
from typing import Any

import psutil

_PACKAGES = ('tensorflow', 'tensorflow-federated', 'keras', 'numpy')
_INSTRUCTIONS = ('avx2', 'avx512f', 'avx512_vnni', 'avx512_bf16', 'amx_bf16')


def describe() -> dict[str, Any]:
  """Processor, memory, versions, and how busy the machine is right now.

  Nothing in it names the machine or its user.
  """
  info = {}
  for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
    key, _, value = line.partition(':')
    info.setdefault(key.strip(), value.strip())
  instructions = set(info.get('flags', '').split())
  return {
    'processor': info.get('model name', platform.machine()),
    'cores': len(os.sched_getaffinity(0)),
    'instructions': [i for i in _INSTRUCTIONS if i in instructions],
    'memory_megabytes': round(psutil.virtual_memory().total / 1e6),
    'system': f'{platform.system()} {platform.release()}',
    'python': platform.python_version(),
    'packages': {name: metadata.version(name) for name in _PACKAGES},
    'load_before': os.getloadavg()[0],
    'date': time.strftime('%Y-%m-%d'),
  }
