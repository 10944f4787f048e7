"""What a process may use here, told to core and plugins alike: threads, memory, a folder for what can be made again.

One too many threads costs dearly: runtimes spin, and a throttled spinner stalls the rest. os.cpu_count() and total
memory tell the host's, not the container's.
"""

from __future__ import annotations

import os
from pathlib import Path

from edgecore.contract.cgroup import ROOT, cpu_quota, memory_limit


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


def usable_memory(root: Path = ROOT) -> tuple[int, int]:
    """Bytes in all, and free now without swapping: physical memory, or the container's limit where that is less."""
    import psutil

    memory = psutil.virtual_memory()
    limit = memory_limit(root)
    total = int(memory.total if limit is None else min(memory.total, limit))
    return total, min(int(memory.available), total)


def home() -> Path:
    """`$EDGECORE_HOME`, else the user's cache folder for edgecore. May not exist yet; read anew at each call."""
    named = os.environ.get("EDGECORE_HOME")
    if named:
        return Path(named).expanduser().absolute()
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("edgecore", appauthor=False))


def cache_folder(backend: str) -> Path:
    """Where a backend's runtime may keep what it can make again, compiled kernels say. May not exist yet."""
    return home() / "runtimes" / backend
