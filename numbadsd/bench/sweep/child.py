"""`python -m numbadsd.bench.sweep.child PARENT COMMAND ...`: a command that dies with its sweep.

The command runs in this process, as its console script would run it. Killing the sweep, however
hard, ends it: a point that goes on measuring would disturb those of the next sweep.
"""

import ctypes
import os
import signal
import sys
from importlib.metadata import distribution

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when the thread that started it is gone (Linux only)."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before the kernel was asked
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Run the command that the arguments name."""
    parent, name, *arguments = sys.argv[1:]
    die_with_parent(int(parent))
    scripts = distribution("numbadsd").entry_points.select(group="console_scripts", name=name)
    if not scripts:
        sys.exit(f"{name} is not installed with this numbadsd; install it again")
    sys.argv = [name, *arguments]
    next(iter(scripts)).load()()


if __name__ == "__main__":
    main()
