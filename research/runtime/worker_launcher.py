"""Becomes another program, which the kernel kills when its parent ends.

Run as `python worker_launcher.py PARENT_PID PROGRAM ARGUMENTS...`; the programs
are TFF's worker and the runs of a sweep. The death signal is set here rather
than in a hook between fork and exec, where a multithreaded parent may deadlock.
It is kept across exec.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
  parent, command = int(argv[1]), argv[2:]
  libc = ctypes.CDLL(None, use_errno=True)
  if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
    raise OSError(ctypes.get_errno(), 'prctl(PR_SET_PDEATHSIG) failed')
  # The parent may have died before the signal was armed.
  if os.getppid() != parent:
    sys.exit(1)
  os.execv(command[0], command)


if __name__ == '__main__':
  main(sys.argv)
