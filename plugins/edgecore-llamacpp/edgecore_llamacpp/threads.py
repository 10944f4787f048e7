"""How many threads a call may use when nobody said: what affinity and the cgroup's quota allow.

More threads than that is not slower by a little: ggml's threads spin while they wait for each other.
"""

from __future__ import annotations

import os
from pathlib import Path

from edgecore.contract import BadRequest

QUOTA = Path("/sys/fs/cgroup/cpu.max")


MOST = 512
"""What ggml is built for (GGML_MAX_N_THREADS); tens of thousands end the process."""


def chosen_threads(asked: int | None) -> int:
    """What was asked for, else `usable_threads`. Raises `BadRequest`."""
    if asked is not None and not 1 <= asked <= MOST:
        raise BadRequest(f"{asked} threads", supported=f"1 to {MOST} threads")
    return asked or usable_threads()


def usable_threads() -> int:
    """At least 1."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    try:
        quota, period = QUOTA.read_text().split()
        count = min(count, round(int(quota) / int(period)))
    except (OSError, ValueError):  # no cgroup v2 here, or "max": no limit
        pass
    return max(1, count)
