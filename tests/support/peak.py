"""The most memory that a process has held, measured so that its parent's does not count.

Linux hands `ru_maxrss` on from the process that starts another one, so a small child of a large test run looks as
large as the run, and its own growth as nothing. The kernel's own high-water mark of the address space does not.
"""

from __future__ import annotations

import subprocess
import sys

_PEAK = """
def peak():
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) << 10
    except OSError:
        import resource, sys
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
"""


def run_measured(code: str, *arguments: object) -> str:
    """What `code` prints in a process of its own. It may call `peak()`: bytes, the most it has held until then."""
    command = [sys.executable, "-c", _PEAK + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.rstrip("\n")
