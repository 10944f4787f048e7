"""How many threads pay off here. One too many costs dearly: runtimes spin, and a throttled spinner stalls the rest."""

from __future__ import annotations

import os
from pathlib import Path

from edgecore.machine.cgroup import ROOT, cpu_quota


def usable_threads(root: Path = ROOT) -> int:
    """Threads that this process can really run at once: its CPU affinity, cut to the control group's quota.

    A quota of 2.5 CPUs gives 2: a third thread would be throttled, and the other two would wait for it.
    """
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    quota = cpu_quota(root)
    return max(1, allowed if quota is None else min(allowed, int(quota)))
